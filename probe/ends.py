"""Both ends of a TCP connection, as they stand in its packets.

Takes and gives the bytes by which a reader of captures knows one direction of a connection: the
sender's address, the receiver's, then both ports, as RFC 791 (12 bytes) and RFC 8200 (36 bytes)
with RFC 9293 have them behind each other in a packet without options. People read "addr:port",
with brackets around IPv6.
"""

from __future__ import annotations

import struct
from ipaddress import IPv6Address, ip_address

from probe.wire import endpoint, parted


def mirrored(ends: bytes) -> bytes:
    """Those of the other direction."""
    size = (len(ends) - 4) // 2
    return ends[size : 2 * size] + ends[:size] + ends[-2:] + ends[-4:-2]


def named(ends: bytes) -> tuple[str, str]:
    """The sender and the receiver, as "addr:port" or "[addr]:port"."""
    size = (len(ends) - 4) // 2
    source, destination = struct.unpack_from("!HH", ends, 2 * size)
    return _named(ends[:size], source), _named(ends[size : 2 * size], destination)


def _named(address: bytes, port: int) -> str:
    if len(address) == 4:
        return f"{address[0]}.{address[1]}.{address[2]}.{address[3]}:{port}"
    return endpoint(str(IPv6Address(address)), port)


def ends_between(source: str, destination: str) -> bytes:
    """The ends of these names, which are of one family; scope ids are left out."""
    (sender, port), (receiver, to) = _packed(source), _packed(destination)
    return sender + receiver + struct.pack("!HH", port, to)


def _packed(name: str) -> tuple[bytes, int]:
    host, port = parted(name)
    return ip_address(host.partition("%")[0]).packed, port
