"""Transcripts to a Diagnosis: the program in a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from probe.clients import predict
from probe.door import Difference, Door, decide_whole, differences
from probe.evidence import Evidence, Question
from probe.finding import Finding, Severity
from probe.observer import observe
from probe.path import trace
from probe.rules import judge
from probe.transcript import Transcript
from probe.verdict import Verdict, decide_verdict

__all__ = ["Diagnosis", "Door", "Hop", "diagnose", "diagnose_hops"]


class Hop(NamedTuple):
    """One door as it was named, and what was said at each of its addresses ("addr:port").

    The first address is asked everything, the further ones the control alone. ``not_made`` names
    the attempts that were left out, each with the reason.
    """

    label: str
    transcripts: Mapping[str, Sequence[Transcript]]
    not_made: Sequence[tuple[str, str]] = ()


class Diagnosis(NamedTuple):
    """All doors and their further addresses, the outermost door first."""

    question: Question
    doors: tuple[Door, ...]
    not_made: tuple[tuple[str, str], ...] = ()

    @property
    def first(self) -> Door:
        """The outermost door: its path and clients are the run's."""
        return self.doors[0]

    @property
    def hops(self) -> tuple[Door, ...]:
        """The doors without their further addresses, the outermost first."""
        return tuple(door for door in self.doors if not door.further)

    @property
    def verdict(self) -> Verdict:
        """The outermost door's; with several it names the one that breaks it."""
        return decide_whole(self.hops)

    @property
    def differences(self) -> tuple[Difference, ...]:
        """What changes between neighbouring doors, though neither need fail."""
        return differences(self.hops)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings at all doors, the outermost door's first.

        An error is what stops the client, who comes to the outermost door: where it gets
        through there, what an inner door has to say is a warning.
        """
        first, *inner = self.hops
        found = [finding for door in inner for finding in door.findings]
        if first.works:
            found = [
                f._replace(severity=Severity.WARNING) if f.severity is Severity.ERROR else f
                for f in found
            ]
        return (*first.findings, *found)


def diagnose(
    question: Question,
    transcripts: Mapping[str, Sequence[Transcript]],
    not_made: Sequence[tuple[str, str]] = (),
) -> Diagnosis:
    """Read the transcripts of one door's addresses ("addr:port"), ask the rules, and decide.

    The first address is judged, the others are what it is compared with.
    """
    return diagnose_hops(question, [Hop("", transcripts, not_made)])


def diagnose_hops(question: Question, hops: Sequence[Hop]) -> Diagnosis:
    """Judge each door, the outermost first, beside its further addresses and the doors behind."""
    doors: list[Door] = []
    inner: tuple[Evidence, ...] = ()
    for hop in reversed(hops):
        alone = [
            Evidence(question, address, tuple(map(observe, told)))
            for address, told in hop.transcripts.items()
        ]
        first, *others = alone
        whole = Evidence(question, first.door, first.handshakes, tuple(others), inner)
        judged = [_judge(each, hop.label, n > 0) for n, each in enumerate((whole, *others))]
        doors = [*judged, *doors]
        inner = (whole, *inner)
    return Diagnosis(question, tuple(doors), tuple(_left_out(hops)))


def _judge(evidence: Evidence, label: str, further: bool) -> Door:
    path = trace(evidence)
    findings = judge(evidence)
    verdict = decide_verdict(evidence, path, findings)
    findings = tuple(sorted(findings, key=lambda f: f.message != verdict.summary))
    clients = predict(evidence)
    return Door(evidence, path, findings, clients, verdict, label or evidence.door, further)


def _left_out(hops: Sequence[Hop]) -> list[tuple[str, str]]:
    if len(hops) == 1:
        return list(hops[0].not_made)
    return [(name, f"at {hop.label} {why}") for hop in hops for name, why in hop.not_made]
