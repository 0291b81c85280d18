"""What stands between: who answers SSLRequest, who ends TLS, who routes by name, which cluster.

Takes one door's Evidence; gives a Path. Every conclusion is drawn from signs, each of them
something that was seen, and what the signs do not decide stays ``unknown``.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from probe.attempt import MADE_UP_USER
from probe.binding import Binding, BindingTest, binding_test
from probe.evidence import (
    Evidence,
    Variation,
    breaks_on_request,
    broke_off,
    hung_up,
    in_words,
    placeholder,
    said_nothing_in_tls,
    selects_alpn,
)
from probe.finding import Proof
from probe.handshake import Handshake, Opening, Outcome
from probe.transcript import Asked, LoggedIn, ServerView
from probe.wire import printable
from probe.wire.messages import ErrorResponse
from probe.wire.records import (
    BAD_CERTIFICATE,
    CERTIFICATE_REQUIRED,
    HANDSHAKE_FAILURE,
    NO_APPLICATION_PROTOCOL,
    UNRECOGNIZED_NAME,
)
from probe.witness import Comparison, Part, compare

CLASS_AUTHORIZATION = "28"  # SQLSTATE class: invalid authorization specification
CLASS_CATALOG = "3D"  # SQLSTATE class: no such database
INVALID_AUTHORIZATION = "28000"  # SQLSTATE
_AGAINST_CERTIFICATES = (HANDSHAKE_FAILURE, BAD_CERTIFICATE)
TLS_1_3, P_256 = 0x0304, 0x0017  # a version, and a named group (RFC 8446, 4.2.7)
CLASS_RESOURCES, CLASS_INTERVENTION = "53", "57"  # full; shutting down, starting up


class Answerer(StrEnum):
    """Who answered SSLRequest. ``relayed``: whoever is behind; a forwarder cannot be seen."""

    SERVER = "server"
    PROXY = "proxy"
    RELAYED = "relayed"
    NOBODY = "nobody"
    OTHER = "other"
    UNKNOWN = "unknown"


class TlsEnd(StrEnum):
    """Where the client's TLS ends."""

    SERVER = "server"
    PROXY = "proxy"
    NOWHERE = "nowhere"
    UNKNOWN = "unknown"


class BackendLeg(StrEnum):
    """What the server itself sees."""

    TLS = "tls"
    PLAINTEXT = "plaintext"
    UNKNOWN = "unknown"

    @property
    def goes_on(self) -> str:
        """For the end of a sentence that says where TLS ends."""
        match self:
            case BackendLeg.TLS:
                return ", and starts again behind it"
            case BackendLeg.PLAINTEXT:
                return ", and goes on in clear text"
        return ""


class Routing(StrEnum):
    """What the name in the ClientHello decides."""

    BY_NAME = "by-name"
    CATCH_ALL = "catch-all"
    IGNORES_NAME = "ignores-name"
    NOT_ROUTED = "not-routed"
    UNKNOWN = "unknown"


class DirectTls(StrEnum):
    """Whether ``sslnegotiation=direct`` reaches authentication with ALPN selected."""

    WORKS = "works"
    FAILS = "fails"
    UNKNOWN = "unknown"


class Sign(NamedTuple):
    """One thing seen that points to who ends TLS; ``decides`` alone, or only with others."""

    end: TlsEnd
    decides: bool
    proof: Proof


class Path(NamedTuple):
    """The answers; ``signs`` are what ``tls_ends_at`` was concluded from.

    ``witness``: somebody stood in the server's place who tells what arrived there.
    """

    ssl_request_answered_by: Answerer = Answerer.UNKNOWN
    tls_ends_at: TlsEnd = TlsEnd.UNKNOWN
    backend_leg: BackendLeg = BackendLeg.UNKNOWN
    routing: Routing = Routing.UNKNOWN
    direct_tls: DirectTls = DirectTls.UNKNOWN
    cluster: str | None = None
    pooler: bool = False
    signs: tuple[Sign, ...] = ()
    binding: Binding = Binding.NOT_TRIED
    binding_why: str = ""
    login: LoggedIn | None = None
    server_view: ServerView | None = None
    witness: Comparison | None = None


