"""The player as a conversation without sockets: ``<<`` what it does, ``>>`` what it is told."""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import (
    NAME,
    SCRAM_OFFER,
    SERVER_FIRST,
    SSL_REQUEST,
    Backend,
    asks_for_retry,
    authority,
    converse,
    only_tls12,
    scram,
)

from probe.attempt import ALPN, Attempt, HelloShape, everything
from probe.drivers import AwaitTurn, Command, Pause, Receive, Send
from probe.drivers.client import FIRST_SEGMENT, SEGMENT_PAUSE, play
from probe.handshake import Opening
from probe.transcript import (
    Closed,
    Data,
    Ending,
    Established,
    Layer,
    Party,
    TlsFailed,
    Verified,
)
from probe.wire.hello import CLIENT_HELLO, ClientHello, parse_client_hello
from probe.wire.records import decode_handshake, decode_record

CONTROL = Attempt("control", server_name=NAME)
DIRECT = replace(CONTROL, opening=Opening.DIRECT_TLS)
STARTUP = replace(CONTROL, opening=Opening.STARTUP)

GSSENC_REQUEST = bytes.fromhex("00000008 04d21630")
STARTUP_MESSAGE = bytes.fromhex(
    "00000048"  # length
    "00030000"  # 3.0
    "7573657200 706770726f62652d6e6f626f647900"  # user pgprobe-nobody
    "646174616261736500 706f73746772657300"  # database postgres
    "6170706c69636174696f6e5f6e616d6500 706770726f626500"  # application_name pgprobe
    "00"  # no more
)
TERMINATE = bytes.fromhex("58 00000004")
AUTHENTICATION_OK = bytes.fromhex("52 00000008 00000000")
REFUSAL = b"E\0\0\0\x0cC28000\0\0"
LEAVES = None


def asks_for(code: int, data: bytes = b"") -> bytes:
    return b"R" + struct.pack("!II", 8 + len(data), code) + data


class Conversation:
    """A player between two commands. ``<< LEAVES``: it has nothing more to do."""

    def __init__(self, attempt: Attempt) -> None:
        self._player = play(attempt)
        self._reply: bytes | None = None

    def does(self) -> Command | None:
        reply, self._reply = self._reply, None
        try:
            return self._player.send(reply)
        except StopIteration:
            return LEAVES

    def sends(self) -> bytes:
        command = self.does()
        assert isinstance(command, Send)
        return command.data

    def __lshift__(self, expected: Command | None) -> Conversation:
        assert self.does() == expected
        return self

    def __rshift__(self, said: bytes | None) -> Conversation:
        assert self.does() == Receive()
        self._reply = said
        return self


def client_hello(data: bytes) -> ClientHello:
    """The ClientHello that these bytes are, and nothing behind it."""
    stream = b""
    while data:
        record = decode_record(data)
        assert record is not None
        stream, data = stream + record[0].fragment, data[record[1] :]
    message = decode_handshake(stream)
    assert message is not None
    (kind, body), length = message
    assert (kind, length) == (CLIENT_HELLO, len(stream))
    return parse_client_hello(body)


# --- SSLRequest ---------------------------------------------------------------------------------


def test_the_control_sends_the_eight_bytes_and_waits() -> None:
    assert Conversation(CONTROL) << Send(SSL_REQUEST) >> None << LEAVES


@pytest.mark.parametrize(
    "answer",
    [b"N", REFUSAL, b"SS", b"S\x16\x03\x03", b"SSH-2.0-x\r\n", b"HTTP/1.1 400"],
)
def test_after_any_answer_but_a_lone_s_nothing_more_is_sent(answer: bytes) -> None:
    assert Conversation(CONTROL) << Send(SSL_REQUEST) >> answer << LEAVES


@pytest.mark.parametrize("answer", [b"E", b"G", b"\0", b"\x15\x03"])
def test_the_beginning_of_another_answer_is_waited_for_and_nothing_is_sent(answer: bytes) -> None:
    assert Conversation(CONTROL) << Send(SSL_REQUEST) >> answer >> b"the rest" << LEAVES


def test_after_s_the_client_hello_goes_out_whole_and_waits() -> None:
    talk = Conversation(CONTROL) << Send(SSL_REQUEST) >> b"S"
    hello = client_hello(talk.sends())
    assert (hello.server_name, hello.alpn) == (NAME, (ALPN,))
    assert talk >> None << LEAVES


def test_without_a_name_or_alpn_the_client_hello_has_neither() -> None:
    talk = Conversation(Attempt("x", alpn=False)) << Send(SSL_REQUEST) >> b"S"
    hello = client_hello(talk.sends())
    assert (hello.server_name, hello.alpn) == (None, ())


