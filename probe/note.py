"""What a recording says beside its packets: which attempt they are, and what no packet carries.

Takes a transcript and how its run judges; gives the text of a comment for its first packet, in
lines for people, and reads such a text back::

    pgprobe attempt control asked=target
    door db-1.example.com:5432 sslmode=verify-full identity=db-1.example.com
    began 0.001234 s before
    0.001203 s: resolved to 192.0.2.1, 192.0.2.2
    0.030120 s: chain not trusted: unable to get local issuer certificate
    7.031500 s: gave up after 7.001000 s

Times are in seconds since the transcript began. Of a login nothing is noted that was said inside
TLS. Reading raises nothing: a comment that is none of ours is None, a line that is unknown is
passed over, and what is read is made safe to show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from probe.transcript import (
    Asked,
    ConnectFailure,
    Connecting,
    Event,
    Fact,
    GaveUp,
    NotConnected,
    Resolved,
    TlsFailed,
    Transcript,
    Verified,
)
from probe.wire import printable

PREFIX = "pgprobe attempt "
MAX_LINES = 64  # of a comment that are read
ROUNDED = 2e-6  # seconds; what a time may lose here and in the file

_TITLE = re.compile(PREFIX + r"(?P<name>.+?)(?:\s+asked=(?P<asked>\w+))?")
_DOOR = re.compile(
    r"door (?P<place>\S+) sslmode=(?P<sslmode>[a-z-]+)(?: identity=(?P<identity>\S+))?"
    r"(?P<proves> proves)?"
)
_SECONDS = r"(\d{1,9}\.\d{1,9}) s"
_BEGAN = re.compile(rf"began {_SECONDS} before")
_FACT = re.compile(rf"{_SECONDS}: (.*)")


class Run(NamedTuple):
    """How the run asked and judged; ``place`` is the door as it was named there."""

    place: str
    sslmode: str = "require"
    identity: str | None = None
    proves: bool = False


class Note(NamedTuple):
    """What a comment of ours says; ``began``: so many seconds before its packet."""

    attempt: str
    asked: Asked | None = None
    run: Run | None = None
    began: float = 0.0
    facts: tuple[Event, ...] = ()

    def restored(self, captured: Transcript) -> Transcript:
        """The transcript as it was made, of what the packets alone tell."""
        events = [event._replace(at=event.at + self.began) for event in captured.events]
        if any(isinstance(event.fact, NotConnected) for event in self.facts):
            events = [event for event in events if isinstance(event.fact, Connecting)]
        timed = [*((event.at, event) for event in events), *map(_place, self.facts)]
        return captured._replace(
            attempt=self.attempt,
            asked=self.asked,
            started=captured.started - self.began,
            events=tuple(event for _, event in sorted(timed, key=lambda pair: pair[0])),
        )


def _place(event: Event) -> tuple[float, Event]:
    """Where a noted fact stands: behind what it follows from, though its time was rounded."""
    return (-1.0 if isinstance(event.fact, Resolved) else event.at + ROUNDED), event


def is_note(comment: str) -> bool:
    """Whether a packet's comment is one of ours."""
    return comment.startswith(PREFIX)


def write_note(transcript: Transcript, run: Run | None = None) -> str:
    """The comment for the transcript's first packet."""
    lines = [PREFIX + transcript.attempt]
    if transcript.asked:
        lines[0] += f" asked={transcript.asked.value}"
    if run:
        identity = f" identity={run.identity}" if run.identity else ""
        proves = " proves" if run.proves else ""
        lines.append(f"door {run.place} sslmode={run.sslmode}{identity}{proves}")
    first = (event.at for event in transcript.events if isinstance(event.fact, Connecting))
    began = next(first, 0.0)
    if began:
        lines.append(f"began {began:.6f} s before")
    for event in transcript.events:
        if says := _in_words(event.fact):
            lines.append(f"{event.at:.6f} s: {says}")
    return "\n".join(lines)


def _in_words(fact: Fact) -> str | None:
    """A fact that only an end knows."""
    match fact:
        case Resolved(addresses):
            return f"resolved to {', '.join(addresses)}"
        case NotConnected(failure, says):
            return f"no connection, {failure.value}: {printable(says)}"
        case Verified(None):
            return "chain trusted"
        case Verified(str() as problem):
            return f"chain not trusted: {printable(problem)}"
        case TlsFailed(says):
            return f"TLS failed: {printable(says)}"
        case GaveUp(waited):
            return f"gave up after {waited:.6f} s"
    return None


_FAILURES = "|".join(failure.value for failure in ConnectFailure)
_READERS: Mapping[re.Pattern[str], Callable[[re.Match[str]], Fact]] = {
    re.compile(r"resolved to (.+)"): lambda m: Resolved(tuple(printable(m[1], 4_000).split(", "))),
    re.compile(rf"no connection, ({_FAILURES}): (.*)"): lambda m: NotConnected(
        ConnectFailure(m[1]), printable(m[2])
    ),
    re.compile(r"chain trusted"): lambda _: Verified(None),
    re.compile(r"chain not trusted: (.*)"): lambda m: Verified(printable(m[1])),
    re.compile(r"TLS failed: (.*)"): lambda m: TlsFailed(printable(m[1])),
    re.compile(rf"gave up after {_SECONDS}"): lambda m: GaveUp(float(m[1])),
}


def read_note(comment: str) -> Note | None:
    """What a packet's comment says, if it is one of ours."""
    title, *lines = comment.split("\n")[:MAX_LINES]
    named = _TITLE.fullmatch(title)
    if named is None:
        return None
    note = Note(printable(named["name"]))
    if named["asked"] in set(Asked):
        note = note._replace(asked=Asked(named["asked"]))
    for line in lines:
        if said := _FACT.fullmatch(line):
            fact = _fact(said[2])
            if fact is not None:
                note = note._replace(facts=(*note.facts, Event(float(said[1]), fact)))
        elif began := _BEGAN.fullmatch(line):
            note = note._replace(began=float(began[1]))
        elif door := _DOOR.fullmatch(line):
            identity = printable(door["identity"]) if door["identity"] else None
            run = Run(printable(door["place"]), door["sslmode"], identity, bool(door["proves"]))
            note = note._replace(run=run)
    return note


def _fact(says: str) -> Fact | None:
    for pattern, make in _READERS.items():
        if said := pattern.fullmatch(says):
            return make(said)
    return None
