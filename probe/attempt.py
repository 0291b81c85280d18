"""The knobs of one connection, and the sets of attempts that a run makes.

Takes a target's names; gives attempts in the order in which they are worth making. An attempt
only says what to send: what came of it is read from the bytes, never from the attempt's name.

Each attempt differs from the control in one thing, so that two attempts with different answers
name the cause. ``needs`` is the stage that the control must have reached before the attempt can
tell anything: a ClientHello cut in two says nothing about a peer that closes on SSLRequest.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from probe.handshake import Opening
from probe.password import Password
from probe.transcript import Asked
from probe.wire.startup import PROTOCOL_3_0, PROTOCOL_3_1002

ALPN = "postgresql"
MADE_UP_USER = "pgprobe-nobody"
MADE_UP_DATABASE = "postgres"
UNKNOWN_NAME = "pgprobe-unknown.invalid"  # RFC 6761: no one can have configured it


class HelloShape(StrEnum):
    """How the ClientHello goes out."""

    WHOLE = "whole"
    SEGMENTS = "segments"  # cut inside the server_name, a pause between the halves
    RECORDS = "records"  # cut inside the server_name, into two TLS records
    LARGE = "large"  # 1.8 to 2.7 kB in two segments, as post-quantum key shares make it
    WITH_REQUEST = "with-request"  # in one segment with the SSLRequest
    BEHIND_GARBAGE = "behind-garbage"  # clear bytes instead of it


class Needs(StrEnum):
    """What must have come before: of the control, or of the plain attempt with this opening."""

    NOTHING = "nothing"
    SSL_ANSWER = "ssl-answer"  # SSLRequest got its S
    TLS = "tls"  # the plain handshake finished
    A_BYTE = "a-byte"  # somebody got one, and the control was not left waiting
    NO_BYTE = "no-byte"  # the control was closed without one


class TlsVersions(StrEnum):
    """Which versions of TLS are offered."""

    MODERN = "1.2 and 1.3"
    ONLY_1_2 = "1.2"
    OBSOLETE = "1.0 and 1.1"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one connection will send.

    ``server_name`` None sends no server_name. ``alpn`` offers ``postgresql``. ``protocol`` is
    the version in StartupMessage; without ``greets`` it leaves before that. ``roots`` is a file
    of trusted roots ("system" for the system's own) that the chain is verified against; None
    verifies nothing. ``proves`` goes on to the channel binding, with a random password;
    ``password`` logs in. ``key_log`` is a file for the TLS session's secrets, unless it logs in.

    ``twice``: where it is closed without a word and the control gets through, it is made once
    more, by itself: chance and limits on connections do that, too.
    """

    name: str
    opening: Opening = Opening.SSL_REQUEST
    server_name: str | None = None
    asked: Asked | None = Asked.TARGET
    alpn: bool = True
    shape: HelloShape = HelloShape.WHOLE
    versions: TlsVersions = TlsVersions.MODERN
    protocol: tuple[int, int] = PROTOCOL_3_0
    greets: bool = True
    split_request: bool = False
    proxy_header: str | None = None  # "v1", "v2"
    user: str = MADE_UP_USER
    database: str = MADE_UP_DATABASE
    roots: str | None = None
    client_certificate: tuple[str, str | None] | None = None  # paths: certificate, key
    needs: Needs = Needs.NOTHING
    proves: bool = False
    password: Password | None = None
    key_log: str | None = None
    twice: bool = False


def mixed_case(name: str) -> str:
    """The name with every second letter in upper case: the same name (RFC 4343)."""
    return "".join(c.upper() if i % 2 else c.lower() for i, c in enumerate(name))


def quick(control: Attempt, other_names: Iterable[str] = ()) -> tuple[Attempt, ...]:
    """The control alone."""
    return (control,)


def standard(control: Attempt, other_names: Iterable[str] = ()) -> tuple[Attempt, ...]:
    """Every attempt that a rule of the standard diagnosis is asked about, the telling first."""
    return tuple(_unique(_standard(control, tuple(other_names))))


