"""How TLS protects its records, and the keys of a session from its secrets.

Takes a cipher suite's number and the secrets of a key log; gives a :class:`Protection` for one
direction, which opens its records one after another. No key leaves this module, and none is
made up: without the secret there is nothing to open.

Source: RFC 8446 sections 5.2, 5.3, 7.1 and 7.3 (TLS 1.3); RFC 5246 sections 5, 6.2.3 and 6.3
(TLS 1.2), RFC 4346 and RFC 2246 (1.1, 1.0); RFC 5288 (GCM), RFC 6655 (CCM), RFC 7905
(ChaCha20-Poly1305), RFC 7366 (encrypt-then-MAC). The names of the suites are OpenSSL's.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
from typing import NamedTuple, Protocol

from probe.wire.records import Record

TLS_1_0, TLS_1_2, TLS_1_3 = 0x0301, 0x0303, 0x0304

SUITES = {
    0x002F: "AES128-SHA",
    0x0033: "DHE-RSA-AES128-SHA",
    0x0034: "ADH-AES128-SHA",
    0x0035: "AES256-SHA",
    0x0039: "DHE-RSA-AES256-SHA",
    0x003A: "ADH-AES256-SHA",
    0x003C: "AES128-SHA256",
    0x003D: "AES256-SHA256",
    0x0067: "DHE-RSA-AES128-SHA256",
    0x006B: "DHE-RSA-AES256-SHA256",
    0x009C: "AES128-GCM-SHA256",
    0x009D: "AES256-GCM-SHA384",
    0x009E: "DHE-RSA-AES128-GCM-SHA256",
    0x009F: "DHE-RSA-AES256-GCM-SHA384",
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
    0x1304: "TLS_AES_128_CCM_SHA256",
    0x1305: "TLS_AES_128_CCM_8_SHA256",
    0xC009: "ECDHE-ECDSA-AES128-SHA",
    0xC00A: "ECDHE-ECDSA-AES256-SHA",
    0xC013: "ECDHE-RSA-AES128-SHA",
    0xC014: "ECDHE-RSA-AES256-SHA",
    0xC018: "AECDH-AES128-SHA",
    0xC019: "AECDH-AES256-SHA",
    0xC023: "ECDHE-ECDSA-AES128-SHA256",
    0xC024: "ECDHE-ECDSA-AES256-SHA384",
    0xC027: "ECDHE-RSA-AES128-SHA256",
    0xC028: "ECDHE-RSA-AES256-SHA384",
    0xC02B: "ECDHE-ECDSA-AES128-GCM-SHA256",
    0xC02C: "ECDHE-ECDSA-AES256-GCM-SHA384",
    0xC02F: "ECDHE-RSA-AES128-GCM-SHA256",
    0xC030: "ECDHE-RSA-AES256-GCM-SHA384",
    0xC09C: "AES128-CCM",
    0xC09D: "AES256-CCM",
    0xC09E: "DHE-RSA-AES128-CCM",
    0xC09F: "DHE-RSA-AES256-CCM",
    0xC0A0: "AES128-CCM8",
    0xC0A1: "AES256-CCM8",
    0xC0A2: "DHE-RSA-AES128-CCM8",
    0xC0A3: "DHE-RSA-AES256-CCM8",
    0xC0AC: "ECDHE-ECDSA-AES128-CCM",
    0xC0AD: "ECDHE-ECDSA-AES256-CCM",
    0xC0AE: "ECDHE-ECDSA-AES128-CCM8",
    0xC0AF: "ECDHE-ECDSA-AES256-CCM8",
    0xCCA8: "ECDHE-RSA-CHACHA20-POLY1305",
    0xCCA9: "ECDHE-ECDSA-CHACHA20-POLY1305",
    0xCCAA: "DHE-RSA-CHACHA20-POLY1305",
}

_BLOCK = 16  # bytes; AES


class CannotOpenError(Exception):
    """A record does not open with these keys: another secret's, or not as it was sent."""


class Suite(NamedTuple):
    """A cipher suite.

    ``mode`` is gcm, ccm, ccm8, chacha20 or cbc; ``key`` the key's size in bytes; ``hash`` that of
    the key schedule; ``mac`` that of the MAC, where the mode has one.
    """

    name: str
    mode: str
    key: int
    hash: str
    mac: str | None


class Protection(Protocol):
    """One direction's keys and sequence number."""

    def open(self, record: Record) -> tuple[int, bytes]:
        """The content type and contents. Raises :class:`CannotOpenError`."""