def trace(evidence: Evidence) -> Path:
    """Conclude from one door's evidence what stands between."""
    pooler = pooler_sign(evidence) is not None
    signs = _signs(evidence)
    end = _tls_end(evidence, signs, pooler)
    routing = _routing(evidence)
    main = evidence.main
    binding = _binding(evidence, signs, end, pooler)
    guest = next((seen for seen in evidence.handshakes if seen.logged_in), None)
    return Path(
        ssl_request_answered_by=_answerer(evidence, end, routing),
        tls_ends_at=end,
        backend_leg=_backend_leg(evidence, end, pooler),
        routing=routing,
        direct_tls=_direct_tls(evidence),
        cluster=None if pooler else _cluster(evidence, main),
        pooler=pooler,
        signs=signs,
        binding=binding.result,
        binding_why=binding.why,
        login=guest.logged_in if guest else None,
        server_view=guest.server_view if guest else None,
        witness=witnessed(evidence),
    )


def _signs(evidence: Evidence) -> tuple[Sign, ...]:
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


# -- who ends TLS ------------------------------------------------------------------------------


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


def refuses_alpn(seen: Handshake) -> bool:
    """The peer answered with alert 120, no_application_protocol."""
    return seen.alert is not None and seen.alert.description == NO_APPLICATION_PROTOCOL


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


def _binding(evidence: Evidence, signs: tuple[Sign, ...], end: TlsEnd, pooler: bool) -> BindingTest:
    """The test's result, and what else speaks for or against it."""
    tested = binding_test(evidence)
    match tested.result:
        case Binding.END_TO_END:
            against = [sign.proof.says for sign in signs if sign.end is TlsEnd.PROXY]
            if against:
                why = (
                    f"{tested.why}; and yet a proxy may end TLS that holds the server's own "
                    f"certificate, for which speaks: {'; '.join(against)}"
                )
                return tested._replace(result=Binding.NOT_DECIDABLE, why=why)
            beside = [s.proof.says for s in signs if s.proof != tested.proof]
            also = f"; so do other signs: {'; '.join(beside)}" if beside else ""
            why = (
                f"{tested.why}; only a proxy that holds the server's own certificate would look "
                f"alike, and nothing speaks for one{also}"
            )
            return tested._replace(why=why)
        case Binding.NOT_DECIDABLE if tested.proof is None and pooler:
            why = f"{tested.why}: a pooler answers, and what it says of binding is its own"
            return tested._replace(why=why)
        case Binding.NOT_DECIDABLE if tested.proof is None and end is TlsEnd.PROXY:
            why = f"{tested.why}: TLS ends at a proxy, which other signs tell"
            return tested._replace(why=why)
    return tested


def _tls_end(evidence: Evidence, signs: tuple[Sign, ...], pooler: bool) -> TlsEnd:
    decided = TlsEnd.PROXY if pooler else decide(signs)
    if decided is not TlsEnd.UNKNOWN:
        return decided
    main = evidence.main
    if main and main.established and placeholder(main):
        return TlsEnd.PROXY
    if any(seen.established for seen in evidence.handshakes):
        return TlsEnd.UNKNOWN
    refused = evidence.with_opening(Opening.SSL_REQUEST)
    return TlsEnd.NOWHERE if refused and refused.ssl_answer == "N" else TlsEnd.UNKNOWN


