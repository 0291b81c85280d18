"""TCP segments to IP packets: what ``probe.packet`` reads, written.

Takes a :class:`~probe.packet.Segment`; gives the packet from its IP header on, with right lengths
and checksums. Source: RFC 791 and RFC 8200 (headers), RFC 9293 section 3.1 (the checksum and its
pseudo headers), RFC 1071 (how it is summed).
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_address

from probe.packet import SYN, Segment
from probe.wire import endpoint, parted

MAX_PAYLOAD = 65_495  # bytes; what fits an IPv4 packet of 65,535, and the MSS that is announced
WINDOW = 65_535  # bytes; the most without a scale

_TCP = 6
_DONT_FRAGMENT = 0x4000
_MSS = struct.pack("!BBH", 2, 4, MAX_PAYLOAD)  # a SYN's only option


def ip_packet(segment: Segment) -> bytes:
    """The segment as an IP packet."""
    ends = segment.ends
    addresses, ports = ends[:-4], ends[-4:]
    options = _MSS if segment.flags & SYN else b""
    header = struct.pack(
        "!4sIIBBHHH",
        ports,
        segment.seq,
        segment.ack,
        (20 + len(options)) // 4 << 4,
        segment.flags,
        WINDOW,
        0,
        0,
    )
    tcp = header + options + segment.payload
    pseudo = addresses + struct.pack("!II", len(tcp), _TCP)  # the same sum in both
    tcp = tcp[:16] + _checksum(pseudo + tcp) + tcp[18:]
    if len(addresses) == 32:
        return struct.pack("!IHBB", 6 << 28, len(tcp), _TCP, segment.ttl) + addresses + tcp
    ip = struct.pack(
        "!BBHHHBBH",
        *(0x45, 0, 20 + len(tcp), segment.ip_id or 0, _DONT_FRAGMENT, segment.ttl, _TCP, 0),
    )
    ip += addresses
    return ip[:10] + _checksum(ip) + ip[12:] + tcp


def unspecified(like: str, port: int) -> str:
    """An end of the same family as that one's whose address nobody knows."""
    address = ip_address(parted(like)[0].partition("%")[0])
    return endpoint("0.0.0.0" if isinstance(address, IPv4Address) else "::", port)


def _checksum(data: bytes) -> bytes:
    """The ones' complement of the ones' complement sum of all 16-bit words."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
