"""Conversations in, Handshake out: what each end said, and what must be read from it."""

from __future__ import annotations

import dataclasses
import itertools
import ssl
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import (
    BINDING_OFFER,
    DOOR,
    NAME,
    SALT,
    SERVER_FIRST,
    Backend,
    asks_for_certificate,
    asks_for_retry,
    converse,
    only_tls12,
    server_context,
    transcript,
)

from probe.attempt import Attempt, HelloShape, TlsVersions
from probe.handshake import Handshake, Opening, Outcome, Stage
from probe.ladder import KEPT_BYTES
from probe.observer import MAX_BUFFERED, observe
from probe.tls import TlsClient
from probe.transcript import (
    Asked,
    Closed,
    Connected,
    ConnectFailure,
    Connecting,
    Data,
    Ending,
    Established,
    Event,
    Fact,
    GaveUp,
    Layer,
    NotCaptured,
    NotConnected,
    Party,
    Resolved,
    TlsFailed,
    Transcript,
    Verified,
)
from probe.wire.foreign import PROXY_V1_UNKNOWN, PROXY_V2_LOCAL
from probe.wire.records import Alert, split_record
from probe.wire.startup import GSSENC_REQUEST, SSL_REQUEST, cancel_request, startup_message

CONTROL = Attempt("control", server_name=NAME)


def client(data: bytes, layer: Layer = Layer.TCP) -> Data:
    return Data(Party.CLIENT, data, layer)


def server(data: bytes, layer: Layer = Layer.TCP) -> Data:
    return Data(Party.SERVER, data, layer)


def closed(how: Ending = Ending.FIN, by: Party = Party.SERVER) -> Closed:
    return Closed(by, how)


def gave_up(waited: float = 7.0) -> GaveUp:
    return GaveUp(waited)


def seen(*facts: Fact) -> Handshake:
    return observe(transcript(*facts))


def error(sqlstate: str, message: str, **more: str) -> bytes:
    fields = {"S": "FATAL", "C": sqlstate, "M": message, **more}
    body = b"".join(f"{letter}{text}\0".encode() for letter, text in fields.items()) + b"\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body


def client_hello(attempt: Attempt = CONTROL) -> bytes:
    session = TlsClient(attempt)
    session.handshake()
    return session.drain()


HELLO = client_hello()
STARTUP = startup_message((3, 0), {"user": "pgprobe-nobody", "database": "postgres"})
SERVER_HELLO = bytes.fromhex(
    "16 0303 0032"  # handshake record
    "02 00002e"  # ServerHello
    "0303"
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    "00 1301 00"
    "0006 002b 0002 0304"  # TLS 1.3
)
RETRY = SERVER_HELLO.replace(
    bytes(range(32)),
    bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"),
)
RAW_ALERT = bytes.fromhex("15 0301 0002 02 46")  # fatal, protocol_version
SSH = b"SSH-2.0-OpenSSH_9.6\r\n"
HTTP = b"HTTP/1.1 400 Bad Request\r\n\r\n"
MYSQL = bytes.fromhex("1e0000 00 0a 382e342e3000 07000000 6162636465666768 00")
PGBOUNCER = error("08P01", "bad packet header")
OLD_ERROR = b"Eunsupported frontend protocol\n\0"
ESTABLISHED = Established("1.3", "TLS_AES_256_GCM_SHA384", "postgresql")


def in_tls(*facts: Fact) -> tuple[Fact, ...]:
    """A conversation behind StartupMessage, inside TLS."""
    opening: tuple[Fact, ...] = (client(SSL_REQUEST), server(b"S"), client(HELLO))
    finished = (server(SERVER_HELLO), ESTABLISHED, client(STARTUP, Layer.TLS))
    return (*opening, *finished, *facts)


def said(data: bytes) -> Data:
    return server(data, Layer.TLS)


# --- no connection ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (ConnectFailure.REFUSED, Outcome.REFUSED),
        (ConnectFailure.UNREACHABLE, Outcome.REFUSED),
        (ConnectFailure.TIMED_OUT, Outcome.SILENT),
    ],
)
def test_a_failure_to_connect_is_a_step_of_its_own(
    failure: ConnectFailure, outcome: Outcome
) -> None:
    told = seen(Connecting(DOOR), NotConnected(failure, "said so"))
    assert (told.outcome, told.not_connected) == (outcome, failure)
    assert (told.reached, told.awaited) == (None, Stage.CONNECT)
    what = failure.replace("-", " ")
    assert [(s.stage, s.says) for s in told.steps] == [(Stage.CONNECT, f"{what}: said so")]


def test_a_reset_inside_connect_was_an_acceptance() -> None:
    told = seen(Connecting(DOOR), NotConnected(ConnectFailure.RESET, "said so"))
    assert (told.outcome, told.reached, told.awaited) == (
        Outcome.RESET,
        Stage.CONNECT,
        Stage.SSL_REQUEST,
    )


def test_a_name_that_does_not_resolve_is_refused_at_resolve() -> None:
    told = seen(NotConnected(ConnectFailure.NOT_RESOLVED, "Name or service not known"))
    assert (told.outcome, told.awaited) == (Outcome.REFUSED, Stage.RESOLVE)
    assert [s.stage for s in told.steps] == [Stage.RESOLVE]