def find_suite(number: int) -> Suite | None:
    """The suite with this IANA number; None: it is not known here."""
    name = SUITES.get(number)
    if name is None:
        return None
    mode = next((mode for word, mode in _MODES.items() if word in name), "cbc")
    size = re.search(r"AES_?(128|256)", name)
    last = re.split("[-_]", name)[-1]
    return Suite(
        name=name,
        mode=mode,
        key=int(size[1]) // 8 if size else 32,
        hash="sha384" if last == "SHA384" else "sha256",
        mac=_MACS[last] if mode == "cbc" else None,
    )


_MODES = {"CHACHA20": "chacha20", "GCM": "gcm", "CCM8": "ccm8", "CCM_8": "ccm8", "CCM": "ccm"}
_MACS = {"SHA": "sha1", "SHA256": "sha256", "SHA384": "sha384"}


# -- TLS 1.3 ---------------------------------------------------------------------------------


def expand_label(secret: bytes, label: str, size: int, hash_name: str) -> bytes:
    """HKDF-Expand-Label of RFC 8446 section 7.1, with an empty context.

    One block of the hash is enough for every key there is; ``size`` may not be more.
    """
    assert size <= hashlib.new(hash_name).digest_size
    full = b"tls13 " + label.encode()
    info = struct.pack("!HB", size, len(full)) + full + b"\0"
    return hmac.digest(secret, info + b"\x01", hash_name)[:size]


class Tls13Protection:
    """The keys of one traffic secret, and of those that follow on it by KeyUpdate."""

    def __init__(self, suite: Suite, secret: bytes) -> None:
        self._suite, self._secret = suite, secret
        self._install()

    def _install(self) -> None:
        suite = self._suite
        self._key = _aead(suite.mode, expand_label(self._secret, "key", suite.key, suite.hash))
        self._iv = expand_label(self._secret, "iv", _NONCE, suite.hash)
        self._sequence = 0

    def update(self) -> None:
        """The sender said KeyUpdate: its next record has the next keys."""
        size = hashlib.new(self._suite.hash).digest_size
        self._secret = expand_label(self._secret, "traffic upd", size, self._suite.hash)
        self._install()

    def open(self, record: Record) -> tuple[int, bytes]:
        """The inner content type and contents, without padding."""
        header = struct.pack("!BHH", record.type, record.version, len(record.fragment))
        nonce = _masked(self._iv, self._sequence)
        inner = _decrypt(self._key, nonce, record.fragment, header).rstrip(b"\0")
        self._sequence += 1
        if not inner:
            raise CannotOpenError("it holds nothing but padding")
        return inner[-1], inner[:-1]


# -- TLS 1.2 and older -------------------------------------------------------------------------


def protections(
    suite: Suite,
    version: int,
    master: bytes,
    client_random: bytes,
    server_random: bytes,
    *,
    encrypt_then_mac: bool,
) -> tuple[Protection, Protection]:
    """The client's and the server's, from the master secret."""
    mac = hashlib.new(suite.mac).digest_size if suite.mac else 0
    sizes = [mac, mac, suite.key, suite.key, *[_iv_size(suite)] * 2]
    hash_name = suite.hash if version >= TLS_1_2 else None
    block = prf(master, b"key expansion", server_random + client_random, sum(sizes), hash_name)
    cuts = [block[sum(sizes[:n]) : sum(sizes[: n + 1])] for n in range(len(sizes))]

    def make(mac_key: bytes, key: bytes, iv: bytes) -> Protection:
        if suite.mac is None:
            return _AeadProtection(suite, key, iv)
        return _CbcProtection(version, suite.mac, mac_key, key, iv, encrypt_then_mac)

    return make(*cuts[0::2]), make(*cuts[1::2])


def prf(secret: bytes, label: bytes, seed: bytes, size: int, hash_name: str | None) -> bytes:
    """The pseudorandom function: of TLS 1.2 with this hash, or of TLS 1.0 and 1.1 with None."""
    if hash_name is not None:
        return _p_hash(secret, label + seed, size, hash_name)
    half = (len(secret) + 1) // 2
    md5 = _p_hash(secret[:half], label + seed, size, "md5")
    return _xor(md5, _p_hash(secret[-half:], label + seed, size, "sha1"))


