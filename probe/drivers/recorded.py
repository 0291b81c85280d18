"""Plays a recorded client's part again: its own bytes, cut as it cut them.

Takes a transcript, which may be a stranger's; :func:`script` gives what of it may be said again,
:func:`play` says that. It is a second driver: how the bytes pass is the source's.

What is said again ends with the ClientHello. No TLS is completed, since nobody has the keys, and
nothing that stood behind the ClientHello is sent: it would be early data (RFC 8446, appendix E.5:
a replay may do again what it asked for), or ciphertext that says nothing to another session. Only
the second ClientHello, in answer to a HelloRetryRequest, is clear text still; it is sent on
request, where the server asks for it now as well. In clear text the end is StartupMessage, which
carries no password; what a client says behind it may, and is never sent. Nor is a CancelRequest:
its key could stop a query that runs today. What another protocol's client says is not ours to
repeat.

Each answer that the client waited for is waited for, and where it is another one now the client
would not have gone on, and neither does the player.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from probe.drivers import FIRST_WORDS, Pause, Player, Receive, Send
from probe.transcript import Data, Event, Layer, NotCaptured, Party, Transcript
from probe.wire import Malformed, hello, records, startup
from probe.wire.foreign import proxy_header_length
from probe.wire.messages import MAX_MESSAGE, decode_message

LONGEST_PAUSE = 1.0  # seconds between two segments; a longer one tells nothing more
SHORTEST_PAUSE = 0.0005  # seconds; what follows sooner was written at once
MAX_FLIGHT = 65_536  # bytes of a client's first flight


class Kind(StrEnum):
    """What a part of a client's first flight is."""

    PROXY_HEADER = "PROXY header"
    GSSENC_REQUEST = "GSSENCRequest"
    SSL_REQUEST = "SSLRequest"
    CLIENT_HELLO = "ClientHello"
    SECOND_HELLO = "second ClientHello"
    STARTUP = "StartupMessage in clear"


class Part(NamedTuple):
    """One thing that the client says, and in how many segments it went out."""

    kind: Kind
    data: bytes
    segments: int


class Await(NamedTuple):
    """The client waited; it went on at ``answer``."""

    answer: bytes


class Script(NamedTuple):
    """What is said again: the ``parts`` for people, the ``moves`` for the player.

    ``owed`` are answers that the client did not wait for before it went on. ``second`` is said
    when the answer to the ClientHello is a HelloRetryRequest.
    """

    parts: tuple[Part, ...]
    moves: tuple[Send | Pause | Await, ...]
    owed: bytes = b""
    second: tuple[Send | Pause | Await, ...] = ()

    @property
    def last(self) -> Kind:
        """The part whose answer is the last one that is waited for."""
        return self.parts[-1].kind


class NotReplayableError(Exception):
    """Nothing of this connection is said again; the text says why."""


def script(transcript: Transcript, *, past_hello: bool = False) -> Script:
    """What of a connection may be said again; ``past_hello``: also its second ClientHello.

    Raises :class:`NotReplayableError`.
    """
    said = _Said(transcript)
    parts = list(_parts(said))
    if not parts:
        raise NotReplayableError("its client said nothing")
    if parts[-1].kind is Kind.PROXY_HEADER:
        raise NotReplayableError("its client said a PROXY header and nothing else")
    end = parts[-1].end
    asking = [part for part in parts[:-1] if part.answer]
    waits = {part.end: part.answer for part in asking if said.waited(part.end)}
    second: tuple[Send | Pause | Await, ...] = ()
    if past_hello and (retry := _second_hello(said, parts[-1])):
        second = tuple(said.moves(end, retry.end, {}))
        parts.append(retry)
    return Script(
        parts=tuple(
            Part(part.kind, said.data[part.begin : part.end], said.segments(part.begin, part.end))
            for part in parts
        ),
        moves=tuple(said.moves(0, end, waits)),
        owed=b"".join(part.answer for part in asking if part.end not in waits),
        second=second,
    )


