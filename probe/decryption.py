"""Opens TLS with the secrets of a key log, as far as a connection goes before it is logged in.

Takes a transcript of what the wire carried, and secrets; gives the transcript with what was said
inside TLS added behind the bytes that carried it, as the live driver adds it: the server's
protected handshake messages and alerts, :class:`Established`, and both sides' messages up to the
end of authentication. It is pure, raises nothing on network bytes, and gives no more than
``MAX_OPENED`` bytes a side.

**No password comes out of here**, nor anything that a password could be guessed from. Of the
client's messages inside TLS only StartupMessage, requests for encryption, CancelRequest (its key
blanked), Terminate and which SCRAM mechanism it chose are given: from its first other message on
(``p``: a password, a SCRAM proof, a token) the client's side stays closed. The server's side is
given up to what ends the login, AuthenticationOk or ErrorResponse, without its SCRAM signature
and GSSAPI tokens.

A gap in what was captured closes that side from there on, since no later record can be counted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from probe.cipher import (
    TLS_1_2,
    TLS_1_3,
    CannotOpenError,
    Protection,
    Suite,
    Tls13Protection,
    find_suite,
    protections,
)
from probe.secrets import (
    CLIENT_HANDSHAKE,
    CLIENT_TRAFFIC,
    MASTER,
    SERVER_HANDSHAKE,
    SERVER_TRAFFIC,
    Secrets,
)
from probe.transcript import (
    Closed,
    Data,
    Ending,
    Established,
    Event,
    Fact,
    Layer,
    NotCaptured,
    Party,
    Transcript,
)
from probe.wire import Malformed, hello, records, startup
from probe.wire.foreign import LOOKED_AT, proxy_header_length
from probe.wire.messages import MAX_MESSAGE, SaslChoice, parse_sasl_initial_response

MAX_OPENED = 262_144  # bytes of application data that are looked into, each way
MAX_REQUESTS = 4  # for encryption, in front of a ClientHello

_KEY_UPDATE = 24
_TOLD = {
    hello.ENCRYPTED_EXTENSIONS,
    hello.CERTIFICATE,
    hello.CERTIFICATE_REQUEST,
    hello.NEW_SESSION_TICKET,
}

_NO_LIBRARY = "opening TLS needs the package cryptography (pip install cryptography)"

# As the live driver's library names them, so that a session reads the same from both.
_VERSION_NAMES = {0x0301: "1", 0x0302: "1.1", 0x0303: "1.2", 0x0304: "1.3"}
_MASTER_SIZE = 48  # bytes
_TRAFFIC_SECRETS = {
    Party.CLIENT: (CLIENT_HANDSHAKE, CLIENT_TRAFFIC),
    Party.SERVER: (SERVER_HANDSHAKE, SERVER_TRAFFIC),
}


class Opened(NamedTuple):
    """A transcript with its TLS opened; ``problem`` says why it was not, or not to its end."""

    transcript: Transcript
    problem: str | None


def open_tls(transcript: Transcript, secrets: Secrets) -> Transcript:
    """The transcript with what was said inside TLS; as it was, where there is nothing to open."""
    return open_connection(transcript, secrets).transcript


def open_connection(transcript: Transcript, secrets: Secrets) -> Opened:
    """The same, and why what is still closed could not be opened.

    A transcript that holds something opened already is left alone.
    """
    facts = [event.fact for event in transcript.events]
    if any(isinstance(fact, Data) and fact.layer is not Layer.TCP for fact in facts):
        return Opened(transcript, None)
    session = _Session(secrets)
    events: list[Event] = []
    for event in transcript.events:
        events.append(event)
        events += (Event(event.at, fact) for fact in session.take(event.fact))
    return Opened(transcript._replace(events=tuple(events)), session.problem)


class _StaysClosedError(Exception):
    """This side cannot be opened any further; the text is a sentence that says why."""


class _Side:
    """What one party said: bytes not read yet, and how its records are protected now."""

    def __init__(self) -> None:
        self.buffer = b""
        self.in_tls = False
        self.closed = False  # nothing more of it is opened
        self.handshake = b""  # the beginning of a message
        self.protection: Protection | None = None
        self.finished = False


class _Session:
    """One connection, both sides."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self.problem: str | None = None
        self._sides = {party: _Side() for party in Party}
        self._requests = 0  # for encryption, by the client
        self._answers = 0  # to them
        self._client_random = b""
        self._suite: Suite | None = None
        self._version = 0
        self._alpn: str | None = None
        self._next: dict[Party, Protection] = {}  # TLS 1.2: from ChangeCipherSpec on
        self._client_inside, self._server_inside = _ClientInside(), _ServerInside()

    def take(self, fact: Fact) -> Iterator[Fact]:
        match fact:
            case Data(sender, data):
                yield from self._take_bytes(sender, data)
            case NotCaptured(sender):
                side = self._sides[sender]
                if not side.closed and not self._done(sender):
                    self._close(sender, f"the capture does not hold all that the {sender} said")

    def _done(self, sender: Party) -> bool:
        inside = self._client_inside if sender is Party.CLIENT else self._server_inside
        return inside.done

    def _close(self, sender: Party, problem: str | None) -> None:
        side = self._sides[sender]
        side.closed, side.buffer, side.handshake = True, b"", b""
        self.problem = self.problem or problem

    def _take_bytes(self, sender: Party, data: bytes) -> Iterator[Fact]:
        side = self._sides[sender]
        if side.closed:
            return
        side.buffer += data
        try:
            if not side.in_tls and not self._skip_requests(sender, side):
                return
            # one at a time: what is in a record decides how the next one is read
            while not side.closed and (decoded := records.decode_record(side.buffer)):
                record, length = decoded
                side.buffer = side.buffer[length:]
                yield from self._record(sender, side, record)
                if self._done(sender):
                    self._close(sender, None)
        except _StaysClosedError as problem:
            self._close(sender, str(problem))
        except ImportError:
            self._stay_closed(_NO_LIBRARY)
        except CannotOpenError as problem:
            self._close(sender, f"a record of the {sender} does not open: {problem}")
        except Malformed as problem:
            unreadable = f"what the {sender} said is not readable TLS: {problem}"
            self._close(sender, unreadable if self._version else None)

    # -- in front of TLS ---------------------------------------------------------------------

    def _skip_requests(self, sender: Party, side: _Side) -> bool:
        """Take away what stands before the first record; False: it has not come yet."""
        if sender is Party.CLIENT:
            if not self._skip_proxy_header(side):
                return False
            while not side.buffer.startswith(b"\x16"):
                if len(side.buffer) < 8:
                    return False
                if side.buffer[:8] not in (startup.SSL_REQUEST, startup.GSSENC_REQUEST):
                    raise Malformed("no request for TLS")
                side.buffer = side.buffer[8:]
                self._requests += 1
                if self._requests > MAX_REQUESTS:
                    raise Malformed("too many requests for encryption")
        while side.buffer and sender is Party.SERVER and self._answers < self._requests:
            if side.buffer[:1] not in (b"S", b"N"):
                raise Malformed("no answer to a request for TLS")
            side.buffer, self._answers = side.buffer[1:], self._answers + 1
        side.in_tls = bool(side.buffer)
        return side.in_tls

    def _skip_proxy_header(self, side: _Side) -> bool:
        if self._requests:
            return True
        length = proxy_header_length(side.buffer) if side.buffer else None
        side.buffer = side.buffer[length:]
        return length is not None

    # -- records -----------------------------------------------------------------------------

    def _record(self, sender: Party, side: _Side, record: records.Record) -> Iterator[Fact]:
        kind, contents = record.type, record.fragment
        if kind == records.CHANGE_CIPHER_SPEC:
            if sender in self._next:
                side.protection = self._next.pop(sender)
            return  # of TLS 1.3, for the sake of middleboxes: it means nothing
        protected = side.protection is not None
        if self._version >= TLS_1_3 and kind != records.APPLICATION_DATA:
            protected = False  # an alert of one who has no keys
        if protected:
            assert side.protection is not None
            kind, contents = side.protection.open(record)
        match kind:
            case records.HANDSHAKE:
                yield from self._handshake(sender, side, contents, protected)
            case records.ALERT if protected and sender is Party.SERVER:
                alert = records.decode_alert(contents)
                if alert:
                    yield Data(sender, contents, Layer.HANDSHAKE)
                if alert and alert.description == records.CLOSE_NOTIFY:
                    yield Closed(sender, Ending.CLOSE_NOTIFY)
            case records.APPLICATION_DATA if protected:
                yield from self._inside(sender, contents)
            case records.APPLICATION_DATA:
                raise _StaysClosedError(f"the {sender} said something before the keys were agreed")

    def _handshake(
        self, sender: Party, side: _Side, fragment: bytes, protected: bool
    ) -> Iterator[Fact]:
        side.handshake += fragment
        while decoded := records.decode_handshake(side.handshake):
            (kind, body), length = decoded
            message, side.handshake = side.handshake[:length], side.handshake[length:]
            if not protected:
                self._clear_message(sender, kind, body)
            elif self._version >= TLS_1_3:
                yield from self._message(sender, side, kind, message)
            elif side.finished:
                raise _StaysClosedError("the session was renegotiated, which is not opened")
            if protected and kind == hello.FINISHED:
                yield from self._finished(sender, side)

    def _clear_message(self, sender: Party, kind: int, body: bytes) -> None:
        match sender, kind:
            case Party.CLIENT, hello.CLIENT_HELLO if not self._client_random:
                self._client_random = hello.parse_client_hello(body).random
            case Party.SERVER, hello.SERVER_HELLO:
                answer = hello.parse_server_hello(body)
                if not answer.retry and not self._version:
                    self._agree(answer)

    def _message(self, sender: Party, side: _Side, kind: int, message: bytes) -> Iterator[Fact]:
        """A protected message of TLS 1.3."""
        if kind == _KEY_UPDATE and side.finished:
            assert isinstance(side.protection, Tls13Protection)
            side.protection.update()
        if sender is Party.SERVER and kind in _TOLD:
            if kind == hello.ENCRYPTED_EXTENSIONS:
                self._alpn = hello.parse_encrypted_extensions(message[4:])
            yield Data(sender, message, Layer.HANDSHAKE)

    # -- keys --------------------------------------------------------------------------------

    def _agree(self, answer: hello.ServerHello) -> None:
        """The ServerHello came: take the keys, or say why there are none."""
        self._version, self._alpn = answer.version, answer.alpn
        if answer.version not in _VERSION_NAMES:
            return self._stay_closed(f"TLS version 0x{answer.version:04x} is not known")
        self._suite = suite = find_suite(answer.cipher)
        if suite is None:
            return self._stay_closed(f"cipher suite 0x{answer.cipher:04x} is not known")
        if not self._client_random:
            return self._stay_closed("the ClientHello is not in the capture")
        if not self._secrets.of(self._client_random):
            return self._stay_closed("no secret of this session is known")
        if answer.version >= TLS_1_3:
            if suite.mode == "cbc" or not suite.name.startswith("TLS_"):
                return self._stay_closed("the cipher suite is not one of TLS 1.3")
            for party, side in self._sides.items():
                self._protect(party, side, handshake=True)
            return None
        master = self._secret(MASTER)
        if master is None:
            return self._stay_closed(f"the secrets of this session have no {MASTER}")
        if suite.name.startswith("TLS_") or (suite.mode != "cbc" and answer.version < TLS_1_2):
            return self._stay_closed("the cipher suite does not go with the version of TLS")
        client, server = protections(
            suite,
            answer.version,
            master,
            self._client_random,
            answer.random,
            encrypt_then_mac=answer.encrypt_then_mac,
        )
        self._next = {Party.CLIENT: client, Party.SERVER: server}
        return None

    def _stay_closed(self, problem: str) -> None:
        for party in Party:
            self._close(party, problem)

    def _secret(self, label: str) -> bytes | None:
        """The session's secret, if it has the size that such a one must have."""
        secret = self._secrets.of(self._client_random).get(label)
        assert self._suite is not None
        size = {"sha256": 32, "sha384": 48}[self._suite.hash]
        return (
            secret
            if secret and len(secret) == (_MASTER_SIZE if label == MASTER else size)
            else None
        )

    def _protect(self, party: Party, side: _Side, *, handshake: bool) -> None:
        label = _TRAFFIC_SECRETS[party][0 if handshake else 1]
        secret = self._secret(label)
        assert self._suite is not None
        if secret is None:
            self._close(party, f"the secrets of this session have no {label}")
        else:
            side.protection = Tls13Protection(self._suite, secret)

    def _finished(self, sender: Party, side: _Side) -> Iterator[Fact]:
        side.finished = True
        if self._version >= TLS_1_3:
            self._protect(sender, side, handshake=False)
        # in TLS 1.3 the client's is the last, in 1.2 the server's, unless it was resumed
        if all(side.finished for side in self._sides.values()):
            assert self._suite is not None
            yield Established(_VERSION_NAMES[self._version], self._suite.name, self._alpn)

    # -- inside ------------------------------------------------------------------------------

    def _inside(self, sender: Party, data: bytes) -> Iterator[Fact]:
        if sender is Party.CLIENT:
            given = self._client_inside.take(data)
            self._server_inside.answered = self._client_inside.answered
        else:
            given = self._server_inside.take(data)
            self._client_inside.chooses = self._server_inside.offered
        if given:
            yield Data(sender, given, Layer.TLS)


