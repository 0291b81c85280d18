"""What stands between: who answers SSLRequest, who ends TLS, who routes by name, which cluster.

Takes one door's Evidence; gives a Path. Every conclusion is drawn from signs, each of them
something that was seen, and what the signs do not decide stays ``unknown``.
"""

from enum import StrEnum
from typing import NamedTuple

from probe.binding import Binding, BindingTest, binding_test
from probe.evidence import Evidence, Variation
from probe.fate import broke_off, hung_up, in_words, placeholder, said_nothing_in_tls, selects_alpn
from probe.finding import Proof
from probe.handshake import Handshake, Opening, Outcome
from probe.refusal import reaches_server, refuses_alpn, turned_away
from probe.signs import (
    Sign,
    TlsEnd,
    decide,
    main_signs,
    nothing_behind_request,
    pooler_sign,
    witnessed,
)
from probe.transcript import Asked, LoggedIn, ServerView
from probe.wire.records import (
    NO_APPLICATION_PROTOCOL,
    UNRECOGNIZED_NAME,
)
from probe.witness import Comparison, Part


class Answerer(StrEnum):
    """Who answered SSLRequest. ``relayed``: whoever is behind; a forwarder cannot be seen."""

    SERVER = "server"
    PROXY = "proxy"
    RELAYED = "relayed"
    NOBODY = "nobody"
    OTHER = "other"
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
    signs = main_signs(evidence)
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


# -- who ends TLS ------------------------------------------------------------------------------


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
    # A filter in front of it may let SSLRequest pass alone, and close on whatever else begins.
    filtered = direct is not None and broke_off(direct)
    return strange or (broke_off(startup) and not filtered)


def _direct_tls(evidence: Evidence) -> DirectTls:
    direct = evidence.direct
    if direct is None:
        nobody = evidence.mute and len(evidence.handshakes) > 1
        return DirectTls.FAILS if nobody else DirectTls.UNKNOWN
    if "authentication" in direct.not_captured:
        return DirectTls.UNKNOWN
    return DirectTls.WORKS if reaches_server(direct) and selects_alpn(direct) else DirectTls.FAILS


def _cluster(evidence: Evidence, main: Handshake | None) -> str | None:
    candidates = [main, evidence.one(variation=Variation.OTHER_USER), evidence.one(alpn=False)]
    candidates += [evidence.direct]
    return next((id_ for seen in candidates if seen and (id_ := evidence.cluster(seen))), None)