# -- what the client said ----------------------------------------------------------------------


class _Said:
    """The client's bytes, where its segments begin, and what it had been answered by then."""

    def __init__(self, transcript: Transcript) -> None:
        self.data = b""
        self.whole = True  # nothing that it said so far is missing
        self._segments: list[tuple[int, float]] = []  # where each begins, and when it was sent
        self._answers: dict[int, bytes] = {}  # by how much the client had said
        for event in transcript.events:
            if not self.whole or len(self.data) > MAX_FLIGHT:
                return
            self._take(event)

    def _take(self, event: Event) -> None:
        match event.fact:
            case Data(Party.CLIENT, data, Layer.TCP):
                self._segments.append((len(self.data), event.at))
                self.data += data
            case Data(Party.SERVER, data, Layer.TCP):
                heard = self._answers.get(len(self.data), b"")
                self._answers[len(self.data)] = heard + data
            case NotCaptured(Party.CLIENT):
                self.whole = False
            case NotCaptured(Party.SERVER):
                self._answers.setdefault(len(self.data), b"")

    def answer(self, end: int) -> bytes:
        """The first byte that it was answered with, behind so many bytes; empty: not known."""
        later = (heard for at, heard in sorted(self._answers.items()) if at >= end)
        return next(later, b"")[:1]

    def heard(self, end: int) -> bytes:
        """What it was answered with, behind so many bytes and before it said more."""
        return self._answers.get(end, b"")

    def waited(self, end: int) -> bool:
        """It said nothing more until an answer came."""
        return end in self._answers

    def segments(self, begin: int, end: int) -> int:
        """In how many segments these bytes went out."""
        return 1 + sum(begin < at < end for at, _ in self._segments)

    def moves(
        self, begin: int, end: int, waits: dict[int, bytes]
    ) -> Iterator[Send | Pause | Await]:
        """These bytes in their segments, with the pauses between them and the waits."""
        last: float | None = None
        for number, (at, when) in enumerate(self._segments):
            until = (
                self._segments[number + 1][0]
                if number + 1 < len(self._segments)
                else len(self.data)
            )
            piece = self.data[max(at, begin) : min(until, end)]
            if not piece:
                continue
            if at in waits:
                yield Await(waits[at])
            elif last is not None and when - last >= SHORTEST_PAUSE:
                yield Pause(min(when - last, LONGEST_PAUSE))
            yield Send(piece)
            last = when


class _Span(NamedTuple):
    """A part, from where to where; ``answer``: what the client went on at."""

    kind: Kind
    begin: int
    end: int
    answer: bytes = b""


def _parts(said: _Said) -> Iterator[_Span]:
    at = 0
    header = proxy_header_length(said.data)
    if header:
        yield _Span(Kind.PROXY_HEADER, 0, header)
        at = header
    while at < len(said.data):
        if said.data[at] == records.HANDSHAKE:
            yield _Span(Kind.CLIENT_HELLO, at, _hello_end(said, at))
            return
        kind, length = _first_packet(said, at)
        end = at + length
        answer = said.answer(end)
        goes_on = said.data[end : end + 1]
        if not answer and goes_on:  # not captured: what follows tells it
            tls = kind is Kind.SSL_REQUEST and goes_on[0] == records.HANDSHAKE
            answer = b"S" if tls else b"N"
        yield _Span(kind, at, end, answer)
        if kind is Kind.STARTUP or answer not in (b"", b"S", b"N"):
            return
        at = end
    if not said.whole:
        raise NotReplayableError("what its client said first is not whole in the capture")


def _first_packet(said: _Said, at: int) -> tuple[Kind, int]:
    try:
        decoded = startup.decode_first_packet(said.data[at:])
    except Malformed:
        raise NotReplayableError("its client speaks another protocol") from None
    if decoded is None:
        raise NotReplayableError("what its client said first is not whole in the capture")
    packet, length = decoded
    match packet:
        case startup.CancelRequest():
            raise NotReplayableError("it is a CancelRequest, whose key could stop a live query")
        case startup.SSLRequest():
            return Kind.SSL_REQUEST, length
        case startup.GSSENCRequest():
            return Kind.GSSENC_REQUEST, length
    return Kind.STARTUP, length


