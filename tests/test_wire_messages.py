"""Messages before the login: exact bytes, every truncation, and the errors without a length."""

from __future__ import annotations

import struct
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.wire import Malformed
from probe.wire.messages import (
    MAX_MECHANISMS,
    MAX_MESSAGE,
    TERMINATE,
    Authentication,
    ErrorResponse,
    Message,
    NegotiateProtocolVersion,
    ScramServerFirst,
    decode_error,
    decode_message,
    parse_authentication,
    parse_error,
    parse_negotiate,
    parse_scram_server_first,
    sasl_initial_response,
)

AUTHENTICATION_OK = bytes.fromhex(
    "52"  # R
    "00000008"  # length
    "00000000"  # ok
)
MD5 = bytes.fromhex(
    "52"  # R
    "0000000c"  # length
    "00000005"  # MD5 password
    "0a0b0c0d"  # salt
)
SASL = bytes.fromhex(
    "52"  # R
    "0000002a"  # length
    "0000000a"  # SASL
    "534352414d2d5348412d3235362d504c555300"  # SCRAM-SHA-256-PLUS
    "534352414d2d5348412d32353600"  # SCRAM-SHA-256
    "00"  # no more
)
NEGOTIATE = bytes.fromhex(
    "76"  # v
    "0000000c"  # length
    "00030002"  # 3.2
    "00000000"  # no options that it does not know
)
ERROR = bytes.fromhex(
    "45"  # E
    "00000025"  # length
    "53 464154414c 00"  # S FATAL
    "43 3533333030 00"  # C 53300
    "4d 746f6f206d616e79 00"  # M too many
    "52 496e6974506f 00"  # R InitPo
    "00"  # no more
)
OLD_ERROR = bytes.fromhex(
    "45"  # E, and no length
    "756e737570706f727465642066726f6e74656e640a"  # unsupported frontend, line feed
    "00"
)
FATAL = ErrorResponse((("S", "FATAL"), ("C", "53300"), ("M", "too many"), ("R", "InitPo")))

MESSAGES = [
    (AUTHENTICATION_OK, Message("R", bytes(4))),
    (MD5, Message("R", bytes.fromhex("000000050a0b0c0d"))),
    (SASL, Message("R", SASL[5:])),
    (NEGOTIATE, Message("v", bytes.fromhex("0003000200000000"))),
    (ERROR, Message("E", ERROR[5:])),
    (b"N\0\0\0\x05\0", Message("N", b"\0")),  # NoticeResponse
    (b"S\0\0\0\x08a\0b\0", Message("S", b"a\0b\0")),  # ParameterStatus
    (b"K\0\0\0\x0cpid.key.", Message("K", b"pid.key.")),
    (b"Z\0\0\0\x05I", Message("Z", b"I")),
    (b"R\0\0\0\x04", Message("R", b"")),
]
ERRORS = [
    (ERROR, FATAL),
    (OLD_ERROR, ErrorResponse((("M", "unsupported frontend\n"),))),
    (b"E\0\0\0\x05\0", ErrorResponse(())),
]


@pytest.mark.parametrize(("data", "message"), MESSAGES)
@pytest.mark.parametrize("trailing", [b"", b"\0", b"Z\0\0\0\x05I", b"?"])
def test_a_whole_message_is_read_and_what_follows_is_left(
    data: bytes, message: Message, trailing: bytes
) -> None:
    assert decode_message(data + trailing) == (message, len(data))


@pytest.mark.parametrize(("data", "message"), MESSAGES)
def test_every_proper_prefix_of_a_message_needs_more(data: bytes, message: Message) -> None:
    assert [decode_message(data[:n]) for n in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"H",  # of HTTP: malformed from its first byte
        b"\x15\x03\x01",
        b"X\0\0\0\x04",  # Terminate is the client's
        b"R\0\0\0\x03",
        b"R\0\0\0\0",
        b"R" + struct.pack("!I", MAX_MESSAGE + 1),
        b"SSH-2.0",
    ],
)
def test_a_type_or_length_that_no_server_sends_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_message(data)