def test_a_connection_has_two_ends_and_a_name_has_addresses() -> None:
    told = seen(Resolved(("192.0.2.1", "2001:db8::1")), Connecting(DOOR), Connected("me:1", DOOR))
    assert told.addresses == ("192.0.2.1", "2001:db8::1")
    assert (told.client, told.server, told.reached) == ("me:1", DOOR, Stage.CONNECT)
    assert [s.stage for s in told.steps] == [Stage.RESOLVE, Stage.CONNECT]


def test_what_the_asker_meant_and_where_is_carried_over() -> None:
    told = observe(Transcript("unknown-name", DOOR, (), Asked.UNKNOWN))
    assert (told.attempt, told.door, told.asked) == ("unknown-name", DOOR, Asked.UNKNOWN)


# --- the answer to SSLRequest -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "outcome"),
    [
        ((gave_up(),), Outcome.SILENT),
        ((closed(),), Outcome.CLOSED),
        ((closed(Ending.RST),), Outcome.RESET),
        ((), Outcome.SILENT),
    ],
)
def test_an_ssl_request_without_an_answer(facts: tuple[Fact, ...], outcome: Outcome) -> None:
    told = seen(client(SSL_REQUEST), *facts)
    assert (told.opening, told.ssl_answer, told.outcome) == (Opening.SSL_REQUEST, None, outcome)
    assert told.server_bytes == 0
    assert told.steps[-1].stage is Stage.SSL_REQUEST


def test_the_steps_show_what_was_sent_and_received_and_when() -> None:
    ends: tuple[Fact, ...] = (Connecting(DOOR), Connected("me:1", DOOR))
    facts = (*ends, client(SSL_REQUEST), server(b"N"))
    events = (Event(at, fact) for at, fact in zip((0.0, 0.25, 0.5, 2.0), facts, strict=True))
    told = observe(Transcript("control", DOOR, tuple(events)))
    connect, request = told.steps
    assert (connect.stage, connect.at, connect.took) == (Stage.CONNECT, 0.0, 0.25)
    assert (request.stage, request.at, request.took) == (Stage.SSL_REQUEST, 0.5, 1.5)
    assert (request.sent, request.received, request.peer) == (SSL_REQUEST, b"N", DOOR)
    assert (request.sent_bytes, request.received_bytes) == (8, 1)


def test_s_is_a_yes_and_reaches_the_request() -> None:
    told = seen(client(SSL_REQUEST), server(b"S"), gave_up())
    assert (told.ssl_answer, told.reached, told.outcome) == ("S", Stage.SSL_REQUEST, Outcome.SILENT)


def test_n_is_a_refusal() -> None:
    told = seen(client(SSL_REQUEST), server(b"N"), closed(by=Party.CLIENT))
    assert (told.ssl_answer, told.outcome, told.reached) == ("N", Outcome.REFUSED, None)


def test_startup_behind_an_n_is_read_in_clear() -> None:
    told = seen(client(SSL_REQUEST), server(b"N"), client(STARTUP), server(BINDING_OFFER))
    assert (told.opening, told.startup_in_tls) == (Opening.SSL_REQUEST, False)
    assert told.authentication is not None
    assert not told.authenticates


def test_e_is_an_error_before_tls() -> None:
    told = seen(client(SSL_REQUEST), server(error("53300", "too many", R="InitProcess")))
    assert (told.ssl_answer, told.outcome) == ("E", Outcome.ERROR)
    assert told.error is not None
    assert (told.error.sqlstate, told.error.routine) == ("53300", "InitProcess")


def test_an_error_without_a_length_is_an_error_of_protocol_2() -> None:
    told = seen(client(SSL_REQUEST), server(OLD_ERROR), closed())
    assert (told.ssl_answer, told.outcome) == ("E", Outcome.ERROR)
    assert told.error is not None
    assert (told.error.message, told.error.sqlstate) == ("unsupported frontend protocol\n", None)


def test_half_an_error_is_foreign_when_nothing_follows() -> None:
    told = seen(client(SSL_REQUEST), server(PGBOUNCER[:20]), closed())
    assert told.outcome is Outcome.FOREIGN


@pytest.mark.parametrize("data", [b"x", b"\x00", b"?????", b"-ERR unknown command\r\n"])
def test_anything_else_is_foreign(data: bytes) -> None:
    told = seen(client(SSL_REQUEST), server(data), closed())
    assert (told.ssl_answer, told.outcome) == ("other", Outcome.FOREIGN)
    assert told.foreign is not None


@pytest.mark.parametrize("parts", [[b"NO"], [b"N", b"O"]])
def test_clear_bytes_behind_an_n_are_foreign_however_they_are_cut(parts: list[bytes]) -> None:
    told = seen(client(SSL_REQUEST), *map(server, parts), closed())
    assert (told.ssl_answer, told.outcome) == ("N", Outcome.FOREIGN)


@pytest.mark.parametrize("parts", [[b"Sjunk"], [b"S", b"junk"], [b"S", b"ju", b"nk"]])
def test_clear_bytes_behind_an_s_are_glued_however_they_are_cut(parts: list[bytes]) -> None:
    told = seen(client(SSL_REQUEST), *map(server, parts), closed())
    assert (told.ssl_answer, told.glued, told.outcome) == ("S", b"junk", Outcome.FOREIGN)


@pytest.mark.parametrize("at", range(1, 7))
def test_a_raw_alert_is_one_however_it_is_cut(at: int) -> None:
    alert = bytes.fromhex("15 0301 0002 02 46")
    told = seen(client(SSL_REQUEST), server(alert[:at]), server(alert[at:]), closed())
    assert told.alert is not None
    assert (told.alert.description, told.ssl_answer, told.foreign) == (70, "other", None)


