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

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from probe.attempt import MADE_UP_USER
from probe.captured import Captured
from probe.diagnosis import Hop, diagnose_hops
from probe.digest import Digest, Digester, observed
from probe.evidence import Evidence, Question
from probe.fate import gets_through, reach
from probe.finding import Finding
from probe.handshake import Handshake, Opening
from probe.rules import judge
from probe.sighting import Sighting, Vantage
from probe.transcript import Asked, Transcript
from probe.vantage import Paths, follow

MAX_OTHERS = 4  # other names that a name is compared with
MAX_OWN = 1_024  # connections of a run of our own: of 16 doors with 30 attempts, and to spare
MAX_KINDS = 256  # kinds of connections of a group that rules are asked about

# What nobody can have configured (RFC 6761), so that it is what an unknown name is.
_UNKNOWN = ".invalid"


class Source:
    """The connections of all captures, as they were captured, and until when each file goes on."""

    def __init__(self, captured: Sequence[Captured], vantages: Sequence[Vantage]) -> None:
        self._captured = captured
        self.ends = {each.file: each.ended for each in vantages}
        self.files = tuple(self.ends)

    def captured(self, number: int) -> Captured:
        """A connection; its label alone names it, also where each file has a connection 1."""
        found = self._captured[number]
        if len(self.files) == 1:
            return found
        label = f"{found.transcript.attempt} of {found.file}"
        return found._replace(transcript=found.transcript._replace(attempt=label))

    def handshake(self, number: int) -> Handshake:
        """What a connection told, up to the end of its capture."""
        return self.handshake_of(self.captured(number))

    def handshake_of(self, captured: Captured) -> Handshake:
        """What this one of the connections told."""
        return observed(captured.transcript, self.ends[captured.file])


class Connection(NamedTuple):
    """A row: one connection at one vantage point, and what was found in it.

    What it said and told is made anew whenever it is asked for: a reading may have very many rows.
    """

    source: Source
    number: int
    digest: Digest
    findings: tuple[Finding, ...] = ()

    @property
    def captured(self) -> Captured:
        """It as its capture holds it."""
        return self.source.captured(self.number)

    @property
    def handshake(self) -> Handshake:
        """What it told."""
        return self.source.handshake(self.number)


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


def read(
    captured: Sequence[Captured],
    vantages: Sequence[Vantage],
    digests: Iterable[Digest] = (),
) -> Reading:
    """Observe each connection, group them, ask the rules; follow them from file to file.

    ``vantages`` are the files as they were given, those without a connection too. ``digests`` are
    those of all connections, where they were made while the only file was read.
    """
    source = Source(captured, vantages)
    rows, sightings = _rows(source, len(captured), digests)
    told: dict[int, dict[Finding, None]] = defaultdict(dict)
    together: dict[tuple[str, str, str], Finding] = {}
    for finding, concerned in _judged(rows):
        together.setdefault((finding.code, finding.door, finding.message), finding)
        for number in concerned:
            told[number][finding] = None
    findings = sorted(together.values(), key=lambda f: (-f.severity.rank, f.code))
    rows = [
        row._replace(findings=tuple(_once(told[row.number]))) if row.number in told else row
        for row in rows
    ]
    paths = follow(sightings, vantages)
    return Reading(source.files, tuple(rows), tuple(findings), paths=paths)


def _rows(
    source: Source, count: int, digests: Iterable[Digest]
) -> tuple[list[Connection], list[Sighting]]:
    """All connections, and as they are followed where there are several files."""
    digester, made = Digester(several=len(source.files) > 1), iter(digests)
    rows, sightings = [], []
    for number in range(count):
        digest = next(made, None)
        if digest is None or not digest.over:
            captured = source.captured(number)
            digest = digester.digest(captured, source.handshake_of(captured))
        rows.append(Connection(source, number, digest))
        if digest.sighting:
            sightings.append(digest.sighting.until(source.ends[digest.file]))
    return rows, sightings


