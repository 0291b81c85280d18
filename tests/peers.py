"""The other end of a connection: a server in memory, and misbehaving peers on loopback.

A :class:`Backend` is a PostgreSQL server without a socket, that :func:`converse` lets a player
talk to. A :class:`Peer` listens on 127.0.0.1, port 0, and does one named thing to every
connection that it accepts.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache

import trustme

from probe.attempt import Attempt
from probe.drivers import AwaitTurn, Command, Pause, Receive, Send
from probe.drivers.client import play
from probe.transcript import Data, Event, Fact, Party, Transcript

NAME = "db-1.example.com"
DOOR = "127.0.0.1:5432"

SSL_REQUEST = bytes.fromhex(
    "00000008"  # length
    "04d2162f"  # 1234, 5679
)

SCRAM_OFFER = bytes.fromhex(
    "52 00000017"  # R, length
    "0000000a"  # SASL
    "534352414d2d5348412d32353600"  # SCRAM-SHA-256
    "00"  # no more
)
BINDING_OFFER = bytes.fromhex(
    "52 0000002a"  # R, length
    "0000000a"  # SASL
    "534352414d2d5348412d3235362d504c555300"  # SCRAM-SHA-256-PLUS
    "534352414d2d5348412d32353600"  # SCRAM-SHA-256
    "00"  # no more
)
SALT = bytes(range(16))
SERVER_FIRST = (
    bytes.fromhex(
        "52 00000031"  # R, length
        "0000000b"  # SASLContinue
    )
    + b"r=nonce,s=AAECAwQFBgcICQoLDA0ODw==,i=4096"
)


# --- in memory ------------------------------------------------------------------------------


@cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(name: str = NAME, alpn: str | None = "postgresql") -> ssl.SSLContext:
    """A server's context with a certificate for ``name``; knobs are for the caller to turn."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(name).configure_cert(context)
    context.num_tickets = 0  # as PostgreSQL's
    if alpn:
        context.set_alpn_protocols([alpn])
    return context


def only_tls12() -> ssl.SSLContext:
    context = server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def asks_for_retry() -> ssl.SSLContext:
    """Shares no group with the key shares of a first ClientHello."""
    context = server_context()
    context.set_ecdh_curve("secp384r1")
    return context


def asks_for_certificate() -> ssl.SSLContext:
    context = server_context()
    context.verify_mode = ssl.CERT_OPTIONAL
    authority().configure_trust(context)
    return context


def scram(said: bytes) -> bytes:
    """What PostgreSQL answers to StartupMessage and SASLInitialResponse."""
    return {b"\0": BINDING_OFFER, b"p": SERVER_FIRST}.get(said[:1], b"")