@pytest.mark.parametrize("at", range(1, 12))
def test_another_protocol_is_known_however_its_words_are_cut(at: int) -> None:
    told = seen(client(SSL_REQUEST), server(HTTP[:at]), server(HTTP[at:]), closed())
    assert told.foreign is not None
    assert told.foreign.protocol == "HTTP"


@pytest.mark.parametrize("at", range(1, 8))
def test_a_server_hello_is_no_echo_however_it_is_cut(at: int) -> None:
    told = seen(client(HELLO), server(SERVER_HELLO[:at]), server(SERVER_HELLO[at:]))
    assert told.server_hello is not None
    assert told.foreign is None


def test_gssencrequest_refused_and_sslrequest_behind_it_is_one_opening() -> None:
    told = seen(client(GSSENC_REQUEST), server(b"N"), client(SSL_REQUEST), server(b"S"))
    assert (told.opening, told.gss_answer, told.ssl_answer) == (Opening.GSSENC_REQUEST, "N", "S")
    assert not told.split_request


def test_a_greeting_before_the_request_does_not_hide_the_request() -> None:
    told = seen(server(SSH), client(SSL_REQUEST), closed())
    assert told.opening is Opening.SSL_REQUEST
    assert told.foreign is not None


@pytest.mark.parametrize(
    ("data", "protocol"),
    [
        (SSH, "SSH"),  # its first letter is a yes
        (HTTP, "HTTP"),
        (MYSQL, "MySQL"),
        (SSL_REQUEST, "an echo of what was sent"),
    ],
)
def test_another_protocol_is_named_whatever_its_first_letter(data: bytes, protocol: str) -> None:
    told = seen(client(SSL_REQUEST), server(data), closed())
    assert (told.ssl_answer, told.outcome) == ("other", Outcome.FOREIGN)
    assert told.foreign is not None
    assert (told.foreign.protocol, told.foreign_in_tls) == (protocol, False)


def test_plaintext_glued_to_the_s_is_kept_and_foreign() -> None:
    told = seen(client(SSL_REQUEST), server(b"S" + BINDING_OFFER), closed(by=Party.CLIENT))
    assert (told.ssl_answer, told.glued, told.outcome) == ("S", BINDING_OFFER, Outcome.FOREIGN)


def test_a_raw_alert_instead_of_the_s_is_an_alert() -> None:
    told = seen(client(SSL_REQUEST), server(RAW_ALERT), closed())
    assert (told.ssl_answer, told.outcome) == ("other", Outcome.ALERT)
    assert told.alert == Alert(2, 70)
    assert told.foreign is None


def test_a_greeting_that_nobody_asked_for_is_foreign() -> None:
    told = seen(server(MYSQL), client(SSL_REQUEST), gave_up())
    assert told.foreign is not None
    assert (told.foreign.protocol, told.outcome) == ("MySQL", Outcome.FOREIGN)
    assert told.ssl_answer is None


CANNOT_FORK = b"Ecould not fork new process for connection: Resource temporarily unavailable\n\0"


@pytest.mark.parametrize("cuts", [(), (1,), (5, 40)])
def test_an_error_that_does_not_wait_for_the_request_is_its_answer(cuts: tuple[int, ...]) -> None:
    """As of a server that may start no more processes; segments pass each other on the way."""
    borders = [0, *cuts, len(CANNOT_FORK)]
    pieces = [server(CANNOT_FORK[a:b]) for a, b in itertools.pairwise(borders)]
    for at in range(len(pieces) + 1):
        facts = [*pieces[:at], client(SSL_REQUEST), *pieces[at:]]
        handshake = seen(*facts, closed())
        assert (handshake.ssl_answer, handshake.outcome) == ("E", Outcome.ERROR)
        assert handshake.foreign is None
        assert handshake.steps[-1].stage is Stage.SSL_REQUEST
        assert handshake.steps[-1].says == (
            "ErrorResponse: no code: could not fork new process for connection: "
            "Resource temporarily unavailable"
        )


def test_an_error_to_a_client_that_says_nothing_is_no_other_protocol() -> None:
    handshake = seen(server(CANNOT_FORK), closed())
    assert (handshake.outcome, handshake.foreign) == (Outcome.ERROR, None)
    assert (handshake.ssl_answer, handshake.opening) == (None, Opening.NOTHING)


def test_an_error_before_a_bare_client_hello_is_no_other_protocol() -> None:
    handshake = seen(server(CANNOT_FORK), client(HELLO), closed())
    assert (handshake.outcome, handshake.foreign) == (Outcome.ERROR, None)


@pytest.mark.parametrize("greeting", [b"Enter your name: ", b"E\0\0\0\x01", b"E"])
def test_a_greeting_that_begins_as_an_error_and_is_none_is_foreign(greeting: bytes) -> None:
    assert seen(server(greeting), gave_up()).outcome is Outcome.FOREIGN


def test_a_stranger_keeps_the_name_that_its_greeting_gave_it() -> None:
    told = seen(server(SSH), client(HELLO), server(b"Invalid SSH identification string.\r\n"))
    assert told.foreign is not None
    assert told.foreign.protocol == "SSH"


