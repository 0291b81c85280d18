"""Connections of captures to a Reading: grouped as a live run would have asked, and judged.

A capture holds other people's connections. What a live run varies on purpose, they vary by
habit: so they are grouped by door and by the name that was asked for, and within a group each
says what a live attempt would have: the name in question, another one, or none. A recorded run
of pgprobe's own says itself what it meant, and is judged as the run was.

Only what is known takes part: a connection whose decisive facts are not in the capture has a
row, and no rule hears of it. Of connections that asked alike and fared alike one is asked about,
and of those that fared differently the one that got furthest comes first: a fault of routing is
there each time, and what worked once is not such a fault.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from probe.attempt import MADE_UP_USER
from probe.diagnosis import Hop, diagnose_hops
from probe.evidence import Evidence, Question, gets_through, host_of
from probe.finding import Finding
from probe.handshake import Handshake, Opening, Outcome, Stage
from probe.note import Run
from probe.observer import observe
from probe.rules import judge
from probe.sighting import Sighting, Vantage
from probe.transcript import Asked, Event, Fact, GaveUp, NotCaptured, Party, Transcript
from probe.vantage import Paths, follow

SILENCE = 5.0  # seconds; a server that has not answered by then, while the capture went on, is mute
MAX_OTHERS = 4  # other names that a name is compared with
MAX_OWN = 1_024  # connections of a run of our own: of 16 doors with 30 attempts, and to spare
MAX_KINDS = 256  # kinds of connections of a group that rules are asked about

# What nobody can have configured (RFC 6761), so that it is what an unknown name is.
_UNKNOWN = ".invalid"

_STRANGER = re.compile(r"connection \d+( of .*)?")  # what a capture calls those it knows not


class Recorded(NamedTuple):
    """A connection as a capture file holds it; ``first_packet`` counts from 1 in the file.

    ``run`` is what a recording of pgprobe's own says of how it was judged.
    """

    transcript: Transcript
    file: str
    first_packet: int = 0
    packets: int = 0
    run: Run | None = None


class Connection(NamedTuple):
    """A row: one connection at one vantage point, what it told, and what was found in it."""

    recorded: Recorded
    handshake: Handshake
    findings: tuple[Finding, ...] = ()

    @property
    def file(self) -> str:
        """The capture file that holds it."""
        return self.recorded.file

    @property
    def transcript(self) -> Transcript:
        """Its events; of a stranger's, the last one alone."""
        return self.recorded.transcript

    @property
    def began(self) -> float:
        """When its first event was, in seconds since the epoch."""
        return self.transcript.started

    @property
    def ended(self) -> float:
        """When its last event was, in seconds since the epoch."""
        return _ended(self.transcript)

    @property
    def broken(self) -> bool | None:
        """It did not get through; None: the capture does not tell, or nothing was asked for."""
        seen = self.handshake
        if seen.not_connected:
            return True
        if gets_through(seen):
            return seen.error is not None or seen.foreign is not None
        if seen.opening in (Opening.NOTHING, Opening.CANCEL, Opening.OTHER) or not seen.told:
            return None
        return True


class Reading(NamedTuple):
    """What was read from capture files.

    ``findings`` are those of all doors together, the worst first. ``problems`` tell what could
    not be read. ``paths`` are the ways of connections through several files, by their numbers.
    """

    files: tuple[str, ...]
    connections: tuple[Connection, ...]
    findings: tuple[Finding, ...] = ()
    problems: tuple[str, ...] = ()
    paths: Paths = Paths()


def read(recorded: Iterable[Recorded], vantages: Sequence[Vantage]) -> Reading:
    """Observe each connection, group them, ask the rules; follow them from file to file.

    ``vantages`` are the files as they were given, those without a connection too. ``recorded`` may
    be made as it is read: of what strangers said no more is kept than a row tells.
    """
    places = {each.file: each for each in vantages}
    rows = [
        _observed(_labelled(each, len(places) > 1), places[each.file].ended) for each in recorded
    ]
    told: dict[int, dict[Finding, None]] = defaultdict(dict)
    together: dict[tuple[str, str, str], Finding] = {}
    for finding, concerned in _judged(rows):
        together.setdefault((finding.code, finding.door, finding.message), finding)
        for number in concerned:
            told[number][finding] = None
    findings = sorted(together.values(), key=lambda f: (-f.severity.rank, f.code))
    rows = [row._replace(findings=tuple(_once(told[id(row.handshake)]))) for row in rows]
    paths = follow([_sighting(row, places[row.file].ended) for row in rows], [*places.values()])
    return Reading(tuple(places), tuple(rows), tuple(findings), paths=paths)