def test_the_longest_message_allowed_only_needs_more() -> None:
    assert decode_message(b"R" + struct.pack("!I", MAX_MESSAGE)) is None


@pytest.mark.parametrize(("data", "error"), ERRORS)
@pytest.mark.parametrize("trailing", [b"", b"\0", ERROR, b"\x15\x03\x01"])
def test_a_whole_error_is_read_and_what_follows_is_left(
    data: bytes, error: ErrorResponse, trailing: bytes
) -> None:
    assert decode_error(data + trailing) == (error, len(data))


@pytest.mark.parametrize(("data", "error"), ERRORS)
def test_every_proper_prefix_of_an_error_needs_more(data: bytes, error: ErrorResponse) -> None:
    assert [decode_error(data[:n]) for n in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize("data", [b"HTTP/1.1 400", AUTHENTICATION_OK, b"Z\0\0\0\x05I"])
def test_what_is_no_error_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_error(data)


def test_an_error_text_without_an_end_is_malformed_once_it_is_too_long() -> None:
    assert decode_error(b"E" + b"x" * (MAX_MESSAGE - 1)) is None
    with pytest.raises(Malformed):
        decode_error(b"E" + b"x" * MAX_MESSAGE)


def test_the_fields_of_an_error_are_found_by_letter() -> None:
    assert (FATAL.sqlstate, FATAL.message, FATAL.routine) == ("53300", "too many", "InitPo")
    assert FATAL.get("F") is None


def test_an_error_without_fields_has_an_empty_message_and_nothing_else() -> None:
    error = parse_error(b"")
    assert (error.sqlstate, error.message, error.routine) == (None, "", None)


def test_fields_that_are_not_utf8_are_kept_readable() -> None:
    assert parse_error(b"M\xe4rger\0\0").message == r"\xe4rger"


@pytest.mark.parametrize(
    ("data", "asked", "method"),
    [
        (AUTHENTICATION_OK, Authentication(0), "ok"),
        (MD5, Authentication(5, data=b"\x0a\x0b\x0c\x0d"), "md5-password"),
        (SASL, Authentication(10, ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")), "sasl"),
        (b"R\0\0\0\x08\0\0\0\x03", Authentication(3), "cleartext-password"),
        (b"R\0\0\0\x08\0\0\0\x63", Authentication(99), "method 99"),
        (b"R\0\0\0\x0b\0\0\0\x0br=x", Authentication(11, data=b"r=x"), "sasl-continue"),
    ],
)
def test_an_authentication_request_has_a_method(
    data: bytes, asked: Authentication, method: str
) -> None:
    assert parse_authentication(data[5:]) == asked
    assert asked.method == method


def test_a_sasl_offer_is_bounded() -> None:
    offer = b"\0\0\0\x0a" + b"X\0" * 1000
    assert len(parse_authentication(offer).mechanisms) == MAX_MECHANISMS


@pytest.mark.parametrize("length", range(4))
def test_an_authentication_request_without_a_method_is_malformed(length: int) -> None:
    with pytest.raises(Malformed):
        parse_authentication(bytes(length))


@pytest.mark.parametrize(
    ("body", "newest"),
    [
        ("00030002 00000000", (3, 2)),  # as PostgreSQL sends it: the whole version
        ("00000002 00000000", (3, 2)),  # as it is documented: a minor
        ("00030000 00000001 7f00", (3, 0)),
    ],
)
def test_the_newest_protocol_version_is_read(body: str, newest: tuple[int, int]) -> None:
    assert parse_negotiate(bytes.fromhex(body)) == NegotiateProtocolVersion(newest)


@pytest.mark.parametrize("length", range(8))
def test_a_negotiation_without_a_version_is_malformed(length: int) -> None:
    with pytest.raises(Malformed):
        parse_negotiate(bytes(length))


def test_the_salt_of_a_scram_server_first_message_is_read() -> None:
    data = b"r=client+server,s=AAECAwQFBgcICQoLDA0ODw==,i=4096"
    assert parse_scram_server_first(data) == ScramServerFirst(
        "client+server", bytes(range(16)), 4096
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"r=x,s=AAEC",  # no iteration count
        b"r=x,i=4096",
        b"s=AAEC,i=4096",
        b"r=x,s=!!!!,i=4096",
        b"r=x,s=AAE,i=4096",  # wrong padding
        b"r=x,s=AAEC,i=many",
        b"r=x,s=AAEC,i=" + b"9" * 5000,
        b"r=\xff,s=AAEC,i=4096",
        b"e=invalid-proof",
    ],
)
def test_what_is_no_server_first_message_is_none(data: bytes) -> None:
    assert parse_scram_server_first(data) is None


def test_a_sasl_initial_response_is_these_bytes() -> None:
    assert sasl_initial_response("SCRAM-SHA-256", b"n,,n=,r=abc") == bytes.fromhex(
        "70"  # p
        "00000021"  # length
        "534352414d2d5348412d32353600"  # SCRAM-SHA-256
        "0000000b"  # length of the response
        "6e2c2c6e3d2c723d616263"  # n,,n=,r=abc
    )


def test_terminate_is_these_five_bytes() -> None:
    assert bytes.fromhex("58 00000004") == TERMINATE


@given(st.sampled_from("REvNSKZ"), st.binary(max_size=200), st.binary(max_size=20))
def test_a_message_reads_back_as_it_was_written(kind: str, body: bytes, trailing: bytes) -> None:
    data = kind.encode() + struct.pack("!I", len(body) + 4) + body
    assert decode_message(data + trailing) == (Message(kind, body), len(data))


FIELD = st.tuples(
    st.sampled_from("SVCMDHPRFL"),
    st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=30),
)


@given(st.lists(FIELD, max_size=8).map(tuple))
def test_an_error_reads_back_as_it_was_written(fields: tuple[tuple[str, str], ...]) -> None:
    body = b"".join((letter + text).encode() + b"\0" for letter, text in fields) + b"\0"
    data = b"E" + struct.pack("!I", len(body) + 4) + body
    assert decode_error(data) == (ErrorResponse(fields), len(data))


@given(st.binary(min_size=1, max_size=40), st.integers(1, 100_000))
def test_a_server_first_message_reads_back_as_it_was_written(salt: bytes, iterations: int) -> None:
    data = b"r=n,s=" + b64encode(salt) + b",i=%d" % iterations
    assert parse_scram_server_first(data) == ScramServerFirst("n", salt, iterations)


MOSTLY_MESSAGES = st.builds(bytes.__add__, st.sampled_from([b"E", b"R", b"v\0\0\0"]), st.binary())


@given(st.binary() | MOSTLY_MESSAGES)
def test_any_bytes_are_a_message_need_more_or_are_malformed(data: bytes) -> None:
    try:
        decoded = decode_message(data)
    except Malformed:
        return
    assert decoded is None or 5 <= decoded[1] <= len(data)


@given(st.binary() | MOSTLY_MESSAGES)
def test_any_bytes_are_an_error_need_more_or_are_malformed(data: bytes) -> None:
    try:
        decoded = decode_error(data)
    except Malformed:
        return
    assert decoded is None or 2 <= decoded[1] <= len(data)


@pytest.mark.parametrize("parse", [parse_authentication, parse_negotiate])
@given(body=st.binary(max_size=80))
def test_any_body_is_read_or_malformed(parse: object, body: bytes) -> None:
    assert callable(parse)
    try:
        parse(body)
    except Malformed:
        assert len(body) < 8


@given(st.binary() | st.text("rsi=,ABC0123+/ -_").map(str.encode))
def test_no_bytes_make_the_forgiving_parsers_raise(data: bytes) -> None:
    parse_error(data)
    parse_scram_server_first(data)
