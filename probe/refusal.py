"""What it means that somebody is refused in words: by TLS, or by PostgreSQL's own ErrorResponse.

Takes a handshake, and where it has to be compared its Evidence; what is not decided is None.
"""

from __future__ import annotations

from probe.attempt import MADE_UP_USER
from probe.evidence import Evidence
from probe.handshake import Handshake
from probe.wire.messages import ErrorResponse
from probe.wire.records import (
    BAD_CERTIFICATE,
    CERTIFICATE_REQUIRED,
    HANDSHAKE_FAILURE,
    NO_APPLICATION_PROTOCOL,
)

INVALID_AUTHORIZATION = "28000"  # SQLSTATE
CLASS_AUTHORIZATION = "28"  # SQLSTATE class: invalid authorization specification
CLASS_CATALOG = "3D"  # likewise: no such database
CLASS_RESOURCES, CLASS_INTERVENTION = "53", "57"  # full; shutting down, starting up

_AGAINST_CERTIFICATES = (HANDSHAKE_FAILURE, BAD_CERTIFICATE)


def refuses_alpn(seen: Handshake) -> bool:
    """The peer answered with alert 120, no_application_protocol."""
    return seen.alert is not None and seen.alert.description == NO_APPLICATION_PROTOCOL


def turned_away(seen: Handshake, asked: Handshake) -> bool:
    """Behind TLS it is refused in words, where the asked name is let through with the same user.

    A proxy that finds its server by the name may say so in PostgreSQL's own protocol.
    """
    refused = seen.error is not None and not seen.authenticates and not is_passing(seen.error)
    return asked.authenticates and seen.startup_in_tls and refused and seen.startup == asked.startup


def reaches_server(seen: Handshake) -> bool:
    """StartupMessage got an answer inside TLS: authentication, or a real server's refusal."""
    refused = seen.error is not None and seen.error.routine is not None
    return seen.authenticates or (seen.startup_in_tls and refused)


def insists_on_certificate(seen: Handshake) -> bool | None:
    """Whether a client certificate is demanded, and none was good enough; None: it may well be.

    TLS has a word for it since 1.3 (RFC 8446, 6.2: 116); before that peers say 40 or 42 behind
    the client's empty Certificate. PostgreSQL itself says it later, in an ErrorResponse.
    """
    if seen.error and seen.error.sqlstate == INVALID_AUTHORIZATION:
        return "client certificate" in seen.error.message
    if not seen.certificate_asked or seen.alert is None:
        return False
    if seen.alert.description == CERTIFICATE_REQUIRED:
        return True
    return None if seen.alert.description in _AGAINST_CERTIFICATES else False


def is_passing(error: ErrorResponse) -> bool:
    """The server is full, starts, stops or recovers: it says so of whoever comes."""
    return (error.sqlstate or "")[:2] in (CLASS_RESOURCES, CLASS_INTERVENTION)


def _may_be_its_users(error: ErrorResponse) -> bool:
    """Whether other users or databases may be welcome: poolers have any code for that."""
    kind = (error.sqlstate or "")[:2]
    return kind in (CLASS_AUTHORIZATION, CLASS_CATALOG) or not (error.routine or is_passing(error))


def refused_made_up_user(evidence: Evidence, seen: Handshake) -> bool:
    """The user or database that pgprobe made up is refused; others may be welcome.

    Where the main connection is let through with them, it is something else.
    """
    error, main = seen.error, evidence.main
    return (
        error is not None
        and not (main is not None and main.authenticates)
        and seen.witness is None
        and seen.startup_in_tls
        and evidence.question.user == MADE_UP_USER
        and _may_be_its_users(error)
        and "no encryption" not in error.message
        and "client certificate" not in error.message
    )


def through(evidence: Evidence) -> Handshake | None:
    """The handshake of the clients in question that got furthest: the main one, or without ALPN."""
    bare = evidence.one(alpn=False)
    candidates = [seen for seen in (evidence.main, bare) if seen and seen.established]
    return candidates[0] if candidates else None
