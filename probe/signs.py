"""Who ends TLS, by signs: each of them something that was seen, which points to one or the other.

Takes one door's Evidence; gives signs, and what they say together.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from probe.binding import Binding, BindingTest, binding_test
from probe.evidence import Evidence, Variation, breaks_on_request
from probe.fate import broke_off, in_words, placeholder, said_nothing_in_tls, selects_alpn
from probe.finding import Proof
from probe.handshake import Handshake, Opening, Outcome
from probe.refusal import refuses_alpn, through
from probe.transcript import Asked
from probe.wire import printable
from probe.witness import Comparison, compare

TLS_1_3, P_256 = 0x0304, 0x0017  # a version, and a named group (RFC 8446, 4.2.7)


class TlsEnd(StrEnum):
    """Where the client's TLS ends."""

    SERVER = "server"
    PROXY = "proxy"
    NOWHERE = "nowhere"
    UNKNOWN = "unknown"


class Sign(NamedTuple):
    """One thing seen that points to who ends TLS; ``decides`` alone, or only with others."""

    end: TlsEnd
    decides: bool
    proof: Proof


def main_signs(evidence: Evidence) -> tuple[Sign, ...]:
    """Those of the connections that begin as the client in question does, if there are any."""
    openings = [Opening.SSL_REQUEST]
    if evidence.question.direct:
        openings = [Opening.DIRECT_TLS, Opening.SSL_REQUEST]
    elif nothing_behind_request(evidence):
        openings = [Opening.SSL_REQUEST, Opening.DIRECT_TLS]
    every = (tuple(signs_of(evidence, opening)) for opening in openings)
    return next(filter(None, every), ())


def nothing_behind_request(evidence: Evidence) -> bool:
    """SSLRequest breaks, or the ClientHello behind its S is answered with nothing."""
    control = evidence.control
    lost = control is not None and said_nothing_in_tls(control) and broke_off(control)
    return lost or breaks_on_request(evidence) is not None


def signs_of(evidence: Evidence, opening: Opening) -> Iterator[Sign]:
    """What points to the server or to a proxy as the TLS peer behind this opening."""
    asked = [
        seen
        for seen in evidence.handshakes
        if seen.opening is opening and seen.asked is Asked.TARGET and seen.startup_in_tls
    ]
    yield from _witness_signs(evidence, asked)
    yield from _placeholder_signs(evidence, asked, opening)
    yield from _binding_signs(evidence, opening)
    yield from _offer_signs(evidence, asked)
    yield from _version_signs(evidence, asked)
    yield from _retry_signs(evidence, asked)
    yield from _ticket_signs(evidence, asked)
    yield from _hba_signs(evidence, asked)
    yield from _view_signs(evidence, asked)
    yield from _alpn_signs(evidence, opening)


def _witness_signs(evidence: Evidence, asked: list[Handshake]) -> Iterator[Sign]:
    for seen in asked:
        told = compare(seen)
        if told is None:
            continue
        if told.end_to_end:
            says = "a witness in the server's place finished TLS with the ClientHello that was sent"
            yield Sign(TlsEnd.SERVER, True, evidence.proof(seen, says))
        else:
            what = "another ClientHello" if told.again else "clear text"
            says = f"{what} arrived at a witness in the server's place"
            yield Sign(TlsEnd.PROXY, True, evidence.proof(seen, says))
        return


def _placeholder_signs(
    evidence: Evidence, asked: list[Handshake], opening: Opening
) -> Iterator[Sign]:
    """Where clients in question get so far; others may meet it because they have no route."""
    if evidence.main is None or evidence.main.opening is not opening:
        return
    for seen in asked:
        if name := placeholder(seen):
            says = f"the certificate is {name!r}, which a proxy makes for itself"
            yield Sign(TlsEnd.PROXY, False, evidence.proof(seen, says))
            return


