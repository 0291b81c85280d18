"""What was concluded at each door, and what changes between a door and the next one inward.

Takes doors that were judged one by one, the outermost first; gives the differences between
neighbours and the verdict on the whole way, which names the hop that breaks it.

A door behind another explains its fault where it works (then the hop between them breaks it) or
where it fails in a way that shows as the outer one's fault: a proxy before a dead server closes.
A door that cannot be asked from here (no address, no SYN-ACK) explains nothing: a pod's address
is often not routed to where pgprobe runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from probe.certificate import Certificate
from probe.clients import Experience
from probe.evidence import Evidence
from probe.fate import selects_alpn
from probe.finding import Finding, Severity
from probe.handshake import Handshake, Stage
from probe.path import Path
from probe.refusal import through
from probe.signs import TlsEnd
from probe.transcript import ConnectFailure
from probe.verdict import Status, Verdict

# What a client of a proxy meets when nobody answers behind it, or nobody with TLS.
_OF_A_DEAD_BACKEND = (
    "accepts-then-closes",
    "accepts-then-silent",
    "backend-down-or-without-tls",
    "startup-unanswered",
    "tls-handshake-failed",
    "silent-after-ssl-answer",
)
_DEAD = ("connection-refused", "accepts-then-closes", "accepts-then-silent", "tls-refused")


class Door(NamedTuple):
    """What was concluded at one address.

    ``label`` is the door as it was named. ``further``: another address of the same name, at
    which the control alone was tried.
    """

    evidence: Evidence
    path: Path
    findings: tuple[Finding, ...]
    clients: tuple[Experience, ...]
    verdict: Verdict
    label: str = ""
    further: bool = False

    @property
    def address(self) -> str:
        """Where it was tried, "addr:port"."""
        return self.evidence.door

    @property
    def works(self) -> bool:
        """The client in question gets through here."""
        return self.verdict.status in (Status.PASSES, Status.DEGRADED)

    @property
    def asked(self) -> bool:
        """There was somebody to ask, were it only to refuse."""
        first = self.evidence.first
        unheard = (
            ConnectFailure.NOT_RESOLVED,
            ConnectFailure.TIMED_OUT,
            ConnectFailure.UNREACHABLE,
        )
        return first is not None and first.not_connected not in unheard

    @property
    def fault(self) -> str | None:
        """The name of the finding that stops the client, or None."""
        errors = (f.name for f in self.findings if f.severity is Severity.ERROR)
        return next(errors, None)


# -- what changes from one door to the next ------------------------------------------------------


class Change(StrEnum):
    """In what two neighbouring doors differ, though neither need fail."""

    CERTIFICATE = "certificate"
    CLUSTER = "cluster"
    TLS_END = "tls-end"
    ALPN = "alpn"
    TIME = "time"


class Difference(NamedTuple):
    """What is seen at ``outer`` and not at ``inner``, the next door inward (both "addr:port")."""

    outer: str
    inner: str
    change: Change
    says: str


def differences(doors: Sequence[Door]) -> tuple[Difference, ...]:
    """What changes between neighbours, from the outermost pair inward."""
    return tuple(
        Difference(outer.address, inner.address, change, says)
        for outer, inner in pairwise(doors)
        for change, says in _changes(outer, inner)
    )


def _changes(outer: Door, inner: Door) -> Iterator[tuple[Change, str]]:
    here, there = through(outer.evidence), through(inner.evidence)
    if here is None or there is None:
        return
    if here.leaf and there.leaf and here.leaf != there.leaf:
        yield Change.CERTIFICATE, f"another certificate: {_named(here)}, behind it {_named(there)}"
    clusters = outer.path.cluster, inner.path.cluster
    if all(clusters) and clusters[0] != clusters[1]:
        yield Change.CLUSTER, f"another cluster: {clusters[0]}, behind it {clusters[1]}"
    ends = outer.path.tls_ends_at, inner.path.tls_ends_at
    if ends[0] is TlsEnd.PROXY and ends[1] is not TlsEnd.PROXY:
        yield Change.TLS_END, f"TLS ends here{outer.path.backend_leg.goes_on}"
    if selects_alpn(there) and not selects_alpn(here):
        yield Change.ALPN, "ALPN postgresql is selected behind it, and not here"
    took = _fastest(outer.evidence), _fastest(inner.evidence)
    if took[0] is not None and took[1] is not None:
        more = (took[0] - took[1]) * 1000
        yield Change.TIME, f"{abs(more):.1f} ms {'more' if more >= 0 else 'less'} to authentication"


def _named(seen: Handshake) -> str:
    leaf = Certificate(seen.leaf or b"")
    return f"{leaf.fingerprint[:8]} for {', '.join(leaf.names[:3]) or '?'}"


def _fastest(evidence: Evidence) -> float | None:
    """Seconds from the SYN to the authentication request, of the quickest control."""
    took = [
        seen.steps[-1].at + seen.steps[-1].took - seen.steps[0].at - _resolving(seen)
        for seen in evidence.controls
        if seen.authenticates and seen.steps
    ]
    return min(took, default=None)


def _resolving(seen: Handshake) -> float:
    return seen.steps[0].took if seen.steps[0].stage is Stage.RESOLVE else 0.0


# -- the whole way -------------------------------------------------------------------------------


def decide_whole(doors: Sequence[Door]) -> Verdict:
    """The outermost door's verdict, which says as well where on the way its reason lies."""
    first = doors[0]
    if len(doors) == 1:
        return first.verdict
    if first.verdict.status is Status.PASSES:
        return first.verdict._replace(summary=f"{first.verdict.summary}{_beside(doors)}")
    if first.works:
        return _degrading(doors)
    return _breaking(doors)