def _once(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The same thing found in several groups is said once."""
    seen = set()
    for finding in sorted(findings, key=lambda f: (-f.severity.rank, f.code)):
        if (finding.code, finding.message) not in seen:
            seen.add((finding.code, finding.message))
            yield finding


# -- observing ---------------------------------------------------------------------------------


def _ended(transcript: Transcript) -> float:
    return transcript.started + (transcript.events[-1].at if transcript.events else 0.0)


def _labelled(recorded: Recorded, several: bool) -> Recorded:
    """Its label alone names it, also where each file has a connection 1."""
    transcript = recorded.transcript
    if several:
        transcript = transcript._replace(attempt=f"{transcript.attempt} of {recorded.file}")
    return recorded._replace(transcript=transcript)


def _observed(recorded: Recorded, end: float) -> Connection:
    """The connection, read up to the end of its capture."""
    seen = observe(recorded.transcript)
    open_ended = seen.ended_by is None and seen.gave_up_after is None
    if open_ended and seen.not_connected is None:
        ended = _ended(recorded.transcript)
        seen = observe(_prolonged(recorded.transcript, seen, end - ended))
    if _is_strangers(recorded):
        last = recorded.transcript.events[-1:]
        recorded = recorded._replace(transcript=recorded.transcript._replace(events=last))
    return Connection(recorded, seen)


def _is_strangers(recorded: Recorded) -> bool:
    """Nobody will ask for its events again: it is not judged as a run of our own."""
    return recorded.run is None and bool(_STRANGER.fullmatch(recorded.transcript.attempt))


def _prolonged(transcript: Transcript, seen: Handshake, left: float) -> Transcript:
    """With what its capture tells by going on, or hides by ending."""
    at = transcript.events[-1].at if transcript.events else 0.0
    unanswered = seen.told and not gets_through(seen) and seen.opening is not Opening.NOTHING
    fact: Fact = NotCaptured(Party.SERVER, None)
    if unanswered and seen.outcome is Outcome.SILENT and left >= SILENCE:
        fact, at = GaveUp(left), at + left
    elif seen.opening is Opening.NOTHING:
        return transcript
    return transcript._replace(events=(*transcript.events, Event(at, fact)))


def _sighting(row: Connection, end: float) -> Sighting:
    """It is open to the end of its capture, unless that shows how it ended."""
    over = row.handshake.ended_by is not None or row.handshake.not_connected is not None
    return Sighting(row.file, row.handshake, row.began, row.ended if over else end)


# -- grouping ----------------------------------------------------------------------------------


class _Group(NamedTuple):
    """What is asked about at once: the evidence, and whom each of its handshakes stands for.

    ``members`` are ids of the rows' handshakes, by the label of the one that stands for them.
    """

    evidence: Evidence
    members: dict[str, list[int]]

    def concerned(self, finding: Finding) -> Iterator[int]:
        """The connections that a finding is about: of those it cites, the ones that suffer."""
        labels = {proof.attempt for proof in finding.evidence}
        cited = [seen for seen in self.evidence.handshakes if seen.attempt in labels]
        for seen in _suffering(cited):
            yield from self.members.get(seen.attempt, ())


def _judged(rows: Sequence[Connection]) -> Iterator[tuple[Finding, Iterable[int]]]:
    """Each finding, and the ids of the handshakes that it is about.

    What belongs together: a recorded run of our own, and at a door each name that strangers asked
    for.
    """
    doors: dict[tuple[str, str], list[Connection]] = defaultdict(list)
    runs: dict[tuple[str, str], list[Connection]] = defaultdict(list)
    for row in rows:
        doors[row.file, _door(row)].append(row)
    for (file, door), members in doors.items():
        strangers: list[Connection] = []
        asked = any(row.transcript.asked is not None for row in members)
        for row in members:
            if row.recorded.run:
                runs[file, ""].append(row)
            elif asked and not _STRANGER.fullmatch(row.transcript.attempt):
                runs[file, door].append(row)
            elif row.handshake.told:
                strangers.append(row)
        for group in _Strangers(door, strangers).groups() if strangers else ():
            for finding in judge(group.evidence):
                yield finding, group.concerned(finding)
    for run in runs.values():
        yield from _own_run(run[:MAX_OWN])


def _door(row: Connection) -> str:
    return row.handshake.server or row.transcript.door


def _plain(name: str | None) -> str | None:
    """Names have no case (RFC 4343)."""
    return name.lower() if name else None


def _host(row: Connection) -> str:
    return host_of(row.handshake.client)


def _asks_for_tls(seen: Handshake) -> bool:
    return seen.opening in (Opening.SSL_REQUEST, Opening.DIRECT_TLS) or seen.ssl_answer is not None


def _own_run(rows: Sequence[Connection]) -> Iterator[tuple[Finding, Iterable[int]]]:
    """A run of pgprobe's own, judged as it was when it was made."""
    told: dict[str, dict[str, list[Transcript]]] = {}  # by place and address
    for row in rows:
        place = row.recorded.run.place if row.recorded.run else _door(row)
        told.setdefault(place, {}).setdefault(row.transcript.door, []).append(row.transcript)
    # the address that took a connection is the one that was asked everything
    hops = [
        Hop(place, dict(sorted(addresses.items(), key=lambda pair: not _connected(pair[1]))))
        for place, addresses in told.items()
    ]
    members = {(row.transcript.door, row.handshake.attempt): row.handshake for row in rows}
    for finding in diagnose_hops(_own_question(rows), hops).findings:
        cited = [members[proof.door, proof.attempt] for proof in finding.evidence]
        yield finding, map(id, _suffering(cited))


def _connected(transcripts: Iterable[Transcript]) -> bool:
    return any(transcript.connected for transcript in transcripts)


def _own_question(rows: Sequence[Connection]) -> Question:
    """What the run was about, from what its connections said and from what it says of itself."""
    first, run = rows[0].handshake, rows[0].recorded.run
    named = (row.handshake for row in rows if row.transcript.asked is Asked.TARGET)
    name = next((seen.server_name for seen in named if seen.server_name), None)
    who = next((row.handshake.startup for row in rows if row.handshake.startup), None)
    question = Question(
        name=name,
        direct=first.opening is Opening.DIRECT_TLS,
        user=(who.get("user") if who else None) or MADE_UP_USER,
        proxy_header=first.proxy_header,
        identity=name,
        at=rows[0].began,
    )
    if run is None:
        return question
    return question._replace(sslmode=run.sslmode, identity=run.identity, proves=run.proves)


def _suffering(cited: Sequence[Handshake]) -> Sequence[Handshake]:
    """Of the connections that a finding cites, those that it is about."""
    return [seen for seen in cited if not gets_through(seen)] or cited


class _Kind(NamedTuple):
    """Connections that asked alike and fared alike: one of them, and the ids of all."""

    seen: Handshake
    members: list[int]


class _Strangers:
    """What strangers say at one door, by the name that they ask for."""

    def __init__(self, door: str, rows: Sequence[Connection]) -> None:
        self.door, self.at = door, rows[0].began
        self.tls = frozenset(_host(row) for row in rows if _asks_for_tls(row.handshake))
        self.naming = frozenset(_host(row) for row in rows if row.handshake.server_name)
        kinds: dict[Hashable, _Kind] = {}
        for row in rows:
            habits = _host(row) in self.tls, _host(row) in self.naming
            kind = kinds.setdefault((_kind(row.handshake), habits), _Kind(row.handshake, []))
            kind.members.append(id(row.handshake))
        self.by_name: dict[str | None, list[_Kind]] = defaultdict(list)
        self.at_large: list[_Kind] = []  # without a name, or with one that nobody configured
        for kind in kinds.values():
            name = _plain(kind.seen.server_name)
            if name is None or name.endswith(_UNKNOWN):
                self.at_large.append(kind)
            else:
                self.by_name[name].append(kind)
        self.worth = sorted(self.by_name, key=lambda name: _worth(self.by_name[name]))

    def groups(self) -> Iterator[_Group]:
        """One for each name; one of all, where nobody asked for any."""
        for name in list(self.by_name) or [None]:
            yield self._group(name)

    def _group(self, name: str | None) -> _Group:
        """The name's own connections, those that stand for any, and some of other names."""
        others = [other for other in self.worth[: MAX_OTHERS + 1] if other != name][:MAX_OTHERS]
        meant = [
            *((kind, Asked.TARGET) for kind in (self.by_name[name] if name else ())),
            *((kind, _meant(kind.seen, name)) for kind in self.at_large),
            *((kind, Asked.OTHER) for other in others for kind in self.by_name[other]),
        ][:MAX_KINDS]
        members = {kind.seen.attempt: kind.members for kind, _ in meant}
        seen = sorted((replace(kind.seen, asked=asked) for kind, asked in meant), key=_by_reach)
        plain = [h for h in seen if h.asked is Asked.TARGET and h.client_hello]
        starttls = [h for h in seen if h.asked is Asked.TARGET and h.opening is Opening.SSL_REQUEST]
        question = Question(
            name=_spelling(plain),
            direct=bool(plain) and not starttls,
            user=None,
            proxy_header=all(h.proxy_header for h in seen if h.client_hello),
            identity=name,
            strangers=True,
            alpn=any(h.alpn_offered for h in starttls),
            at=self.at,
        )
        evidence = Evidence(
            question, self.door, tuple(seen), ask_for_tls=self.tls, ask_for_names=self.naming
        )
        return _Group(evidence, members)


def _meant(seen: Handshake, name: str | None) -> Asked | None:
    """What a live attempt that said the same would have meant."""
    asked = seen.server_name
    if seen.client_hello is None or _plain(asked) == name:
        return Asked.TARGET
    return Asked.UNKNOWN if asked else None


def _spelling(plain: Sequence[Handshake]) -> str | None:
    """The name as most write it: in lower case, if anybody does."""
    names = [seen.server_name for seen in plain if seen.server_name]
    return next((name for name in names if name == name.lower()), names[0] if names else None)


def _kind(seen: Handshake) -> tuple[Hashable, ...]:
    """Whatever rules look at: two with the same cannot lead to different findings."""
    hello, startup = seen.client_hello, seen.startup
    shape = (hello.server_name, hello.alpn, hello.versions, hello.size // 500) if hello else None
    answer = next((step.took for step in seen.steps if step.stage is Stage.SSL_REQUEST), 0.0)
    agreed = seen.established.alpn if seen.established else None
    refusal = (seen.error.sqlstate, seen.error.routine) if seen.error else None
    return (
        (seen.opening, seen.asked, shape, min(seen.hello_segments, 3), seen.hello_records),
        (seen.proxy_header, seen.split_request, seen.pipelined, seen.garbage),
        (seen.not_connected, seen.ssl_answer, seen.gss_answer, bool(seen.glued)),
        (seen.tls_version, agreed, seen.leaf, seen.certificate_asked, seen.alert),
        (seen.client_alert, seen.tls_failed, seen.foreign and seen.foreign.protocol),
        (startup.version if startup else None, seen.startup_in_tls, seen.mechanisms),
        (seen.authentication is not None, seen.salt, refusal, seen.negotiated),
        (seen.reached, seen.outcome, seen.ended_by, seen.not_captured),
        (bool(seen.strange_resets), len(seen.hello_resent) > 1, len(seen.flight_resent) > 1),
        round(answer, 2) if answer >= 1 else 0,
    )


def _by_reach(seen: Handshake) -> tuple[bool, int]:
    """What got furthest comes first."""
    stages = list(Stage)
    return not gets_through(seen), -(stages.index(seen.reached) if seen.reached else -1)


def _worth(kinds: Sequence[_Kind]) -> tuple[bool, bool]:
    """What got through comes first, then what was answered at all."""
    through = any(gets_through(kind.seen) for kind in kinds)
    return not through, not any(kind.seen.server_bytes for kind in kinds)
