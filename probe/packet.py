"""Packets to TCP segments: link, IP and TCP headers, fragments, tunnels.

Takes what a capture holds of a packet; gives a :class:`Segment`, or None where there is no TCP
in it. Source: RFC 791, RFC 8200 (and its extension headers), RFC 9293; the link-layer header
pages of tcpdump.org for SLL, SLL2, NULL and LOOP; IEEE 802.1Q and 802.1ad for tags.

The shapes that captures are full of are read here. What is rare is scapy's to take apart, if it
is installed: the headers of the tunnels that a Kubernetes node's capture shows (VXLAN, Geneve,
GRE), and the link types not named above. What could not be read is counted in
:attr:`Decoder.notes`, a sentence each.
"""

from __future__ import annotations

import functools
import importlib
import logging
import struct
from collections import Counter
from typing import Any, NamedTuple

from probe.pcapng import ETHERNET, IPV4, LOOP, NULL, RAW_TYPES, SLL, SLL2

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

MAX_LAYERS = 8  # IP headers, extension headers or tags behind each other
MAX_DATAGRAMS = 256  # being reassembled at a time
MAX_DATAGRAM = 65_535  # bytes
MAX_PIECES = 256  # fragments of a datagram
FRAGMENTS_WAIT = 30.0  # seconds for the other fragments; then the identification is used again

_VLAN_TAGS = {0x8100, 0x88A8, 0x9100}
_ETHERTYPES = {0x0800: 4, 0x86DD: 6}
_FAMILIES = {2: 4, 10: 6, 24: 6, 28: 6, 30: 6}  # AF_INET and the AF_INET6 of several systems
_SKIPPED_HEADERS = {0, 43, 60, 135, 139, 140}  # extension headers that say their length alike
_AUTHENTICATION, _FRAGMENT = 51, 44
_TCP = 6
_TUNNEL_PORTS = {4789: "VXLAN", 8472: "VXLAN", 6081: "Geneve"}  # 8472: Linux's older default
_BRIDGED = 0x6558  # the ethertype of a whole Ethernet frame

# Ethernet, IPv4 without options, TCP: kind, version and header length, total length,
# identification, fragment, TTL, protocol, both ends, seq, ack, data offset, flags
_PLAIN = struct.Struct("!12xHBxHHHBB2x12sIIBB").unpack_from

_tuple = tuple.__new__  # a named tuple without the cost of its names

NO_SCAPY = (
    "{what} can be read only with scapy, which is not installed: "
    "python -m pip install 'pgprobe[tunnels]'"
)


class Segment(NamedTuple):
    """A TCP segment; ``ends`` are those of :mod:`probe.ends`, its sender's first.

    ``at`` is in seconds since the epoch. ``cut`` is how many bytes of payload the packet had and
    the capture does not. ``ip_id`` is None where there is none to go by (IPv6); ``whole``: its
    sender forbade fragments (DF).
    """

    at: float
    ends: bytes
    seq: int
    ack: int
    flags: int
    payload: bytes
    cut: int = 0
    ttl: int = 64
    ip_id: int | None = None
    whole: bool = False


