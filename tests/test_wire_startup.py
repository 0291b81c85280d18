"""What a client may say first: exact bytes, every truncation, and what is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.wire import Malformed, printable
from probe.wire.startup import (
    GSSENC_REQUEST,
    MAX_CANCEL_KEY,
    MAX_STARTUP_PACKET,
    PROTOCOL_3_1002,
    SSL_REQUEST,
    CancelRequest,
    FirstPacket,
    GSSENCRequest,
    SSLRequest,
    StartupMessage,
    cancel_request,
    decode_first_packet,
    startup_message,
)

SSL_REQUEST_BYTES = bytes.fromhex(
    "00000008"  # length
    "04d2162f"  # 1234, 5679
)
GSSENC_REQUEST_BYTES = bytes.fromhex(
    "00000008"  # length
    "04d21630"  # 1234, 5680
)
CANCEL_BYTES = bytes.fromhex(
    "00000010"  # length
    "04d2162e"  # 1234, 5678
    "0000002a"  # process 42
    "deadbeef"  # key
)
LONG_CANCEL_BYTES = bytes.fromhex(
    "00000014"  # length
    "04d2162e"  # 1234, 5678
    "ffffffff"  # process
    "0001020304050607"  # a key of protocol 3.2
)
STARTUP_BYTES = bytes.fromhex(
    "00000023"  # length
    "00030000"  # 3.0
    "7573657200"  # user
    "6e6f626f647900"  # nobody
    "646174616261736500"  # database
    "706f737400"  # post
    "00"  # no more
)
EMPTY_STARTUP_BYTES = bytes.fromhex(
    "00000009"  # length
    "000303ea"  # 3.1002
    "00"  # no parameters
)
BARE_STARTUP_BYTES = bytes.fromhex(
    "00000008"  # length
    "00020000"  # 2.0
)

PACKETS: list[tuple[bytes, FirstPacket]] = [
    (SSL_REQUEST_BYTES, SSLRequest()),
    (GSSENC_REQUEST_BYTES, GSSENCRequest()),
    (CANCEL_BYTES, CancelRequest(42, bytes.fromhex("deadbeef"))),
    (LONG_CANCEL_BYTES, CancelRequest(0xFFFFFFFF, bytes(range(8)))),
    (STARTUP_BYTES, StartupMessage((3, 0), (("user", "nobody"), ("database", "post")))),
    (EMPTY_STARTUP_BYTES, StartupMessage((3, 1002), ())),
    (BARE_STARTUP_BYTES, StartupMessage((2, 0), ())),
]


def test_ssl_request_is_these_eight_bytes_and_nothing_behind_them() -> None:
    assert SSL_REQUEST == SSL_REQUEST_BYTES
    assert len(SSL_REQUEST) == 8


def test_gssenc_request_is_these_eight_bytes() -> None:
    assert GSSENC_REQUEST == GSSENC_REQUEST_BYTES


def test_cancel_request_is_sixteen_bytes_with_a_key_of_four() -> None:
    assert cancel_request(42, bytes.fromhex("deadbeef")) == CANCEL_BYTES
    assert cancel_request(0xFFFFFFFF, bytes(range(8))) == LONG_CANCEL_BYTES


def test_startup_message_is_length_version_pairs_and_a_zero_byte() -> None:
    assert startup_message((3, 0), {"user": "nobody", "database": "post"}) == STARTUP_BYTES
    assert startup_message(PROTOCOL_3_1002, {}) == EMPTY_STARTUP_BYTES


@pytest.mark.parametrize(("data", "packet"), PACKETS)
@pytest.mark.parametrize("trailing", [b"", b"\0", b"\x16\x03\x01", SSL_REQUEST_BYTES])
def test_a_whole_packet_is_read_and_what_follows_is_left(
    data: bytes, packet: FirstPacket, trailing: bytes
) -> None:
    assert decode_first_packet(data + trailing) == (packet, len(data))


@pytest.mark.parametrize(("data", "packet"), PACKETS)
def test_every_proper_prefix_needs_more(data: bytes, packet: FirstPacket) -> None:
    assert [decode_first_packet(data[:n]) for n in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize(
    ("length", "code"),
    [
        (0, "04d2162f"),
        (7, "04d2162f"),
        (9, "04d2162f"),  # an SSLRequest is eight bytes
        (12, "04d21630"),
        (MAX_STARTUP_PACKET + 1, "00030000"),
        (0xFFFFFFFF, "00030000"),
        (15, "04d2162e"),  # a key of three bytes
        (12 + MAX_CANCEL_KEY + 1, "04d2162e"),
        (40, "00010000"),  # protocol 1.0
        (40, "00040000"),
        (40, "04d22345"),
    ],
)
def test_a_length_or_code_that_no_client_sends_is_malformed(length: int, code: str) -> None:
    with pytest.raises(Malformed):
        decode_first_packet(struct.pack("!I", length) + bytes.fromhex(code))


def test_an_impossible_length_is_malformed_before_the_code_came() -> None:
    with pytest.raises(Malformed):
        decode_first_packet(b"GET ")


@pytest.mark.parametrize("length", [MAX_STARTUP_PACKET, 12 + MAX_CANCEL_KEY])
def test_the_longest_packets_allowed_only_need_more(length: int) -> None:
    code = "00030000" if length == MAX_STARTUP_PACKET else "04d2162e"
    assert decode_first_packet(struct.pack("!I", length) + bytes.fromhex(code)) is None


def test_a_name_without_a_value_is_left_out() -> None:
    body = b"user\0nobody\0database\0"
    data = struct.pack("!IHH", 8 + len(body), 3, 0) + body
    decoded = decode_first_packet(data)
    assert decoded is not None
    assert decoded[0] == StartupMessage((3, 0), (("user", "nobody"), ("database", "")))


def test_parameters_are_found_by_name() -> None:
    message = StartupMessage((3, 0), (("user", "nobody"),))
    assert message.get("user") == "nobody"
    assert message.get("database") is None


TEXT = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=60)


@given(
    st.tuples(st.sampled_from([2, 3]), st.integers(0, 0xFFFF)),
    st.dictionaries(TEXT.filter(bool), TEXT, max_size=8),
)
def test_a_startup_message_reads_back_as_it_was_written(
    version: tuple[int, int], parameters: dict[str, str]
) -> None:
    data = startup_message(version, parameters)
    expected = StartupMessage(version, tuple(parameters.items()))
    assert decode_first_packet(data) == (expected, len(data))


@given(st.integers(0, 0xFFFFFFFF), st.binary(min_size=4, max_size=MAX_CANCEL_KEY))
def test_a_cancel_request_reads_back_as_it_was_written(process_id: int, key: bytes) -> None:
    data = cancel_request(process_id, key)
    assert decode_first_packet(data) == (CancelRequest(process_id, key), len(data))


PLAUSIBLE = st.builds(
    lambda length, code, rest: struct.pack("!II", length, code) + rest,
    st.integers(0, 300),
    st.sampled_from([80877102, 80877103, 80877104, 0x30000, 0x20000]) | st.integers(0, 2**32 - 1),
    st.binary(max_size=300),
)


@given(st.binary(max_size=64) | PLAUSIBLE)
def test_any_bytes_are_a_packet_need_more_or_are_malformed(data: bytes) -> None:
    try:
        decoded = decode_first_packet(data)
    except Malformed:
        return
    assert decoded is None or 8 <= decoded[1] <= len(data)


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"plain", "plain"),
        (b"\x1b[31mred\0\r\n", r"\x1b[31mred\x00\r\n"),
        (b"\xff\xfe", r"\xff\xfe"),
        ("\u202eevil", r"\u202eevil"),
        ("x" * 201, "x" * 199 + "…"),
    ],
)
def test_network_text_is_escaped_and_bounded(data: bytes | str, shown: str) -> None:
    assert printable(data) == shown


@given(st.binary() | st.text(), st.integers(1, 50))
def test_text_made_safe_is_printable_and_never_longer_than_asked(
    data: bytes | str, limit: int
) -> None:
    shown = printable(data, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