def test_a_split_request_goes_out_in_two_halves() -> None:
    talk = Conversation(replace(CONTROL, split_request=True))
    assert talk << Send(SSL_REQUEST[:4]) << Pause(SEGMENT_PAUSE) << Send(SSL_REQUEST[4:])
    assert talk >> b"N" << LEAVES


@pytest.mark.parametrize(
    ("version", "header"),
    [
        ("v1", b"PROXY UNKNOWN\r\n"),
        ("v2", bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000")),
    ],
)
def test_a_proxy_header_goes_out_first(version: str, header: bytes) -> None:
    talk = Conversation(replace(CONTROL, proxy_header=version))
    assert talk << Send(header) << Send(SSL_REQUEST) >> b"N" << LEAVES


def test_a_pipelined_hello_goes_out_with_the_request_and_nothing_before_the_answer() -> None:
    talk = Conversation(replace(CONTROL, shape=HelloShape.WITH_REQUEST))
    data = talk.sends()
    assert data.startswith(SSL_REQUEST)
    assert client_hello(data[len(SSL_REQUEST) :]).server_name == NAME
    assert talk >> b"N" << LEAVES


def test_garbage_behind_the_s_is_a_startup_message_in_clear() -> None:
    talk = Conversation(replace(CONTROL, shape=HelloShape.BEHIND_GARBAGE))
    assert talk << Send(SSL_REQUEST) >> b"S" << AwaitTurn() << Send(STARTUP_MESSAGE)
    assert talk >> None << LEAVES


# --- other openings -----------------------------------------------------------------------------


def test_silence_listens_and_says_nothing() -> None:
    talk = Conversation(replace(CONTROL, opening=Opening.NOTHING))
    assert talk >> b"some greeting" >> b"more of it" >> None << LEAVES


def test_a_cancel_request_is_sixteen_bytes_with_a_made_up_key() -> None:
    cancel = replace(CONTROL, opening=Opening.CANCEL)
    talk = Conversation(cancel)
    data = talk.sends()
    assert data[:8] == bytes.fromhex(
        "00000010"  # length
        "04d2162e"  # 1234, 5678
    )
    assert len(data) == 16
    assert data[8] == 0
    assert min(data[9:]) >= 0x80  # no such process, and no end of a line
    assert talk >> None << LEAVES
    assert Conversation(cancel).sends() != data


def test_gssenc_answered_n_goes_on_to_ssl_and_no_further() -> None:
    talk = Conversation(replace(CONTROL, opening=Opening.GSSENC_REQUEST))
    assert talk << Send(GSSENC_REQUEST) >> b"N" << Send(SSL_REQUEST) >> b"S" << LEAVES


@pytest.mark.parametrize("answer", [b"G", REFUSAL, b"HTTP/1.1 400", None])
def test_gssenc_answered_otherwise_goes_no_further(answer: bytes | None) -> None:
    talk = Conversation(replace(CONTROL, opening=Opening.GSSENC_REQUEST))
    assert talk << Send(GSSENC_REQUEST) >> answer << LEAVES


def test_direct_tls_begins_with_the_client_hello() -> None:
    talk = Conversation(DIRECT)
    hello = client_hello(talk.sends())
    assert (hello.server_name, hello.alpn) == (NAME, (ALPN,))
    assert talk >> None << LEAVES


# --- the ClientHello, cut -----------------------------------------------------------------------


def test_two_segments_are_cut_inside_the_name() -> None:
    talk = Conversation(replace(DIRECT, shape=HelloShape.SEGMENTS))
    first = talk.sends()
    talk << Pause(SEGMENT_PAUSE)
    second = talk.sends()
    assert NAME.encode() not in first
    assert NAME.encode() not in second
    assert client_hello(first + second).server_name == NAME
    assert talk >> None << LEAVES


def test_two_records_are_cut_inside_the_name_and_share_a_segment() -> None:
    data = Conversation(replace(DIRECT, shape=HelloShape.RECORDS)).sends()
    first = decode_record(data)
    assert first is not None
    assert NAME.encode() not in data
    assert first[1] < len(data)
    assert client_hello(data).server_name == NAME


def test_a_large_hello_fills_one_frame_and_goes_on_in_another() -> None:
    talk = Conversation(replace(DIRECT, shape=HelloShape.LARGE))
    first = talk.sends()
    talk << Pause(SEGMENT_PAUSE)
    assert len(first) == FIRST_SEGMENT
    assert client_hello(first + talk.sends()).server_name == NAME


# --- StartupMessage in clear --------------------------------------------------------------------


def started() -> Conversation:
    return Conversation(STARTUP) << AwaitTurn() << Send(STARTUP_MESSAGE)


def test_startup_waits_for_its_turn_and_says_who_asks() -> None:
    assert started() >> None << LEAVES


def test_user_database_and_protocol_are_the_attempts() -> None:
    attempt = replace(STARTUP, user="u", database="d", protocol=(3, 1002))
    talk = Conversation(attempt) << AwaitTurn()
    assert talk.sends() == bytes.fromhex("00000034 000303ea") + (
        b"user\0u\0database\0d\0application_name\0pgprobe\0\0"
    )


@pytest.mark.parametrize(
    "answer",
    [
        REFUSAL,
        asks_for(3),  # a cleartext password
        asks_for(5, b"salt"),  # an MD5 password
        asks_for(7),  # GSS
        asks_for(10, b"SCRAM-SHA-256-PLUS\0\0"),  # nothing that works in clear
        asks_for(10, b"OAUTHBEARER\0\0"),
        b"R\0\0\0\x04",  # without a method
        b"HTTP/1.1 400",
        b"\x16\x03\x01",
    ],
)
def test_whatever_wants_a_password_or_is_no_offer_is_left_without_a_word(answer: bytes) -> None:
    assert started() >> answer << LEAVES


def test_a_scram_offer_is_answered_with_a_name_and_a_nonce_and_never_a_proof() -> None:
    talk = started() >> SCRAM_OFFER
    response = talk.sends()
    kind, length, mechanism, size = struct.unpack_from("!cI14sI", response)
    assert (kind, length, mechanism) == (b"p", len(response) - 1, b"SCRAM-SHA-256\0")
    assert (size, response[23:31]) == (len(response) - 23, b"n,,n=,r=")
    assert re.fullmatch(rb"[\x21-\x2b\x2d-\x7e]{18,}", response[31:])
    assert talk >> SERVER_FIRST << LEAVES


def test_two_nonces_differ() -> None:
    one, other = ((started() >> SCRAM_OFFER).sends() for _ in range(2))
    assert one != other


def test_being_let_in_is_answered_with_terminate_and_the_greetings_are_drained() -> None:
    talk = started() >> AUTHENTICATION_OK + b"S\0\0\0\x08a\0b\0Z\0\0\0\x05I" << Send(TERMINATE)
    assert talk >> b"K\0\0\0\x0cpid.key." >> None << LEAVES


def test_notices_and_negotiation_are_passed_over() -> None:
    negotiate = bytes.fromhex("76 0000000c 00030002 00000000")
    assert started() >> negotiate >> b"N\0\0\0\x05\0" + REFUSAL << LEAVES


def test_a_message_in_pieces_is_put_together() -> None:
    talk = started()
    for byte in AUTHENTICATION_OK:
        assert talk >> bytes([byte])
    assert talk << Send(TERMINATE)


# --- inside TLS ---------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", [CONTROL, DIRECT])
def test_inside_tls_it_gets_to_the_salt_and_leaves_with_close_notify(attempt: Attempt) -> None:
    backend = Backend(direct=attempt is DIRECT)
    commands, facts = converse(attempt, backend.hear)
    startup, response = backend.said
    assert startup == STARTUP_MESSAGE
    assert response.startswith(b"p")
    assert backend.left
    inside = [fact for fact in facts if isinstance(fact, Data) and fact.layer is Layer.TLS]
    assert [fact.sender for fact in inside] == [Party.CLIENT, Party.SERVER] * 2
    assert inside[0].data == STARTUP_MESSAGE
    assert inside[-1].data == SERVER_FIRST
    assert isinstance(commands[-1], Send)


def test_established_comes_before_the_turn_and_the_turn_before_startup() -> None:
    commands, _ = converse(CONTROL, Backend().hear)
    kinds = [type(command) for command in commands]
    startup = commands.index(Data(Party.CLIENT, STARTUP_MESSAGE, Layer.TLS))
    assert kinds.index(Established) < kinds.index(AwaitTurn) < startup
    assert commands[kinds.index(Established)] == Established(
        "1.3", "TLS_AES_256_GCM_SHA384", "postgresql"
    )


@pytest.mark.parametrize("context", [only_tls12, asks_for_retry])
def test_other_handshakes_get_there_too(context: object) -> None:
    assert callable(context)
    backend = Backend(context())
    converse(CONTROL, backend.hear)
    assert len(backend.said) == 2
    assert backend.left


@pytest.mark.parametrize("shape", [HelloShape.SEGMENTS, HelloShape.RECORDS, HelloShape.LARGE])
def test_a_cut_client_hello_gets_there_too(shape: HelloShape) -> None:
    backend = Backend()
    converse(replace(CONTROL, shape=shape), backend.hear)
    assert len(backend.said) == 2


def test_a_pipelined_hello_gets_there_when_its_answer_is_glued_to_the_s() -> None:
    backend = Backend()
    converse(replace(CONTROL, shape=HelloShape.WITH_REQUEST), backend.hear)
    assert len(backend.said) == 2


@pytest.mark.parametrize("code", [3, 5, 7, 9])
def test_no_password_is_sent_inside_tls_either(code: int) -> None:
    backend = Backend(messages=lambda _: asks_for(code, b"salt"))
    converse(CONTROL, backend.hear)
    assert backend.said == [STARTUP_MESSAGE]
    assert backend.left


def test_being_let_in_inside_tls_is_answered_with_terminate() -> None:
    backend = Backend(messages=lambda said: AUTHENTICATION_OK if said[:1] == b"\0" else b"")
    converse(CONTROL, backend.hear)
    assert backend.said == [STARTUP_MESSAGE, TERMINATE]


def test_one_that_does_not_greet_leaves_with_close_notify_at_once() -> None:
    backend = Backend()
    commands, _ = converse(replace(CONTROL, greets=False), backend.hear)
    assert (backend.said, backend.left) == ([], True)
    assert AwaitTurn() not in commands


def test_a_server_that_leaves_tls_politely_is_heard() -> None:
    class Polite(Backend):
        def hear(self, data: bytes) -> bytes:
            answer = super().hear(data)
            if self.said:
                with suppress(Exception):
                    self._session.unwrap()
                answer += self._outgoing.read()
            return answer

    _, facts = converse(CONTROL, Polite(messages=lambda _: b"").hear)
    assert Closed(Party.SERVER, Ending.CLOSE_NOTIFY) in facts


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(64), REFUSAL * 9])
def test_what_is_no_tls_is_the_librarys_to_refuse(answer: bytes) -> None:
    _, facts = converse(DIRECT, lambda _: answer)
    assert isinstance(facts[-1], TlsFailed)