@pytest.mark.parametrize("letter", [b"S", b"N", b"E"])
def test_a_letter_is_an_answer_only_behind_a_request(letter: bytes) -> None:
    unasked = seen(server(letter), gave_up())
    assert (unasked.ssl_answer, unasked.error, unasked.outcome) == (None, None, Outcome.FOREIGN)
    to_startup = seen(client(STARTUP), server(letter), gave_up())
    assert (to_startup.ssl_answer, to_startup.opening) == (None, Opening.STARTUP)


def test_a_peer_that_says_nothing_to_nothing_is_silent() -> None:
    told = seen(Connected("me:1", DOOR), gave_up())
    assert (told.opening, told.outcome, told.gave_up_after) == (
        Opening.NOTHING,
        Outcome.SILENT,
        7.0,
    )


def test_the_time_between_the_last_byte_and_the_close_is_kept() -> None:
    events = (Event(1.0, client(SSL_REQUEST)), Event(1.5, server(b"S")), Event(4.0, closed()))
    assert observe(Transcript("control", DOOR, events)).closed_after == 2.5


def test_who_left_first_is_who_ended_it() -> None:
    told = seen(client(SSL_REQUEST), closed(by=Party.CLIENT), closed(Ending.RST))
    assert (told.ended_by, told.ending, told.closed_after) == (Party.CLIENT, Ending.FIN, None)


def test_what_the_server_says_to_a_client_that_has_left_is_no_answer() -> None:
    left = (client(STARTUP), closed(by=Party.CLIENT))
    told = seen(*left, server(HTTP), closed(Ending.RST, Party.CLIENT))
    assert (told.foreign, told.server_bytes, told.outcome) == (None, 0, seen(*left).outcome)


def test_a_client_that_waits_in_vain_for_the_end_of_its_cancel_request_got_no_answer() -> None:
    cancel = Event(0.0, client(cancel_request(42, b"key!")))
    connected = Event(0.0, Connected("127.0.0.1:40000", DOOR))
    for after, outcome in ((2.0, Outcome.SILENT), (0.1, Outcome.CLOSED)):
        left = Event(after, closed(by=Party.CLIENT))
        told = observe(Transcript("cancel", DOOR, (connected, cancel, left)))
        assert told.outcome is outcome


# --- how the client put it ----------------------------------------------------------------------


def test_a_request_in_two_segments_is_split() -> None:
    told = seen(client(SSL_REQUEST[:4]), client(SSL_REQUEST[4:]), server(b"S"))
    assert (told.split_request, told.ssl_answer) == (True, "S")
    assert not seen(client(SSL_REQUEST), server(b"S")).split_request


@pytest.mark.parametrize("header", [PROXY_V1_UNKNOWN, PROXY_V2_LOCAL])
def test_a_proxy_header_stands_before_everything_and_is_no_segment_of_the_request(
    header: bytes,
) -> None:
    told = seen(client(header), client(SSL_REQUEST), server(b"S"))
    assert (told.proxy_header, told.opening, told.ssl_answer) == (True, Opening.SSL_REQUEST, "S")
    assert not told.split_request


@pytest.mark.parametrize("header", [PROXY_V1_UNKNOWN, PROXY_V2_LOCAL])
def test_a_proxy_header_may_share_a_segment_or_be_cut_anywhere(header: bytes) -> None:
    data = header + SSL_REQUEST
    for cut in range(len(data)):
        told = seen(client(data[:cut]), client(data[cut:]), server(b"S"))
        assert (told.proxy_header, told.ssl_answer) == (True, "S")


def test_a_proxy_header_stands_before_a_bare_client_hello_too() -> None:
    told = seen(client(PROXY_V2_LOCAL), client(HELLO), server(SERVER_HELLO))
    assert (told.proxy_header, told.opening, told.hello_segments) == (True, Opening.DIRECT_TLS, 1)


def test_a_cancel_request_is_read() -> None:
    told = seen(client(cancel_request(42, b"key!")), closed())
    assert (told.opening, told.outcome) == (Opening.CANCEL, Outcome.CLOSED)
    assert told.cancel is not None
    assert (told.cancel.process_id, told.cancel.key) == (42, b"key!")


def test_a_first_word_of_another_protocol_is_another_opening() -> None:
    assert seen(client(b"GET / HTTP/1.1\r\n\r\n"), closed()).opening is Opening.OTHER


def test_a_client_hello_with_the_request_is_pipelined_and_read_behind_the_s() -> None:
    told = seen(client(SSL_REQUEST + HELLO), server(b"S"), server(SERVER_HELLO))
    assert (told.pipelined, told.server_name) == (True, NAME)
    assert told.server_hello is not None


def test_the_server_flight_glued_to_the_s_of_a_pipelined_hello_is_no_garbage() -> None:
    told = seen(client(SSL_REQUEST + HELLO), server(b"S" + SERVER_HELLO))
    assert (told.glued, told.ssl_answer) == (b"", "S")
    assert told.server_hello is not None


def test_clear_bytes_behind_the_s_are_the_clients_garbage() -> None:
    told = seen(client(SSL_REQUEST), server(b"S"), client(STARTUP), closed())
    assert (told.garbage, told.startup, told.outcome) == (True, None, Outcome.CLOSED)


def two_segments() -> list[bytes]:
    return [HELLO[:100], HELLO[100:]]


def two_records() -> list[bytes]:
    return [split_record(HELLO, 100)]


def large() -> list[bytes]:
    hello = client_hello(Attempt("x", server_name=NAME, shape=HelloShape.LARGE))
    return [hello[:1400], hello[1400:]]