def _backend_leg(evidence: Evidence, end: TlsEnd, pooler: bool) -> BackendLeg:
    inside = [seen for seen in evidence.handshakes if seen.startup_in_tls]
    inside = [seen for seen in inside if seen.asked is Asked.TARGET]
    told = witnessed(evidence)
    if told:
        return BackendLeg.TLS if told.testimony.hello else BackendLeg.PLAINTEXT
    view = next((seen.server_view for seen in inside if seen.server_view), None)
    if view is not None:
        return BackendLeg.TLS if view.tls else BackendLeg.PLAINTEXT
    if any(seen.error and "no encryption" in seen.error.message for seen in inside):
        return BackendLeg.PLAINTEXT
    if end is TlsEnd.SERVER or any(seen.offers_binding for seen in inside):
        return BackendLeg.TLS
    # A real server answers 3.1002, and offers -PLUS whenever its own connection is TLS.
    negotiated = any(seen.negotiated for seen in inside)
    scram = any(seen.mechanisms for seen in inside)
    if end is TlsEnd.PROXY and not pooler and negotiated and scram:
        return BackendLeg.PLAINTEXT
    return BackendLeg.UNKNOWN


# -- who routes --------------------------------------------------------------------------------


def no_route(evidence: Evidence) -> Proof | None:
    """A bare ClientHello with the asked name is told that there is no route for it.

    Alert 112 or 120 to a client that offers ``postgresql``, or a placeholder certificate.
    """
    direct = evidence.direct
    refusals = (UNRECOGNIZED_NAME, NO_APPLICATION_PROTOCOL)
    if direct and direct.alert and direct.alert.description in refusals:
        return evidence.proof(direct, f"a bare ClientHello with the name gets {direct.alert}")
    bare = evidence.one(Opening.DIRECT_TLS, alpn=False)
    if bare and placeholder(bare):
        return evidence.proof(bare, f"a bare ClientHello gets {placeholder(bare)!r}")
    return None


def dead_backend(evidence: Evidence) -> tuple[Proof, ...]:
    """Proof that the asked name is routed, and nothing behind it speaks TLS; empty: no proof.

    The S came from a router that did not ask the backend; what then happens to the asked name
    differs from what happens to a name that is not routed.
    """
    control, unknown = evidence.control, evidence.unknown
    if control is None or not said_nothing_in_tls(control) or not broke_off(control):
        return ()
    if any(seen.established for seen in evidence.all(Opening.DIRECT_TLS)) or no_route(evidence):
        return ()
    if unknown and control.outcome is Outcome.SILENT and hung_up(unknown):
        return evidence.proof(control), evidence.proof(unknown)
    direct = evidence.direct
    lost = evidence.one(Opening.DIRECT_TLS, Asked.UNKNOWN)
    bare_lost = evidence.one(Opening.DIRECT_TLS, Asked.UNKNOWN, alpn=False)
    if direct and broke_off(direct) and not direct.server_bytes:
        for other in (lost, bare_lost):
            if other and (other.alert or placeholder(other)):
                says = f"a bare ClientHello with an unknown name is {in_words(other)}"
                return evidence.proof(control), evidence.proof(direct), evidence.proof(other, says)
    return ()


def _routing(evidence: Evidence) -> Routing:
    control = evidence.control
    if control is None or control.ssl_answer != "S":
        return _routing_of(evidence, Opening.DIRECT_TLS)
    if control.server_hello is not None or control.alert:
        # an alert 120 says that the ClientHello found somebody; compare without ALPN
        return _routing_of(evidence, Opening.SSL_REQUEST, alpn=not refuses_alpn(control))
    if dead_backend(evidence):
        return Routing.BY_NAME
    lost = evidence.unknown
    direct = evidence.direct
    if direct and direct.established:
        return _routing_of(evidence, Opening.DIRECT_TLS)
    same = lost is not None and lost.outcome is control.outcome
    works = any(other.established for other in evidence.others)
    if same and (works or no_route(evidence)):
        return Routing.NOT_ROUTED
    if lost and lost.established:
        return Routing.CATCH_ALL
    return _routing_of(evidence, Opening.DIRECT_TLS)


