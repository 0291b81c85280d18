"""Hellos, certificates and requests for them: by hand, and as OpenSSL makes them."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import (
    NAME,
    Backend,
    asks_for_certificate,
    asks_for_retry,
    authority,
    converse,
    only_tls12,
    server_context,
)

from probe.attempt import Attempt, HelloShape, TlsVersions
from probe.tls import TlsClient
from probe.transcript import Data, Layer, Party
from probe.wire import Malformed
from probe.wire.hello import (
    CERTIFICATE,
    CERTIFICATE_REQUEST,
    CLIENT_HELLO,
    ENCRYPTED_EXTENSIONS,
    MAX_CHAIN,
    SERVER_HELLO,
    ClientHello,
    ServerHello,
    parse_certificate,
    parse_certificate_request,
    parse_client_hello,
    parse_encrypted_extensions,
    parse_server_hello,
    server_name_middle,
)
from probe.wire.records import HANDSHAKE, decode_handshake, decode_record

RANDOM = bytes(range(32))

CLIENT_HELLO_BODY = bytes.fromhex(
    "0303"  # TLS 1.2
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"  # random
    "04 deadbeef"  # session id
    "0006 1301 1302 c02f"  # three ciphers
    "01 00"  # no compression
    "0050"  # extensions
    "0000 000f 000d 00 000a 64622e6578616d706c65"  # server_name db.example
    "0010 0012 0010 0a 706f737467726573716c 04 68747470"  # ALPN postgresql, http
    "002b 0005 04 0304 0303"  # supported_versions
    "000a 0006 0004 001d 0017"  # supported_groups
    "0033 0010 000e 001d 0002 aaaa 0017 0004 bbbbbbbb"  # key_share
)
PARSED = ClientHello(
    random=RANDOM,
    server_name="db.example",
    alpn=("postgresql", "http"),
    versions=(0x0304, 0x0303),
    groups=(0x001D, 0x0017),
    key_shares=(0x001D, 0x0017),
    ciphers=3,
    size=len(CLIENT_HELLO_BODY) + 4,
)
BARE_CLIENT_HELLO = bytes.fromhex(
    "0301"  # TLS 1.0
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    "00"  # no session id
    "0002 002f"
    "01 00"  # and no extensions at all
)
SERVER_HELLO_13 = bytes.fromhex(
    "0303"
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    "04 deadbeef"  # session id
    "1302"  # TLS_AES_256_GCM_SHA384
    "00"
    "0010"  # extensions
    "002b 0002 0304"  # supported_versions
    "0033 0006 001d 0002 aaaa"  # key_share
)
SERVER_HELLO_12 = bytes.fromhex(
    "0303"
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    "00"
    "c02f"
    "00"
    "0011"  # extensions
    "0010 000d 000b 0a 706f737467726573716c"  # ALPN postgresql
)
RETRY = bytes.fromhex(
    "0303"
    "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"
    "00"
    "1301"
    "00"
    "000c"
    "002b 0002 0304"
    "0033 0002 0018"  # the group that it wants
)
CERTIFICATE_12 = bytes.fromhex(
    "00000b"  # all certificates
    "000003 a1a2a3"
    "000002 b1b2"
)
CERTIFICATE_13 = bytes.fromhex(
    "00"  # no request context
    "000011"  # all certificates
    "000003 a1a2a3 0002 ffff"  # one with an extension block
    "000002 b1b2 0000"
)
REQUEST_12 = bytes.fromhex(
    "01 40"  # ecdsa_sign
    "0002 0403"  # ecdsa_secp256r1_sha256
    "0009"  # authorities
    "0003 a1a2a3"
    "0002 b1b2"
)
REQUEST_13 = bytes.fromhex(
    "00"  # no context
    "0017"  # extensions
    "000d 0004 0002 0403"  # signature_algorithms
    "002f 000b 0009 0003 a1a2a3 0002 b1b2"  # certificate_authorities
)
AUTHORITIES = (b"\xa1\xa2\xa3", b"\xb1\xb2")


def hello(attempt: Attempt) -> bytes:
    """The ClientHello's record that an attempt sends."""
    client = TlsClient(attempt)
    client.handshake()
    return client.drain()


