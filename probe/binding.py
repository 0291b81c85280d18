"""Whether the certificate that the client saw is the server's own: the channel binding test.

Takes one door's Evidence; gives a :class:`BindingTest`. With SCRAM-SHA-256-PLUS the client says
which certificate it saw (``tls-server-end-point``, RFC 5929), and PostgreSQL compares that with
its own before it looks at the password. So a login that must fail tells, by how it fails, whether
TLS ends at the server. A real login that was bound tells the same.

The limit: a proxy that holds the server's own certificate passes the test.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from probe.certificate import Certificate
from probe.evidence import Evidence
from probe.finding import Proof
from probe.handshake import Handshake
from probe.transcript import Asked
from probe.wire import printable

WRONG_PASSWORD = "28P01"  # SQLSTATE: the binding held, and the password did not
REFUSED = "28000"  # SQLSTATE: invalid authorization specification

# The C functions that compare the binding, and its flag: their words may be translated.
_COMPARES, _READS_FLAG = "read_client_final_message", "read_client_first_message"


class Binding(StrEnum):
    """What the test says."""

    END_TO_END = "end-to-end"
    RE_ENCRYPTED = "re-encrypted"
    NOT_DECIDABLE = "not-decidable"
    NOT_TRIED = "not-tried"


class BindingTest(NamedTuple):
    """The result, why it is that, and where it was seen."""

    result: Binding
    why: str
    proof: Proof | None = None


def binding_test(evidence: Evidence) -> BindingTest:
    """What the logins at this door say about the certificate; certain of nothing else."""
    for seen in _logins(evidence):
        if tested := _tested(evidence, seen):
            return tested
    if not evidence.question.proves:
        return BindingTest(Binding.NOT_TRIED, "")
    return BindingTest(Binding.NOT_DECIDABLE, _hindrance(evidence))


def _logins(evidence: Evidence) -> list[Handshake]:
    return [
        seen
        for seen in evidence.handshakes
        if seen.sasl and seen.startup_in_tls and seen.asked in (Asked.TARGET, None)
    ]


def _tested(evidence: Evidence, seen: Handshake) -> BindingTest | None:
    assert seen.sasl is not None
    error = seen.login_error
    if seen.sasl.flag == "p=tls-server-end-point":
        if error and error.sqlstate == REFUSED and _is_about(error.routine, error.message):
            words = printable(error.message, 80)
            why = f"the server's certificate is not the one that was seen: '{words}'"
            return BindingTest(Binding.RE_ENCRYPTED, why, evidence.proof(seen, why))
        if seen.let_in or (error and error.sqlstate == WRONG_PASSWORD):
            why = "the server says that its certificate is the one that was seen"
            return BindingTest(Binding.END_TO_END, why, evidence.proof(seen, why))
        if error:
            why = f"the login ended otherwise: {error.in_words(120)}"
            return BindingTest(Binding.NOT_DECIDABLE, why, evidence.proof(seen, why))
    if seen.sasl.flag == "y" and seen.offers_binding:
        why = "the signature on the certificate names no hash (Ed25519, Ed448)"
        if error and error.sqlstate == REFUSED and error.routine in (_READS_FLAG, None):
            why += "; the server's own connection is TLS, for it refuses the GS2 flag y"
        return BindingTest(Binding.NOT_DECIDABLE, why, evidence.proof(seen, why))
    return None


def _is_about(routine: str | None, message: str) -> bool:
    return routine == _COMPARES or "channel binding" in message


def _hindrance(evidence: Evidence) -> str:
    """Why the test could not be made."""
    inside = [seen for seen in evidence.handshakes if seen.authenticates]
    asked = [seen for seen in inside if seen.asked is Asked.TARGET]
    if not asked:
        return "no connection with the asked name gets to authentication over TLS"
    if any(seen.witness for seen in asked):
        return "a witness stands in the server's place, and nobody can log in there"
    if not any(seen.mechanisms for seen in asked):
        methods = {seen.authentication.method for seen in asked if seen.authentication}
        return f"the made-up user is asked for {', '.join(sorted(methods))}, not for SASL"
    offered = [seen for seen in asked if seen.offers_binding]
    if not offered:
        return "no SCRAM-SHA-256-PLUS is offered"
    if all(Certificate(seen.leaf or b"").binding_data is None for seen in offered):
        return "the signature on the certificate names no hash (Ed25519, Ed448)"
    return "the connection was lost before the server compared certificates"
