"""Plays the server's part of a witness: hears a client out, and tells it what arrived.

A generator like the other players, with the parts exchanged: :class:`~probe.drivers.Send` what
the client shall read, :class:`~probe.drivers.Receive` its next bytes, None when no more will
come. It returns a :class:`Visit`, whatever happened. Source: PostgreSQL documentation, "Message
Flow"; what a server of version 17 does about direct TLS.

It answers what PostgreSQL would hang up on (a PROXY header, direct TLS without ALPN, bytes
behind an SSLRequest), since to tell of it is what it is for; the testimony says so. It never
asks for a password and has no word by which anybody could get in.
"""

from __future__ import annotations

from collections.abc import Generator
from hashlib import sha256
from ssl import SSLContext
from typing import NamedTuple

from probe.drivers import Receive, Send
from probe.tls import LeftError, TlsError, TlsServer
from probe.wire import Malformed
from probe.wire.foreign import ProxyHeader, decode_proxy_header
from probe.wire.hello import CLIENT_HELLO, ClientHello, parse_client_hello
from probe.wire.messages import error_response
from probe.wire.records import HANDSHAKE, decode_carried
from probe.wire.startup import (
    CancelRequest,
    GSSENCRequest,
    SSLRequest,
    StartupMessage,
    decode_first_packet,
)
from probe.wire.witness import (
    Arrival,
    HelloFacts,
    ProxyFacts,
    StartupFacts,
    error_fields,
)


class Visit(NamedTuple):
    """A connection as the witness's log tells it.

    ``outcome`` is ``testified``; ``cancel``: a CancelRequest, which nobody answers;
    ``not-postgresql``: what no PostgreSQL client sends there; ``tls-failed``; ``unfinished``:
    it ended before it had said all. ``says`` is the reason, where there is one. ``client_hello``
    is the first one's handshake message, byte for byte.
    """

    outcome: str
    says: str | None
    proxy: ProxyHeader | None
    ssl_request: bool
    gssenc_request: bool
    hello: HelloFacts | None
    client_hello: bytes
    testimony: Arrival | None


Part = Generator[Send | Receive, bytes | None, Visit]
_Step = Generator[Send | Receive, bytes | None, None]


class _Gone(Exception):  # noqa: N818 - no error: they left
    """No more bytes will come."""


class Welcome(NamedTuple):
    """What a connection begins with: the TCP ends as "addr:port", and the witness's own part."""

    context: SSLContext
    peer: str
    local: str
    proxy_expected: bool = False


def play(welcome: Welcome) -> Part:
    """The witness's part of one connection."""
    return _Player(welcome).play()