def body_of(message: bytes, kind: int) -> bytes:
    decoded = decode_handshake(message)
    assert decoded is not None
    assert decoded == ((kind, message[4:]), len(message))
    return message[4:]


def client_hello(attempt: Attempt) -> ClientHello:
    decoded = decode_record(hello(attempt))
    assert decoded is not None
    return parse_client_hello(body_of(decoded[0].fragment, CLIENT_HELLO))


def said_by(
    context: ssl.SSLContext, attempt: Attempt | None = None
) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """A server's handshake messages by type: on the wire in clear, and inside TLS 1.3."""
    _, facts = converse(attempt or Attempt("x", server_name=NAME), Backend(context).hear)
    wire = b"".join(
        fact.data
        for fact in facts
        if isinstance(fact, Data) and (fact.sender, fact.layer) == (Party.SERVER, Layer.TCP)
    )
    told = {
        fact.data[0]: body_of(fact.data, fact.data[0])
        for fact in facts
        if isinstance(fact, Data) and fact.layer is Layer.HANDSHAKE and len(fact.data) > 2
    }
    return messages_in(wire.removeprefix(b"S")), told


def messages_in(wire: bytes) -> dict[int, bytes]:
    """The handshake messages up to the first record of another type; the first of each type."""
    stream, found = b"", dict[int, bytes]()
    while (decoded := decode_record(wire)) and decoded[0].type == HANDSHAKE:
        stream += decoded[0].fragment
        wire = wire[decoded[1] :]
    while message := decode_handshake(stream):
        (kind, body), length = message
        found.setdefault(kind, body)
        stream = stream[length:]
    return found


def digest_of(body: bytes) -> str:
    """SHA-256 of a ClientHello with its header: type 1, length in three bytes."""
    return hashlib.sha256(bytes([1]) + len(body).to_bytes(3, "big") + body).hexdigest()


# --- ClientHello --------------------------------------------------------------------------------


def test_a_client_hello_made_by_hand_is_read() -> None:
    digest = digest_of(CLIENT_HELLO_BODY)
    assert parse_client_hello(CLIENT_HELLO_BODY) == PARSED._replace(sha256=digest)


def test_a_client_hello_without_extensions_asks_for_nothing() -> None:
    assert parse_client_hello(BARE_CLIENT_HELLO) == ClientHello(
        random=RANDOM,
        server_name=None,
        alpn=(),
        versions=(0x0301,),
        groups=(),
        key_shares=(),
        ciphers=1,
        size=len(BARE_CLIENT_HELLO) + 4,
        sha256=digest_of(BARE_CLIENT_HELLO),
    )


def test_a_client_hello_of_openssl_asks_for_what_the_attempt_says() -> None:
    read = client_hello(Attempt("x", server_name=NAME))
    assert read.server_name == NAME
    assert read.alpn == ("postgresql",)
    assert {0x0304, 0x0303} == set(read.versions)
    assert read.key_shares
    assert set(read.key_shares) <= set(read.groups)
    assert read.ciphers > 5
    assert read.size == len(hello(Attempt("x", server_name=NAME))) - 5


@pytest.mark.parametrize(
    ("attempt", "field", "value"),
    [
        (Attempt("x"), "server_name", None),
        (Attempt("x", server_name="dB-1.ExAmPlE.CoM"), "server_name", "dB-1.ExAmPlE.CoM"),
        (Attempt("x", alpn=False), "alpn", ()),
        (Attempt("x", versions=TlsVersions.ONLY_1_2), "versions", (0x0303,)),
        (Attempt("x", versions=TlsVersions.OBSOLETE), "versions", (0x0302,)),
    ],
)
def test_a_knob_of_an_attempt_shows_in_its_client_hello(
    attempt: Attempt, field: str, value: object
) -> None:
    assert getattr(client_hello(attempt), field) == value


def test_a_large_client_hello_is_between_one_frame_and_two() -> None:
    read = client_hello(Attempt("x", server_name=NAME, shape=HelloShape.LARGE))
    assert 1_800 <= read.size <= 2_700
    assert read.alpn[0] == "postgresql"