@pytest.mark.parametrize(
    ("cut", "segments", "records"),
    [
        (lambda: [HELLO], 1, 1),
        (two_segments, 2, 1),
        (two_records, 1, 2),
        (large, 2, 1),
    ],
)
@pytest.mark.parametrize("direct", [False, True])
def test_segments_and_records_of_the_client_hello_are_counted(
    cut: Callable[[], list[bytes]], segments: int, records: int, direct: bool
) -> None:
    asked: list[Fact] = [] if direct else [client(SSL_REQUEST), server(b"S")]
    told = seen(*asked, *map(client, cut()), server(SERVER_HELLO), client(b"\x14\3\3\0\1\1"))
    assert (told.hello_segments, told.hello_records) == (segments, records)
    assert told.server_name == NAME
    assert told.opening is (Opening.DIRECT_TLS if direct else Opening.SSL_REQUEST)


# --- GSSENCRequest ------------------------------------------------------------------------------


def test_gssenc_answered_g_is_heard_and_nothing_behind_it_is_read() -> None:
    told = seen(client(GSSENC_REQUEST), server(b"G"), server(b"whatever"))
    assert (told.opening, told.gss_answer) == (Opening.GSSENC_REQUEST, "G")
    assert (told.ssl_answer, told.foreign) == (None, None)


def test_gssenc_answered_n_goes_on_with_an_ssl_request() -> None:
    told = seen(client(GSSENC_REQUEST), server(b"N"), client(SSL_REQUEST), server(b"S"))
    assert (told.gss_answer, told.ssl_answer) == ("N", "S")


def test_gssenc_answered_with_an_error_is_no_answer_to_an_ssl_request() -> None:
    told = seen(client(GSSENC_REQUEST), server(OLD_ERROR), closed())
    assert (told.gss_answer, told.ssl_answer, told.outcome) == ("E", None, Outcome.ERROR)


@pytest.mark.parametrize(
    ("fact", "outcome"),
    [
        (closed(), Outcome.CLOSED),
        (closed(Ending.RST), Outcome.RESET),
        (gave_up(), Outcome.SILENT),
    ],
)
def test_gssenc_without_an_answer(fact: Fact, outcome: Outcome) -> None:
    told = seen(client(GSSENC_REQUEST), fact)
    assert (told.opening, told.gss_answer, told.outcome) == (Opening.GSSENC_REQUEST, None, outcome)


def test_gssenc_answered_by_another_protocol_is_foreign() -> None:
    told = seen(client(GSSENC_REQUEST), server(HTTP), closed())
    assert (told.gss_answer, told.outcome) == ("other", Outcome.FOREIGN)


# --- TLS ----------------------------------------------------------------------------------------


def test_the_server_hello_is_read_and_reached() -> None:
    told = seen(client(SSL_REQUEST), server(b"S"), client(HELLO), server(SERVER_HELLO), closed())
    assert told.server_hello is not None
    assert (told.server_hello.version, told.server_hello.retry) == (0x0304, False)
    assert (told.reached, told.outcome) == (Stage.SERVER_HELLO, Outcome.CLOSED)


def test_a_hello_retry_request_is_no_server_hello() -> None:
    told = seen(client(HELLO), server(RETRY), closed())
    assert (told.retried, told.server_hello, told.reached) == (True, None, None)
    again = seen(client(HELLO), server(RETRY), client(HELLO), server(SERVER_HELLO))
    assert again.retried
    assert again.server_hello is not None
    assert again.reached is Stage.SERVER_HELLO


def test_the_second_client_hello_changes_no_count() -> None:
    told = seen(client(HELLO), server(RETRY), client(HELLO), server(SERVER_HELLO))
    assert (told.hello_segments, told.hello_records) == (1, 1)


def test_an_alert_to_the_client_hello_is_an_alert() -> None:
    told = seen(client(HELLO), server(bytes.fromhex("15 0303 0002 0270")), closed())
    assert (told.alert, told.outcome) == (Alert(2, 112), Outcome.ALERT)


def test_a_close_notify_is_no_alert() -> None:
    told = seen(client(HELLO), server(bytes.fromhex("15 0303 0002 0100")), closed())
    assert (told.alert, told.outcome) == (None, Outcome.CLOSED)


def test_a_protected_alert_is_an_alert() -> None:
    told = seen(*in_tls(server(b"\x02\x74", Layer.HANDSHAKE)), closed())
    assert (told.alert, told.outcome) == (Alert(2, 116), Outcome.ALERT)


def test_a_clear_error_to_a_bare_client_hello_is_an_error() -> None:
    told = seen(client(HELLO), server(PGBOUNCER), closed())
    assert (told.opening, told.outcome) == (Opening.DIRECT_TLS, Outcome.ERROR)
    assert told.error is not None
    assert told.error.sqlstate == "08P01"


@pytest.mark.parametrize(
    ("data", "protocol"),
    [(HTTP, "HTTP"), (SSH, "SSH"), (b"?????", "an unknown protocol")],
)
def test_another_protocol_to_a_bare_client_hello_is_named(data: bytes, protocol: str) -> None:
    told = seen(client(HELLO), server(data), closed())
    assert told.foreign is not None
    assert (told.foreign.protocol, told.outcome) == (protocol, Outcome.FOREIGN)


def test_an_echoed_client_hello_is_no_server_hello() -> None:
    told = seen(client(HELLO), server(HELLO), gave_up())
    assert told.foreign is not None
    assert told.foreign.protocol == "an echo of what was sent"
    assert told.server_hello is None