class _Player:
    def __init__(self, welcome: Welcome) -> None:
        self._welcome = welcome
        self._heard = b""  # and not read yet
        self._reads = 0  # from the socket, since the last answer
        self._proxy: ProxyHeader | None = None
        self._ssl_request = self._gssenc_request = self._early = False
        self._client_hello = b""
        self._hello: HelloFacts | None = None
        self._testimony: Arrival | None = None

    def play(self) -> Part:
        try:
            outcome, says = yield from self._listen()
        except (_Gone, LeftError):
            outcome, says = "unfinished", None
        except Malformed as problem:
            outcome, says = "not-postgresql", str(problem)
        except TlsError as problem:
            outcome, says = "tls-failed", str(problem)
        return Visit(
            outcome,
            says,
            self._proxy,
            self._ssl_request,
            self._gssenc_request,
            self._hello,
            self._client_hello,
            self._testimony,
        )

    def _listen(self) -> Generator[Send | Receive, bytes | None, tuple[str, str | None]]:
        yield from self._hear()
        yield from self._proxy_header()
        while True:
            if self._heard[:1] == bytes([HANDSHAKE]):
                return (yield from self._in_tls())
            if self._ssl_request:
                raise Malformed("clear bytes behind the S")
            while (decoded := decode_first_packet(self._heard)) is None:
                yield from self._hear()
            packet, length = decoded
            raw, self._heard = self._heard[:length], self._heard[length:]
            match packet:
                case CancelRequest():
                    return "cancel", None
                case StartupMessage():
                    self._testify(packet, raw, None)
                    assert self._testimony is not None
                    yield Send(error_response(error_fields(self._testimony)))
                    return "testified", None
                case SSLRequest():
                    self._ssl_request, self._early = True, bool(self._heard)
                    yield Send(b"S")
                case GSSENCRequest() if self._gssenc_request:
                    raise Malformed("a second GSSENCRequest")
                case GSSENCRequest():
                    self._gssenc_request = True
                    yield Send(b"N")
            self._reads = int(bool(self._heard))
            while not self._heard:
                yield from self._hear()

    def _hear(self) -> _Step:
        data = yield Receive()
        if not data:
            raise _Gone
        self._heard += data
        self._reads += 1

    def _proxy_header(self) -> _Step:
        while True:
            try:
                decoded = decode_proxy_header(self._heard)
            except Malformed:
                return
            if decoded:
                break
            yield from self._hear()
        self._proxy, length = decoded
        self._heard = self._heard[length:]
        self._reads = int(bool(self._heard))
        while not self._heard:
            yield from self._hear()

    # -- TLS ---------------------------------------------------------------------------------

    def _in_tls(self) -> Generator[Send | Receive, bytes | None, tuple[str, str | None]]:
        yield from self._read_hello()
        server = TlsServer(self._welcome.context)
        server.feed(self._heard)
        try:
            while not server.handshake():
                yield from self._flush(server)
                server.feed((yield from self._more()))
            yield from self._flush(server)
            said = b""
            while (decoded := decode_first_packet(said)) is None:
                plain = server.read()
                if plain == b"":
                    raise _Gone
                if plain:
                    said += plain
                else:
                    server.feed((yield from self._more()))
        except TlsError:
            yield from self._flush(server)  # the alert that our library owes the peer
            raise
        packet, length = decoded
        match packet:
            case StartupMessage():
                self._testify(packet, said[:length], server)
                assert self._testimony is not None
                server.write(error_response(error_fields(self._testimony)))
                outcome: tuple[str, str | None] = "testified", None
            case CancelRequest():
                outcome = "cancel", None
            case _:
                outcome = "not-postgresql", "a request for encryption inside TLS"
        server.leave()
        yield from self._flush(server)
        return outcome

    def _read_hello(self) -> _Step:
        """Wait for a whole ClientHello; it stays unread, for the TLS library."""
        while (decoded := decode_carried(self._heard, CLIENT_HELLO)) is None:
            yield from self._hear()
        carried, _ = decoded
        self._client_hello = carried.message
        self._note_hello(parse_client_hello(carried.body), carried.records)

    def _note_hello(self, hello: ClientHello, records: int) -> None:
        self._hello = HelloFacts(
            sha256=hello.sha256,
            size=hello.size,
            records=records,
            reads=self._reads,
            server_name=hello.server_name,
            alpn=hello.alpn,
        )

    @staticmethod
    def _more() -> Generator[Send | Receive, bytes | None, bytes]:
        data = yield Receive()
        if not data:
            raise _Gone
        return data

    @staticmethod
    def _flush(server: TlsServer) -> _Step:
        data = server.drain()
        if data:
            yield Send(data)

    # -- what is told ------------------------------------------------------------------------

    def _testify(self, packet: StartupMessage, raw: bytes, server: TlsServer | None) -> None:
        agreed = server.established if server else None
        major, minor = packet.version
        self._testimony = Arrival(
            peer=self._welcome.peer,
            local=self._welcome.local,
            startup=StartupFacts(sha256(raw).hexdigest(), len(raw), f"{major}.{minor}"),
            proxy_expected=self._welcome.proxy_expected,
            proxy=ProxyFacts(*self._proxy) if self._proxy else None,
            ssl_request=self._ssl_request,
            gssenc_request=self._gssenc_request,
            early=self._early,
            hello=self._hello,
            tls=agreed.version if agreed else None,
            alpn=agreed.alpn if agreed else None,
        )
