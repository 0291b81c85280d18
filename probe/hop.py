"""What became of connections between two captures that lie next to each other.

Takes the connections that are last seen in the outer one and those that are first seen in the
inner one, none of which is known in the other by its content; gives a :class:`Hop` for each of the
outer. The times tell which could be its other half (:mod:`probe.matching`). That there is none
tells that it did not come there only if the inner capture goes on before and after, by a clock that
is known, and holds nothing that could be it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from probe.clock import Clock
from probe.finding import Certainty
from probe.handshake import Opening, Outcome
from probe.matching import LATE, match
from probe.sighting import Sighting, Vantage

SEVERAL = 4  # connections of which a balancer would have sent one there

_REQUESTS = {
    Opening.SSL_REQUEST: "SSLRequest",
    Opening.GSSENC_REQUEST: "GSSENCRequest",
    Opening.STARTUP: "clear-text StartupMessage",
    Opening.CANCEL: "CancelRequest",
}
_SAYS_NOTHING = (Opening.NOTHING, Opening.OTHER)  # that goes on from a client of PostgreSQL's
_INSTEAD = {
    Outcome.REFUSED: "refused it",
    Outcome.RESET: "reset the connection",
    Outcome.CLOSED: "closed the connection",
    Outcome.SILENT: "left it unanswered",
    Outcome.FOREIGN: "answered in another protocol",
    Outcome.ALERT: "answered with a TLS alert",
    Outcome.ERROR: "answered with an error",
}


class Passage(StrEnum):
    """What became of a connection between two files, or on its whole way."""

    PASSTHROUGH = "passthrough"  # what the client said went on unchanged
    TERMINATED = "terminated"  # TLS ended there, and something else went on
    STOPPED = "stopped"  # nothing went on
    UNMATCHED = "unmatched"  # it is not known

    @property
    def rank(self) -> int:
        """The worst has the lowest; what is not known comes last."""
        order = (Passage.STOPPED, Passage.TERMINATED, Passage.PASSTHROUGH, Passage.UNMATCHED)
        return order.index(self)


class Hop(NamedTuple):
    """What became of a connection between two files; ``certainty`` None: it is not known."""

    between: tuple[str, str]
    passage: Passage
    certainty: Certainty | None
    why: str


def onward(
    chains: Sequence[Sequence[Sighting]], again: Collection[bytes], clock: Clock, inner: Vantage
) -> Mapping[int, tuple[Hop, int | None]]:
    """By the number of each chain that ends in ``clock.against``: its hop, and who goes on then.

    A chain is one connection, its sightings from the outermost on. ``again`` are the randoms of
    ClientHellos that several connections said, ``inner`` is the file of ``clock.file``.
    """
    return dict(_Between(chains, again, clock, inner).told())


class _Between:
    """What became of the connections that are last seen in the outer file of a pair."""

    def __init__(
        self,
        chains: Sequence[Sequence[Sighting]],
        again: Collection[bytes],
        clock: Clock,
        inner: Vantage,
    ) -> None:
        self.again, self.clock, self.inner = again, clock, inner
        self.files = clock.against, clock.file
        self.outer = [(n, c[-1]) for n, c in enumerate(chains) if c[-1].file == clock.against]
        heads = [(n, c[0]) for n, c in enumerate(chains) if c[0].file == clock.file]
        self.heads = [(n, each) for n, each in heads if each.opening not in _SAYS_NOTHING]
        self.failed = sorted(each.began for _, each in heads if not each.connected)
        self.found = match([o for _, o in self.outer], [i for _, i in self.heads], clock)
        halves = set(self.found.values())
        self.loose = [each for n, (_, each) in enumerate(self.heads) if n not in halves]
        through = [
            each
            for chain in chains
            if clock.file in (each.file for each in chain)
            for each in chain
            if each.file == clock.against
        ]
        self.doors = {door for each in through for door in ((each.server, None), _door(each))}
        self.passed = {_beginning(each) for each in through}
        self.stopped = Counter(
            _beginning(out) for n, (_, out) in enumerate(self.outer) if n not in self.found
        )

    def told(self) -> Iterator[tuple[int, tuple[Hop, int | None]]]:
        """By the number of a chain: its hop, and the chain that goes on behind it."""
        for number, (chain, out) in enumerate(self.outer):
            half = self.found.get(number)
            if out.random in self.again:
                hop = self._unknown("the same ClientHello was said by several connections")
            elif half is not None:
                then, into = self.heads[half]
                hop = self._led_to(out, into)
                if hop.certainty:
                    yield chain, (hop, then)
                    continue
            elif number in self.found:
                hop = self._unknown("by their times, several connections fit each other")
            else:
                hop = self._led_nowhere(out)
            yield chain, (hop, None)

    def _led_to(self, out: Sighting, into: Sighting) -> Hop:
        """The inner connection has another ClientHello than the outer one, or one has none."""
        outer, inner = self.files
        if out.unseen or into.unseen:
            return self._unknown(
                f"what one of them said is not all in {outer if out.unseen else inner}"
            )
        what = _what(into)
        if out.tls_answered:
            return self._likely(
                Passage.TERMINATED,
                f"its ClientHello was answered and is not in {inner}, where {what} is at that "
                "time instead: the hop between ends TLS",
            )
        if out.random is None:
            if out.answer == into.answer:
                why = f"{what} like its own is in {inner} at that time, and has the same answer"
                return self._likely(Passage.PASSTHROUGH, why)
            return self._unknown(f"{what} is in {inner} at that time, with another answer")
        if into.random is None and _asks_for_tls(into):
            return self._likely(
                Passage.STOPPED,
                f"its ClientHello is not in {inner}, where at that time {what} has the outcome "
                f"{into.outcome.value!r}: the hop between asked by itself, in vain",
            )
        return self._unknown(
            f"its ClientHello was not answered, and {what} in {inner} at that time may have "
            "nothing to do with it"
        )

    def _led_nowhere(self, out: Sighting) -> Hop:
        """Nothing in the inner file is its other half; that proves little by itself."""
        inner = self.files[1]
        doubt = self._no_claim(out)
        if doubt:
            return self._unknown(doubt)
        what = "ClientHello" if out.random else _REQUESTS[out.opening]
        instead = _INSTEAD.get(out.outcome, "answered by itself")
        why = (
            f"nothing of it is in {inner}, which has packets before and after: the hop between did "
            f"not pass its {what} on, and {instead}"
        )
        if self._failed_meanwhile(out):
            why += f"; at that time a connection in {inner} did not come about"
        if not self.clock.known:
            return self._likely(Passage.STOPPED, why)
        if _door(out) not in self.doors:
            return self._likely(Passage.STOPPED, f"{why} (if that is where it leads)")
        if not self._none_goes_on(out):
            return self._likely(Passage.STOPPED, f"{why} (if it leads nowhere else as well)")
        return Hop(self.files, Passage.STOPPED, Certainty.PROVED, why)

    def _none_goes_on(self, out: Sighting) -> bool:
        """Of those that begin as it does, none comes there; one of several may be led elsewhere."""
        begin = _beginning(out)
        return begin not in self.passed and self.stopped[begin] >= SEVERAL

    def _no_claim(self, out: Sighting) -> str | None:
        """Why its absence tells nothing; None: it tells."""
        outer, inner = self.files
        if out.unseen:
            return f"what the client said is not all in {outer}"
        if out.random is None and out.opening not in _REQUESTS:
            return "the client said nothing that it could be known by"
        if out.random is None and out.left:
            return "the client left before it said a ClientHello"
        if not self.clock.known and any(self._may_be(out, into) for into in self.loose):
            return (
                f"no ClientHello is in both {outer} and {inner}, so that their clocks cannot be "
                "compared, and the times do not fit"
            )
        if not self._covers(out):
            return f"{inner} does not cover the time: it lacks packets before or after"
        if out.tls_answered or out.authenticates:
            more = "" if self.inner.everything else ", or goes on in what only --all reads"
            return (
                f"it was answered, and nothing of it is in {inner}: the hop between answers by "
                f"itself, or leads elsewhere{more}"
            )
        if not out.told:
            return f"how it ended is not in {outer}"
        if self.inner.narrowed:
            return f"only some ports of {inner} were read (--port)"
        if out.opening is Opening.DIRECT_TLS and not (out.offers_alpn or self.inner.everything):
            return (
                f"without ALPN it is not known on every port, and {inner} was not read with --all"
            )
        return None

    def _may_be(self, out: Sighting, into: Sighting) -> bool:
        return out.random is not None or into.unseen or out.request == into.request

    def _covers(self, out: Sighting) -> bool:
        """The inner file has packets before and after."""
        began, ended = out.began + self.clock.ahead, out.ended + self.clock.ahead + LATE
        within = self.clock.within
        return self.inner.began <= began - within and ended + within <= self.inner.ended

    def _failed_meanwhile(self, out: Sighting) -> bool:
        """A connection that began in the inner file meanwhile did not come about."""
        began, ended = out.began + self.clock.ahead, out.ended + self.clock.ahead + LATE
        first = bisect_left(self.failed, began - self.clock.within)
        return first < len(self.failed) and self.failed[first] <= ended + self.clock.within

    def _likely(self, passage: Passage, why: str) -> Hop:
        condition = "" if self.clock.known else " (if the clocks agree)"
        return Hop(self.files, passage, Certainty.LIKELY, why + condition)

    def _unknown(self, why: str) -> Hop:
        return Hop(self.files, Passage.UNMATCHED, None, why)


def _beginning(out: Sighting) -> tuple[str | None, Opening]:
    """To whom it speaks, and what it says first."""
    return out.server, out.opening


def _door(out: Sighting) -> tuple[str | None, str | None]:
    """Where a connection leads by: the address, and the name where it said one."""
    return out.server, out.server_name


def _asks_for_tls(into: Sighting) -> bool:
    """It asked, and how that ended is known."""
    return into.opening in (Opening.SSL_REQUEST, Opening.GSSENC_REQUEST) and into.told


def _what(into: Sighting) -> str:
    if into.random is not None:
        return "another ClientHello"
    what = _REQUESTS.get(into.opening)
    if what is None:
        return "something else"
    return f"{'an' if what[0] == 'S' else 'a'} {what}"
