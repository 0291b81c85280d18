"""Other protocols' first words are recognised; PostgreSQL's and TLS's are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.wire import Malformed
from probe.wire.foreign import (
    LOOKED_AT,
    MAX_PROXY_V1,
    PROXY_HEADERS,
    PROXY_V1_UNKNOWN,
    PROXY_V2_LOCAL,
    PROXY_V2_SIGNATURE,
    ProxyHeader,
    decode_proxy_header,
    recognise,
    unrecognised,
)

SSL_REQUEST = bytes.fromhex("00000008 04d2162f")
MYSQL_GREETING = bytes.fromhex(
    "4a0000 00"  # length, packet 0
    "0a"  # protocol 10
    "382e342e3000"  # 8.4.0
    "07000000 6162636465666768 00"  # thread, salt
)
MYSQL_REFUSAL = bytes.fromhex(
    "450000 00"  # length, packet 0
    "ff 6a04"  # error 1130
    "486f737420276127206973206e6f7420616c6c6f776564"  # Host 'a' is not allowed
)


@pytest.mark.parametrize(
    ("answer", "protocol"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
        (b"HTTP/1.0 408", "HTTP"),
        (b"<html><head>", "HTTP"),
        (b"\r\n<!DOCTYPE html>", "HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH"),
        (MYSQL_GREETING, "MySQL"),
        (MYSQL_REFUSAL, "MySQL"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "PROXY protocol"),
        (PROXY_V1_UNKNOWN, "PROXY protocol"),
        (PROXY_V2_LOCAL, "PROXY protocol"),
        (b"220 mail.example.com ESMTP\r\n", "FTP or SMTP"),
        (b"421-Too many", "FTP or SMTP"),
        (b"* OK IMAP4rev1 ready\r\n", "IMAP"),
        (b"* BYE\r\n", "IMAP"),
        (b"+OK POP3 ready\r\n", "POP3 or Redis"),
        (b"-ERR unknown command\r\n", "POP3 or Redis"),
        (b"AMQP\0\0\x09\x01", "AMQP"),
    ],
)
def test_another_protocol_is_recognised_by_its_first_words(answer: bytes, protocol: str) -> None:
    known = recognise(answer)
    assert known is not None
    assert known.protocol == protocol


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"S",
        b"N",
        b"G",
        b"E",
        b"E\0\0\0\x29SFATAL\0C28000\0",
        b"Eunsupported frontend protocol\n\0",
        b"R\0\0\0\x08\0\0\0\0",
        b"S\x16\x03\x03\0\x02",
        bytes.fromhex("15 0301 0002 0246"),
        bytes.fromhex("16 0303 007a 02"),
        b"gibberish",
    ],
)
def test_postgresql_and_tls_are_not_taken_for_another_protocol(answer: bytes) -> None:
    assert recognise(answer, SSL_REQUEST) is None


@pytest.mark.parametrize("length", range(6, 9))
def test_an_echo_is_recognised_from_six_bytes_on(length: int) -> None:
    echoed = recognise(SSL_REQUEST[:length], SSL_REQUEST)
    assert echoed is not None
    assert echoed.protocol == "an echo of what was sent"


def test_fewer_bytes_are_no_echo_for_every_tls_record_begins_with_the_same_five() -> None:
    assert [recognise(SSL_REQUEST[:n], SSL_REQUEST) for n in range(6)] == [None] * 6


def test_an_echo_with_more_behind_it_is_still_one() -> None:
    assert recognise(SSL_REQUEST + b"more", SSL_REQUEST) is not None


def test_without_anything_sent_nothing_is_an_echo() -> None:
    assert recognise(SSL_REQUEST) is None


def test_the_words_are_the_first_line_and_safe_to_show() -> None:
    known = recognise(b"SSH-2.0-\x1b[31mred\r\nsecond line")
    assert known is not None
    assert known.says == r"SSH-2.0-\x1b[31mred"


def test_what_nobody_knows_is_shown_as_it_is() -> None:
    assert unrecognised(b"\x01\x02hello").says == r"\x01\x02hello"
    assert unrecognised(b"x" * 1000).says == "x" * 79 + "…"


def test_a_proxy_header_names_no_addresses() -> None:
    assert dict(PROXY_HEADERS) == {
        "v1": b"PROXY UNKNOWN\r\n",
        "v2": bytes.fromhex(
            "0d0a0d0a000d0a515549540a"  # signature
            "20"  # version 2, LOCAL
            "00"  # unspecified
            "0000"  # no addresses
        ),
    }


@given(st.binary(max_size=2 * LOOKED_AT), st.binary(max_size=20))
def test_any_answer_has_words_that_are_bounded_and_safe(answer: bytes, sent: bytes) -> None:
    says = (recognise(answer, sent) or unrecognised(answer)).says
    assert says.isprintable()
    assert len(says) <= 80


# --- PROXY headers --------------------------------------------------------------------------------

V2_TCP4 = PROXY_V2_SIGNATURE + bytes.fromhex(
    "21 11 000c"  # version 2, PROXY; TCP over IPv4; 12 bytes
    "c0000207 0a000107"  # 192.0.2.7, 10.0.1.7
    "9c40 1538"  # 40000, 5432
)
V2_TCP6_WITH_TLV = PROXY_V2_SIGNATURE + bytes.fromhex(
    "21 21 0028"  # TCP over IPv6; 36 bytes of addresses, 4 of a TLV
    "20010db8000000000000000000000001"
    "20010db8000000000000000000000002"
    "9c40 1538"
    "04 0001 00"  # NOOP
)
V2_UNIX = PROXY_V2_SIGNATURE + bytes.fromhex("21 31 0002 0000")
HEADERS = [
    (b"PROXY UNKNOWN\r\n", ProxyHeader(1)),
    (b"PROXY UNKNOWN whatever it says\r\n", ProxyHeader(1)),
    (
        b"PROXY TCP4 192.0.2.7 10.0.1.7 40000 5432\r\n",
        ProxyHeader(1, "192.0.2.7:40000", "10.0.1.7:5432"),
    ),
    (
        b"PROXY TCP6 2001:db8::1 2001:db8::2 40000 5432\r\n",
        ProxyHeader(1, "[2001:db8::1]:40000", "[2001:db8::2]:5432"),
    ),
    (PROXY_V2_LOCAL, ProxyHeader(2)),
    (V2_TCP4, ProxyHeader(2, "192.0.2.7:40000", "10.0.1.7:5432")),
    (V2_TCP6_WITH_TLV, ProxyHeader(2, "[2001:db8::1]:40000", "[2001:db8::2]:5432")),
    (V2_UNIX, ProxyHeader(2)),
]


@pytest.mark.parametrize(("data", "header"), HEADERS)
@pytest.mark.parametrize("trailing", [b"", SSL_REQUEST, b"\r\n"])
def test_a_proxy_header_is_read_and_what_follows_is_left(
    data: bytes, header: ProxyHeader, trailing: bytes
) -> None:
    assert decode_proxy_header(data + trailing) == (header, len(data))


@pytest.mark.parametrize(("data", "header"), HEADERS)
def test_every_proper_prefix_of_a_proxy_header_needs_more(data: bytes, header: ProxyHeader) -> None:
    assert [decode_proxy_header(data[:n]) for n in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize(
    "data",
    [
        SSL_REQUEST,
        b"\x16\x03\x01",
        b"POST / HTTP/1.1\r\n",
        b"PROXYING",
        b"PROXY TCP4 192.0.2.7\r\n",
        b"PROXY TCP4 nobody 10.0.1.7 40000 5432\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.1.7 soon 5432\r\n",
        b"PROXY TCP9 192.0.2.7 10.0.1.7 40000 5432\r\n",
        b"PROXY " + b"x" * MAX_PROXY_V1,
        PROXY_V2_SIGNATURE + bytes.fromhex("11 00 0000"),  # version 1 in the second form
        PROXY_V2_SIGNATURE + bytes.fromhex("22 00 0000"),  # no such command
        PROXY_V2_SIGNATURE + bytes.fromhex("21 11 ffff"),
        PROXY_V2_SIGNATURE + bytes.fromhex("21 11 0004 c0000207"),  # half the addresses
    ],
)
def test_what_is_no_proxy_header_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_proxy_header(data)


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=40).map(PROXY_V2_SIGNATURE.__add__)))
def test_any_bytes_are_a_proxy_header_or_need_more_or_are_malformed(data: bytes) -> None:
    try:
        decoded = decode_proxy_header(data)
    except Malformed:
        return
    assert decoded is None or 0 < decoded[1] <= len(data)
