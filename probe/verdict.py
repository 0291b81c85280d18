"""Findings and path to one word and one sentence, about the client that most people have."""

from enum import StrEnum
from typing import NamedTuple

from probe.evidence import Evidence
from probe.fate import in_words
from probe.finding import Finding, Severity
from probe.handshake import Stage
from probe.path import Answerer, Path, Routing
from probe.refusal import refused_made_up_user
from probe.signs import TlsEnd

# What degrades a connection that gets there.
_DEGRADES = ("name-ignored", "catch-all-route", "tls-terminated", "pooler-answers")

# What stops a client that verifies.
_OF_THE_CERTIFICATE = (
    "certificate-name-mismatch",
    "certificate-not-trusted",
    "certificate-expired",
    "default-certificate",
)


class Status(StrEnum):
    """The one word."""

    PASSES = "passes"
    DEGRADED = "degraded"
    BROKEN = "broken"
    UNREACHABLE = "unreachable"
    INDETERMINATE = "indeterminate"


class Verdict(NamedTuple):
    """The word, the stage that did not come (None: all came), the door, the sentence."""

    status: Status
    stage: Stage | None
    door: str | None
    summary: str


def decide_verdict(evidence: Evidence, path: Path, findings: tuple[Finding, ...]) -> Verdict:
    """The verdict on one door.

    Broken and unreachable have at least one finding at error, passes has none.
    """
    main = evidence.main
    errors = [f for f in findings if f.severity is Severity.ERROR]
    if main is None:
        summary = "nothing was answered before the deadline was over"
        return Verdict(Status.INDETERMINATE, None, evidence.door, summary)
    there = main.authenticates
    stage = None if there else main.awaited
    if there and any(error.name in _OF_THE_CERTIFICATE for error in errors):
        stage = Stage.CERTIFICATE
    if evidence.unreachable and errors:
        return Verdict(Status.UNREACHABLE, stage, evidence.door, errors[0].message)
    if evidence.unsteady:
        return Verdict(Status.INDETERMINATE, stage, evidence.door, evidence.unsteady)
    only_refused = {error.name for error in errors} == {"startup-refused"}
    if only_refused and refused_made_up_user(evidence, main):
        # a pooler knows only its own users, and pg_hba.conf may list them
        return Verdict(Status.INDETERMINATE, stage, evidence.door, errors[0].message)
    if errors:
        return Verdict(Status.BROKEN, stage, evidence.door, errors[0].message)
    if not there:
        summary = f"nothing known gives these answers together: the control is {in_words(main)}"
        return Verdict(Status.INDETERMINATE, stage, evidence.door, summary)
    degrading = [f for f in findings if f.name in _DEGRADES]
    if degrading:
        return Verdict(Status.DEGRADED, None, evidence.door, degrading[0].message)
    return Verdict(Status.PASSES, None, None, _passing(evidence, path))


def _passing(evidence: Evidence, path: Path) -> str:
    name = evidence.question.name
    asks = f"a client that asks for {name!r}" if name else "a client that asks for no name"
    if path.witness:
        return (
            f"{asks} reaches a witness in the server's place, with its TLS unbroken: the "
            "ClientHello arrived byte for byte"
        )
    gets = {
        TlsEnd.SERVER: "reaches the server's authentication, over TLS that ends at the server as "
        "far as can be told from outside",
        TlsEnd.UNKNOWN: "reaches authentication over TLS; where TLS ends is not shown here",
    }.get(path.tls_ends_at, "reaches authentication")
    routed = {
        Routing.BY_NAME: ", routed by its name",
        Routing.IGNORES_NAME: "; the name decides nothing on the way",
    }.get(path.routing, "")
    if path.routing is Routing.IGNORES_NAME and path.ssl_request_answered_by is not Answerer.PROXY:
        routed += ", as behind a plain forwarder"
    return f"{asks} {gets}{routed}"