def test_the_reason_of_the_clients_own_library_is_kept() -> None:
    told = seen(client(HELLO), server(SERVER_HELLO), TlsFailed("wrong version number"))
    assert (told.tls_failed, told.outcome) == ("wrong version number", Outcome.ALERT)


def test_what_the_key_holder_verified_is_kept() -> None:
    verdict = Verified("self-signed certificate")
    assert seen(client(HELLO), server(SERVER_HELLO), verdict).verified == verdict


def tls12() -> tuple[ssl.SSLContext, Attempt]:
    return only_tls12(), CONTROL


def tls13() -> tuple[ssl.SSLContext, Attempt]:
    return server_context(), CONTROL


def client_hello_in_records() -> tuple[ssl.SSLContext, Attempt]:
    return server_context(), dataclasses.replace(CONTROL, shape=HelloShape.RECORDS)


def large_client_hello() -> tuple[ssl.SSLContext, Attempt]:
    return server_context(), dataclasses.replace(CONTROL, shape=HelloShape.LARGE)


def direct() -> tuple[ssl.SSLContext, Attempt]:
    return server_context(), dataclasses.replace(CONTROL, opening=Opening.DIRECT_TLS)


def retried() -> tuple[ssl.SSLContext, Attempt]:
    return asks_for_retry(), CONTROL


def asked_for_certificate() -> tuple[ssl.SSLContext, Attempt]:
    return asks_for_certificate(), CONTROL


def real(make: Callable[[], tuple[ssl.SSLContext, Attempt]]) -> tuple[Fact, ...]:
    context, attempt = make()
    backend = Backend(context, direct=attempt.opening is Opening.DIRECT_TLS)
    return converse(attempt, backend.hear)[1]


REAL = [tls13, tls12, client_hello_in_records, large_client_hello, direct, retried]
REAL += [asked_for_certificate]


@pytest.mark.parametrize("make", REAL)
def test_a_real_conversation_over_tls_is_read_to_the_salt(
    make: Callable[[], tuple[ssl.SSLContext, Attempt]],
) -> None:
    told = seen(*real(make))
    assert told.server_name == NAME
    assert told.server_hello is not None
    assert told.leaf is not None
    assert (told.alpn_selected, told.salt) == ("postgresql", SALT)
    assert told.established is not None
    assert told.established.version == ("1.2" if make is tls12 else "1.3")
    assert (told.retried, told.certificate_asked) == (
        make is retried,
        make is asked_for_certificate,
    )
    assert (told.outcome, told.reached) == (Outcome.AUTHENTICATION, Stage.AUTHENTICATION)
    assert (told.alert, told.tls_failed, told.foreign) == (None, None, None)


def test_a_real_refusal_of_old_versions_is_an_alert() -> None:
    attempt = dataclasses.replace(CONTROL, versions=TlsVersions.OBSOLETE)
    told = seen(*converse(attempt, Backend().hear)[1])
    assert (told.alert, told.outcome) == (Alert(2, 70), Outcome.ALERT)
    assert told.server_hello is None


# --- behind StartupMessage ----------------------------------------------------------------------


def test_a_sasl_offer_inside_tls_is_an_authentication_request() -> None:
    told = seen(*in_tls(said(BINDING_OFFER)))
    assert (told.outcome, told.reached) == (Outcome.AUTHENTICATION, Stage.AUTHENTICATION)
    assert told.mechanisms == ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")
    assert told.offers_binding
    assert told.authenticates


def test_the_salt_of_the_server_first_message_is_read() -> None:
    assert seen(*in_tls(said(BINDING_OFFER), said(SERVER_FIRST))).salt == SALT


@pytest.mark.parametrize(
    ("code", "method"), [(0, "ok"), (3, "cleartext-password"), (5, "md5-password")]
)
def test_other_methods_are_authentication_too(code: int, method: str) -> None:
    message = b"R" + struct.pack("!II", 8, code)
    told = seen(*in_tls(said(message)))
    assert told.authentication is not None
    assert (told.authentication.method, told.outcome) == (method, Outcome.AUTHENTICATION)


def test_the_newest_protocol_version_stands_before_the_authentication_request() -> None:
    negotiate = bytes.fromhex("76 0000000c 00030000 00000000")
    told = seen(*in_tls(said(negotiate + BINDING_OFFER)))
    assert told.negotiated is not None
    assert (told.negotiated.newest, told.outcome) == ((3, 0), Outcome.AUTHENTICATION)


@pytest.mark.parametrize("layer", [Layer.TLS, Layer.TCP])
def test_an_error_to_startup_is_an_error_in_either_layer(layer: Layer) -> None:
    message = error("53300", "sorry, too many clients already")
    if layer is Layer.TLS:
        told = seen(*in_tls(said(message)))
    else:
        told = seen(client(STARTUP), server(message))
    assert told.error is not None
    assert (told.error.sqlstate, told.outcome) == ("53300", Outcome.ERROR)
    assert told.startup_in_tls is (layer is Layer.TLS)
    assert told.startup is not None
    assert told.startup.get("user") == "pgprobe-nobody"


def test_an_error_behind_the_authentication_request_is_not_how_it_ended() -> None:
    told = seen(*in_tls(said(BINDING_OFFER), said(error("28P01", "no"))))
    assert (told.error, told.outcome) == (None, Outcome.AUTHENTICATION)


def test_http_inside_tls_is_foreign_inside_tls() -> None:
    told = seen(*in_tls(said(HTTP)))
    assert told.foreign is not None
    assert (told.foreign.protocol, told.foreign_in_tls) == ("HTTP", True)
    assert told.outcome is Outcome.FOREIGN


