"""How one connection fared, as rules and sentences compare it with others.

Takes a :class:`~probe.handshake.Handshake`, or several that asked alike; judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from probe.attempt import ALPN
from probe.handshake import Handshake, Outcome, Stage
from probe.transcript import ConnectFailure, Ending, Party
from probe.wire.messages import TOO_MANY_CONNECTIONS

# Subjects of certificates that proxies make for names they know nothing of. Sources: the
# projects' own code (Traefik: generate.DefaultDomain, ingress-nginx: fake certificate).
PLACEHOLDERS = ("TRAEFIK DEFAULT CERT", "Kubernetes Ingress Controller Fake Certificate")


def ending_text(seen: Handshake) -> str:
    """How it ended, where the answer that was waited for did not come."""
    if seen.ended_by is Party.SERVER:
        how = "reset" if seen.ending is Ending.RST else "closed"
        return f"{how} after {1000 * (seen.closed_after or 0):.0f} ms"
    if seen.gave_up_after is not None:
        return f"no answer in {seen.gave_up_after:.1f} s"
    if seen.tls_failed or seen.verified:
        return seen.tls_failed or "not answered"
    if seen.left_after is not None:
        return f"the client left after {seen.left_after:.1f} s without an answer"
    if seen.client_alert:
        return f"the client refuses: TLS {seen.client_alert}"
    return "the client closed first" if seen.ended_by is Party.CLIENT else "not answered"


_NO_CONNECTION = {
    ConnectFailure.REFUSED: Outcome.REFUSED,
    ConnectFailure.NOT_RESOLVED: Outcome.REFUSED,
    ConnectFailure.UNREACHABLE: Outcome.REFUSED,
    ConnectFailure.RESET: Outcome.RESET,
    ConnectFailure.TIMED_OUT: Outcome.SILENT,
}


def outcome_of(seen: Handshake) -> Outcome:
    """How it ended for a client that insists on TLS."""
    if seen.not_connected:
        return _NO_CONNECTION[seen.not_connected]
    if seen.authentication:
        return Outcome.AUTHENTICATION
    if seen.foreign or seen.glued:
        return Outcome.FOREIGN
    if seen.error:
        return Outcome.ERROR
    if seen.alert:
        return Outcome.ALERT
    if seen.ssl_answer == "N":
        return Outcome.REFUSED
    if seen.ended_by is Party.SERVER:
        return Outcome.RESET if seen.ending is Ending.RST else Outcome.CLOSED
    if seen.left_after is not None and not seen.tls_failed:
        return Outcome.SILENT
    gave_reason = seen.tls_failed or seen.verified or seen.client_alert
    if seen.ended_by is Party.CLIENT and not gave_reason:
        return Outcome.CLOSED
    if seen.tls_failed or seen.client_alert or (seen.verified and seen.verified.problem):
        return Outcome.ALERT  # our own library refused what it was shown
    return Outcome.SILENT


def reach(seen: Handshake) -> tuple[bool, bool, int]:
    """To sort by: what got furthest comes first."""
    return (
        not seen.authenticates,
        not gets_through(seen),
        -(seen.reached.rank if seen.reached else -1),
    )


def fate(seen: Handshake) -> tuple[Stage | None, Outcome]:
    """How far it got and how it ended, to compare it with another.

    Who hangs up may do so with a FIN, an RST or an alert, whichever the network brings first.
    """
    refused = hung_up(seen) or seen.alert is not None
    return seen.reached, Outcome.CLOSED if refused else seen.outcome


def disagreement(handshakes: Iterable[Handshake]) -> tuple[Handshake, ...]:
    """One of each way in which they ended; none, where they agree."""
    kinds: dict[object, Handshake] = {}
    for seen in handshakes:
        kinds.setdefault((fate(seen), seen.offers_binding), seen)
    return tuple(kinds.values()) if len(kinds) > 1 else ()


def in_turn(handshakes: Iterable[Handshake]) -> str:
    """How each of these ended that asked alike, in a sentence."""
    told = "; ".join(
        f"{seen.attempt} is {in_words(seen)}"
        + (f", with {seen.authentication.offer}" if seen.authentication and seen.mechanisms else "")
        for seen in handshakes
    )
    return f"what says the same ends differently: {told}"


def broke_off(seen: Handshake) -> bool:
    """The server closed or reset, or said nothing: there was no answer in words."""
    return hung_up(seen) or seen.outcome is Outcome.SILENT


def hung_up(seen: Handshake) -> bool:
    """The server closed or reset the connection."""
    by_server = seen.ended_by is Party.SERVER or seen.not_connected is ConnectFailure.RESET
    return by_server and seen.outcome in (Outcome.CLOSED, Outcome.RESET)


def in_words(seen: Handshake) -> str:
    """How a connection ended, for a sentence."""
    if seen.outcome is Outcome.CLOSED and seen.ended_by is Party.SERVER:
        return "closed"
    if seen.outcome is Outcome.RESET:
        return "reset"
    waited = seen.gave_up_after if seen.gave_up_after is not None else seen.left_after
    if seen.outcome is Outcome.SILENT and waited is not None:
        return f"left without an answer for {waited:.1f} s"
    if seen.outcome is Outcome.ALERT and seen.alert:
        return f"answered with TLS {seen.alert}"
    if seen.outcome is Outcome.AUTHENTICATION:
        return "let through to authentication"
    if seen.witness:
        return "answered by a witness"
    if seen.outcome is Outcome.ALERT and seen.client_alert and not seen.tls_failed:
        return f"refused by the client with TLS {seen.client_alert}"
    if seen.outcome is Outcome.CLOSED and seen.client_hello and not seen.established:
        return "left by the client"
    if seen.steps:
        return seen.steps[-1].says
    return seen.outcome.value


def gets_through(seen: Handshake) -> bool:
    """TLS finished, or the server asked for authentication in clear."""
    return seen.established is not None or seen.authentication is not None


def said_nothing_in_tls(seen: Handshake) -> bool:
    """The S came, and not one byte of TLS behind it."""
    silent = seen.server_hello is None and seen.alert is None and seen.foreign is None
    return seen.ssl_answer == "S" and not seen.glued and silent


def selects_alpn(seen: Handshake) -> bool:
    """The TLS peer selected ``postgresql``."""
    return seen.alpn_selected == ALPN


def placeholder(seen: Handshake) -> str | None:
    """The name of the placeholder certificate that was shown, or None.

    Searched as bytes: a placeholder's subject is plain text inside its DER.
    """
    leaf = seen.leaf or b""
    return next((name for name in PLACEHOLDERS if name.encode() in leaf), None)


def server_is_full(seen: Handshake) -> bool:
    """53300, too many connections: whoever came would have been told so."""
    return seen.error is not None and seen.error.sqlstate == TOO_MANY_CONNECTIONS
