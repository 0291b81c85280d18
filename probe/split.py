"""Where a large capture may be cut, so that its parts are read side by side.

Takes an open file; gives :class:`Part` after part, which together are the file. Records carry no
mark by which they are known from the middle of a file, so a cut is a guess: a place from which a
chain of plausible records goes on. It is proved afterwards, by whoever reads the part before it:
its last record must end there exactly.

A part is read as a capture of its own, behind the file's ``head``: the header of a pcap file, or
a pcapng file's blocks before its first packet.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from probe.pcapng import (
    ENHANCED_PACKET,
    MAX_BLOCK,
    OBSOLETE_PACKET,
    ORDER_MAGIC,
    PCAP_MAGIC,
    PCAPNG_MAGIC,
    SIMPLE_PACKET,
)

LEAST = 1 << 23  # bytes of a part: below, another process costs more than it saves
SEARCHED = 1 << 18  # bytes behind a place where a cut is looked for
MAX_HEAD = 1 << 20  # bytes before the first packet
CHAIN = 8  # plausible records behind each other that make a cut
MAX_CAPTURED = 1 << 18  # bytes of a plausible packet
MAX_APART = 30 * 86_400  # seconds from the first packet of a plausible one


class Part(NamedTuple):
    """Bytes of a file from ``begins`` up to ``ends``, to be read behind ``head``."""

    head: bytes
    begins: int
    ends: int


class Slice(io.RawIOBase):
    """A part as a stream, its head included; :meth:`place` is where something stands in the file.

    ``records``: not the part but these of the file, as pairs of where they begin and end.
    """

    def __init__(
        self, file: BinaryIO, part: Part, records: Iterator[tuple[int, int]] | None = None
    ) -> None:
        self._file, self._part = file, part
        self._head = part.head
        self._records = iter([(part.begins, part.ends)]) if records is None else records
        self._left = 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def place(self, position: int) -> int:
        """Where in the file that stands which has this position in the stream."""
        return self._part.begins + position - len(self._part.head)

    def readinto(self, room: memoryview) -> int:  # type: ignore[override]
        """Head first; then what was asked for."""
        if self._head:
            count = min(len(room), len(self._head))
            room[:count], self._head = self._head[:count], self._head[count:]
            return count
        if not self._left:
            begins, ends = next(self._records, (0, 0))
            self._left = ends - begins
            self._file.seek(begins)
        count = self._file.readinto(room[: self._left])  # type: ignore[attr-defined]
        self._left -= count
        return int(count)


def worth_splitting(size: int) -> bool:
    """Whether another process reads some of so many bytes sooner."""
    return size >= 2 * LEAST


def split(file: BinaryIO, jobs: int) -> list[Part]:
    """At most so many parts; one, where it cannot be cut."""
    size = file.seek(0, io.SEEK_END)
    head, chain = _head(file)
    parts: list[Part] = []
    begins = len(head)
    share = max(LEAST, (size - begins) // jobs + 1)
    while chain is not None and len(parts) < jobs - 1 and worth_splitting(size - begins):
        cut = _cut(file, begins + share, chain)
        if cut is None or cut >= size:
            break
        parts.append(Part(head, begins, cut))
        begins = cut
    return [*parts, Part(head, begins, size)]


def record_end(file: BinaryIO, head: bytes, begins: int) -> int:
    """Where the record or block ends that begins there."""
    file.seek(begins)
    if head[:4] in PCAP_MAGIC:
        order, _ = PCAP_MAGIC[head[:4]]
        return begins + 16 + int(struct.unpack(order + "8xI4x", file.read(16))[0])
    order = ORDER_MAGIC[head[8:12]]
    return begins + int(struct.unpack(order + "4xI", file.read(8))[0])


Chain = Callable[[bytes, int], int | None]  # the end of a plausible record; None: it is none


def _head(file: BinaryIO) -> tuple[bytes, Chain | None]:
    """What stands before the first packet, and how to know a record; None: there is no way."""
    file.seek(0)
    start = file.read(MAX_HEAD)
    if start[:4] in PCAP_MAGIC and len(start) >= 40:
        order, ticks = PCAP_MAGIC[start[:4]]
        return start[:24], _pcap_chain(order, ticks, start)
    if start[:4] == PCAPNG_MAGIC and start[8:12] in ORDER_MAGIC:
        order = ORDER_MAGIC[start[8:12]]
        at = 0
        while at + 8 <= len(start):
            kind, total = struct.unpack_from(order + "II", start, at)
            if kind in (ENHANCED_PACKET, SIMPLE_PACKET, OBSOLETE_PACKET):
                return start[:at], _pcapng_chain(order)
            if total < 12:
                break
            at += total
    return start[:0], None


def _pcap_chain(order: str, ticks: int, start: bytes) -> Chain:
    header = struct.Struct(order + "IIII").unpack_from
    first = header(start, 24)[0]

    def chain(window: bytes, at: int) -> int | None:
        seconds, fraction, captured, length = header(window, at)
        fits = captured <= MAX_CAPTURED and captured <= length and fraction < ticks
        return at + 16 + captured if fits and abs(seconds - first) < MAX_APART else None

    return chain


def _pcapng_chain(order: str) -> Chain:
    header, trailer = (
        struct.Struct(order + "II").unpack_from,
        struct.Struct(order + "I").unpack_from,
    )

    def chain(window: bytes, at: int) -> int | None:
        kind, total = header(window, at)
        if kind != ENHANCED_PACKET or not 32 <= total <= MAX_BLOCK or total % 4:
            return None
        end = at + int(total)
        return end if end > len(window) or trailer(window, end - 4)[0] == total else None

    return chain


def _cut(file: BinaryIO, near: int, chain: Chain) -> int | None:
    """The first place from there on where plausible records follow each other."""
    file.seek(near)
    window = file.read(SEARCHED)
    for begins in range(len(window) - 16):
        at, length = begins, 0
        while length < CHAIN and at <= len(window) - 16:
            following = chain(window, at)
            if following is None:
                break
            at, length = following, length + 1
        if length == CHAIN:
            return near + begins
    return None
