"""Capture files, bytes to packets: pcap and pcapng, plain or gzip, whole or still being written.

Takes a binary stream; gives :class:`Packet` after packet, in the file's order. What cannot be
read becomes a sentence in :attr:`Reader.problems`, and every packet before it counts; only a
stream that does not begin as a capture raises, :class:`NotACapture`. No length in the file makes
this module hold more than ``MAX_BLOCK`` bytes of it.

Source: the IETF drafts "PCAP Capture File Format" (draft-ietf-opsawg-pcap) and "PCAP Next
Generation Capture File Format" (draft-ietf-opsawg-pcapng), sections 4 (blocks) and 3.5 (options).

A capture is mostly bulk data of connections that are past what we read. ``ignored`` holds their
ends, as :mod:`probe.ends` has them. One ``unpack_from`` takes what is
needed to recognise such a packet, at the offsets that packets without header options have; a
packet of any other shape goes the long way, so that nothing is lost by a guess. A packet that
opens or closes a connection (SYN, FIN, RST) is never ignored.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any, BinaryIO, NamedTuple

from probe.window import Unzipped, Window

MAX_BLOCK = 1 << 24  # bytes; Wireshark's own bound for a block
MAX_INTERFACES = 1 << 16  # in a section
MAX_SECRETS = 1 << 24  # bytes of key logs in all Decryption Secrets Blocks
MAX_SECRETS_BLOCKS = 4_096
MAX_TIME = 253_402_300_799.0  # seconds since the epoch: the last that a calendar has, year 9999
MAX_COMMENT = 4_096  # bytes

SECTION_HEADER, INTERFACE, OBSOLETE_PACKET, SIMPLE_PACKET = 0x0A0D0D0A, 1, 2, 3
ENHANCED_PACKET, DECRYPTION_SECRETS = 6, 10
TLS_KEY_LOG = 0x544C534B  # the secrets type of NSS key logs
OPT_COMMENT, IF_TSRESOL, IF_TSOFFSET = 1, 9, 14
SHB_USERAPPL, IF_NAME, IF_DESCRIPTION = 4, 2, 3

ETHERNET, NULL, RAW, LOOP, SLL, IPV4, IPV6, SLL2 = 1, 0, 101, 108, 113, 228, 229, 276
RAW_TYPES = (RAW, 12, 14, IPV4, IPV6)  # 12 and 14: DLT_RAW of some systems, written by mistake

PCAP_MAGIC = {  # the first four bytes: byte order and ticks a second
    b"\xd4\xc3\xb2\xa1": ("<", 1_000_000),
    b"\xa1\xb2\xc3\xd4": (">", 1_000_000),
    b"\x4d\x3c\xb2\xa1": ("<", 1_000_000_000),
    b"\xa1\xb2\x3c\x4d": (">", 1_000_000_000),
}
_ENHANCED_HEAD = "III16x"  # block type, its length, interface; then times and lengths
_PAIR = {order: Struct(f"{order}II").unpack_from for order in "<>"}
# interface, both halves of the time, what was captured, and the length
_ENHANCED = {order: Struct(f"{order}IIIII").unpack_from for order in "<>"}
_OBSOLETE = {order: Struct(f"{order}HxxIIII").unpack_from for order in "<>"}
PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"
ORDER_MAGIC = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_GZIP_MAGIC = b"\x1f\x8b"


class NotACapture(ValueError):  # noqa: N818 - it says what the file is
    """The stream does not begin as a capture file does; the text says what was found."""


class Packet(NamedTuple):
    """A packet as the file holds it.

    ``number`` counts from 1; ``at`` is in seconds since the epoch; ``length`` is what was on the
    wire, ``data`` what the file has of it.
    """

    number: int
    at: float
    link: int
    data: bytes
    length: int
    comment: str = ""


class Interface(NamedTuple):
    """Where packets were taken: link type, snapshot length, ticks a second, offset in seconds."""

    link: int
    snaplen: int = 0
    ticks: int = 1_000_000
    offset: int = 0


class _Shape(NamedTuple):
    """Where a link type's plain IPv4 or IPv6 and TCP headers stand: how to know them at once."""

    kind_at: int  # of the two bytes that say which protocol follows
    kind: bytes  # what they say; empty: nothing does
    ip_at: int


# link type -> shapes for IPv4 and IPv6. NULL and LOOP say an address family, which differs from
# system to system: they go by the IP version alone.
_SHAPES = {
    ETHERNET: (_Shape(12, b"\x08\x00", 14), _Shape(12, b"\x86\xdd", 14)),
    SLL: (_Shape(14, b"\x08\x00", 16), _Shape(14, b"\x86\xdd", 16)),
    SLL2: (_Shape(0, b"\x08\x00", 20), _Shape(0, b"\x86\xdd", 20)),
    **dict.fromkeys((NULL, LOOP), (_Shape(0, b"", 4), _Shape(0, b"", 4))),
    **dict.fromkeys(RAW_TYPES, (_Shape(0, b"", 0), _Shape(0, b"", 0))),
}

