"""Plays an attempt: what a PostgreSQL client with these habits would say.

Source: PostgreSQL documentation, "Message Flow". Nothing is sent before the answer that a
client waits for has come, except where the attempt is made to do just that.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Protocol

from probe.attempt import Attempt, HelloShape
from probe.drivers import FIRST_WORDS, AwaitTurn, Command, Pause, Player, Receive, Send
from probe.handshake import Opening
from probe.login import Exchange, hidden
from probe.tls import TlsClient, TlsError, UntrustedError
from probe.transcript import Closed, Data, Ending, Layer, Party, TlsFailed, Verified
from probe.wire import Malformed
from probe.wire.foreign import PROXY_HEADERS
from probe.wire.hello import server_name_middle
from probe.wire.messages import MAX_MESSAGE, TERMINATE, decode_message
from probe.wire.records import split_record
from probe.wire.startup import GSSENC_REQUEST, SSL_REQUEST, cancel_request, startup_message

SEGMENT_PAUSE = 0.03  # seconds; long enough for two segments to be read apart
FIRST_SEGMENT = 1400  # bytes of a large ClientHello that an Ethernet frame carries

Reply = Generator[Command, bytes | None, bytes | None]


def play(attempt: Attempt) -> Player:
    """The client's part of one connection."""
    if attempt.proxy_header:
        yield Send(PROXY_HEADERS[attempt.proxy_header])
    match attempt.opening:
        case Opening.NOTHING:
            yield from _listen()
        case Opening.CANCEL:
            yield Send(_made_up_cancel())
            yield from _listen()
        case Opening.STARTUP:
            yield from _startup(_Clear(), attempt)
        case Opening.GSSENC_REQUEST:
            yield Send(GSSENC_REQUEST)
            if (yield Receive()) == b"N":
                yield Send(SSL_REQUEST)
                yield Receive()
        case Opening.DIRECT_TLS:
            yield from _tls(attempt, TlsClient(attempt))
        case Opening.SSL_REQUEST if attempt.shape is HelloShape.WITH_REQUEST:
            yield from _pipelined(attempt)
        case Opening.SSL_REQUEST:
            yield from _ask_for_tls(attempt)


def _made_up_cancel() -> bytes:
    """A CancelRequest for nobody: no system has such a process id.

    No byte of it is the end of a line, on which a peer that reads lines would answer.
    """
    process_id, key = (bytes(byte | 0x80 for byte in os.urandom(size)) for size in (3, 4))
    return cancel_request(int.from_bytes(process_id, "big"), key)


def _listen() -> Player:
    while (yield Receive()):
        pass


def _ask_for_tls(attempt: Attempt) -> Player:
    if attempt.split_request:
        yield Send(SSL_REQUEST[:4])
        yield Pause(SEGMENT_PAUSE)
        yield Send(SSL_REQUEST[4:])
    else:
        yield Send(SSL_REQUEST)
    answer = yield Receive()
    if answer != b"S":
        if answer and answer[:1] not in (b"S", b"N") and len(answer) < FIRST_WORDS:
            yield Receive()  # the rest of it may tell who says it
        return
    if attempt.shape is HelloShape.BEHIND_GARBAGE:
        yield from _startup(_Clear(), attempt)
    else:
        yield from _tls(attempt, TlsClient(attempt))


def _pipelined(attempt: Attempt) -> Player:
    client = TlsClient(attempt)
    client.handshake()
    yield Send(SSL_REQUEST + client.drain())
    answer = yield Receive()
    if answer and answer[:1] == b"S":
        client.feed(answer[1:])
        yield from _finish_tls(attempt, client)


def _tls(attempt: Attempt, client: TlsClient) -> Player:
    client.handshake()
    yield from _send_hello(attempt, client.drain())
    yield from _finish_tls(attempt, client)