class _ClientInside:
    """What may be told of the client's application data."""

    def __init__(self) -> None:
        self._buffer = b""
        self._started = False  # StartupMessage was said
        self.chooses = False  # its next message answers an offer of SASL mechanisms
        self.answered = False  # it went on behind StartupMessage: its secrets may have passed
        self.done = False

    def take(self, data: bytes) -> bytes:
        self._buffer = (self._buffer + data)[:MAX_OPENED]
        given = b""
        while self._buffer and not self.done:
            message = self._message() if self._started else self._packet()
            if message is None:
                break
            given += message
        if self.done:
            self._buffer = b""
        return given

    def _packet(self) -> bytes | None:
        try:
            decoded = startup.decode_first_packet(self._buffer)
        except Malformed:
            # as much of it as shows that it is none: a length and a code
            self.done = self.answered = True
            return self._buffer[:4] if self._buffer[:2] != b"\0\0" else self._buffer[:8]
        if decoded is None:
            return None
        packet, length = decoded
        said, self._buffer = self._buffer[:length], self._buffer[length:]
        match packet:
            case startup.StartupMessage():
                self._started = True
            case startup.CancelRequest(process_id, key):
                self.done = True
                return startup.cancel_request(process_id, bytes(len(key)))
        return said

    def _message(self) -> bytes | None:
        if len(self._buffer) < 5 and self._buffer[:1] == b"X":
            return None
        if self.chooses and self._buffer[:1] == b"p":
            return self._choice()
        self.done = self.answered = True
        return self._buffer[:5] if self._buffer[:5] == b"X\0\0\0\x04" else b""

    def _choice(self) -> bytes | None:
        """Which mechanism of SCRAM, and whether it is bound to the channel; the rest is hidden."""
        try:
            decoded = parse_sasl_initial_response(self._buffer)
        except Malformed:
            decoded = SaslChoice("", ""), 0
        if decoded is None:
            return None
        self.done = self.answered = True
        choice, length = decoded
        if not choice.mechanism.startswith("SCRAM-"):
            return b""  # a token, it may be
        shown = self._buffer.index(b",", self._buffer.index(b"\0", 5) + 5) + 1
        return self._buffer[:shown] + b"*" * (length - shown)