def _beside(doors: Sequence[Door]) -> str:
    stopped = [door for door in doors if not door.works]
    if not stopped:
        return f"; so it does at all {len(doors)} doors"
    told = "; ".join(f"{door.label} does not let it in: {door.verdict.summary}" for door in stopped)
    return f". Asked from here, {told}"


def _degrading(doors: Sequence[Door]) -> Verdict:
    last = doors[0]
    for door in doors[1:]:
        if door.verdict.status is not Status.DEGRADED:
            verdict = doors[0].verdict._replace(door=last.address)
            if door.verdict.status is not Status.PASSES:
                return verdict
            where = f"between {last.label} and {door.label}: {last.verdict.summary}"
            return verdict._replace(summary=f"passes at {door.label}, and changes {where}")
        last = door
    summary = f"already at the innermost door, {last.label}: {last.verdict.summary}"
    return doors[0].verdict._replace(door=last.address, summary=summary)


def _breaking(doors: Sequence[Door]) -> Verdict:
    asked = [doors[0], *(door for door in doors[1:] if door.asked)]
    unheard = [door.label for door in doors[1:] if not door.asked]
    note = f" ({', '.join(unheard)} cannot be asked from here)" if unheard else ""
    last = asked[0]
    for door in asked[1:]:
        if door.works or _gets_further(door, last):
            working = [d.label for d in reversed(asked) if d.works]
            seen = f"works at {_listed(working)}" if door.works else f"gets further at {door.label}"
            where = f"breaks at {last.label}: between {last.label} and {door.label}"
            break
        if not _explains(door, last):
            seen = f"breaks at {last.label}"
            where = f"{door.label} behind it fails in another way ({door.fault or 'no finding'})"
            break
        last = door
    else:
        seen = f"fails at every door that was asked, already at the innermost one, {last.label}"
        where = ""
    sentence = ", ".join(filter(None, (seen, where)))
    return doors[0].verdict._replace(
        door=last.address, summary=f"{sentence}: {last.verdict.summary}{note}"
    )


def _gets_further(inner: Door, outer: Door) -> bool:
    """The client's handshake comes to a later stage at the inner door."""
    here, there = _reached(outer), _reached(inner)
    return there is not None and (here is None or here.rank < there.rank)


def _reached(door: Door) -> Stage | None:
    main = door.evidence.main
    return main.reached if main else None


def _explains(inner: Door, outer: Door) -> bool:
    """The inner door's fault shows as the outer one's."""
    dead = inner.fault in _DEAD and outer.fault in _OF_A_DEAD_BACKEND
    return dead or inner.fault == outer.fault


def _listed(labels: Sequence[str]) -> str:
    return " and at ".join([", ".join(labels[:-1]), labels[-1]] if labels[:-1] else labels)