def witnessed(evidence: Evidence) -> Comparison | None:
    """What became of the plainest connection that a witness answered inside TLS."""
    bare = evidence.one(Opening.DIRECT_TLS, alpn=False)
    for seen in (evidence.main, evidence.control, evidence.one(alpn=False), evidence.direct, bare):
        if seen and seen.authenticates and (told := compare(seen)):
            return told
    return None


def _binding_signs(evidence: Evidence, opening: Opening) -> Iterator[Sign]:
    """What a login with channel binding said of the certificate."""
    tested = binding_test(evidence)
    if tested.proof is None or not _made_with(evidence, tested, opening):
        return
    if tested.result is Binding.RE_ENCRYPTED:
        yield Sign(TlsEnd.PROXY, True, tested.proof)
    elif tested.result is Binding.END_TO_END:
        yield Sign(TlsEnd.SERVER, False, tested.proof)  # or a proxy that holds the certificate


def _made_with(evidence: Evidence, tested: BindingTest, opening: Opening) -> bool:
    name = tested.proof.attempt if tested.proof else None
    return any(s.attempt == name and s.opening is opening for s in evidence.handshakes)


def _retry_signs(evidence: Evidence, asked: list[Handshake]) -> Iterator[Sign]:
    """A HelloRetryRequest: PostgreSQL up to 17 knows only P-256, unless ssl_ecdh_curve says more.

    Clients send a key share for another group first, so that such a server has to ask again.
    Measured: no proxy does.
    """
    for seen in asked:
        hello, answer = seen.client_hello, seen.server_hello
        if hello is None or answer is None or answer.version < TLS_1_3:
            continue
        if seen.retried:
            says = "a HelloRetryRequest came, as from a server that knows P-256 alone"
            yield Sign(TlsEnd.SERVER, False, evidence.proof(seen, says))
            return
        newest = seen.negotiated.newest if seen.negotiated else None
        if newest and newest < (3, 2) and hello.key_shares and P_256 not in hello.key_shares:
            says = (
                "a server of version 17 or older answers, which by default would have sent a "
                "HelloRetryRequest, and none came"
            )
            yield Sign(TlsEnd.PROXY, False, evidence.proof(seen, says))
            return


def _ticket_signs(evidence: Evidence, asked: list[Handshake]) -> Iterator[Sign]:
    """A session ticket from one who selects ALPN: a server that knows ALPN (17) gives none.

    PostgreSQL keeps no sessions (be-secure-openssl.c: SSL_OP_NO_TICKET, no tickets of TLS 1.3);
    proxies give tickets unless they are told not to.
    """
    for seen in asked:
        if seen.ticket and selects_alpn(seen):
            says = "ALPN postgresql is selected and a session ticket given, which no server does"
            yield Sign(TlsEnd.PROXY, False, evidence.proof(seen, says))
            return


def _view_signs(evidence: Evidence, asked: list[Handshake]) -> Iterator[Sign]:
    """After a real login: what the server says of its own connection (pg_stat_ssl)."""
    for seen in asked:
        view, ours = seen.server_view, seen.established
        if view is None or ours is None:
            continue
        theirs = (view.version or "?").removeprefix("TLSv"), view.cipher or "?"
        if not view.tls:
            says = "pg_stat_ssl says that the server's own connection is in clear text"
            yield Sign(TlsEnd.PROXY, True, evidence.proof(seen, says))
        elif theirs != (ours.version, ours.cipher):
            says = f"pg_stat_ssl says TLS {theirs[0]} {theirs[1]}, ours is {ours.version} "
            says += ours.cipher
            yield Sign(TlsEnd.PROXY, True, evidence.proof(seen, says))
        else:
            says = f"pg_stat_ssl says TLS {theirs[0]} {theirs[1]}, as ours"
            yield Sign(TlsEnd.SERVER, False, evidence.proof(seen, says))
        return