class Backend:
    """Answers SSLRequest with S, then speaks TLS in memory; ``messages`` answers what is said."""

    def __init__(
        self,
        context: ssl.SSLContext | None = None,
        messages: Callable[[bytes], bytes] = scram,
        direct: bool = False,
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = (context or server_context()).wrap_bio(
            self._incoming, self._outgoing, server_side=True
        )
        self._messages = messages
        self._clear = b""
        self._in_tls, self._finished = direct, False
        self.said: list[bytes] = []  # inside TLS
        self.left = False  # the client said close_notify

    def hear(self, data: bytes) -> bytes:
        """Bytes from the client; gives what to send back, often nothing."""
        answer = b""
        if not self._in_tls:
            self._clear += data
            if not self._clear.startswith(SSL_REQUEST):
                return b""
            data, self._in_tls, answer = self._clear[len(SSL_REQUEST) :], True, b"S"
        self._incoming.write(data)
        with contextlib.suppress(ssl.SSLWantReadError):
            self._speak()
        return answer + self._outgoing.read()

    def _speak(self) -> None:
        try:
            if not self._finished:
                self._session.do_handshake()
                self._finished = True
            while said := self._session.read(65_536):
                self.said.append(said)
                self._session.write(self._messages(said))
            self.left = True
        except ssl.SSLZeroReturnError:
            self.left = True
        except ssl.SSLError as error:
            if isinstance(error, ssl.SSLWantReadError):
                raise


def converse(
    attempt: Attempt, hear: Callable[[bytes], bytes]
) -> tuple[list[Command], tuple[Fact, ...]]:
    """Let the attempt's player talk to a peer in memory: its commands, and what passed."""
    player = play(attempt)
    commands: list[Command] = []
    facts: list[Fact] = []
    pending, reply = b"", None
    with contextlib.suppress(StopIteration):
        while True:
            command = player.send(reply)
            commands.append(command)
            reply = None
            match command:
                case Send(data):
                    facts.append(Data(Party.CLIENT, data))
                    pending += hear(data)
                case Receive() if pending:
                    facts.append(Data(Party.SERVER, pending))
                    pending, reply = b"", pending
                case Receive() | Pause() | AwaitTurn():
                    pass
                case fact:
                    facts.append(fact)
    return commands, tuple(facts)


def transcript(*facts: Fact, attempt: str = "control") -> Transcript:
    """These facts, a millisecond apart."""
    events = tuple(Event(n / 1000, fact) for n, fact in enumerate(facts))
    return Transcript(attempt, DOOR, events)


# --- on loopback ----------------------------------------------------------------------------

Behaviour = Callable[[socket.socket, bytearray], None]


class Peer:
    """Listens, and does this to every connection; ``heard`` is what each of them said.

    It listens on loopback, or where ``listener`` does already.
    """

    def __init__(
        self,
        behave: Behaviour,
        address: str = "127.0.0.1",
        listener: socket.socket | None = None,
    ) -> None:
        self._behave, self.address, self._given = behave, address, listener
        self.heard: list[bytearray] = []
        self._connections: list[tuple[socket.socket, threading.Thread]] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Peer:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        if self._given:
            self._listener = self._given
        else:
            self._listener = socket.socket(family, socket.SOCK_STREAM)
            self._listener.bind((self.address, 0))
            self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        for connection, _thread in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.join(0)

    @property
    def ended(self) -> int:
        """How many connections the behaviour is done with."""
        return sum(not thread.is_alive() for _, thread in self._connections)

    def join(self, connections: int = 1) -> None:
        """Wait until so many connections were accepted, and all that were have ended."""
        until = time.monotonic() + 5
        while len(self._connections) < connections and time.monotonic() < until:
            time.sleep(0.002)
        for _, thread in list(self._connections):
            thread.join(5)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                heard = bytearray()
                self.heard.append(heard)
                thread = threading.Thread(target=self._serve, args=(connection, heard), daemon=True)
                thread.start()
                self._connections.append((connection, thread))

    def _serve(self, connection: socket.socket, heard: bytearray) -> None:
        with connection, contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._behave(connection, heard)


def _listen(connection: socket.socket, heard: bytearray) -> Iterator[bytes]:
    while data := connection.recv(65_536):
        heard += data
        yield data


def resets(connection: socket.socket, heard: bytearray) -> None:
    """RST as soon as the connection is accepted."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def closes(connection: socket.socket, heard: bytearray) -> None:
    """FIN as soon as the connection is accepted."""
    connection.shutdown(socket.SHUT_WR)
    deaf(connection, heard)


def closes_on_bytes(connection: socket.socket, heard: bytearray) -> None:
    """FIN as soon as something is said, silence until then."""
    next(_listen(connection, heard), None)
    closes(connection, heard)


def deaf(connection: socket.socket, heard: bytearray) -> None:
    """Never answers."""
    for _ in _listen(connection, heard):
        pass


def says_s_then_nothing(connection: socket.socket, heard: bytearray) -> None:
    next(_listen(connection, heard), None)
    connection.sendall(b"S")
    deaf(connection, heard)


def says_s_then_leaves(connection: socket.socket, heard: bytearray) -> None:
    """close_notify in answer to the ClientHello."""
    hears = _listen(connection, heard)
    next(hears, None)
    connection.sendall(b"S")
    next(hears, None)
    connection.sendall(bytes((0x15, 3, 3, 0, 2, 1, 0)))
    closes(connection, heard)


def says_n(connection: socket.socket, heard: bytearray) -> None:
    next(_listen(connection, heard), None)
    connection.sendall(b"N")
    deaf(connection, heard)


def floods(connection: socket.socket, heard: bytearray) -> None:
    """Ten megabytes of nothing sensible, unasked."""
    for _ in range(160):
        connection.sendall(b"\x80garbage" * 8_192)
    deaf(connection, heard)


def answers_late(seconds: float) -> Behaviour:
    """A whole server, whose first answer comes ``seconds`` late."""

    def behave(connection: socket.socket, heard: bytearray) -> None:
        backend = Backend()
        for n, data in enumerate(_listen(connection, heard)):
            if not n:
                time.sleep(seconds)
            connection.sendall(backend.hear(data))

    return behave


def serves(connection: socket.socket, heard: bytearray) -> None:
    """A whole server; it knows a bare ClientHello, too."""
    backend = None
    for data in _listen(connection, heard):
        backend = backend or Backend(direct=data[:1] == b"\x16")
        connection.sendall(backend.hear(data))


def serves_with(context: ssl.SSLContext) -> Behaviour:
    """A whole server with such a context."""

    def behave(connection: socket.socket, heard: bytearray) -> None:
        backend = Backend(context)
        for data in _listen(connection, heard):
            connection.sendall(backend.hear(data))

    return behave


def byte_by_byte(connection: socket.socket, heard: bytearray) -> None:
    """A whole server, each of whose bytes comes in a segment of its own."""
    backend = Backend()
    for data in _listen(connection, heard):
        for byte in backend.hear(data):
            connection.sendall(bytes([byte]))


def full(connection: socket.socket, heard: bytearray) -> None:
    """A whole server that has no connection left."""
    error = b"SFATAL\0VFATAL\0C53300\0Msorry, too many clients already\0Rx\0\0"
    message = b"E" + struct.pack("!I", len(error) + 4) + error
    backend = Backend(messages=lambda _: message)
    for data in _listen(connection, heard):
        connection.sendall(backend.hear(data))
