"""How the clocks of captures differ, and which capture lies farther in.

Takes pairs of sightings of one connection, which its ClientHello shows to be one; gives the
difference of two clocks with its bounds, and the order of files. By a common clock, a ClientHello
is seen farther out first, and the ServerHello farther in first: so each pair bounds the difference
from both sides (RFC 5905 section 8 does the same with packets of its own). The time from the one
to the other is the shorter farther in, by whatever clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

from probe.sighting import Sighting

CLOCKS_AGREE = 0.1  # seconds; clocks that somebody keeps differ by less
RESOLUTION = 0.001  # seconds; stamps are not better than that

Pair = tuple[Sighting, Sighting]


class Clock(NamedTuple):
    """``file``'s clock is ``ahead`` of ``against``'s by so many seconds, give or take ``within``.

    So many ``connections`` tell; none: the two clocks are taken to agree.
    """

    file: str
    against: str
    ahead: float
    within: float
    connections: int

    @property
    def known(self) -> bool:
        """Something tells."""
        return self.connections > 0


def difference(outer: str, inner: str, pairs: Iterable[Pair]) -> Clock:
    """The clock of ``inner`` against that of ``outer``; a pair has the outer sighting first."""
    pairs = list(pairs)
    if not pairs:
        return Clock(inner, outer, 0.0, CLOCKS_AGREE, 0)
    latest = min(into.hello_at - out.hello_at for out, into in pairs)
    answers = [each for each in map(_answers, pairs) if each]
    if not answers:  # bounded from one side
        return Clock(inner, outer, latest, CLOCKS_AGREE, len(pairs))
    # Clocks that drift turn the bounds round; the truth is still between them.
    low, high = sorted((latest, max(into - out for out, into in answers)))
    return Clock(inner, outer, (low + high) / 2, (high - low) / 2 + RESOLUTION, len(pairs))


def outermost_first(
    files: Sequence[str], pairs: Callable[[str, str], Iterable[Pair]]
) -> tuple[str, ...]:
    """The files in the order given, unless what they have in common contradicts it."""
    turned = {
        (outer, inner)
        for outer, inner in combinations(files, 2)
        if (answers := [waited for pair in pairs(outer, inner) if (waited := _waited(pair))])
        and median(out - into for out, into in answers) < 0
    }
    order: list[str] = []
    left = list(files)
    while left:
        # the first that none of the others was found to lie outside of; there always is one
        free = (each for each in left if not any((each, other) in turned for other in left))
        order.append(next(free))
        left.remove(order[-1])
    return tuple(order)


def _answers(pair: Pair) -> tuple[float, float] | None:
    """When the ServerHello came, at both; None where it is not one and the same."""
    out, into = pair
    if out.server_hello != into.server_hello:
        return None
    if out.answered_at is None or into.answered_at is None:
        return None
    return out.answered_at, into.answered_at


def _waited(pair: Pair) -> tuple[float, float] | None:
    """How long the ServerHello took, at both."""
    answers = _answers(pair)
    if answers is None:
        return None
    return answers[0] - pair[0].hello_at, answers[1] - pair[1].hello_at