@pytest.mark.parametrize("name", [NAME, "a.example", "x" * 63 + ".example.com"])
def test_the_middle_of_the_server_name_lies_inside_it(name: str) -> None:
    message = hello(Attempt("x", server_name=name))
    at = server_name_middle(message, name)
    start = message.index(name.encode())
    assert start < at < start + len(name)


@pytest.mark.parametrize("name", ["", "not-in-there.example"])
def test_without_the_name_it_is_the_middle_of_the_message(name: str) -> None:
    assert server_name_middle(CLIENT_HELLO_BODY, name) == len(CLIENT_HELLO_BODY) // 2


def test_a_server_name_of_another_kind_is_none() -> None:
    other = CLIENT_HELLO_BODY.replace(
        bytes.fromhex("000f 000d 00 000a"), bytes.fromhex("000f 000d 07 000a")
    )
    assert parse_client_hello(other).server_name is None


# --- ServerHello --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "parsed"),
    [
        (SERVER_HELLO_13, ServerHello(0x0304, 0x1302, None, False)),
        (SERVER_HELLO_12, ServerHello(0x0303, 0xC02F, "postgresql", False)),
        (SERVER_HELLO_12[:38], ServerHello(0x0303, 0xC02F, None, False)),  # no extensions
        (RETRY, ServerHello(0x0304, 0x1301, None, True)),
    ],
)
def test_a_server_hello_made_by_hand_is_read(body: bytes, parsed: ServerHello) -> None:
    assert parse_server_hello(body) == parsed._replace(random=body[2:34])


def test_a_server_hello_tells_whether_the_mac_covers_what_was_encrypted() -> None:
    agreed = SERVER_HELLO_12[:38] + bytes.fromhex("0004 0016 0000")
    assert parse_server_hello(agreed).encrypt_then_mac
    assert not parse_server_hello(SERVER_HELLO_12).encrypt_then_mac


@pytest.mark.parametrize(
    ("context", "version", "alpn", "retry"),
    [
        (server_context, 0x0304, None, False),  # 1.3 says it in EncryptedExtensions
        (only_tls12, 0x0303, "postgresql", False),
        (asks_for_retry, 0x0304, None, True),
    ],
)
def test_a_server_hello_of_openssl_is_read(
    context: Callable[[], ssl.SSLContext], version: int, alpn: str | None, retry: bool
) -> None:
    clear, _ = said_by(context())
    read = parse_server_hello(clear[SERVER_HELLO])
    assert (read.version, read.alpn, read.retry) == (version, alpn, retry)


@pytest.mark.parametrize(
    ("body", "alpn"),
    [
        ("0000", None),
        ("0011 0010 000d 000b 0a 706f737467726573716c", "postgresql"),
        ("0004 0000 0000", None),  # the name was known
    ],
)
def test_encrypted_extensions_select_a_protocol_or_none(body: str, alpn: str | None) -> None:
    assert parse_encrypted_extensions(bytes.fromhex(body)) == alpn


@pytest.mark.parametrize("alpn", ["postgresql", None])
def test_encrypted_extensions_of_openssl_are_read(alpn: str | None) -> None:
    _, told = said_by(server_context(alpn=alpn))
    assert parse_encrypted_extensions(told[ENCRYPTED_EXTENSIONS]) == alpn


# --- Certificate --------------------------------------------------------------------------------


def test_a_certificate_message_made_by_hand_is_read() -> None:
    assert parse_certificate(CERTIFICATE_12, tls13=False) == AUTHORITIES
    assert parse_certificate(CERTIFICATE_13, tls13=True) == AUTHORITIES


def test_a_chain_is_bounded() -> None:
    many = b"\0\0\1x" * 100
    body = len(many).to_bytes(3, "big") + many
    assert parse_certificate(body, tls13=False) == (b"x",) * MAX_CHAIN


