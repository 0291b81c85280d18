"""The handshake messages of TLS that say something about routing and identity.

Source: RFC 8446 section 4 (ClientHello, ServerHello, EncryptedExtensions, CertificateRequest,
Certificate), RFC 5246 section 7.4 for their TLS 1.2 forms, RFC 6066 section 3 (server_name),
RFC 7301 (ALPN).
"""

import hashlib
import struct
from functools import lru_cache
from typing import NamedTuple

from probe.wire import Malformed

CLIENT_HELLO, SERVER_HELLO, NEW_SESSION_TICKET, ENCRYPTED_EXTENSIONS = 1, 2, 4, 8
CERTIFICATE, CERTIFICATE_REQUEST, FINISHED = 11, 13, 20

_SERVER_NAME, _GROUPS, _ALPN, _VERSIONS, _AUTHORITIES, _KEY_SHARE = 0, 10, 16, 43, 47, 51
_ENCRYPT_THEN_MAC = 22  # RFC 7366

# ServerHello.random of a HelloRetryRequest: SHA-256 of "HelloRetryRequest" (RFC 8446, 4.1.3).
RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")

MAX_CHAIN = 16  # certificates

TOO_SHORT = "a handshake message shorter than its lengths say"


# Of extensions that clients say alike, over and over.
_same = lru_cache(maxsize=32)

_extension = struct.Struct("!HH").unpack_from


class ClientHello(NamedTuple):
    """What the client asks for.

    ``size`` is the message in bytes, its header included; ``sha256`` is the digest of the same
    bytes, in hexadecimal: two that are equal are one ClientHello.
    """

    random: bytes
    server_name: str | None
    alpn: tuple[str, ...]
    versions: tuple[int, ...]
    groups: tuple[int, ...]
    key_shares: tuple[int, ...]
    ciphers: int
    size: int
    sha256: str = ""


class ServerHello(NamedTuple):
    """What the server chose; ``retry`` marks a HelloRetryRequest, which chose nothing yet."""

    version: int
    cipher: int
    alpn: str | None
    retry: bool
    random: bytes = b""
    encrypt_then_mac: bool = False


class _Cursor:
    """Bounded reading: whatever lies past the end is Malformed."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise Malformed(TOO_SHORT)
        self.at, start = end, self.at
        return self.data[start:end]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        start = self.at + size  # in one go: a hello has some thirty of them
        end = start + int.from_bytes(self.data[self.at : start], "big")
        if end > len(self.data):
            raise Malformed(TOO_SHORT)
        self.at = end
        return self.data[start:end]

    @property
    def left(self) -> int:
        return len(self.data) - self.at


def parse_client_hello(body: bytes) -> ClientHello:
    """A ClientHello's body (without the 4-byte header). Raises :class:`Malformed`."""
    cursor = _Cursor(body)
    legacy, random = cursor.number(2), cursor.take(32)
    cursor.vector(1)
    ciphers = cursor.vector(2)
    cursor.vector(1)
    extensions = _extensions(cursor)
    name = extensions.get(_SERVER_NAME)
    return ClientHello(
        random=random,
        server_name=_server_name(name) if name is not None else None,
        alpn=_protocols(extensions.get(_ALPN)),
        versions=_words(extensions.get(_VERSIONS), 1) or (legacy,),
        groups=_words(extensions.get(_GROUPS), 2),
        key_shares=_key_shares(extensions.get(_KEY_SHARE)),
        ciphers=len(ciphers) // 2,
        size=len(body) + 4,
        sha256=hashlib.sha256(
            bytes([CLIENT_HELLO]) + len(body).to_bytes(3, "big") + body
        ).hexdigest(),
    )


def parse_server_hello(body: bytes) -> ServerHello:
    """A ServerHello's or HelloRetryRequest's body. Raises :class:`Malformed`."""
    cursor = _Cursor(body)
    version = cursor.number(2)
    random = cursor.take(32)
    cursor.vector(1)
    cipher = cursor.number(2)
    cursor.take(1)
    extensions = _extensions(cursor)
    chosen = extensions.get(_VERSIONS, b"")
    protocols = _protocols(extensions.get(_ALPN))
    return ServerHello(
        version=int.from_bytes(chosen, "big") if len(chosen) == 2 else version,
        cipher=cipher,
        alpn=protocols[0] if protocols else None,
        retry=random == RETRY_RANDOM,
        random=random,
        encrypt_then_mac=_ENCRYPT_THEN_MAC in extensions,
    )