def _offer_signs(evidence: Evidence, asked: list[Handshake]) -> Iterator[Sign]:
    for seen in asked:
        if seen.offers_binding:
            says = "SCRAM-SHA-256-PLUS is offered: the server's own connection is TLS"
            yield Sign(TlsEnd.SERVER, False, evidence.proof(seen, says))
            return
    for seen in asked:
        if seen.authentication and seen.mechanisms:
            says = f"over TLS only {seen.authentication.offer} is offered, no -PLUS"
            yield Sign(TlsEnd.PROXY, False, evidence.proof(seen, says))
            return


def _hba_signs(evidence: Evidence, asked: list[Handshake]) -> Iterator[Sign]:
    """A refusal by pg_hba says what the server sees of its own connection."""
    refused = [seen for seen in asked if seen.error and seen.error.routine]
    for words, end in (("no encryption", TlsEnd.PROXY), ("SSL encryption", TlsEnd.SERVER)):
        for seen in refused:
            if seen.error and words in seen.error.message:
                says = f"pg_hba speaks of {words}: {in_words(seen)}"
                yield Sign(end, end is TlsEnd.PROXY, evidence.proof(seen, says))
                return


def _version_signs(evidence: Evidence, asked: list[Handshake]) -> Iterator[Sign]:
    for seen in asked:
        if seen.negotiated and seen.negotiated.newest >= (3, 2):
            newest = ".".join(map(str, seen.negotiated.newest))
            if seen.alpn_offered and not selects_alpn(seen):
                says = (
                    f"a server that knows protocol {newest} answers, and one that new would have "
                    "selected ALPN postgresql, which nobody did"
                )
                yield Sign(TlsEnd.PROXY, True, evidence.proof(seen, says))
                return


def _alpn_signs(evidence: Evidence, opening: Opening) -> Iterator[Sign]:
    bare = evidence.one(opening, alpn=False)
    offering = evidence.one(opening)
    refused = offering is not None and refuses_alpn(offering)
    if bare and bare.established and refused and not placeholder(bare):
        assert offering is not None
        says = "ALPN postgresql is refused with alert 120, which no PostgreSQL does"
        yield Sign(TlsEnd.PROXY, True, evidence.proof(offering, says))
    if opening is Opening.DIRECT_TLS:
        for seen in (bare, offering):
            if seen and seen.startup_in_tls and seen.authentication and not selects_alpn(seen):
                says = "direct TLS reaches authentication without ALPN, which no PostgreSQL allows"
                yield Sign(TlsEnd.PROXY, True, evidence.proof(seen, says))
                return
    direct = evidence.one(Opening.DIRECT_TLS, alpn=False)
    if direct and direct.startup and direct.outcome is Outcome.SILENT and not placeholder(direct):
        says = "direct TLS without ALPN is left open, where a server closes at once"
        yield Sign(TlsEnd.PROXY, False, evidence.proof(direct, says))


def pooler_sign(evidence: Evidence) -> Proof | None:
    """A pooler answers for the server: inside TLS it refuses in words of its own.

    Measured: a real server answers StartupMessage 3.1002 with NegotiateProtocolVersion, a byte
    relay passes that on, and poolers answer with an ErrorResponse that has no routine; some of
    them (Pgpool-II) answer so to a user that they do not know.
    """
    newest = evidence.one(variation=Variation.NEWEST_PROTOCOL)
    plain = through(evidence)
    if plain and plain.witness:
        return None
    if plain and plain.startup_in_tls and plain.error and not plain.error.routine:
        says = f"StartupMessage is refused without a routine: '{printable(plain.error.message)}'"
        return evidence.proof(plain, says)
    if plain is None or not plain.authenticates or newest is None or plain.offers_binding:
        return None
    if newest.error and not newest.error.routine and not newest.negotiated:
        words = printable(newest.error.message)
        says = f"StartupMessage 3.1002 is refused without a routine: '{words}'"
        return evidence.proof(newest, says)
    return None


def decide(signs: tuple[Sign, ...]) -> TlsEnd:
    """One answer from the signs: a deciding one wins; else they must agree."""
    for sign in signs:
        if sign.decides:
            return sign.end
    ends = {sign.end for sign in signs}
    return ends.pop() if len(ends) == 1 else TlsEnd.UNKNOWN