def _once(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The same thing found in several groups is said once."""
    seen = set()
    for finding in sorted(findings, key=lambda f: (-f.severity.rank, f.code)):
        if (finding.code, finding.message) not in seen:
            seen.add((finding.code, finding.message))
            yield finding


# -- grouping ----------------------------------------------------------------------------------


class _Group(NamedTuple):
    """What is asked about at once: the evidence, and whom each of its handshakes stands for.

    ``members`` are the rows' numbers, by the label of the one that stands for them.
    """

    evidence: Evidence
    members: Mapping[str, Sequence[int]]

    def concerned(self, finding: Finding) -> Iterator[int]:
        """The connections that a finding is about: of those it cites, the ones that suffer."""
        labels = {proof.attempt for proof in finding.evidence}
        cited = [seen for seen in self.evidence.handshakes if seen.attempt in labels]
        for seen in _suffering(cited):
            yield from self.members.get(seen.attempt, ())


def _judged(rows: Sequence[Connection]) -> Iterator[tuple[Finding, Iterable[int]]]:
    """Each finding, and the numbers of the rows that it is about.

    What belongs together: a recorded run of our own, and at a door each name that strangers asked
    for.
    """
    doors: dict[tuple[str, str], list[Connection]] = defaultdict(list)
    runs: dict[tuple[str, str], list[Connection]] = defaultdict(list)
    for row in rows:
        doors[row.digest.file, row.digest.door].append(row)
    for (file, door), members in doors.items():
        strangers: list[Connection] = []
        asked = any(row.digest.asked for row in members)
        for row in members:
            if row.digest.run:
                runs[file, ""].append(row)
            elif asked and row.digest.own:
                runs[file, door].append(row)
            elif row.digest.told:
                strangers.append(row)
        blind = any(row.digest.through and not row.digest.told for row in members)
        for group in _Strangers(door, strangers, blind).groups() if strangers else ():
            for finding in judge(group.evidence):
                yield finding, group.concerned(finding)
    for run in runs.values():
        yield from _own_run(run[:MAX_OWN])


def _own_run(rows: Sequence[Connection]) -> Iterator[tuple[Finding, Iterable[int]]]:
    """A run of pgprobe's own, judged as it was when it was made."""
    told: dict[str, dict[str, list[Transcript]]] = {}  # by place and address
    members: dict[tuple[str, str], tuple[Handshake, int]] = {}
    asked = []
    for row in rows:
        captured = row.captured
        transcript, run = captured.transcript, captured.note.run if captured.note else None
        place = run.place if run else row.digest.door
        told.setdefault(place, {}).setdefault(transcript.door, []).append(transcript)
        seen = row.source.handshake_of(captured)
        members[transcript.door, seen.attempt] = seen, row.number
        asked.append((captured, seen))
    # the address that took a connection is the one that was asked everything
    hops = [
        Hop(place, dict(sorted(addresses.items(), key=lambda pair: not _connected(pair[1]))))
        for place, addresses in told.items()
    ]
    for finding in diagnose_hops(_own_question(asked), hops).findings:
        cited = dict(members[proof.door, proof.attempt] for proof in finding.evidence)
        yield finding, [cited[seen] for seen in _suffering(list(cited))]


def _connected(transcripts: Iterable[Transcript]) -> bool:
    return any(transcript.connected for transcript in transcripts)


def _own_question(rows: Sequence[tuple[Captured, Handshake]]) -> Question:
    """What the run was about, from what its connections said and from what it says of itself."""
    captured, first = rows[0]
    named = (seen for each, seen in rows if each.transcript.asked is Asked.TARGET)
    name = next((seen.server_name for seen in named if seen.server_name), None)
    who = next((seen.startup for _, seen in rows if seen.startup), None)
    question = Question(
        name=name,
        direct=first.opening is Opening.DIRECT_TLS,
        user=(who.get("user") if who else None) or MADE_UP_USER,
        proxy_header=first.proxy_header,
        identity=name,
        at=captured.transcript.started,
    )
    run = captured.note.run if captured.note else None
    if run is None:
        return question
    return question._replace(sslmode=run.sslmode, identity=run.identity, proves=run.proves)


def _suffering(cited: Sequence[Handshake]) -> Sequence[Handshake]:
    """Of the connections that a finding cites, those that it is about."""
    return [seen for seen in cited if not gets_through(seen)] or cited


# -- strangers -----------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """Connections that asked alike and fared alike: the first in short, and the numbers of all."""

    first: Digest
    members: list[int]


class _Strangers:
    """What strangers say at one door, by the name that they ask for."""

    def __init__(self, door: str, rows: Sequence[Connection], blind: bool) -> None:
        self.door, self.at, self.blind = door, rows[0].digest.began, blind
        self.tls = frozenset(row.digest.host for row in rows if row.digest.for_tls)
        self.naming = frozenset(row.digest.host for row in rows if row.digest.name)
        kinds: dict[Hashable, _Kind] = {}
        for row in rows:
            habits = row.digest.host in self.tls, row.digest.host in self.naming
            kind = kinds.setdefault((row.digest.kind, habits), _Kind(row.digest, []))
            kind.members.append(row.number)
        self.by_name: dict[str | None, list[_Kind]] = defaultdict(list)
        self.at_large: list[_Kind] = []  # without a name, or with one that nobody configured
        for kind in kinds.values():
            name = _plain(kind.first.name)
            if name is None or name.endswith(_UNKNOWN):
                self.at_large.append(kind)
            else:
                self.by_name[name].append(kind)
        self.worth = sorted(self.by_name, key=lambda name: _worth(self.by_name[name]))
        self.handshake = lru_cache(MAX_KINDS)(rows[0].source.handshake)

    def groups(self) -> Iterator[_Group]:
        """One for each name; one of all, where nobody asked for any."""
        for name in list(self.by_name) or [None]:
            yield self._group(name)

    def _group(self, name: str | None) -> _Group:
        """The name's own connections, those that stand for any, and some of other names."""
        others = [other for other in self.worth[: MAX_OTHERS + 1] if other != name][:MAX_OTHERS]
        own = self.by_name[name] if name else []
        away = [kind for other in others for kind in self.by_name[other]]
        members, meant = {}, []
        for kind in [*own, *self.at_large, *away][:MAX_KINDS]:
            seen = self.handshake(kind.members[0])
            members[seen.attempt] = kind.members
            meant.append(replace(seen, asked=_meant(seen, name)))
        meant.sort(key=reach)
        plain = [h for h in meant if h.asked is Asked.TARGET and h.client_hello]
        starttls = [
            h for h in meant if h.asked is Asked.TARGET and h.opening is Opening.SSL_REQUEST
        ]
        question = Question(
            name=_spelling(plain),
            direct=bool(plain) and not starttls,
            user=None,
            proxy_header=all(h.proxy_header for h in meant if h.client_hello),
            identity=name,
            strangers=True,
            alpn=any(h.alpn_offered for h in starttls),
            at=self.at,
        )
        evidence = Evidence(
            question,
            self.door,
            tuple(meant),
            ask_for_tls=self.tls,
            ask_for_names=self.naming,
            blind=self.blind,
        )
        return _Group(evidence, members)


def _plain(name: str | None) -> str | None:
    """Names have no case (RFC 4343)."""
    return name.lower() if name else None


def _meant(seen: Handshake, name: str | None) -> Asked | None:
    """What a live attempt that said the same would have meant."""
    asked = _plain(seen.server_name)
    if seen.client_hello is None or asked == name:
        return Asked.TARGET
    if asked is None:
        return None
    return Asked.UNKNOWN if asked.endswith(_UNKNOWN) else Asked.OTHER


def _worth(kinds: Sequence[_Kind]) -> tuple[bool, bool]:
    """What got through comes first, then what was answered at all."""
    through = any(kind.first.through for kind in kinds)
    return not through, not any(kind.first.answered for kind in kinds)


def _spelling(plain: Sequence[Handshake]) -> str | None:
    """The name as most write it: in lower case, if anybody does."""
    names = [seen.server_name for seen in plain if seen.server_name]
    return next((name for name in names if name == name.lower()), names[0] if names else None)