def test_startup_in_clear_that_is_let_in_is_no_authentication_over_tls() -> None:
    told = seen(client(STARTUP), server(b"R" + struct.pack("!II", 8, 0)))
    assert (told.opening, told.outcome) == (Opening.STARTUP, Outcome.AUTHENTICATION)
    assert not told.authenticates


# --- regrouped ----------------------------------------------------------------------------------

CONVERSATIONS: dict[str, tuple[Fact, ...]] = {
    "s": (client(SSL_REQUEST), server(b"S"), gave_up()),
    "n": (client(SSL_REQUEST), server(b"N"), closed()),
    "error before TLS": (client(SSL_REQUEST), server(PGBOUNCER), closed()),
    "error without a length": (client(SSL_REQUEST), server(OLD_ERROR), closed()),
    "gssenc g": (client(GSSENC_REQUEST), server(b"G"), gave_up()),
    "gssenc n s": (client(GSSENC_REQUEST), server(b"N"), client(SSL_REQUEST), server(b"S")),
    "gssenc error": (client(GSSENC_REQUEST), server(OLD_ERROR), closed()),
    "error to a bare hello": (client(HELLO), server(PGBOUNCER), closed()),
    "alert to a bare hello": (client(HELLO), server(RAW_ALERT), closed()),
    "startup refused in clear": (client(STARTUP), server(error("28000", "no entry")), closed()),
}
IN_TLS: dict[str, tuple[Fact, ...]] = {
    "refused": in_tls(said(error("53300", "too many")), closed()),
    "two messages": in_tls(said(bytes.fromhex("76 0000000c 00030002 00000000") + BINDING_OFFER)),
    "salt": in_tls(said(BINDING_OFFER), said(SERVER_FIRST)),
}


def facts_of(*facts: Fact) -> dict[str, object]:
    """Everything but the steps, whose bytes and times follow the segments."""
    told = observe(Transcript("control", DOOR, tuple(Event(0.0, fact) for fact in facts)))
    fields = {field.name: getattr(told, field.name) for field in dataclasses.fields(told)}
    steps = fields.pop("steps")
    return {**fields, "stages": [step.stage for step in steps]}


