"""One connection in the protocols' own words: what the observer makes of a transcript.

A :class:`Handshake` holds facts, not judgements. A fact that was not seen is None; whether that
matters is for the rules to say.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from probe.transcript import (
    Asked,
    ConnectFailure,
    Ending,
    Established,
    LoggedIn,
    Party,
    ServerView,
    Verified,
)
from probe.wire.foreign import Foreign
from probe.wire.hello import ClientHello, ServerHello
from probe.wire.messages import (
    Authentication,
    ErrorResponse,
    NegotiateProtocolVersion,
    SaslChoice,
)
from probe.wire.records import Alert, version_name
from probe.wire.startup import CancelRequest, StartupMessage
from probe.wire.witness import Arrival


class Stage(StrEnum):
    """What a client waits for, in order. Reached means: it came."""

    RESOLVE = "resolve"
    CONNECT = "connect"
    SSL_REQUEST = "ssl-request"  # the S
    SERVER_HELLO = "server-hello"
    CERTIFICATE = "certificate"  # the server's flight, and both Finished
    STARTUP = "startup"  # any answer to StartupMessage
    AUTHENTICATION = "authentication"  # an authentication request

    @property
    def rank(self) -> int:
        """A number to compare by: what comes later has a higher one."""
        return list(Stage).index(self)


class Outcome(StrEnum):
    """How a connection ended for a client that insists on TLS.

    ``refused`` is a plain no: to the name, to the SYN, or ``N`` to SSLRequest. ``closed`` may be
    the client's doing, where it had seen enough (``ended_by``). Of a conversation that was
    captured without its keys nothing but its end is known: ``closed``, ``reset``, or
    ``not-captured``.
    """

    REFUSED = "refused"
    RESET = "reset"
    CLOSED = "closed"
    SILENT = "silent"
    FOREIGN = "foreign"
    ALERT = "alert"
    ERROR = "error"
    AUTHENTICATION = "authentication"
    NOT_CAPTURED = "not-captured"  # the capture ends first, or does not hold what would tell


class Opening(StrEnum):
    """What the client says first."""

    SSL_REQUEST = "ssl-request"
    GSSENC_REQUEST = "gssenc-request"
    DIRECT_TLS = "direct-tls"
    STARTUP = "startup"
    CANCEL = "cancel"
    NOTHING = "nothing"
    OTHER = "other"
    NOT_CAPTURED = "not-captured"


class Step(NamedTuple):
    """One stage of a connection: when it began, how long its answer took, what passed.

    Times are in seconds; ``sent`` and ``received`` are what the wire carried, bounded by the
    observer. ``says`` is safe to show.
    """

    stage: Stage
    at: float
    took: float
    peer: str
    sent: bytes
    received: bytes
    sent_bytes: int
    received_bytes: int
    says: str


# Facts that a capture may lack, in the order in which they pass. ``finished`` is whether the TLS
# handshake was: in TLS 1.3 the client's Finished is ciphertext like all that follows.
FACTS = (
    "opening",
    "ssl_answer",
    "sni",
    "alpn",
    "server_hello",
    "tls_version",
    "alpn_selected",
    "certificate",
    "finished",
    "startup",
    "authentication",
)

# Without one of these it is not known what a connection asked for, or how far it got.
_DECISIVE = frozenset(("opening", "ssl_answer", "sni", "alpn", "server_hello", "finished"))


@dataclass(eq=False, repr=False)
class Handshake:
    """Everything that one connection told. Built by the observer, read-only for all others.

    A fact that is None was not said, unless ``not_captured`` names it: then nobody knows.
    """

    attempt: str
    door: str
    asked: Asked | None = None
    login: bool = False  # a password was proved, or was to be
    addresses: tuple[str, ...] = ()
    client: str | None = None
    server: str | None = None
    not_connected: ConnectFailure | None = None
    opening: Opening = Opening.NOTHING
    proxy_header: bool = False
    split_request: bool = False
    pipelined: bool = False
    garbage: bool = False  # clear bytes followed the S
    ssl_answer: str | None = None  # "S", "N", "E", "other"
    gss_answer: str | None = None  # "G", "N", "E", "other"
    glued: bytes = b""  # what stood behind the S before any ClientHello
    client_hello: ClientHello | None = None
    hello_segments: int = 0
    hello_records: int = 0
    hello_begun: int | None = None  # bytes that a ClientHello which was not finished was to have
    retried: bool = False  # a HelloRetryRequest came
    server_hello: ServerHello | None = None
    chain: tuple[bytes, ...] = ()  # DER, leaf first
    certificate_asked: bool = False
    authorities: tuple[bytes, ...] = ()  # DER names of a CertificateRequest
    ticket: bool = False  # the server gave one, to resume the session with
    established: Established | None = None
    verified: Verified | None = None  # where the client checked the chain against roots
    tls_failed: str | None = None  # the client's TLS library's reason
    alert: Alert | None = None  # the first one from the server that is not close_notify
    startup: StartupMessage | None = None
    cancel: CancelRequest | None = None
    startup_in_tls: bool = False
    negotiated: NegotiateProtocolVersion | None = None
    authentication: Authentication | None = None
    salt: bytes | None = None  # of the SCRAM server-first-message
    nonce: str | None = None  # likewise; no other login has the same
    sasl: SaslChoice | None = None  # what the client chose of the SASL offer
    let_in: bool = False  # AuthenticationOk came
    login_error: ErrorResponse | None = None  # behind an authentication request
    logged_in: LoggedIn | None = None  # where the client had a password
    server_view: ServerView | None = None
    error: ErrorResponse | None = None
    witness: Arrival | None = None  # where the error is a witness's
    foreign: Foreign | None = None
    foreign_in_tls: bool = False
    ended_by: Party | None = None
    ending: Ending | None = None
    gave_up_after: float | None = None  # seconds
    server_bytes: int = 0
    closed_after: float | None = None  # seconds between the last byte and the server's close
    left_after: float | None = None  # seconds without an answer until the client closed
    client_alert: Alert | None = None  # the first one from the client, in clear, no close_notify
    not_captured: tuple[str, ...] = ()  # of FACTS: they may have passed unseen
    hello_resent: tuple[int, ...] = ()  # sizes of the segments that were said again, in bytes
    flight_resent: tuple[int, ...] = ()  # the same of the server's, until the client went on
    hello_missed: int = 0  # bytes of it that never came, though later ones did
    flight_missed: int = 0  # the same of the server's
    strange_resets: tuple[str, ...] = ()  # RSTs that do not fit their stream: why, safe to show
    reached: Stage | None = None
    outcome: Outcome = Outcome.SILENT
    steps: list[Step] = field(default_factory=list)

    @property
    def server_name(self) -> str | None:
        """The name in the ClientHello, or None."""
        return self.client_hello.server_name if self.client_hello else None

    @property
    def alpn_offered(self) -> bool:
        """Whether the ClientHello offered ``postgresql``."""
        return self.client_hello is not None and "postgresql" in self.client_hello.alpn

    @property
    def alpn_selected(self) -> str | None:
        """The protocol that the TLS peer selected, or None."""
        return self.established.alpn if self.established else None

    @property
    def leaf(self) -> bytes | None:
        """The DER of the certificate that the TLS peer showed, or None."""
        return self.chain[0] if self.chain else None

    @property
    def told(self) -> bool:
        """Whether it is known what was asked for and how far it got."""
        undecided = self.outcome is Outcome.NOT_CAPTURED and self.established is None
        return _DECISIVE.isdisjoint(self.not_captured) and not undecided

    @property
    def lacks_alpn(self) -> bool:
        """TLS finished, ``postgresql`` was offered, and is known not to be selected."""
        known = "alpn_selected" not in self.not_captured
        return (
            known
            and self.established is not None
            and self.alpn_offered
            and self.established.alpn != "postgresql"
        )

    @property
    def tls_version(self) -> str | None:
        """The version that the ServerHello chose, or None."""
        return version_name(self.server_hello.version) if self.server_hello else None

    @property
    def authenticates(self) -> bool:
        """An authentication request came, inside TLS; or a witness stands in its place."""
        asked = self.authentication is not None or self.witness is not None
        return asked and self.startup_in_tls

    def step(self, stage: Stage) -> Step | None:
        """What was seen of this stage, or None."""
        return next((step for step in self.steps if step.stage is stage), None)

    def took(self, stage: Stage) -> float:
        """Seconds until its answer came; 0 where there was no such stage."""
        step = self.step(stage)
        return step.took if step else 0.0

    @property
    def awaited(self) -> Stage | None:
        """The stage that did not come, or None when the last one did."""
        stages = [s for s in Stage if s is not Stage.SSL_REQUEST or self._asks_for_tls]
        if self.opening is Opening.STARTUP:
            stages = [s for s in stages if s not in (Stage.SERVER_HELLO, Stage.CERTIFICATE)]
        if self.reached is None:
            return Stage.RESOLVE if self.not_connected is ConnectFailure.NOT_RESOLVED else stages[1]
        later = [s for s in stages if s.rank > self.reached.rank]
        return later[0] if later else None

    @property
    def _asks_for_tls(self) -> bool:
        # a connection that was reset before anything was said would have asked, too
        return self.opening in (Opening.SSL_REQUEST, Opening.GSSENC_REQUEST, Opening.NOTHING)

    @property
    def offers_binding(self) -> bool:
        """The SASL offer has SCRAM-SHA-256-PLUS."""
        return bool(self.authentication) and "SCRAM-SHA-256-PLUS" in self.mechanisms

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """The SASL mechanisms on offer."""
        return self.authentication.mechanisms if self.authentication else ()