def nonces(body: bytes, *, of_client: bool) -> list[tuple[int, int]]:
    """Where in a ClientHello's or ServerHello's body bytes stand that are made up each time.

    The random, the session id, and the values of the key shares; in order, as begins and ends.
    Nothing that is parsed here depends on them, but that a HelloRetryRequest has a random of its
    own. Raises :class:`Malformed`.
    """
    cursor = _Cursor(body)
    cursor.take(34)
    found = [(2, 34), (35, 35 + len(cursor.vector(1)))]
    if of_client:
        cursor.vector(2)
        cursor.vector(1)
    else:
        cursor.take(3)
    at = cursor.at + 2
    ends = at + len(cursor.vector(2)) if cursor.left else 0
    while at + 4 <= ends:
        kind, length = _extension(body, at)
        share, at = at + 4 + 2 * of_client, at + 4 + length  # a client has a list of them
        if at > ends:
            raise Malformed(TOO_SHORT)
        while kind == _KEY_SHARE and share + 4 <= at:
            _, length = _extension(body, share)  # laid out as an extension is
            share, begins = share + 4 + length, share + 4
            if share > at:
                raise Malformed(TOO_SHORT)
            found.append((begins, share))
    return found


def parse_encrypted_extensions(body: bytes) -> str | None:
    """The protocol that EncryptedExtensions selects, or None. Raises :class:`Malformed`."""
    protocols = _protocols(_extensions(_Cursor(body)).get(_ALPN))
    return protocols[0] if protocols else None


def parse_certificate(body: bytes, *, tls13: bool) -> tuple[bytes, ...]:
    """The DER certificates of a Certificate message, leaf first. Raises :class:`Malformed`."""
    cursor = _Cursor(body)
    if tls13:
        cursor.vector(1)
    entries = _Cursor(cursor.vector(3))
    chain: list[bytes] = []
    while entries.left and len(chain) < MAX_CHAIN:
        chain.append(entries.vector(3))
        if tls13:
            entries.vector(2)
    return tuple(chain)


def parse_certificate_request(body: bytes, *, tls13: bool) -> tuple[bytes, ...]:
    """The DER names of the authorities that a CertificateRequest accepts; often none.

    Raises :class:`Malformed`.
    """
    cursor = _Cursor(body)
    if tls13:
        cursor.vector(1)
        listed = _extensions(cursor).get(_AUTHORITIES)
        names = _Cursor(_Cursor(listed).vector(2)) if listed else _Cursor(b"")
    else:
        cursor.vector(1)
        cursor.vector(2)
        names = _Cursor(cursor.vector(2))
    found: list[bytes] = []
    while names.left:
        found.append(names.vector(2))
    return tuple(found)


def server_name_middle(message: bytes, name: str) -> int:
    """An offset in a ClientHello's bytes that lies inside its server_name, else its middle."""
    entry = struct.pack("!BH", 0, len(name)) + name.encode("ascii")  # host_name, as RFC 6066 has it
    start = message.find(entry) if name else -1
    return start + 3 + len(name) // 2 if start >= 0 else len(message) // 2


def _extensions(cursor: _Cursor) -> dict[int, bytes]:
    """By their types; empty where TLS 1.2 and older leave the whole block out."""
    block = cursor.vector(2) if cursor.left else b""
    found, at, size = {}, 0, len(block)
    while at + 4 <= size:
        kind, length = _extension(block, at)
        begins, at = at + 4, at + 4 + length
        found[kind] = block[begins:at]
    if at != size:
        raise Malformed(TOO_SHORT)
    return found


@_same
def _server_name(extension: bytes) -> str | None:
    names = _Cursor(_Cursor(extension).vector(2)) if extension else _Cursor(b"")
    while names.left:
        kind, name = names.number(1), names.vector(2)
        if kind == 0:
            return name.decode("ascii", "backslashreplace")
    return None


@_same
def _protocols(extension: bytes | None) -> tuple[str, ...]:
    if not extension:
        return ()
    listed = _Cursor(_Cursor(extension).vector(2))
    found: list[str] = []
    while listed.left:
        found.append(listed.vector(1).decode("ascii", "backslashreplace"))
    return tuple(found)


@_same
def _words(extension: bytes | None, size: int) -> tuple[int, ...]:
    if not extension:
        return ()
    words = _Cursor(extension).vector(size)
    return struct.unpack(f"!{len(words) // 2}H", words[: len(words) // 2 * 2])


def _key_shares(extension: bytes | None) -> tuple[int, ...]:
    if not extension:
        return ()
    shares = _Cursor(_Cursor(extension).vector(2))
    found: list[int] = []
    while shares.left:
        found.append(shares.number(2))
        shares.vector(2)
    return tuple(found)
