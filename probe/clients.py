"""A dated table of each driver's habits on the wire, and what each would experience.

A client gets through where a handshake with its habits did. One that ended before its habits
could show (the peer closed on SSLRequest) stands for every client that begins as it did.

The habits were read from the drivers' sources and change logs in November 2026: default
settings with TLS required, unless ``mode`` says otherwise.
"""

from typing import NamedTuple

from probe.binding import Binding, binding_test
from probe.certificate import Certificate
from probe.evidence import Evidence, Variation
from probe.fate import in_words, server_is_full
from probe.handshake import Handshake, Opening
from probe.refusal import insists_on_certificate, is_passing, refused_made_up_user
from probe.signs import pooler_sign
from probe.transcript import Asked
from probe.witness import Comparison, compare

SSL_REQUIRED = "sslmode=require"
DIRECT = "sslnegotiation=direct"


class Client(NamedTuple):
    """A driver's habits: what it sends first, whether it sends a name and ALPN.

    ``binds``: it takes SCRAM-SHA-256-PLUS when that is offered, by default (None: not known).
    ``grows``: with a new TLS library its ClientHello is large, for the post-quantum key share.
    ``parameter``: what its StartupMessage has besides, which PgBouncer refuses unless told.
    """

    name: str
    mode: str = SSL_REQUIRED
    direct: bool = False
    server_name: bool = True
    alpn: bool = False
    binds: bool | None = False
    grows: bool = True
    parameter: str | None = None


CLIENTS = (
    Client("libpq-13", server_name=False, binds=True),  # psql, psycopg, ruby-pg, PHP, …
    Client("libpq-16", binds=True),  # 14 to 16: SNI
    Client("libpq-17", alpn=True, binds=True),  # 17 and later: ALPN in both modes
    Client("libpq-17-direct", DIRECT, direct=True, alpn=True, binds=True),
    Client("pgjdbc", binds=None, grows=False, parameter="extra_float_digits"),  # 42.x
    Client("npgsql", alpn=True, binds=None),  # 9 and later
    Client("pgx", binds=None),  # 5.x
    Client("node-postgres"),
    Client("asyncpg", alpn=True),  # 0.32 and later; none before (measured)
)


class Experience(NamedTuple):
    """What a client would meet. ``gets_through`` None: nothing that was tried tells."""

    client: str
    mode: str
    gets_through: bool | None
    why: str


def predict(evidence: Evidence) -> tuple[Experience, ...]:
    """What each client of the table would meet at the evidence's door."""
    return tuple(_experience(evidence, client) for client in CLIENTS)


def _experience(evidence: Evidence, client: Client) -> Experience:
    seen = _alike(evidence, client)
    if seen is None:
        return Experience(client.name, client.mode, None, "nothing that was tried has its habits")
    through, why = _meets(evidence, client, seen)
    if evidence.unsteady:
        through, why = None, f"{why}; but the same attempt does not always end so"
    return Experience(client.name, client.mode, through, f"{seen.attempt}: {why}")


def _alike(evidence: Evidence, client: Client) -> Handshake | None:
    """The handshake with the client's habits, or one that ended before they could show."""
    opening = Opening.DIRECT_TLS if client.direct else Opening.SSL_REQUEST
    nameless = evidence.question.name is None  # then no client has a name to send
    asked = Asked.TARGET if client.server_name or nameless else None
    seen = evidence.one(opening, asked, alpn=client.alpn)
    if seen is not None:
        return seen
    first = evidence.first
    if first and (evidence.unreachable or server_is_full(first)):
        return first  # whoever comes
    plain = evidence.with_opening(opening)
    return plain if plain and plain.client_hello is None else None


def _meets(evidence: Evidence, client: Client, seen: Handshake) -> tuple[bool | None, str]:
    if client.direct and seen.lacks_alpn:
        return False, "TLS finishes without ALPN, and libpq leaves"
    if refused_made_up_user(evidence, seen):
        return None, "the made-up user is refused, and perhaps not others: --user, --dbname"
    if insists_on_certificate(seen) is not False:
        return None, f"{in_words(seen)}; with a client certificate it may get in"
    if seen.error and is_passing(seen.error) and not server_is_full(seen):
        return None, f"{in_words(seen)}, which passes"
    if not seen.authenticates:
        return False, in_words(seen)
    told = compare(seen)
    if told:
        return _at_the_witness(client, told)
    if client.binds is not False and seen.offers_binding and seen.leaf:
        leaf = Certificate(seen.leaf)
        if leaf.readable and leaf.binding_hash is None:
            stopped = "channel binding cannot be computed for this certificate"
            return (False, stopped) if client.binds else (None, f"{stopped}, if it tries")
        if binding_test(evidence).result is Binding.RE_ENCRYPTED:
            stopped = "channel binding fails: TLS is re-encrypted on the way"
            return (False, stopped) if client.binds else (None, f"{stopped}, if it tries")
    large = evidence.broken_by(Variation.LARGE)
    if client.grows and large and large.opening is seen.opening:
        return (
            None,
            f"let through, unless its ClientHello is large (OpenSSL 3.5): {in_words(large)}",
        )
    if client.parameter and pooler_sign(evidence):
        return None, f"let through, unless the pooler refuses its {client.parameter} (PgBouncer)"
    return True, in_words(seen)


def _at_the_witness(client: Client, told: Comparison) -> tuple[bool | None, str]:
    refused = told.testimony.refused
    if refused:
        return False, f"a server would hang up: {refused}"
    if told.again and client.binds is not False:
        return None, "TLS starts again on the way, which ends a login with channel binding"
    return True, "answered by a witness in the server's place"