class _Fragments:
    """A datagram that is not whole yet: its pieces by offset, and where it ends once known."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.pieces: dict[int, bytes] = {}
        self.held = 0  # bytes of all pieces
        self.end: int | None = None


class Decoder:
    """Reads packets; remembers only the fragments of datagrams that are not whole yet.

    ``notes`` count what could not be read, ``fragments`` how many there were.
    """

    def __init__(self) -> None:
        self.notes: Counter[str] = Counter()
        self.fragments = 0
        self._datagrams: dict[tuple[object, ...], _Fragments] = {}

    def segment(self, link: int, at: float, data: bytes, length: int) -> Segment | None:
        """The TCP segment in a packet of ``length`` bytes, of which ``data`` was captured."""
        if link == ETHERNET and len(data) >= 54:  # the one shape that nearly all packets have
            (
                kind, first, total, ip_id, fragment, ttl, protocol, ends,
                seq, ack, offset, flags,
            ) = _PLAIN(data)  # fmt: skip
            begins, end = 34 + (offset >> 4) * 4, 14 + total
            if (
                kind == 0x0800
                and first == 0x45
                and protocol == _TCP
                and not fragment & 0x3FFF
                and 54 <= begins <= end <= len(data)
            ):
                payload = data[begins:end]
                return _tuple(
                    Segment,
                    (
                        at,
                        ends,
                        seq,
                        ack,
                        flags,
                        payload,
                        0,
                        ttl,
                        ip_id,
                        bool(fragment & 0x4000),
                    ),
                )
        try:
            return self._link(link, at, data, length, 0)
        except (struct.error, IndexError):
            self.notes["too short for their headers"] += 1
            return None

    # -- link layers -------------------------------------------------------------------------

    def _link(self, link: int, at: float, data: bytes, length: int, depth: int) -> Segment | None:
        if link == ETHERNET:
            (kind,) = struct.unpack_from("!H", data, 12)
            return self._tagged(kind, at, data, 14, length, depth)
        if link in RAW_TYPES:
            return self._ip(at, data, 0, length, depth)
        if link in (SLL, SLL2):
            kind_at, start = (14, 16) if link == SLL else (0, 20)
            (kind,) = struct.unpack_from("!H", data, kind_at)
            return self._tagged(kind, at, data, start, length, depth)
        if link in (NULL, LOOP):
            family = struct.unpack_from("<I", data)[0]
            if family in _FAMILIES or family >> 24 in _FAMILIES:  # in the byte order of whoever
                return self._ip(at, data, 4, length, depth)
            return None
        return self._odd(link, at, data, length, depth)

    def _tagged(
        self, kind: int, at: float, data: bytes, start: int, length: int, depth: int
    ) -> Segment | None:
        """What an ethertype announces, behind any number of VLAN tags."""
        for _ in range(MAX_LAYERS):
            if kind not in _VLAN_TAGS:
                break
            (kind,) = struct.unpack_from("!H", data, start + 2)
            start += 4
        return self._ip(at, data, start, length, depth) if kind in _ETHERTYPES else None

    def _odd(self, link: int, at: float, data: bytes, length: int, depth: int) -> Segment | None:
        """A link type that only scapy knows."""
        what = f"link type {link}"
        classes = _scapy("scapy.config", "conf")
        if classes is None:
            self.notes[NO_SCAPY.format(what=what)] += 1
            return None
        _scapy("scapy.layers.all", "__name__")  # makes the link types known
        layer = classes.l2types.num2layer.get(link)
        if layer is None:
            self.notes[f"of {what}, which nobody here knows"] += 1
            return None
        try:
            frame: Any = layer(data)
            found = [frame.getlayer(name) for name in ("IP", "IPv6")]
        except Exception:  # scapy raises what it likes at hostile bytes
            self.notes[f"of {what} that scapy cannot read"] += 1
            return None
        inner = next((each for each in found if each is not None), None)
        if inner is None:
            return None
        return self._ip(at, data, data.find(inner.original), length, depth + 1)

    # -- IP ----------------------------------------------------------------------------------

    def _ip(self, at: float, data: bytes, start: int, length: int, depth: int) -> Segment | None:
        """An IP datagram at ``start``; ``length`` is where the packet ended on the wire."""
        if depth > MAX_LAYERS:
            return None
        version = data[start] >> 4
        if version == 4:
            return self._ipv4(at, data, start, length, depth)
        return self._ipv6(at, data, start, length, depth) if version == 6 else None

    def _ipv4(self, at: float, data: bytes, start: int, length: int, depth: int) -> Segment | None:
        first, total, ip_id, fragment, ttl, protocol = struct.unpack_from("!BxHHHBB", data, start)
        addresses = data[start + 12 : start + 20]
        header = (first & 0x0F) * 4
        if header < 20 or len(addresses) < 8:
            raise IndexError
        # total 0: a packet larger than the field can say, that the card will cut up (GSO)
        end = start + total if total else length
        if fragment & 0x3FFF:
            key = (addresses, ip_id, protocol)
            piece = data[start + header : end]
            if len(piece) < end - start - header:
                self.notes["fragments that the snapshot length cut"] += 1
                return None
            offset, more = (fragment & 0x1FFF) * 8, bool(fragment & 0x2000)
            whole = self._reassembled(key, at, offset, piece, more)
            if whole is None:
                return None
            data, start, header, end = whole, 0, 0, len(whole)
        ident = ip_id, bool(fragment & 0x4000)
        return self._transport(
            protocol, at, data, start + header, end, addresses, ttl, ident, depth
        )

    def _ipv6(self, at: float, data: bytes, start: int, length: int, depth: int) -> Segment | None:
        payload, protocol, ttl = struct.unpack_from("!HBB", data, start + 4)
        addresses = data[start + 8 : start + 40]
        if len(addresses) < 32:
            raise IndexError
        start += 40
        end = start + payload if payload else length  # 0: a jumbogram or GSO
        for _ in range(MAX_LAYERS):
            if protocol in _SKIPPED_HEADERS:
                protocol, start = data[start], start + (data[start + 1] + 1) * 8
            elif protocol == _AUTHENTICATION:
                protocol, start = data[start], start + (data[start + 1] + 2) * 4
            elif protocol == _FRAGMENT:
                follows, field, ident = struct.unpack_from("!BxHI", data, start)
                piece = data[start + 8 : end]
                if len(piece) < end - start - 8:
                    self.notes["fragments that the snapshot length cut"] += 1
                    return None
                key = (addresses, ident)
                whole = self._reassembled(key, at, field & 0xFFF8, piece, bool(field & 1))
                if whole is None:
                    return None
                protocol, data, start, end = follows, whole, 0, len(whole)
            else:
                break
        ident = None, False
        return self._transport(protocol, at, data, start, end, addresses, ttl, ident, depth)

    def _reassembled(
        self, key: tuple[object, ...], at: float, offset: int, piece: bytes, more: bool
    ) -> bytes | None:
        """The datagram's payload once all its fragments are there.

        Fragments that overlap make nothing: RFC 5722 section 4, and what stacks do with IPv4's.
        """
        self.fragments += 1
        if offset + len(piece) > MAX_DATAGRAM:
            self.notes["fragments of more than 65,535 bytes"] += 1
            return None
        datagram = self._datagrams.get(key)
        if datagram is not None and at - datagram.began > FRAGMENTS_WAIT:
            self._give_up(key)
            datagram = None
        if datagram is None:
            if len(self._datagrams) == MAX_DATAGRAMS:
                self._give_up(next(iter(self._datagrams)))
            datagram = self._datagrams[key] = _Fragments(at)
        if offset not in datagram.pieces:
            datagram.pieces[offset] = piece
            datagram.held += len(piece)
        if not more and datagram.end is None:
            datagram.end = offset + len(piece)
        if datagram.held > MAX_DATAGRAM or len(datagram.pieces) > MAX_PIECES:
            self._give_up(key)
        elif datagram.end is not None and datagram.held >= datagram.end:
            whole = bytearray()
            for begins, part in sorted(datagram.pieces.items()):
                if begins == len(whole):
                    whole += part
            if len(whole) == datagram.held == datagram.end:
                del self._datagrams[key]
                return bytes(whole)
            self._give_up(key)
        return None

    def _give_up(self, key: tuple[object, ...]) -> None:
        del self._datagrams[key]
        self.notes["fragments that do not make a datagram"] += 1

    # -- transport and tunnels ---------------------------------------------------------------

    def _transport(
        self,
        protocol: int,
        at: float,
        data: bytes,
        start: int,
        end: int,
        addresses: bytes,
        ttl: int,
        ident: tuple[int | None, bool],
        depth: int,
    ) -> Segment | None:
        match protocol:
            case 6:
                ports, seq, ack, offset, flags = struct.unpack_from("!4sIIBB", data, start)
                begins = start + (offset >> 4) * 4
                if offset < 0x50 or begins > end:
                    raise IndexError
                payload = data[begins:end]
                return Segment(
                    at=at,
                    ends=addresses + ports,
                    seq=seq,
                    ack=ack,
                    flags=flags,
                    payload=payload,
                    cut=end - begins - len(payload),
                    ttl=ttl,
                    ip_id=ident[0],
                    whole=ident[1],
                )
            case 4 | 41:
                return self._ip(at, data, start, end, depth + 1)
            case 47:
                return self._tunnel("GRE", at, data[start:end], end - start, depth)
            case 17:
                (port,) = struct.unpack_from("!H", data, start + 2)
                if port in _TUNNEL_PORTS:
                    inner, size = data[start + 8 : end], end - start - 8
                    return self._tunnel(_TUNNEL_PORTS[port], at, inner, size, depth)
        return None

    def _tunnel(self, what: str, at: float, data: bytes, length: int, depth: int) -> Segment | None:
        """Scapy reads the tunnel's header, and what it carries goes the usual way again."""
        place = {
            "VXLAN": ("scapy.layers.vxlan", "VXLAN"),
            "Geneve": ("scapy.contrib.geneve", "GENEVE"),
            "GRE": ("scapy.layers.l2", "GRE"),
        }[what]
        layer = _scapy(*place)
        if layer is None:
            self.notes[NO_SCAPY.format(what=f"what {what} carries")] += 1
            return None
        if depth >= MAX_LAYERS or not data:
            return None
        size = _header_size(what, data)
        if len(data) < size:
            raise IndexError
        try:
            header = layer(data[:size])
            kind = _BRIDGED if what == "VXLAN" else int(header.proto)
        except Exception:  # scapy raises what it likes at hostile bytes
            self.notes[f"{what} headers that scapy cannot read"] += 1
            return None
        inner, left = data[size:], length - size
        if kind == _BRIDGED:
            return self._link(ETHERNET, at, inner, left, depth + 1)
        return self._link(IPV4, at, inner, left, depth + 1) if kind in _ETHERTYPES else None


def _header_size(what: str, data: bytes) -> int:
    """The bytes of a tunnel's header: RFC 7348, RFC 8926 section 3.4, RFC 2784 with RFC 2890."""
    if what == "VXLAN":
        return 8
    if what == "Geneve":
        return 8 + (data[0] & 0x3F) * 4
    return 4 + 4 * (bool(data[0] & 0x80) + bool(data[0] & 0x20) + bool(data[0] & 0x10))


@functools.cache
def _scapy(module: str, name: str) -> Any:
    """A name of scapy's, or None when it is not installed."""
    logging.getLogger("scapy").setLevel(logging.ERROR)  # it complains of missing routes
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        return None
