"""TCP segments to IP packets: what ``probe.packet`` reads, written.

Takes a :class:`~probe.packet.Segment`; gives the packet from its IP header on, with right lengths
and checksums. Source: RFC 791 and RFC 8200 (headers), RFC 9293 section 3.1 (the checksum and its
pseudo headers), RFC 1071 (how it is summed).
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_address

from probe.packet import SYN, Segment

MAX_PAYLOAD = 65_495  # bytes; what fits an IPv4 packet of 65,535, and the MSS that is announced
WINDOW = 65_535  # bytes; the most without a scale

_TCP = 6
_DONT_FRAGMENT = 0x4000
_MSS = struct.pack("!BBH", 2, 4, MAX_PAYLOAD)  # a SYN's only option


def ip_packet(segment: Segment) -> bytes:
    """The segment as an IP packet. Both ends are of one family; scope ids are left out."""
    source, source_port = _end(segment.source)
    destination, destination_port = _end(segment.destination)
    options = _MSS if segment.flags & SYN else b""
    header = struct.pack(
        "!HHIIBBHHH",
        source_port,
        destination_port,
        segment.seq,
        segment.ack,
        (20 + len(options)) // 4 << 4,
        segment.flags,
        WINDOW,
        0,
        0,
    )
    tcp = header + options + segment.payload
    pseudo = source + destination + struct.pack("!II", len(tcp), _TCP)  # the same sum in both
    tcp = tcp[:16] + _checksum(pseudo + tcp) + tcp[18:]
    if len(source) == 16:
        ip = struct.pack("!IHBB", 6 << 28, len(tcp), _TCP, segment.ttl) + source + destination
        return ip + tcp
    ip = struct.pack(
        "!BBHHHBBH",
        *(0x45, 0, 20 + len(tcp), segment.ip_id or 0, _DONT_FRAGMENT, segment.ttl, _TCP, 0),
    )
    ip += source + destination
    return ip[:10] + _checksum(ip) + ip[12:] + tcp


def _end(endpoint: str) -> tuple[bytes, int]:
    """The packed address and port of "addr:port" or "[addr]:port"."""
    host, _, port = endpoint.rpartition(":")
    address = ip_address(host.strip("[]").partition("%")[0])
    return address.packed, int(port)


def unspecified(endpoint: str, port: int) -> str:
    """An end of the same family whose address nobody knows."""
    host = endpoint.rpartition(":")[0].strip("[]").partition("%")[0]
    return f"0.0.0.0:{port}" if isinstance(ip_address(host), IPv4Address) else f"[::]:{port}"


def _checksum(data: bytes) -> bytes:
    """The ones' complement of the ones' complement sum of all 16-bit words."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