def cut(facts: tuple[Fact, ...], layer: Layer, size: int) -> list[Fact]:
    """What the server said in that layer, in pieces of this size."""
    pieces: list[Fact] = []
    for fact in facts:
        if isinstance(fact, Data) and (fact.sender, fact.layer) == (Party.SERVER, layer):
            starts = range(0, len(fact.data), size)
            pieces += [server(fact.data[at : at + size], layer) for at in starts]
        else:
            pieces.append(fact)
    return pieces


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("whole", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_server_cut_anyhow_says_the_same(whole: tuple[Fact, ...], size: int) -> None:
    assert facts_of(*cut(whole, Layer.TCP, size)) == facts_of(*whole)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("whole", IN_TLS.values(), ids=IN_TLS)
def test_messages_inside_tls_cut_anyhow_say_the_same(whole: tuple[Fact, ...], size: int) -> None:
    assert facts_of(*cut(whole, Layer.TLS, size)) == facts_of(*whole)


@pytest.mark.parametrize("size", [3, 5, 7, 1000])
@pytest.mark.parametrize("make", REAL)
def test_a_real_server_cut_anyhow_says_the_same(
    make: Callable[[], tuple[ssl.SSLContext, Attempt]], size: int
) -> None:
    whole = real(make)
    assert facts_of(*cut(whole, Layer.TCP, size)) == facts_of(*whole)


# --- bounds, and anything -----------------------------------------------------------------------


def test_a_step_shows_a_bounded_part_of_what_passed_and_counts_all() -> None:
    told = seen(client(SSL_REQUEST), server(b"E" + b"x" * 60_000), gave_up())
    step = told.steps[-1]
    assert (len(step.received), step.received_bytes) == (KEPT_BYTES, 60_001)


def test_what_never_ends_is_kept_up_to_a_bound() -> None:
    told = seen(client(SSL_REQUEST), *[client(bytes(65_536))] * 8, gave_up())
    assert (told.pipelined, told.outcome) == (True, Outcome.SILENT)
    assert len(told.steps[-1].sent) <= MAX_BUFFERED


def test_text_from_the_network_is_safe_in_every_step() -> None:
    evil = "\x1b[31m\u202e"
    for facts in (
        (Connecting(DOOR), NotConnected(ConnectFailure.REFUSED, evil)),
        (client(SSL_REQUEST), server(evil.encode())),
        (client(SSL_REQUEST), server(error("28000", evil))),
        in_tls(said(error("28000", evil))),
    ):
        assert all(step.says.isprintable() for step in seen(*facts).steps)


WORDS = [
    *[SSL_REQUEST, GSSENC_REQUEST, STARTUP, HELLO, PROXY_V2_LOCAL, PROXY_V1_UNKNOWN],
    *[b"S", b"N", b"G", b"E", PGBOUNCER, OLD_ERROR, RAW_ALERT, SSH, HTTP, MYSQL],
    *[SERVER_HELLO, RETRY, BINDING_OFFER, SERVER_FIRST, b"\x14\3\3\0\1\1"],
    *[b"\x0b\0\0\x03\0\0\0", b"\x0d\0\0\x02\0\0", b"\x02\x28", b"\x16\3\3\0\x04\x0e\0\0\0"],
]
BYTES = st.sampled_from(WORDS) | st.binary(max_size=40)
PIECES = BYTES | st.builds(lambda data, at: data[: at % (len(data) + 1)], BYTES, st.integers(0))
DATA = st.builds(Data, st.sampled_from(Party), PIECES, st.sampled_from(Layer))
FACTS = DATA | st.one_of(
    st.builds(Resolved, st.just(("192.0.2.1",))),
    st.builds(Connecting, st.just(DOOR)),
    st.builds(Connected, st.just("me:1"), st.just(DOOR)),
    st.builds(NotConnected, st.sampled_from(ConnectFailure), st.text(max_size=20)),
    st.builds(Established, st.just("1.3"), st.text(max_size=9), st.none() | st.text(max_size=9)),
    st.builds(Verified, st.none() | st.text(max_size=20)),
    st.builds(TlsFailed, st.text(max_size=20)),
    st.builds(Closed, st.sampled_from(Party), st.sampled_from(Ending)),
    st.builds(GaveUp, st.floats(0, 10)),
)


BY_TCP = (Ending.FIN, Ending.RST)


@given(st.lists(FACTS, max_size=12))
def test_no_sequence_of_facts_makes_the_observer_raise(facts: list[Fact]) -> None:
    told = seen(*facts)
    assert told.outcome in Outcome
    assert told.awaited is None or told.awaited in Stage
    assert all(step.took >= 0 for step in told.steps)
    ends = [n for n, fact in enumerate(facts) if isinstance(fact, Closed) and fact.how in BY_TCP]
    heard = facts[: ends[0]] if told.ended_by is Party.CLIENT else facts
    assert told.server_bytes == sum(
        len(fact.data)
        for fact in heard
        if isinstance(fact, Data) and (fact.sender, fact.layer) == (Party.SERVER, Layer.TCP)
    )


@given(st.lists(DATA, max_size=12))
def test_no_conversation_makes_the_observer_raise(facts: list[Data]) -> None:
    assert seen(*facts).outcome in Outcome


# -- what is concluded of what was captured without keys, or with something missing ----------------


def captured(context: ssl.SSLContext, upto: int | None = None) -> list[Fact]:
    """What a capture has of an attempt: the wire alone, up to so many events."""
    _, facts = converse(CONTROL, Backend(context).hear)
    wire = [fact for fact in facts if isinstance(fact, Data) and fact.layer is Layer.TCP]
    return [Connecting(DOOR), Connected("127.0.0.1:1", DOOR), *wire[:upto]]


def test_tls_1_2_has_finished_with_both_finished_though_nothing_follows() -> None:
    # SSLRequest, S, ClientHello, the server's flight, the client's, the server's Finished
    for upto, finished in ((5, False), (6, True)):
        told = seen(*captured(only_tls12(), upto), closed(by=Party.CLIENT))
        assert (told.established is not None) is finished
    assert told.established is not None
    assert told.established.version == "1.2"
    assert told.steps[-1].says.startswith("TLS 1.2 finished")


def test_finished_behind_a_server_hello_that_is_not_captured_is_no_message_of_its_own() -> None:
    facts = captured(only_tls12(), 6)
    flight = next(n for n, f in enumerate(facts) if f == facts[5])
    facts[flight] = NotCaptured(Party.SERVER, len(facts[5].data))  # type: ignore[union-attr]
    told = seen(*facts, closed(by=Party.CLIENT))
    assert told.tls_failed is None
    assert told.outcome is not Outcome.ALERT


def test_a_server_hello_behind_a_client_hello_that_is_not_captured_is_not_glued_to_the_s() -> None:
    asked = (client(SSL_REQUEST), server(b"S"), NotCaptured(Party.CLIENT, 500))
    told = seen(Connecting(DOOR), *asked, server(SERVER_HELLO))
    assert (told.glued, told.foreign) == (b"", None)
    assert told.server_hello is not None
    assert "sni" in told.not_captured


def test_an_answer_inside_tls_to_what_is_not_captured_is_no_other_protocol() -> None:
    inside = (NotCaptured(Party.CLIENT, 90), server(BINDING_OFFER, Layer.TLS))
    told = seen(*captured(server_context(), 5), Established("1.3", "x", "postgresql"), *inside)
    assert told.foreign is None
    assert told.authentication is not None
    assert "startup" in told.not_captured


def test_without_the_extensions_that_are_not_captured_alpn_is_not_absent() -> None:
    *facts, flight = captured(server_context(), 4)
    assert isinstance(flight, Data)
    upto = flight.data.index(b"\x17\x03\x03") + 20
    hole = NotCaptured(Party.SERVER, len(flight.data) - upto)
    told = seen(*facts, server(flight.data[:upto]), hole, Established("1.3", "x", None))
    assert not told.lacks_alpn
    assert {"alpn_selected", "certificate"} <= set(told.not_captured)


def test_alpn_is_known_from_extensions_that_were_opened_where_finished_was_not() -> None:
    extensions = bytes.fromhex("08 000013 0011 0010 000d 000b 0a") + b"postgresql"
    *facts, flight = captured(server_context(), 4)
    opened = server(extensions, Layer.HANDSHAKE)
    record = bytes.fromhex("17 0303 0020") + bytes(32)
    told = seen(
        *facts, flight, opened, NotCaptured(Party.CLIENT, 9), client(record), server(record)
    )
    assert told.established is not None
    assert told.alpn_selected == "postgresql"