_tuple = tuple.__new__  # a named tuple without the cost of its names


class _Quick(NamedTuple):
    """How to know a packet of an ignored connection, from where its record or block begins.

    ``v4`` unpacks the record's own fields, then: kind, version and header length, fragment,
    protocol, ends, TCP flags; ``v6`` likewise, without the fragment. ``look`` is how many bytes
    they need.
    """

    v4: Callable[[bytearray, int], tuple[Any, ...]]
    v6: Callable[[bytearray, int], tuple[Any, ...]]
    look: int
    kind4: int | bytes  # what says that IPv4 follows, in the file's byte order; nothing does: b""
    kind6: int | bytes
    fragmented: int  # mask of the fragment field, in the file's byte order


@functools.lru_cache(maxsize=64)
def _quick(link: int, order: str, record: str) -> _Quick:
    """For a link type; ``record`` is the format of what stands before the packet."""
    shapes = _SHAPES.get(link, _SHAPES[ETHERNET])
    begin = []
    for shape in shapes:
        size = len(shape.kind)
        gap = shape.ip_at - shape.kind_at - size
        begin.append(f"{order}{record}{shape.kind_at}x{'H' if size else '0s'}{gap}x")
    v4, v6 = Struct(begin[0] + "B5xH1xB2x12s9xB"), Struct(begin[1] + "B5xB1x36s9xB")
    # a number is compared faster than bytes; an unknown link type has none: nothing is quick
    code = Struct(order + "H").unpack
    kinds = [code(shape.kind)[0] if shape.kind else b"" for shape in shapes]
    kinds = kinds if link in _SHAPES else [-1, -1]
    mask = 0xFF3F if order == "<" else 0x3FFF
    return _Quick(v4.unpack_from, v6.unpack_from, v6.size, kinds[0], kinds[1], mask)