class _ServerInside:
    """What may be told of the server's application data, in the pieces in which it came."""

    def __init__(self) -> None:
        self._buffer = b""
        self._passing = 0  # bytes of the present message
        self._told = False  # and whether they may be told
        self._last = False  # it is the last one
        self._messages = False  # there was one
        self.offered = False  # SASL mechanisms
        self._given = 0
        self.answered = False  # the client went on behind StartupMessage
        self.done = False

    def take(self, data: bytes) -> bytes:
        self._buffer += data
        given = b""
        while not self.done:
            passed, self._buffer = self._buffer[: self._passing], self._buffer[self._passing :]
            self._passing -= len(passed)
            given += passed if self._told else b""
            if self._passing or not self._buffer:
                break
            self._judge()
            if not self._passing:
                break
        self._given += len(given)
        self.done = self.done or (self._last and not self._passing) or self._given >= MAX_OPENED
        if self.done:
            self._buffer = b""
        return given

    def _judge(self) -> None:
        """How long the next message is, and whether it may be told; nothing, if not known yet."""
        kind, length, code = self._buffer[:1], 0, None
        if self._last:
            self.done = True
            return
        if kind in _SERVER_TYPES and len(self._buffer) >= 5:
            (length,) = struct.unpack_from("!I", self._buffer, 1)
        if kind not in _SERVER_TYPES or (length and not 4 <= length <= MAX_MESSAGE):
            self._judge_other()
            return
        if kind == b"R" and len(self._buffer) >= 9:
            (code,) = struct.unpack_from("!I", self._buffer, 5)
        if not length or (kind == b"R" and code is None):
            return
        self._messages = True
        self._passing, self._told = length + 1, code not in _NOT_TOLD
        self.offered = self.offered or code == _SASL
        self._last = kind == b"E" or code == _OK

    def _judge_other(self) -> None:
        """Something else: as much of it as tells what it is, if no secret can be in it."""
        if self._messages or self.answered:
            self.done = True
        else:
            self._passing, self._told, self._last = LOOKED_AT, True, True


_SERVER_TYPES = (b"R", b"E", b"v", b"N")  # Authentication, Error, NegotiateProtocolVersion, Notice
_OK, _GSS_CONTINUE, _SASL, _SASL_FINAL = 0, 8, 10, 12
_NOT_TOLD = (_GSS_CONTINUE, _SASL_FINAL)