def _p_hash(secret: bytes, seed: bytes, size: int, hash_name: str) -> bytes:
    given, link = b"", seed
    while len(given) < size:
        link = hmac.digest(secret, link, hash_name)
        given += hmac.digest(secret, link + seed, hash_name)
    return given[:size]


def _iv_size(suite: Suite) -> int:
    return {"cbc": _BLOCK, "chacha20": _NONCE}.get(suite.mode, _SALT)


class _AeadProtection:
    def __init__(self, suite: Suite, key: bytes, iv: bytes) -> None:
        self._key, self._iv = _aead(suite.mode, key), iv
        self._explicit = _EXPLICIT if suite.mode != "chacha20" else 0
        self._tag = 8 if suite.mode == "ccm8" else 16
        self._sequence = 0

    def open(self, record: Record) -> tuple[int, bytes]:
        explicit, sealed = record.fragment[: self._explicit], record.fragment[self._explicit :]
        if len(sealed) < self._tag:
            raise CannotOpenError("it is too short")
        nonce = self._iv + explicit if self._explicit else _masked(self._iv, self._sequence)
        size = len(sealed) - self._tag
        said = struct.pack("!QBHH", self._sequence, record.type, record.version, size)
        plain = _decrypt(self._key, nonce, sealed, said)
        self._sequence += 1
        return record.type, plain


class _CbcProtection:
    """AES-CBC with HMAC. What an attacker could learn from its timing, we know anyway."""

    def __init__(
        self, version: int, hash_name: str, mac_key: bytes, key: bytes, iv: bytes, etm: bool
    ) -> None:
        self._hash, self._mac_key, self._key, self._etm = hash_name, mac_key, key, etm
        self._chained = iv if version == TLS_1_0 else None  # from record to record
        self._mac_size = hashlib.new(hash_name).digest_size
        self._sequence = 0

    def open(self, record: Record) -> tuple[int, bytes]:
        sealed, mac = record.fragment, b""
        if self._etm:
            sealed, mac = sealed[: -self._mac_size], sealed[-self._mac_size :]
            self._check(record, sealed, mac)
        if self._chained is None:
            iv, sealed = sealed[:_BLOCK], sealed[_BLOCK:]
        else:
            iv = self._chained
        if not sealed or len(sealed) % _BLOCK or len(iv) != _BLOCK:
            raise CannotOpenError("it is not a whole number of blocks")
        plain = _aes_cbc(self._key, iv, sealed)
        padding = plain[-1] + 1
        kept = len(plain) - padding
        if kept < 0 or plain[kept:] != bytes([padding - 1]) * padding:
            raise CannotOpenError("its padding is wrong")
        plain = plain[:kept]
        if not self._etm:
            if len(plain) < self._mac_size:
                raise CannotOpenError("it is too short")
            plain, mac = plain[: -self._mac_size], plain[-self._mac_size :]
            self._check(record, plain, mac)
        if self._chained is not None:
            self._chained = sealed[-_BLOCK:]
        self._sequence += 1
        return record.type, plain

    def _check(self, record: Record, covered: bytes, mac: bytes) -> None:
        said = struct.pack("!QBHH", self._sequence, record.type, record.version, len(covered))
        if not hmac.compare_digest(hmac.digest(self._mac_key, said + covered, self._hash), mac):
            raise CannotOpenError("its MAC is wrong")


# -- the algorithms --------------------------------------------------------------------------

_NONCE, _SALT, _EXPLICIT = 12, 4, 8  # bytes


class _Aead(Protocol):
    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes: ...


def _aead(mode: str, key: bytes) -> _Aead:
    # imported here: it takes longer than a whole handshake
    from cryptography.hazmat.primitives.ciphers import aead

    match mode:
        case "gcm":
            return aead.AESGCM(key)
        case "chacha20":
            return aead.ChaCha20Poly1305(key)
        case _:
            return aead.AESCCM(key, tag_length=8 if mode == "ccm8" else 16)


def _decrypt(key: _Aead, nonce: bytes, sealed: bytes, said: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        return key.decrypt(nonce, sealed, said)
    except (InvalidTag, ValueError) as problem:  # ValueError: lengths that no sender makes
        raise CannotOpenError("its tag is wrong") from problem


def _aes_cbc(key: bytes, iv: bytes, sealed: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    return decryptor.update(sealed) + decryptor.finalize()


def _masked(iv: bytes, sequence: int) -> bytes:
    return _xor(iv, sequence.to_bytes(len(iv), "big"))


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
