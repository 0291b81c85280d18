"""From packets to connections: the one loop that every reading of a capture is.

Takes a reader, a decoder and streams; gives nothing, for the streams do. What it keeps is which
packets need not be looked at again: the bulk of connections that are past what pgprobe reads, or
are none of its business.

A part of a capture is read without knowing what stands before it. So its packets are noted in a
:class:`Trace`, and whoever knows reads those again that a connection begun earlier needs.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator
from typing import NamedTuple

from probe.ends import mirrored
from probe.packet import SYN, Decoder, Segment
from probe.pcapng import Reader
from probe.stream import Streams

MAX_IGNORED = 131_072  # directions of connections whose bulk is skipped unread
PATIENCE = 192  # segments of a connection without a beginning that are noted, wanted or not
MAX_PATIENCE = 65_536  # of all such connections of a part
MAX_NOTED = 1 << 22  # segments of all parts of a file
MAX_TRACED = 131_072  # likewise, connections

_DEAF, _HEARS = (1 << 64) - 1, (1 << 64) - 2  # in place of a position


class Noted(NamedTuple):
    """A segment that was looked at: whose it is, and where its packet stands.

    ``deaf`` in place of a segment: from here on (True) bulk was not looked at, or (False) is.
    """

    ends: bytes
    position: int
    number: int
    deaf: bool | None = None


class Trace:
    """Which segments of a part were looked at, and of which connections bulk was not.

    Where these are more than are noted, it is not ``complete``, and of no use: it forgets them all.
    ``share``: so many keep to the caps together.
    """

    def __init__(self, share: int = 1) -> None:
        self.complete = True
        self._max_noted, self._max_traced = MAX_NOTED // share, MAX_TRACED // share
        self._ids: dict[bytes, int] = {}  # of both directions
        self._ends: list[bytes] = []
        self._opened = bytearray()  # of each: its first segment has SYN set
        self._counts = array("I")
        self._whose, self._positions, self._numbers = array("I"), array("Q"), array("I")
        self._patience = MAX_PATIENCE

    def note(self, segment: Segment, position: int, number: int) -> int:
        """Add a segment; gives a number for the ends of its connection."""
        ends = segment.ends
        found = self._ids.get(ends)
        if found is None:
            found = len(self._ends)
            self._ids[ends] = self._ids[mirrored(ends)] = found
            self._ends.append(ends)
            self._opened.append(bool(segment.flags & SYN))
            self._counts.append(0)
        self._counts[found] += 1
        self._enter(found, position, number)
        return found

    def spare(self, found: int) -> bool:
        """Whether bulk between these ends need not be looked at any more.

        One that was begun before may want more than it seems, for a while.
        """
        if not self._opened[found] and self._counts[found] < PATIENCE and self._patience:
            self._patience -= 1
            return False
        self._enter(found, _DEAF)
        return True

    def hear(self, found: int) -> None:
        """Its bulk is looked at again."""
        self._enter(found, _HEARS)

    def _enter(self, found: int, position: int, number: int = 0) -> None:
        self._whose.append(found)
        self._positions.append(position)
        self._numbers.append(number)
        if len(self._whose) > self._max_noted or len(self._ends) > self._max_traced:
            self._forget()

    def _forget(self) -> None:
        self.complete = False
        self._ids.clear()
        self._ends.clear()
        self._opened.clear()
        for numbers in (self._counts, self._whose, self._positions, self._numbers):
            del numbers[:]

    def ends(self) -> Iterator[tuple[bytes, bool]]:
        """Of each connection once, and whether its first segment has SYN set."""
        return zip(self._ends, map(bool, self._opened), strict=True)

    def of(self, known: Collection[bytes]) -> Iterator[Noted]:
        """What was noted between these ends, in order."""
        wanted = {self._ids[ends]: ends for ends in known}
        entries = zip(self._whose, self._positions, self._numbers, strict=True)
        for found, position, number in entries:
            if found in wanted:
                marks = {_DEAF: True, _HEARS: False}
                yield Noted(wanted[found], position, number, marks.get(position))


def gather(reader: Reader, decoder: Decoder, streams: Streams, trace: Trace | None = None) -> None:
    """Read all packets; :meth:`~probe.stream.Streams.finish` is for the caller.

    With a trace, only as long as that is complete, and nothing had to make room.
    """
    ignored: set[bytes] = set()
    found = 0
    for number, at, link, data, length, comment in reader.read(ignored):
        segment = decoder.segment(link, at, data, length)
        if segment is None:
            continue
        if trace is not None:
            found = trace.note(segment, reader.position, number)
            if streams.notes or not trace.complete:
                return
        if not streams.take(segment, number, comment):
            if segment.ends not in ignored and (trace is None or trace.spare(found)):
                if len(ignored) >= MAX_IGNORED:
                    ignored.clear()
                ignored.add(segment.ends)
        elif segment.flags & SYN and ignored:
            if trace is not None:
                trace.hear(found)
            ignored.discard(segment.ends)
            ignored.discard(mirrored(segment.ends))