@pytest.mark.parametrize("trusted", [True, False])
def test_the_chain_is_verified_where_roots_are_named(tmp_path: Path, trusted: bool) -> None:
    roots = tmp_path / "root.crt"
    ca = authority() if trusted else type(authority())()
    roots.write_bytes(ca.cert_pem.bytes())
    _, facts = converse(replace(CONTROL, roots=str(roots)), Backend().hear)
    (verdict,) = (fact for fact in facts if isinstance(fact, Verified))
    assert (verdict.problem is None) == trusted
    assert any(isinstance(fact, Established) for fact in facts) == trusted


# --- every attempt ------------------------------------------------------------------------------

ALL = everything(CONTROL, ["db-2.example.com"])

FIRST = {  # what is said before anything is heard, where it is always the same
    "silent": b"",
    "gssenc-request": GSSENC_REQUEST,
    "startup": STARTUP_MESSAGE,
    "split-request": SSL_REQUEST,
    "proxy-header": bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000") + SSL_REQUEST,
}


def said_unheard(attempt: Attempt) -> bytes:
    """All that an attempt says to a peer that never answers."""
    commands, _ = converse(attempt, lambda _: b"")
    return b"".join(command.data for command in commands if isinstance(command, Send))


@pytest.mark.parametrize("attempt", ALL, ids=lambda attempt: attempt.name)
def test_to_a_deaf_peer_every_attempt_says_only_its_opening(attempt: Attempt) -> None:
    said = said_unheard(attempt)
    if attempt.opening is Opening.DIRECT_TLS:
        assert client_hello(said).server_name == attempt.server_name
    elif attempt.opening is Opening.CANCEL:
        assert len(said) == 16
    elif attempt.shape is HelloShape.WITH_REQUEST:
        assert client_hello(said.removeprefix(SSL_REQUEST)).server_name == NAME
    else:
        assert said == FIRST.get(attempt.name, SSL_REQUEST)


@pytest.mark.parametrize("attempt", ALL, ids=lambda attempt: attempt.name)
def test_no_attempt_tells_a_server_more_than_its_name_and_a_nonce(attempt: Attempt) -> None:
    backend = Backend(messages=scram, direct=attempt.opening is Opening.DIRECT_TLS)
    converse(attempt, backend.hear)
    assert [said[:1] for said in backend.said] in ([], [b"\0"], [b"\0", b"p"])


@settings(deadline=None)
@given(
    st.sampled_from(ALL),
    st.lists(st.binary(max_size=40) | st.sampled_from([b"S", b"N", SCRAM_OFFER]), max_size=6),
)
def test_whatever_is_answered_a_player_comes_to_an_end(
    attempt: Attempt, answers: list[bytes]
) -> None:
    talk = Conversation(attempt)
    replies = iter(answers)
    heard_all = False
    for _ in range(60):
        command = talk.does()
        if command is LEAVES:
            break
        if isinstance(command, Receive):
            assert not heard_all, "it listens again after the end"
            talk._reply = next(replies, None) or None
            heard_all = talk._reply is None
    else:
        pytest.fail("it goes on and on")
