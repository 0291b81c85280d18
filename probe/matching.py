"""Which connection is the other half of which, where only the times tell.

Takes the connections of two captures that are not known by their content; gives pairs, and only
those that leave no choice. A hop is taken to open one connection for each that it takes, while that
one is open or soon after. So where one begins farther in, and farther out a single connection is
open that has no other half yet, they belong together. Where there are more, it may be any one's,
and so may be all that begin while one of them is open. Where all that are open have another half
already, one of these is wrong, and nobody knows which.

Where nothing tells how the clocks differ, they are first taken to be one clock. If whatever begins
farther in then does so while something is open farther out, it is left at that.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

from probe.clock import RESOLUTION, Clock
from probe.sighting import Sighting

LATE = 0.1  # seconds after a client has left in which a hop may still open the other half

_Kind = Hashable  # of what can be its other half; None: whatever says something


def match(
    outer: Sequence[Sighting], inner: Sequence[Sighting], clock: Clock
) -> Mapping[int, int | None]:
    """By the numbers of both: the inner one for the outer one; None: one of several."""
    if not clock.known:
        exact = _Matching(outer, inner, clock._replace(within=RESOLUTION))
        if not exact.strays:
            return exact.found
    return _Matching(outer, inner, clock).found


def _kind(out: Sighting) -> _Kind:
    """A ClientHello may lead to anything; what says none, only to one that says the same."""
    return None if out.unseen or out.random is not None else out.request


class _Matching:
    def __init__(self, outer: Sequence[Sighting], inner: Sequence[Sighting], clock: Clock) -> None:
        self.found: dict[int, int | None] = {}
        self.strays = 0  # began while none was open
        self._outer, self._slack = outer, clock.within
        self._waiting: dict[_Kind, set[int]] = defaultdict(set)  # open, without another half
        self._served: dict[_Kind, set[int]] = defaultdict(set)  # open, and with one
        self._doubt_until: dict[_Kind, float] = {}  # the end of the last open one of several
        self._ends: list[tuple[float, int]] = []
        coming = sorted(range(len(outer)), key=lambda n: outer[n].began, reverse=True)
        for number in sorted(range(len(inner)), key=lambda n: inner[n].began):
            at = inner[number].began - clock.ahead
            while coming and outer[coming[-1]].began <= at + self._slack:
                self._open(coming.pop())
            while self._ends and self._ends[0][0] < at - self._slack:
                self._close(heapq.heappop(self._ends)[1])
            self._take(number, inner[number], at)

    def _open(self, number: int) -> None:
        self._waiting[_kind(self._outer[number])].add(number)
        heapq.heappush(self._ends, (self._outer[number].ended + LATE, number))

    def _close(self, number: int) -> None:
        kind = _kind(self._outer[number])
        self._waiting[kind].discard(number)
        self._served[kind].discard(number)

    def _take(self, number: int, into: Sighting, at: float) -> None:
        kinds: set[_Kind] = {None}
        if into.unseen:
            kinds |= self._waiting.keys()
        elif into.random is None:
            kinds.add(into.request)
        waiting = [n for kind in kinds for n in self._waiting[kind]]
        doubt = any(at - self._slack <= self._doubt_until.get(kind, 0.0) for kind in kinds)
        if len(waiting) == 1 and not doubt:
            (out,) = waiting
            self._close(out)
            self._served[_kind(self._outer[out])].add(out)
            self.found[out] = number
        elif waiting or doubt:
            self._doubt(waiting)
        else:
            served = [n for kind in kinds for n in self._served[kind]]
            self.strays += not served
            self._doubt(served)

    def _doubt(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._close(number)
            self.found[number] = None
            kind, ended = _kind(self._outer[number]), self._outer[number].ended + LATE
            self._doubt_until[kind] = max(ended, self._doubt_until.get(kind, ended))
