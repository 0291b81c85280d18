"""Asks at every door: resolves it, makes the attempts at its addresses, and keeps what was said.

Takes a target, attempts and time limits; gives a :class:`~probe.diagnosis.Hop` for each door,
outermost first. Doors are asked one after the other: they lead to the same server, for which all
of them together are one visitor. What must be asked in the way that got through (a login) is asked
in a second round, :class:`SecondRound`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from probe.attempt import MADE_UP_DATABASE, MADE_UP_USER, Attempt, Needs
from probe.certificate import Certificate
from probe.diagnosis import Hop
from probe.evidence import Evidence, Question
from probe.handshake import Handshake, Opening
from probe.observer import observe
from probe.sources.live import Resolution, not_resolved, probe_door, resolve
from probe.target import Place, Target
from probe.transcript import Transcript
from probe.wire import endpoint

MAX_ADDRESSES = 8  # of one name; further ones are left out

NotMade = list[tuple[str, str]]


class Limits(NamedTuple):
    """``family`` as in ``socket``; seconds for each wait, and for the whole run.

    ``deadline`` None: whoever is asked gets twice the time-out, each address and each round.
    """

    family: int
    timeout: float
    deadline: float | None = None


class _Clock(NamedTuple):
    """Until when, in seconds of the monotonic clock, and what to do without an end."""

    ends: float | None
    timeout: float

    @classmethod
    def of(cls, limits: Limits) -> _Clock:
        """Running from now."""
        end = None if limits.deadline is None else time.monotonic() + limits.deadline
        return cls(end, limits.timeout)

    def left(self, parts: int = 1) -> float:
        """Seconds for each of so many that are still to come."""
        if self.ends is None:
            return 2 * self.timeout
        return max(0.0, self.ends - time.monotonic()) / parts

    def part(self, parts: int) -> _Clock:
        """The next one's own."""
        if self.ends is None:
            return self
        return self._replace(ends=time.monotonic() + self.left(parts))


class SecondRound(NamedTuple):
    """What is worth asking only where, and as, somebody got through to authentication over TLS.

    ``proves``: the channel binding test. ``login``: log in, with the password of this attempt.
    """

    question: Question
    control: Attempt
    proves: bool = False
    login: Attempt | None = None

    def plan(self, door: str, told: Sequence[Transcript]) -> tuple[list[Attempt], NotMade]:
        """The attempts to make at a door, and those that are not worth it, with the reason."""
        evidence = Evidence(self.question, door, tuple(map(observe, told)))
        made: list[Attempt] = []
        left: NotMade = []
        inside = [seen for seen in _candidates(evidence) if seen.authenticates]
        if self.proves:
            seen = next((seen for seen in inside if seen.offers_binding), None)
            if seen:
                made.append(_made_up(_as(seen, self.control, "prove")))
            else:
                left.append(("prove", "SCRAM-SHA-256-PLUS is not offered"))
        if self.login:
            why = self._hindrance(inside)
            if why:
                left.append(("login", why))
            else:
                made.append(_as(inside[0], self.login, "login"))
        return made, left

    def _hindrance(self, inside: Sequence[Handshake]) -> str | None:
        """Why no password is said here."""
        if not inside:
            return "no connection gets to authentication over TLS"
        name = self.question.identity
        leaf = Certificate(inside[0].leaf or b"")
        if self.question.sslmode == "verify-full" and not (name and leaf.covers(name)):
            return "the certificate is for another name"
        return None


def _candidates(evidence: Evidence) -> list[Handshake]:
    """The ways in, the one of the client in question first."""
    ways = (
        evidence.main,
        *(
            evidence.one(opening, alpn=alpn)
            for opening in (Opening.SSL_REQUEST, Opening.DIRECT_TLS)
            for alpn in (True, False)
        ),
    )
    return [seen for seen in ways if seen]


def _as(seen: Handshake, attempt: Attempt, name: str) -> Attempt:
    """The attempt, made as the handshake was."""
    return replace(
        attempt, name=name, opening=seen.opening, alpn=seen.alpn_offered, needs=Needs.NOTHING
    )


def _made_up(attempt: Attempt) -> Attempt:
    return replace(attempt, user=MADE_UP_USER, database=MADE_UP_DATABASE, proves=True)


def visit(
    target: Target,
    attempts: Sequence[Attempt],
    limits: Limits,
    second: SecondRound | None = None,
) -> list[Hop]:
    """What was said at each of the target's places, the outermost first."""
    clock = _Clock.of(limits)
    hops: list[Hop] = []
    for place in target.places:
        own = clock.part(len(target.places) - len(hops))
        hops.append(_visit(target, place, attempts, limits.family, own, second))
    return hops


def _visit(
    target: Target,
    place: Place,
    attempts: Sequence[Attempt],
    family: int,
    clock: _Clock,
    second: SecondRound | None,
) -> Hop:
    """All attempts at the first address that takes a connection, the control at the others."""
    label = place.label if target.doors else target.label
    resolution = resolve(place.host, place.port, family, min(clock.timeout, clock.left()))
    if resolution.failure:
        told = not_resolved(attempts[0], label, resolution)
        left = [(attempt.name, "there is no address") for attempt in attempts[1:]]
        return Hop(label, {label: [told]}, left)
    literal = place.host in resolution.addresses
    named: Resolution | None = None if literal else resolution
    doors: dict[str, list[Transcript]] = {}
    not_made: NotMade = []
    chosen = False
    addresses = resolution.addresses[:MAX_ADDRESSES]
    for number, address in enumerate(addresses):
        some = attempts[:1] if chosen else attempts
        own = clock.part(len(addresses) - number)
        told_here, left = _probe(address, place.port, some, own, named)
        door = endpoint(address, place.port)
        connected = any(transcript.connected for transcript in told_here)
        if connected and not chosen:
            chosen = True
            more, unfit = second.plan(door, told_here) if second else ([], [])
            for attempt in more:
                again, cut_off = _probe(address, place.port, (attempt,), own, None)
                told_here += again
                unfit += cut_off
            doors = {door: told_here, **doors}  # libpq goes on to the next address, too
            not_made = [*left, *unfit]
        else:
            doors[door] = told_here
            not_made = not_made or left
        named = None
    return Hop(label, doors, not_made)


def _probe(
    address: str,
    port: int,
    attempts: Sequence[Attempt],
    clock: _Clock,
    resolution: Resolution | None,
) -> tuple[list[Transcript], NotMade]:
    return probe_door(
        address,
        port,
        attempts,
        timeout=clock.timeout,
        deadline=clock.left(),
        resolution=resolution,
    )
