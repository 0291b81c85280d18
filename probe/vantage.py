"""Connections of several captures, each taken at another place, to the ways that they went.

What passes through unchanged is known again anywhere: a ClientHello by its random, which is nobody
else's. The same one in two files proves passthrough, whatever addresses and clocks say; and from
such connections it is known how the clocks differ. Where the keys are known, a login is known
again as well: the nonce of its SCRAM challenge is nobody else's. The same login inside another
session, or in clear, proves that TLS ended on the way.

What was changed on the way, or came to no ClientHello, is told by the times, from one file to the
next (:mod:`probe.hop`). Files count as given with the outermost first, unless what they have in
common contradicts it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from probe.clock import Clock, Pair, difference, outermost_first
from probe.finding import Certainty, Severity
from probe.handshake import Opening
from probe.hop import Hop, Passage, onward
from probe.sighting import Sighting, Vantage

_WANT_TLS = (Opening.SSL_REQUEST, Opening.DIRECT_TLS)


class Way(NamedTuple):
    """A connection followed through the files.

    ``connections`` are the numbers of its sightings, the outermost first, ``files`` theirs; what
    is said of the whole is said of its first hop that does not pass it on, and ``between`` names
    that. ``between`` is None where no hop is to blame, or none is known. ``severity`` None:
    nothing is wrong, as far as is known.
    """

    connections: tuple[int, ...]
    files: tuple[str, ...]
    hops: tuple[Hop, ...]
    passage: Passage
    certainty: Certainty | None
    between: tuple[str, str] | None
    why: str
    severity: Severity | None


class Paths(NamedTuple):
    """All ways through the files; ``files``: the outermost first, of two or more.

    ``as_given``: that is the order in which they were given. There is a clock for each file but
    the first, against the one before it.
    """

    files: tuple[str, ...] = ()
    as_given: bool = True
    clocks: tuple[Clock, ...] = ()
    ways: tuple[Way, ...] = ()

    def only(self, wanted: Collection[int]) -> tuple[tuple[int, ...], Paths]:
        """The connections that are on a way with a wanted one, and their paths, by new numbers."""
        ways = [way for way in self.ways if not set(wanted).isdisjoint(way.connections)]
        kept = tuple(sorted({*wanted, *(n for way in ways for n in way.connections)}))
        number = {old: new for new, old in enumerate(kept)}
        renumbered = (
            way._replace(connections=tuple(number[old] for old in way.connections)) for way in ways
        )
        return kept, self._replace(ways=tuple(renumbered))


def follow(sightings: Sequence[Sighting], vantages: Sequence[Vantage]) -> Paths:
    """Each sighting is on one way; there are no paths where there are not at least two files."""
    if len(vantages) < 2:
        return Paths()
    alike, again = _alike(sightings)

    def pairs(outer: str, inner: str) -> Iterator[Pair]:
        for group in alike:
            first = {sightings[n].file: sightings[n] for n in reversed(group)}
            if outer in first and inner in first:
                yield first[outer], first[inner]

    given = tuple(each.file for each in vantages)
    files = outermost_first(given, pairs)
    clocks = tuple(difference(*both, pairs(*both)) for both in pairwise(files))
    chains = _with_one_login(_chains(sightings, alike, files), sightings, files)
    inner = {each.file: each for each in vantages}
    seen = [[sightings[n] for n in chain] for chain in chains]
    onwards: dict[int, tuple[Hop, int | None]] = {}
    for clock in clocks:
        onwards |= onward(seen, again, clock, inner[clock.file])
    ways = tuple(_ways(sightings, chains, onwards))
    return Paths(files, files == given, clocks, ways)


# -- what is known again -------------------------------------------------------------------------


def _alike(sightings: Sequence[Sighting]) -> tuple[list[list[int]], frozenset[bytes]]:
    """Sightings with one ClientHello, by their times; and the randoms that tell nothing.

    A file may hold both sides of a hop, which are open at the same time. Where they are not, the
    ClientHello was said again: by a replay, or by a health check that has only one.
    """
    by_random: dict[bytes, list[int]] = defaultdict(list)
    for number, each in enumerate(sightings):
        if each.random is not None:
            by_random[each.random].append(number)
    again = set()
    for random, numbers in by_random.items():
        numbers.sort(key=lambda n: sightings[n].hello_at)
        if _said_again(sightings[n] for n in numbers):
            again.add(random)
    alike = [group for random, group in by_random.items() if len(group) > 1 and random not in again]
    return alike, frozenset(again)


def _said_again(sightings: Iterable[Sighting]) -> bool:
    open_until: dict[str, float] = {}
    for each in sightings:
        if each.began > open_until.get(each.file, each.began):
            return True
        open_until[each.file] = max(each.ended, open_until.get(each.file, each.ended))
    return False


def _chains(
    sightings: Sequence[Sighting], alike: Iterable[Sequence[int]], files: Sequence[str]
) -> list[tuple[int, ...]]:
    """Each sighting in one chain of those that are one connection, the outermost first."""
    rank = {file: n for n, file in enumerate(files)}
    chains = [tuple(sorted(group, key=lambda n: rank[sightings[n].file])) for group in alike]
    known = {n for chain in chains for n in chain}
    chains += [(n,) for n in range(len(sightings)) if n not in known]
    return sorted(chains, key=lambda chain: (rank[sightings[chain[0]].file], chain))


def _with_one_login(
    chains: Sequence[tuple[int, ...]], sightings: Sequence[Sighting], files: Sequence[str]
) -> list[tuple[int, ...]]:
    """The same chains, those joined that have one login and lie in different files.

    What comes farther out must be known to be TLS, and what goes on must be known to the full.
    """
    rank = {file: n for n, file in enumerate(files)}
    by_nonce: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for chain in chains:
        for nonce in {sightings[n].nonce for n in chain} - {None}:
            assert nonce is not None
            by_nonce[nonce].append(chain)
    joined = {chain: chain for chain in chains}
    for parts in by_nonce.values():
        whole = [n for part in parts for n in part]
        places = [rank[sightings[n].file] for n in whole]
        apart = len(set(places)) == len(places) and places == sorted(places)
        known = all(sightings[n].random is not None for part in parts[:-1] for n in part)
        if len(parts) > 1 and apart and known and not any(sightings[n].unseen for n in whole):
            for part in parts:
                del joined[part]
            joined[parts[0]] = tuple(whole)
    return list(joined.values())


# -- the whole way -------------------------------------------------------------------------------


def _ways(
    sightings: Sequence[Sighting],
    chains: Sequence[tuple[int, ...]],
    onwards: Mapping[int, tuple[Hop, int | None]],
) -> Iterator[Way]:
    """From each chain that none leads to."""
    led_to = {then for _, then in onwards.values()}
    for number in range(len(chains)):
        if number in led_to:
            continue
        passed: list[int] = []
        hops: list[Hop] = []
        at: int | None = number
        while at is not None:
            passed += chains[at]
            hops += [_known_again(sightings[a], sightings[b]) for a, b in pairwise(chains[at])]
            hop, at = onwards.get(at, (None, None))
            hops += [hop] if hop else []
        yield _way(tuple(passed), [sightings[n] for n in passed], tuple(hops))


def _known_again(out: Sighting, into: Sighting) -> Hop:
    """Both have a ClientHello with one random, or one login."""
    between = out.file, into.file
    if out.random != into.random:
        what = "in clear" if into.random is None else "behind another ClientHello"
        why = (
            f"the same login, by the nonce of its SCRAM challenge, is in {into.file} {what}: the "
            "hop between ends TLS"
        )
        return Hop(between, Passage.TERMINATED, Certainty.PROVED, why)
    if out.sha256 == into.sha256:
        why = f"the same ClientHello, byte for byte, is in {_listed(between)}"
        return Hop(between, Passage.PASSTHROUGH, Certainty.PROVED, why)
    if out.retried or into.retried:
        why = (
            f"the first ClientHello before a HelloRetryRequest is not in both of {_listed(between)}"
        )
        return Hop(between, Passage.UNMATCHED, None, why)
    why = (
        f"the ClientHello in {into.file} has the random of the one in {out.file} and other bytes: "
        "the hop between rewrites it"
    )
    return Hop(between, Passage.TERMINATED, Certainty.LIKELY, why)


def _way(numbers: tuple[int, ...], seen: Sequence[Sighting], hops: tuple[Hop, ...]) -> Way:
    """What is to be said of the whole: what its first hop that does not pass it on says."""
    files = tuple(each.file for each in seen)
    first, last = seen[0], seen[-1]
    broke = next((hop for hop in hops if hop.passage is not Passage.PASSTHROUGH), None)
    passage, certainty, between = Passage.UNMATCHED, None, None
    if broke:
        passage, certainty, between, why = broke.passage, broke.certainty, broke.between, broke.why
    elif not hops:
        why = f"nothing farther out than {last.file} is known to lead to it"
    elif first.random is not None:
        passage, certainty = Passage.PASSTHROUGH, Certainty.PROVED
        why = f"the same ClientHello, byte for byte, is in {_listed(files)}"
    elif first.authenticates or first.cancels or first.left:
        why = (
            f"by the times it came to {last.file} unchanged, but it has no ClientHello to prove it"
        )
    else:
        passage, certainty = Passage.STOPPED, Certainty.LIKELY
        why = (
            f"by the times it came to {last.file} unchanged, and no farther: its outcome there is "
            f"{last.outcome.value!r}"
        )
    return Way(numbers, files, hops, passage, certainty, between, why, _severity(passage, first))


def _severity(passage: Passage, first: Sighting) -> Severity | None:
    """As findings have it: an error where a client that wants TLS does not get it."""
    if passage is Passage.STOPPED and first.opening in _WANT_TLS:
        return Severity.ERROR
    bad = passage in (Passage.STOPPED, Passage.TERMINATED)
    return Severity.WARNING if bad else None


def _listed(files: Iterable[str]) -> str:
    *names, last = dict.fromkeys(files)
    return f"{', '.join(names)} and {last}" if names else f"{last} twice"