def _hello_end(said: _Said, at: int) -> int:
    """Where the records that carry the ClientHello end."""
    try:
        decoded = records.decode_carried(said.data[at:], hello.CLIENT_HELLO)
    except Malformed:
        raise NotReplayableError("what it begins as a ClientHello is none") from None
    if decoded is None:
        raise NotReplayableError("its ClientHello is not whole in the capture")
    return at + decoded[1]


def _second_hello(said: _Said, first: _Span) -> _Span | None:
    """The ClientHello behind a HelloRetryRequest, with a ChangeCipherSpec that may stand before."""
    if first.kind is not Kind.CLIENT_HELLO or _answer_to_hello(said.heard(first.end)) != "retry":
        return None
    at = first.end
    try:
        decoded = records.decode_record(said.data[at:])
        if decoded and decoded[0].type == records.CHANGE_CIPHER_SPEC:
            at += decoded[1]
        return _Span(Kind.SECOND_HELLO, first.end, _hello_end(said, at))
    except (Malformed, NotReplayableError):
        return None


# -- saying it again ---------------------------------------------------------------------------


def play(told: Script) -> Player:
    """The client's part, as far as the script goes; then one answer more is listened to."""
    for move in told.moves:
        if not isinstance(move, Await):
            yield move
            continue
        answer = yield Receive()
        if answer != move.answer:
            yield from _rest(answer)
            return
    match told.last:
        case Kind.CLIENT_HELLO | Kind.SECOND_HELLO:
            yield from _hear_hello(told)
        case Kind.STARTUP:
            yield from _hear_message()
        case _:
            yield from _rest((yield Receive()))


def _rest(answer: bytes | None) -> Player:
    """An answer in words may come in pieces."""
    if answer and answer[:1] not in (b"S", b"N", b"G") and len(answer) < FIRST_WORDS:
        yield Receive()


def _hear_hello(told: Script) -> Player:
    buffer, owed, second = b"", told.owed, told.second
    while len(buffer) <= MAX_FLIGHT:
        data = yield Receive()
        if data is None:
            return
        buffer += data
        while owed and buffer[:1] == owed[:1]:
            buffer, owed = buffer[1:], owed[1:]
        answer = _answer_to_hello(buffer)
        if answer == "retry" and second:
            for move in second:
                assert not isinstance(move, Await)
                yield move
            buffer, second = b"", ()
        elif answer == "words":
            yield from _rest(buffer)
            return
        elif answer:
            return


def _answer_to_hello(buffer: bytes) -> str | None:
    """``hello``, ``retry``, ``alert`` or ``words``; None: more is needed."""
    message = b""
    try:
        while decoded := records.decode_record(buffer):
            record, length = decoded
            buffer = buffer[length:]
            if record.type != records.HANDSHAKE:
                if record.type == records.CHANGE_CIPHER_SPEC:  # behind a HelloRetryRequest
                    continue
                return "alert"
            message += record.fragment
            whole = records.decode_handshake(message)
            if whole is not None:
                (kind, body), _ = whole
                retry = kind == hello.SERVER_HELLO and hello.parse_server_hello(body).retry
                return "retry" if retry else "hello"
    except Malformed:
        return "words"
    return None


def _hear_message() -> Player:
    """Up to the first message that is no NegotiateProtocolVersion."""
    buffer = b""
    while len(buffer) <= MAX_MESSAGE:
        data = yield Receive()
        if data is None:
            return
        buffer += data
        try:
            while decoded := decode_message(buffer):
                message, length = decoded
                if message.type != "v":
                    return
                buffer = buffer[length:]
        except Malformed:
            return