def _send_hello(attempt: Attempt, hello: bytes) -> Player:
    match attempt.shape:
        case HelloShape.SEGMENTS:
            cut = server_name_middle(hello, attempt.server_name or "")
        case HelloShape.LARGE:
            cut = FIRST_SEGMENT
        case HelloShape.RECORDS:
            # the offset is in the record, whose fragment begins behind 5 bytes
            at = server_name_middle(hello, attempt.server_name or "") - 5
            yield Send(split_record(hello, at))
            return
        case _:
            yield Send(hello)
            return
    yield Send(hello[:cut])
    yield Pause(SEGMENT_PAUSE)
    yield Send(hello[cut:])


def _finish_tls(attempt: Attempt, client: TlsClient) -> Player:
    while True:
        try:
            finished = client.handshake()
        except TlsError as error:
            yield from _told(client)
            yield from _flush(client)  # the alert that our library owes the peer
            yield Verified(str(error)) if isinstance(error, UntrustedError) else _failed(error)
            return
        yield from _told(client)
        yield from _flush(client)
        if finished:
            break
        data = yield Receive()
        if data is None:
            return
        client.feed(data)
    yield client.established
    if attempt.roots:
        yield Verified(None)
    if attempt.greets:
        yield from _startup(_Protected(client), attempt)
    client.leave()
    yield from _flush(client)


def _failed(error: TlsError) -> TlsFailed:
    return TlsFailed(str(error))


def _told(client: TlsClient) -> Player:
    for message in client.told():
        yield Data(Party.SERVER, message, Layer.HANDSHAKE)


def _flush(client: TlsClient) -> Player:
    data = client.drain()
    if data:
        yield Send(data)


class _Channel(Protocol):
    leaf: bytes | None  # the TLS peer's certificate; None: in clear

    def send(self, data: bytes, *, secret: bool = False) -> Player: ...
    def receive(self) -> Reply: ...


class _Clear:
    """Messages on the bare wire."""

    leaf: bytes | None = None

    def send(self, data: bytes, *, secret: bool = False) -> Player:
        if secret:
            raise ValueError("a secret is never sent in clear")
        yield Send(data)

    def receive(self) -> Reply:
        return (yield Receive())


class _Protected:
    """Messages inside TLS, recorded as they were before encryption."""

    def __init__(self, client: TlsClient) -> None:
        self._client = client
        self.leaf = client.leaf

    def send(self, data: bytes, *, secret: bool = False) -> Player:
        self._client.write(data)
        yield Data(Party.CLIENT, hidden(data) if secret else data, Layer.TLS)
        yield from _flush(self._client)

    def receive(self) -> Reply:
        while True:
            try:
                plain = self._client.read()
            except TlsError as error:
                yield from _told(self._client)
                yield _failed(error)
                return None
            yield from _told(self._client)
            if plain == b"":
                yield Closed(Party.SERVER, Ending.CLOSE_NOTIFY)
                yield Receive()  # and see how the wire ends
                return None
            if plain:
                yield Data(Party.SERVER, plain, Layer.TLS)
                return plain
            data = yield Receive()
            if data is None:
                return None
            self._client.feed(data)


def _startup(channel: _Channel, attempt: Attempt) -> Player:
    """StartupMessage, and as far behind it as the attempt goes."""
    yield AwaitTurn()
    parameters = {
        "user": attempt.user,
        "database": attempt.database,
        "application_name": "pgprobe",
    }
    yield from channel.send(startup_message(attempt.protocol, parameters))
    exchange = Exchange(attempt, channel.leaf)
    buffer = b""
    while len(buffer) <= MAX_MESSAGE:
        data = yield from channel.receive()
        if data is None:
            return
        buffer += data
        try:
            while decoded := decode_message(buffer, logged_in=exchange.logged_in):
                message, length = decoded
                buffer = buffer[length:]
                reply = exchange.answer(message)
                if reply is None:
                    continue
                if reply.fact:
                    yield reply.fact
                if reply.data:
                    yield from channel.send(reply.data, secret=reply.secret)
                if reply.data == TERMINATE:
                    while (yield from channel.receive()):
                        pass  # unread greetings would turn our close into a reset
                if reply.leaves:
                    return
        except Malformed:
            return