def everything(control: Attempt, other_names: Iterable[str] = ()) -> tuple[Attempt, ...]:
    """The standard attempts, and those that a healthy server answers with an error in its log."""
    always = tuple(
        replace(attempt, needs=Needs.NOTHING) if attempt.needs is Needs.NO_BYTE else attempt
        for attempt in standard(control, other_names)
    )
    plain = replace(control, opening=Opening.SSL_REQUEST)
    return (
        *always,
        replace(plain, name="pipelined-hello", shape=HelloShape.WITH_REQUEST),
        replace(
            plain,
            name="garbage-after-answer",
            shape=HelloShape.BEHIND_GARBAGE,
            needs=Needs.SSL_ANSWER,
        ),
    )


SETS = {"quick": quick, "standard": standard, "all": everything}


def _standard(control: Attempt, other_names: tuple[str, ...]) -> Iterator[Attempt]:
    plain = replace(control, name="ssl-request", opening=Opening.SSL_REQUEST)
    direct = replace(control, opening=Opening.DIRECT_TLS)
    after_s = replace(plain, needs=Needs.SSL_ANSWER, twice=True)
    after_tls = replace(plain, needs=Needs.TLS, twice=True)
    shaped = replace(after_tls, opening=control.opening)  # of the client in question

    nameless = replace(after_s, server_name=None, asked=None)

    yield control
    yield replace(plain, twice=True)
    yield replace(direct, name="direct", twice=True)
    yield replace(control, name="silent", opening=Opening.NOTHING)
    yield _unknown(after_s, "unknown-name")
    yield _unknown(direct, "direct-unknown-name")
    yield replace(after_s, name="no-alpn", alpn=False)
    yield replace(nameless, name="no-name-no-alpn", alpn=False)
    yield replace(nameless, name="no-name")
    yield replace(direct, name="direct-no-alpn", alpn=False)
    # only its certificate is of interest, and behind it a router has nobody to answer
    yield replace(_unknown(direct, "direct-unknown-name-no-alpn"), alpn=False, greets=False)
    for name in other_names:
        yield replace(after_s, name=f"other-name:{name}", server_name=name, asked=Asked.OTHER)
        yield replace(direct, name=f"direct-other-name:{name}", server_name=name, asked=Asked.OTHER)
    yield replace(plain, name="split-request", split_request=True, twice=True)
    yield replace(after_tls, name="protocol-3.1002", protocol=PROTOCOL_3_1002)
    if control.server_name:
        yield replace(shaped, name="mixed-case", server_name=mixed_case(control.server_name))
    yield replace(shaped, name="hello-in-two-segments", shape=HelloShape.SEGMENTS)
    yield replace(shaped, name="hello-in-two-records", shape=HelloShape.RECORDS)
    yield replace(shaped, name="large-hello", shape=HelloShape.LARGE)
    if control.user != MADE_UP_USER or control.database != MADE_UP_DATABASE:
        yield replace(after_tls, name="made-up-user", user=MADE_UP_USER, database=MADE_UP_DATABASE)
    yield replace(after_s, name="tls-1.2", versions=TlsVersions.ONLY_1_2)
    yield replace(after_s, name="tls-1.0-1.1", versions=TlsVersions.OBSOLETE, twice=False)
    if control.proxy_header is None:
        yield replace(plain, name="proxy-header", proxy_header="v2", needs=Needs.NO_BYTE)
    # Routers by name let these hang: together, at the end, they cost one wait
    yield replace(control, name="startup", opening=Opening.STARTUP, twice=True)
    yield replace(control, name="gssenc-request", opening=Opening.GSSENC_REQUEST, twice=True)
    yield replace(control, name="cancel", opening=Opening.CANCEL)


def _unknown(attempt: Attempt, name: str) -> Attempt:
    return replace(attempt, name=name, server_name=UNKNOWN_NAME, asked=Asked.UNKNOWN)


def _unique(attempts: Iterable[Attempt]) -> Iterator[Attempt]:
    """Without those that would send what an earlier one sends (no name asked, for instance)."""
    seen: set[Attempt] = set()
    for attempt in attempts:
        same = replace(attempt, name="", asked=None, needs=Needs.NOTHING, twice=False)
        if same not in seen:
            seen.add(same)
            yield attempt