def test_a_chain_of_openssl_is_the_one_that_the_server_was_given() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued = authority().issue_cert(NAME)
    issued.configure_cert(context)
    leaf = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
    _, told = said_by(context)
    assert parse_certificate(told[CERTIFICATE], tls13=True) == (leaf,)
    clear, _ = said_by(context, Attempt("x", versions=TlsVersions.ONLY_1_2))
    assert parse_certificate(clear[CERTIFICATE], tls13=False) == (leaf,)


@pytest.mark.parametrize(
    ("body", "tls13", "names"),
    [
        (REQUEST_12, False, AUTHORITIES),
        (bytes.fromhex("01 40 0002 0403 0000"), False, ()),
        (REQUEST_13, True, AUTHORITIES),
        (bytes.fromhex("00 0008 000d 0004 0002 0403"), True, ()),
        (bytes.fromhex("02 beef 0000"), True, ()),
    ],
)
def test_a_certificate_request_names_authorities_or_none(
    body: bytes, tls13: bool, names: tuple[bytes, ...]
) -> None:
    assert parse_certificate_request(body, tls13=tls13) == names


def test_a_certificate_request_of_python_names_nobody() -> None:
    _, told = said_by(asks_for_certificate())
    assert parse_certificate_request(told[CERTIFICATE_REQUEST], tls13=True) == ()
    clear, _ = said_by(asks_for_certificate(), Attempt("x", versions=TlsVersions.ONLY_1_2))
    assert parse_certificate_request(clear[CERTIFICATE_REQUEST], tls13=False) == ()


# --- truncated, and anything --------------------------------------------------------------------

Parser = Callable[[bytes], object]


def certificate_12(body: bytes) -> object:
    return parse_certificate(body, tls13=False)


def certificate_13(body: bytes) -> object:
    return parse_certificate(body, tls13=True)


def request_12(body: bytes) -> object:
    return parse_certificate_request(body, tls13=False)


def request_13(body: bytes) -> object:
    return parse_certificate_request(body, tls13=True)


PARSERS: list[tuple[Parser, bytes, int]] = [  # and where it may end early
    (parse_client_hello, CLIENT_HELLO_BODY, CLIENT_HELLO_BODY.index(b"\0\x50")),
    (parse_server_hello, SERVER_HELLO_13, SERVER_HELLO_13.index(b"\0\x10")),
    (parse_server_hello, SERVER_HELLO_12, 38),
    (parse_server_hello, RETRY, 38),
    (parse_encrypted_extensions, SERVER_HELLO_12[38:], 0),
    (certificate_12, CERTIFICATE_12, -1),
    (certificate_13, CERTIFICATE_13, -1),
    (request_12, REQUEST_12, -1),
    (request_13, REQUEST_13, 1),
]


@pytest.mark.parametrize(("parse", "body", "whole"), PARSERS)
def test_every_truncation_of_a_body_is_malformed(parse: Parser, body: bytes, whole: int) -> None:
    for n in range(len(body)):
        if n != whole:
            with pytest.raises(Malformed):
                parse(body[:n])


@pytest.mark.parametrize(("parse", "body", "whole"), PARSERS)
@given(at=st.integers(0, 200), junk=st.binary(min_size=1, max_size=4))
def test_a_body_with_any_bytes_overwritten_is_read_or_malformed(
    parse: Parser, body: bytes, whole: int, at: int, junk: bytes
) -> None:
    at %= len(body)
    with suppress(Malformed):
        parse(body[:at] + junk + body[at + len(junk) :])


@pytest.mark.parametrize("parse", [row[0] for row in PARSERS])
@given(body=st.binary(max_size=300))
def test_any_body_is_read_or_malformed(parse: Parser, body: bytes) -> None:
    with suppress(Malformed):
        parse(body)


NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,9}){1,3}", fullmatch=True)


@settings(deadline=None)
@given(NAMES, st.sampled_from(list(HelloShape)), st.booleans())
def test_any_name_reads_back_from_the_client_hello_of_openssl(
    name: str, shape: HelloShape, alpn: bool
) -> None:
    read = client_hello(Attempt("x", server_name=name, shape=shape, alpn=alpn))
    assert (read.server_name, bool(read.alpn)) == (name, alpn)