def _routing_of(evidence: Evidence, opening: Opening, *, alpn: bool = True) -> Routing:
    asked = evidence.one(opening, alpn=alpn)
    lost = evidence.one(opening, Asked.UNKNOWN, alpn=alpn)
    if not alpn and lost is None:
        lost = evidence.one(opening, Asked.UNKNOWN)
        if lost and refuses_alpn(lost):  # it got as far as the asked name with ALPN did
            return Routing.IGNORES_NAME
    if asked is None or lost is None or not asked.established:
        return Routing.UNKNOWN
    if not lost.established or placeholder(lost) or turned_away(lost, asked):
        return Routing.BY_NAME
    others = [seen for seen in evidence.all(opening, Asked.OTHER, alpn=alpn) if seen.established]
    home = evidence.home(asked)
    elsewhere = any(evidence.leads_elsewhere(seen, home) for seen in (lost, *others))
    return Routing.CATCH_ALL if elsewhere else Routing.IGNORES_NAME


def turned_away(seen: Handshake, asked: Handshake) -> bool:
    """Behind TLS it is refused in words, where the asked name is let through with the same user.

    A proxy that finds its server by the name may say so in PostgreSQL's own protocol.
    """
    refused = seen.error is not None and not seen.authenticates and not is_passing(seen.error)
    return asked.authenticates and seen.startup_in_tls and refused and seen.startup == asked.startup


def _answerer(evidence: Evidence, end: TlsEnd, routing: Routing) -> Answerer:
    asking = evidence.control or evidence.with_opening(Opening.SSL_REQUEST)
    if evidence.mute:
        return Answerer.NOBODY
    if asking is None or asking.not_connected:
        return Answerer.UNKNOWN
    if not asking.server_bytes:
        return Answerer.NOBODY
    if asking.ssl_answer == "other" or (asking.ssl_answer is None and asking.foreign):
        return Answerer.OTHER
    if asking.ssl_answer != "S":
        startup = evidence.one(Opening.STARTUP)
        real = startup is not None and startup.authentication is not None
        return Answerer.RELAYED if real else Answerer.UNKNOWN
    if proxy_says_s(evidence, end, routing):
        return Answerer.PROXY
    return Answerer.RELAYED if end is TlsEnd.SERVER else Answerer.UNKNOWN


def proxy_says_s(evidence: Evidence, end: TlsEnd, routing: Routing) -> bool:
    """The S came from somebody who had not asked the server."""
    if end is TlsEnd.PROXY:
        return True
    told = witnessed(evidence)
    if told and Part.SSL_REQUEST in told.changed:
        return True
    if routing is Routing.NOT_ROUTED or dead_backend(evidence):
        return True
    control, lost, direct = evidence.control, evidence.unknown, evidence.direct
    if control is None:  # every client cut its SSLRequest in two: nobody is plain
        return False
    if direct and direct.established and nothing_behind_request(evidence):
        return True  # who speaks TLS there would have gone on behind its S
    routed = control.established is not None
    if routed and lost and said_nothing_in_tls(lost) and broke_off(lost):
        return True
    home = {evidence.cluster(seen) for seen in evidence.home(control)}
    others = {evidence.cluster(seen) for seen in (*evidence.others, *([lost] if lost else []))}
    if home - {None} and others - home - {None}:
        return True
    # A server that says S answers a clear StartupMessage, too, if only with an error of its own.
    startup = evidence.one(Opening.STARTUP)
    if startup is None or startup.not_connected or not routed:
        return False
    strange = startup.error is not None and not (startup.error.routine or startup.witness)
    return strange or broke_off(startup)


def _direct_tls(evidence: Evidence) -> DirectTls:
    direct = evidence.direct
    if direct is None:
        nobody = evidence.mute and len(evidence.handshakes) > 1
        return DirectTls.FAILS if nobody else DirectTls.UNKNOWN
    if "authentication" in direct.not_captured:
        return DirectTls.UNKNOWN
    return DirectTls.WORKS if reaches_server(direct) and selects_alpn(direct) else DirectTls.FAILS


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


def _cluster(evidence: Evidence, main: Handshake | None) -> str | None:
    candidates = [main, evidence.one(variation=Variation.OTHER_USER), evidence.one(alpn=False)]
    candidates += [evidence.direct]
    return next((id_ for seen in candidates if seen and (id_ := evidence.cluster(seen))), None)
