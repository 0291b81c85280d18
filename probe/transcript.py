"""What passed on one connection: who said which bytes, when, and in which layer.

Takes nothing and gives nothing but these types. Live probing, capture files and replay all
make a :class:`Transcript`; the observer reads it and cannot tell which of them made it.

A fact is neutral: it says *client* and *server*, never *we* and *they*, so that a stranger's
captured connection and our own read alike. Bytes have a layer. ``TCP`` is what the wire
carried. Whoever held the keys adds what was said inside TLS: ``HANDSHAKE`` for protected
handshake messages and alerts, ``TLS`` for application data.
"""

from enum import StrEnum
from typing import NamedTuple


class Party(StrEnum):
    """An end of the connection."""

    __hash__ = str.__hash__  # Enum's own is slow, and much is kept by party and layer

    CLIENT = "client"
    SERVER = "server"


class Layer(StrEnum):
    """Where bytes were said."""

    __hash__ = str.__hash__

    TCP = "tcp"
    HANDSHAKE = "handshake"  # protected handshake messages and alerts, opened by a key holder
    TLS = "tls"  # application data, opened by a key holder


class ConnectFailure(StrEnum):
    """Why there is no connection."""

    NOT_RESOLVED = "not-resolved"
    REFUSED = "refused"
    TIMED_OUT = "timed-out"
    UNREACHABLE = "unreachable"
    RESET = "reset"  # accepted and reset before connect() returned: not a refusal


class Ending(StrEnum):
    """How a party ended its side."""

    FIN = "fin"
    RST = "rst"
    CLOSE_NOTIFY = "close-notify"


class Asked(StrEnum):
    """What the one who asked meant by the name in the ClientHello, where that is known."""

    TARGET = "target"  # the name that the run is about
    OTHER = "other"  # another name that is known to be routed
    UNKNOWN = "unknown"  # a name that nobody configured


class Resolved(NamedTuple):
    """The name led to these addresses."""

    addresses: tuple[str, ...]


class Connecting(NamedTuple):
    """The client sent a SYN to ``server`` ("addr:port")."""

    server: str


class Connected(NamedTuple):
    """The server's TCP accepted; both ends as "addr:port"."""

    client: str
    server: str


class NotConnected(NamedTuple):
    """No connection came about; ``says`` is the operating system's or resolver's text."""

    failure: ConnectFailure
    says: str


class Data(NamedTuple):
    """Bytes that ``sender`` said, one segment or message at a time."""

    sender: Party
    data: bytes
    layer: Layer = Layer.TCP


class Established(NamedTuple):
    """The key holder finished the TLS handshake: version, cipher, selected ALPN protocol."""

    version: str
    cipher: str
    alpn: str | None


class Verified(NamedTuple):
    """The key holder checked the chain against its roots; ``problem`` None: it is trusted."""

    problem: str | None


class TlsFailed(NamedTuple):
    """The key holder's TLS library gave up; its own reason."""

    says: str


class LoggedIn(NamedTuple):
    """The client was let in. ``method`` is the authentication's name.

    ``signature``: whether the server proved that it knows the password, too; None: the method has
    no such proof. False: it let the client in, or said that it would, and could not prove it.
    """

    method: str
    signature: bool | None


class ServerView(NamedTuple):
    """What the server says of the connection that it sees: its own TLS, address and version."""

    tls: bool
    version: str | None
    cipher: str | None
    address: str | None
    port: str | None
    server_version: str | None


class Closed(NamedTuple):
    """``sender`` ended its side."""

    sender: Party
    how: Ending


class GaveUp(NamedTuple):
    """The one who watched stopped waiting for the server, after so many seconds of silence."""

    waited: float


class NotCaptured(NamedTuple):
    """``sender`` said so many bytes here, and the capture does not hold them.

    ``size`` None: nobody knows how many, since the capture began in mid-stream or ended there.
    """

    sender: Party
    size: int | None


class Resent(NamedTuple):
    """``sender`` said ``size`` bytes again that the capture already holds, from ``offset`` on.

    The other side had not acknowledged them: on that side of the capture, they were lost.
    ``offset`` is in bytes from the beginning of what ``sender`` said.
    """

    sender: Party
    offset: int
    size: int


class Missed(NamedTuple):
    """``size`` bytes of ``sender``'s never came, though later ones did: so the other side said.

    It went on to ask for them. What came behind them it could not read, and it is not told here.
    """

    sender: Party
    size: int


class StrangeReset(NamedTuple):
    """An RST in ``sender``'s name that does not fit its stream; ``says`` tells why (its TTL)."""

    sender: Party
    says: str


Fact = (
    Resolved
    | Connecting
    | Connected
    | NotConnected
    | Data
    | Established
    | Verified
    | TlsFailed
    | LoggedIn
    | ServerView
    | Closed
    | GaveUp
    | NotCaptured
    | Resent
    | Missed
    | StrangeReset
)


class Event(NamedTuple):
    """A fact and its time, in seconds since the transcript began."""

    at: float
    fact: Fact


class Transcript(NamedTuple):
    """One connection from its first sign to its end.

    ``attempt`` is a label for people and evidence; nothing may be concluded from it. ``door``
    is where it was tried ("addr:port"). ``asked`` is the one thing that the bytes do not say.
    ``started`` is in seconds since the epoch. ``login``: a password was proved inside TLS; it is
    not in these events, and whoever keeps the session's keys beside its ciphertext gives it away.
    """

    attempt: str
    door: str
    events: tuple[Event, ...]
    asked: Asked | None = None
    started: float = 0.0
    login: bool = False

    @property
    def connected(self) -> bool:
        """The server's TCP accepted."""
        return any(isinstance(event.fact, Connected) for event in self.events)
