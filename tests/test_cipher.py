"""Key schedules and record protection, against RFC 8448's numbers and an independent sealer."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from probe.cipher import (
    SUITES,
    CannotOpenError,
    Tls13Protection,
    expand_label,
    find_suite,
    prf,
)
from probe.wire.records import Record

# RFC 8448 section 3, "Simple 1-RTT Handshake": the server's handshake traffic secret and keys.
SERVER_SECRET = bytes.fromhex("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38")
SERVER_KEY = bytes.fromhex("3fce516009c21727d0f2e4e86ee403bc")
SERVER_IV = bytes.fromhex("5d313eb2671276ee13000b30")


def test_the_key_schedule_gives_the_keys_of_rfc_8448() -> None:
    assert expand_label(SERVER_SECRET, "key", 16, "sha256") == SERVER_KEY
    assert expand_label(SERVER_SECRET, "iv", 12, "sha256") == SERVER_IV


def test_the_pseudorandom_function_gives_the_known_answer() -> None:
    """P_SHA256 test vector, as published to the IETF TLS working group."""
    secret = bytes.fromhex("9bbe436ba940f017b17652849a71db35")
    seed = bytes.fromhex("a0ba9f936cda311827a6f796ffd5198c")
    expected = bytes.fromhex(
        "e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a"
        "6b301791e90d35c9c9a46b4e14baf9af0fa022f7077def17abfd3797c0564bab"
        "4fbc91666e9def9b97fce34f796789baa48082d122ee42c5a72e5a5110fff701"
        "87347b66"
    )
    assert prf(secret, b"test label", seed, 100, "sha256") == expected


# --- TLS 1.3 --------------------------------------------------------------------------------


def hkdf_label(secret: bytes, label: bytes, size: int, algorithm: hashes.HashAlgorithm) -> bytes:
    info = struct.pack("!H", size) + bytes([6 + len(label)]) + b"tls13 " + label + b"\0"
    return HKDFExpand(algorithm, size, info).derive(secret)


AEADS: dict[int, tuple[int, Callable[[bytes], AESGCM | AESCCM | ChaCha20Poly1305]]] = {
    0x1301: (16, AESGCM),
    0x1302: (32, AESGCM),
    0x1303: (32, ChaCha20Poly1305),
    0x1304: (16, AESCCM),
    0x1305: (16, lambda key: AESCCM(key, tag_length=8)),
}


def seal13(number: int, secret: bytes, sequence: int, inner: bytes) -> Record:
    """A record of TLS 1.3, by RFC 8446 section 5.2."""
    size, make = AEADS[number]
    algorithm = hashes.SHA384() if number == 0x1302 else hashes.SHA256()
    aead = make(hkdf_label(secret, b"key", size, algorithm))
    iv = int.from_bytes(hkdf_label(secret, b"iv", 12, algorithm), "big")
    tag = 8 if number == 0x1305 else 16
    header = struct.pack("!BHH", 23, 0x0303, len(inner) + tag)
    sealed = aead.encrypt((iv ^ sequence).to_bytes(12, "big"), inner, header)
    return Record(23, 0x0303, sealed)


def protection(number: int, secret: bytes) -> Tls13Protection:
    suite = find_suite(number)
    assert suite is not None
    return Tls13Protection(suite, secret)


@pytest.mark.parametrize("number", AEADS)
@given(messages=st.lists(st.binary(min_size=1, max_size=50), max_size=4), padding=st.integers(0, 9))
def test_records_of_tls_1_3_open_one_after_another(
    number: int, messages: list[bytes], padding: int
) -> None:
    secret = bytes(range(48 if number == 0x1302 else 32))
    opener = protection(number, secret)
    for n, data in enumerate(messages):
        record = seal13(number, secret, n, data + b"\x17" + bytes(padding))
        assert opener.open(record) == (23, data)


@pytest.mark.parametrize("number", AEADS)
def test_a_key_update_leads_to_the_next_keys(number: int) -> None:
    size = 48 if number == 0x1302 else 32
    algorithm = hashes.SHA384() if number == 0x1302 else hashes.SHA256()
    secret = bytes(range(size))
    following = hkdf_label(secret, b"traffic upd", size, algorithm)
    opener = protection(number, secret)
    assert opener.open(seal13(number, secret, 0, b"a\x17")) == (23, b"a")
    opener.update()
    assert opener.open(seal13(number, following, 0, b"b\x17")) == (23, b"b")
    with pytest.raises(CannotOpenError):
        opener.open(seal13(number, secret, 1, b"c\x17"))


@pytest.mark.parametrize("number", AEADS)
@pytest.mark.parametrize("fragment", [b"", b"x", bytes(16), bytes(17), bytes(100)])
def test_a_record_that_was_not_sealed_does_not_open(number: int, fragment: bytes) -> None:
    opener = protection(number, bytes(48 if number == 0x1302 else 32))
    with pytest.raises(CannotOpenError):
        opener.open(Record(23, 0x0303, fragment))


def test_nothing_but_padding_does_not_open() -> None:
    with pytest.raises(CannotOpenError):
        protection(0x1301, bytes(32)).open(seal13(0x1301, bytes(32), 0, bytes(5)))


def test_every_suite_has_a_size_and_a_mode_that_its_name_says() -> None:
    for number, name in SUITES.items():
        suite = find_suite(number)
        assert suite is not None
        assert suite.key == (16 if "128" in name.replace("SHA128", "") else 32)
        assert (suite.mac is None) == any(word in name for word in ("GCM", "CCM", "CHACHA20"))
    assert find_suite(0x0005) is None  # RC4