class Reader:
    """The packets of one capture, and what was found beside them.

    ``secrets`` are the texts of the Decryption Secrets Blocks, ``packets`` how many there were,
    ``problems`` what could not be read. ``position`` is where the packet given last begins in
    the stream, ``ended`` the time of the file's last packet; ``context`` counts the blocks that
    say how others are to be read. Raises :class:`NotACapture` at once.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.secrets: list[bytes] = []
        self.problems: list[str] = []
        self.packets = self.position = self.context = 0
        self.ended = 0.0
        self._secret_bytes = 0
        self.window = Window(stream)
        self._begin()

    def _begin(self) -> None:
        window = self.window
        head = self._need(0, 4)
        if head[:2] == _GZIP_MAGIC:
            window = self.window = Window(Unzipped(window))
            head = self._need(0, 4)
        if not head:
            raise NotACapture(window.failure or "it is empty: not even a file header")
        self.magic = head
        if head in PCAP_MAGIC:
            if len(self._need(0, 24)) < 24:
                raise NotACapture("it is a pcap file that ends within its header")
            self.order, self.ticks = PCAP_MAGIC[head]
            # the link type shares its word with the length of a frame check sequence
            (word,) = struct.unpack_from(self.order + "I", window.buffer, 20)
            self.link = word & 0xFFFF
        elif head == PCAPNG_MAGIC:
            start = self._need(0, 12)
            if len(start) < 12 or start[8:12] not in ORDER_MAGIC:
                raise NotACapture("it begins as a pcapng file and has no byte order")
        else:
            raise NotACapture(f"it is neither pcap nor pcapng: it begins with {head.hex(' ')}")

    def _need(self, at: int, count: int) -> bytes:
        """So many bytes from ``at`` on, or as many as there are."""
        if self.window.size < at + count:
            self.window.slide(at, count)
            at = 0
        return bytes(self.window.buffer[at : min(at + count, self.window.size)])

    def read(self, ignored: set[bytes] | None = None) -> Iterator[Packet]:
        """The packets; the caller may change ``ignored`` on the way.

        Packets of a connection in ``ignored`` that neither open nor close it are left out where
        that is cheap: some come all the same.
        """
        ignored = set() if ignored is None else ignored
        found = self._pcap(ignored) if self.magic in PCAP_MAGIC else self._pcapng(ignored)
        yield from found
        if self.window.failure:
            self.problems.append(self.window.failure)

    # -- pcap --------------------------------------------------------------------------------

    def _pcap(self, ignored: set[bytes]) -> Iterator[Packet]:
        window, link, ticks = self.window, self.link, self.ticks
        header = Struct(self.order + "IIII").unpack_from
        v4, v6, look, kind4, kind6, fragmented = _quick(link, self.order, "8xI4x")
        least = look - 36  # bytes of a packet that v4 needs; v6 needs 20 more
        buffer, size, at, number = window.buffer, window.size, 24, 0
        while True:
            begins, upto = at, size - look
            while at <= upto:  # this is what runs for almost every packet
                captured, kind, first, fragment, protocol, ends, flags = v4(buffer, at)
                if (
                    ends in ignored
                    and first == 0x45
                    and protocol == 6
                    and not flags & 7
                    and not fragment & fragmented
                    and kind == kind4
                    and captured >= least
                ):
                    begins = at
                    at += 16 + captured
                    number += 1
                    continue
                if first & 0xF0 == 0x60:
                    captured, kind, _, protocol, ends, flags = v6(buffer, at)
                    if (
                        ends in ignored
                        and protocol == 6
                        and not flags & 7
                        and kind == kind6
                        and captured >= least + 20
                    ):
                        begins = at
                        at += 16 + captured
                        number += 1
                        continue
                break
            if at > size:  # the last one is not all there
                at = begins
                number -= 1
            elif begins < at:  # of those left out
                seconds, fraction, _, _ = header(buffer, begins)
                self.ended = seconds + fraction / ticks
            self.packets = number
            if size - at < 16:
                at = window.slide(at, 16)
                buffer, size = window.buffer, window.size
                if size < 16:
                    break
            seconds, fraction, captured, length = header(buffer, at)
            if captured > MAX_BLOCK:
                self._damaged(f"has {captured} bytes, it says")
                return
            end = at + 16 + captured
            if size < end:
                at, end = window.slide(at, 16 + captured), 16 + captured
                buffer, size = window.buffer, window.size
                if size < end:
                    break
                if size >= look:
                    continue  # now that it is there, it may be one to leave out
            data = bytes(buffer[at + 16 : end])
            self.position = window.start + at
            at = end
            number += 1
            self.packets = number
            if length < captured:
                length = captured
            self.ended = when = seconds + fraction / ticks
            yield _tuple(Packet, (number, when, link, data, length, ""))
        self._ended(size - at)

    def _damaged(self, says: str) -> None:
        self.problems.append(
            f"packet {self.packets + 1} {says}: the file is damaged there, and only what stands "
            "before it was read"
        )

    def _ended(self, rest: int) -> None:
        if rest:
            self.problems.append(
                f"the file ends within packet {self.packets + 1}: it was cut off, or is still "
                "being written; everything before that packet was read"
            )

    # -- pcapng ------------------------------------------------------------------------------

    def _pcapng(self, ignored: set[bytes]) -> Iterator[Packet]:
        window = self.window
        interfaces: list[Interface] = []
        order, last = "<", 0.0
        v4, v6, look, kind4, kind6, fragmented = _quick(-1, order, _ENHANCED_HEAD)
        same: set[int] = set()  # interfaces of the link type that is quick now
        least = look - 12  # bytes of a block that surely has what v4 needs; v6 needs 20 more
        buffer, size, at, number = window.buffer, window.size, 0, 0
        while True:
            begins, upto = at, size - look
            while at <= upto:  # this is what runs for almost every packet
                block, total, source, kind, first, fragment, protocol, ends, flags = v4(buffer, at)
                if (
                    ends in ignored
                    and first == 0x45
                    and protocol == 6
                    and not flags & 7
                    and not fragment & fragmented
                    and kind == kind4
                    and block == 6
                    and source in same
                    and total >= least
                    and not total & 3
                ):
                    begins = at
                    at += total
                    number += 1
                    continue
                if first & 0xF0 == 0x60:
                    block, total, source, kind, _, protocol, ends, flags = v6(buffer, at)
                    if (
                        ends in ignored
                        and protocol == 6
                        and not flags & 7
                        and kind == kind6
                        and block == 6
                        and source in same
                        and total >= least + 20
                        and not total & 3
                    ):
                        begins = at
                        at += total
                        number += 1
                        continue
                break
            if at > size:  # the last one is not all there
                at = begins
                number -= 1
            elif begins < at:  # of those left out
                self.ended = _time(struct.unpack_from(order + "8xIII", buffer, begins), interfaces)
            self.packets = number
            if size - at < 12:
                at = window.slide(at, 12)
                buffer, size = window.buffer, window.size
                if size < 12:
                    break
            if buffer[at : at + 4] == PCAPNG_MAGIC:
                magic = bytes(buffer[at + 8 : at + 12])
                if magic not in ORDER_MAGIC:
                    return self._damaged("follows on a section without a byte order")
                order, interfaces, same = ORDER_MAGIC[magic], [], set()
            block, total = _PAIR[order](buffer, at)
            if total < 12 or total % 4 or total > MAX_BLOCK:
                return self._damaged(f"is in, or follows on, a block of {total} bytes, it says")
            if size - at < total:
                at = window.slide(at, total)
                buffer, size = window.buffer, window.size
                if size < total:
                    break
                if size >= look:
                    continue  # now that it is there, it may be one to leave out
            self.position = window.start + at
            body, at = at + 8, at + total
            if block in (SECTION_HEADER, INTERFACE, SIMPLE_PACKET, DECRYPTION_SECRETS):
                self.context += 1
            try:
                if block in (ENHANCED_PACKET, SIMPLE_PACKET, OBSOLETE_PACKET):
                    place = buffer, body, at - 4
                    packet, source = self._packet(order, block, place, interfaces, last)
                    self.ended = last = packet.at
                    self.packets = number = number + 1
                    if source not in same:
                        link = packet.link
                        same = {n for n, each in enumerate(interfaces) if each.link == link}
                        v4, v6, look, kind4, kind6, fragmented = _quick(link, order, _ENHANCED_HEAD)
                        least = look - 12
                    yield packet
                elif block == INTERFACE:
                    if len(interfaces) == MAX_INTERFACES:
                        return self._damaged("follows on too many interfaces")
                    interfaces.append(_interface(order, bytes(buffer[body : at - 4])))
                elif block == DECRYPTION_SECRETS:
                    self._secrets(order, bytes(buffer[body : at - 4]))
            except (struct.error, IndexError):
                return self._damaged("is in, or follows on, a block shorter than its contents")
        self._ended(size - at)

    def _packet(
        self,
        order: str,
        kind: int,
        place: tuple[bytearray, int, int],
        interfaces: list[Interface],
        last: float,
    ) -> tuple[Packet, int]:
        """A packet block's packet and interface; its body stands at ``place``.

        ``last`` is the time where there is none.
        """
        buffer, begins, until = place
        if kind == SIMPLE_PACKET:
            number, when, start = 0, last, begins + 4
            interface = interfaces[0]
            (length,) = struct.unpack_from(order + "I", buffer, begins)
            captured = min(length, until - start, interface.snaplen or length)
        else:
            layout, start = _ENHANCED if kind == ENHANCED_PACKET else _OBSOLETE, begins + 20
            number, high, low, captured, length = layout[order](buffer, begins)
            interface = interfaces[number]
            when = _time((number, high, low), interfaces)
        end = start + captured
        if end > until or start > until:
            raise IndexError
        data, comment = bytes(buffer[start:end]), ""
        options = start + (captured + 3 & ~3)
        if options < until and kind != SIMPLE_PACKET:
            said = dict(_options(order, bytes(buffer[options:until]))).get(OPT_COMMENT, b"")
            comment = said[:MAX_COMMENT].decode("utf-8", "replace")
        if length < captured:
            length = captured
        found = self.packets + 1, when, interface.link, data, length, comment
        return _tuple(Packet, found), number

    def _secrets(self, order: str, body: bytes) -> None:
        kind, length = struct.unpack_from(order + "II", body)
        if kind != TLS_KEY_LOG:
            return
        text = body[8 : 8 + length]
        self._secret_bytes += len(text)
        if self._secret_bytes > MAX_SECRETS or len(self.secrets) == MAX_SECRETS_BLOCKS:
            says = "more secrets than are taken from one file: the rest was left out"
            self.problems.extend([says] if says not in self.problems else [])
            return
        self.secrets.append(text)


def _time(stamp: tuple[int, ...], interfaces: list[Interface]) -> float:
    """In seconds since the epoch, from an interface's number and the halves of a time stamp."""
    number, high, low = stamp
    _, _, ticks, offset = interfaces[number]
    at = ((high << 32 | low) + offset * ticks) / ticks
    return at if 0.0 <= at <= MAX_TIME else min(max(at, 0.0), MAX_TIME)


def _interface(order: str, body: bytes) -> Interface:
    link, _, snaplen = struct.unpack_from(order + "HHI", body)
    options = dict(_options(order, body[8:]))
    resolution = options.get(IF_TSRESOL, b"\6")[:1] or b"\6"
    exponent = resolution[0] & 0x7F
    offset = options.get(IF_TSOFFSET, b"")
    return Interface(
        link,
        snaplen,
        ticks=2**exponent if resolution[0] & 0x80 else 10**exponent,
        offset=struct.unpack(order + "q", offset)[0] if len(offset) == 8 else 0,
    )


def _options(order: str, body: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(body):
        code, length = struct.unpack_from(order + "HH", body, at)
        if not code or at + 4 + length > len(body):
            return
        yield code, body[at + 4 : at + 4 + length]
        at += 4 + (length + 3 & ~3)
