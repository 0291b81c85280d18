"""PostgreSQL messages with a type byte: what a login needs, and one simple query behind it.

Source: PostgreSQL documentation, "Message Formats" (Authentication*, DataRow, ErrorResponse,
NegotiateProtocolVersion, PasswordMessage, Query, SASLInitialResponse,
Terminate), "Error and Notice Message Fields"; RFC 5802 section 7 for the SCRAM messages.
"""

import struct
from base64 import b64decode
from collections.abc import Iterable
from typing import NamedTuple

from probe.wire import Malformed, printable

MAX_MESSAGE = 65_536  # bytes; nothing that a server says before the login is longer
MAX_MECHANISMS = 32

TOO_MANY_CONNECTIONS = "53300"  # SQLSTATE

TERMINATE = b"X\0\0\0\x04"

AUTHENTICATION_METHODS = {
    0: "ok",
    2: "kerberos-v5",
    3: "cleartext-password",
    5: "md5-password",
    6: "scm-credential",
    7: "gss",
    8: "gss-continue",
    9: "sspi",
    10: "sasl",
    11: "sasl-continue",
    12: "sasl-final",
}

# Types that a server may send before ReadyForQuery, and those that a simple query adds.
_SERVER_TYPES = frozenset(b"REvNSKZ")
_QUERY_TYPES = _SERVER_TYPES | frozenset(b"TDCIA")


class Message(NamedTuple):
    """One message: its type letter and its body."""

    type: str
    body: bytes


class Authentication(NamedTuple):
    """AuthenticationX: the method's number; the mechanisms of a SASL offer; else its data."""

    code: int
    mechanisms: tuple[str, ...] = ()
    data: bytes = b""

    @property
    def method(self) -> str:
        """The method's name."""
        return AUTHENTICATION_METHODS.get(self.code, f"method {self.code}")

    @property
    def offer(self) -> str:
        """The mechanisms of a SASL offer for a sentence, safe to show."""
        return printable(", ".join(self.mechanisms), 120)

    @property
    def in_words(self) -> str:
        """The method, and what it offers, safe to show."""
        return f"{self.method}: {self.offer}" if self.mechanisms else self.method


class ErrorResponse(NamedTuple):
    """ErrorResponse: (field letter, text) in the order sent. Protocol 2 errors have only M."""

    fields: tuple[tuple[str, str], ...]

    def get(self, letter: str) -> str | None:
        """The text of a field, or None."""
        return dict(self.fields).get(letter)

    @property
    def sqlstate(self) -> str | None:
        """Field C."""
        return self.get("C")

    @property
    def message(self) -> str:
        """Field M."""
        return self.get("M") or ""

    @property
    def routine(self) -> str | None:
        """Field R: the C function that wrote the error. Measured: only real servers send it."""
        return self.get("R")

    def in_words(self, limit: int = 200) -> str:
        """SQLSTATE and message, safe to show, in so many characters."""
        return printable(f"{self.sqlstate or 'no code'}: {self.message.rstrip()}", limit)


class NegotiateProtocolVersion(NamedTuple):
    """The newest version (major, minor) that the server speaks."""

    newest: tuple[int, int]


class SaslChoice(NamedTuple):
    """A client's SASLInitialResponse: the mechanism, and the flag of its GS2 header.

    The flag (RFC 5802, section 5.1) is ``n``: the client does not bind; ``y``: it could, and the
    server did not offer it; ``p=NAME``: it binds by this kind of channel binding.
    """

    mechanism: str
    flag: str


class ScramServerFirst(NamedTuple):
    """The SCRAM server-first-message: nonce, salt, iteration count."""

    nonce: str
    salt: bytes
    iterations: int


def decode_message(buffer: bytes, *, logged_in: bool = False) -> tuple[Message, int] | None:
    """A server's message and its length in bytes, type byte included; None: more is needed.

    Raises :class:`Malformed` for a type that no server sends before the login (or, behind it, in
    answer to a simple query), or an impossible length.
    """
    if not buffer:
        return None
    if buffer[0] not in (_QUERY_TYPES if logged_in else _SERVER_TYPES):
        raise Malformed(f"a message of type 0x{buffer[0]:02x}")
    if len(buffer) < 5:
        return None
    (length,) = struct.unpack_from("!I", buffer, 1)
    if not 4 <= length <= MAX_MESSAGE:
        raise Malformed(f"a message of {length} bytes")
    if len(buffer) < length + 1:
        return None
    return Message(chr(buffer[0]), buffer[5 : length + 1]), length + 1


def decode_error(buffer: bytes) -> tuple[ErrorResponse, int] | None:
    """An ErrorResponse and its length in bytes; None: more is needed.

    A server too old or too early for protocol 3 sends ``E``, text and a zero byte with no
    length: its first letter stands where the length should be, and makes it impossible.
    Raises :class:`Malformed` when it is neither.
    """
    try:
        decoded = decode_message(buffer)
    except Malformed:
        if not buffer.startswith(b"E"):
            raise
        text, end, _ = buffer[1 : MAX_MESSAGE + 1].partition(b"\0")
        if len(buffer) > 1 and buffer[1] < 0x20:
            raise  # a length after all, and an impossible one
        if not end:
            if len(buffer) > MAX_MESSAGE:
                raise
            return None
        return ErrorResponse((("M", text.decode("utf-8", "backslashreplace")),)), len(text) + 2
    if decoded is None:
        return None
    message, length = decoded
    if message.type != "E":
        raise Malformed(f"a message of type {message.type}, not E")
    return parse_error(message.body), length


def parse_error(body: bytes) -> ErrorResponse:
    """The fields of an ErrorResponse body."""
    fields = []
    for field in body.split(b"\0"):
        if not field:
            break
        fields.append((chr(field[0]), field[1:].decode("utf-8", "backslashreplace")))
    return ErrorResponse(tuple(fields))


def error_response(fields: Iterable[tuple[str, str]]) -> bytes:
    """The bytes of an ErrorResponse with these (letter, text) fields; no text holds a NUL."""
    body = b"".join(f"{letter}{text}".encode() + b"\0" for letter, text in fields) + b"\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body


def parse_authentication(body: bytes) -> Authentication:
    """An Authentication* body. Raises :class:`Malformed` when it is too short."""
    if len(body) < 4:
        raise Malformed("an authentication request without a method")
    (code,) = struct.unpack_from("!I", body)
    if code == 10:
        names = [name for name in body[4:].split(b"\0")[:MAX_MECHANISMS] if name]
        return Authentication(code, tuple(n.decode("ascii", "backslashreplace") for n in names))
    return Authentication(code, data=body[4:])


def parse_negotiate(body: bytes) -> NegotiateProtocolVersion:
    """A NegotiateProtocolVersion body. Raises :class:`Malformed` when it is too short.

    The word is documented as a minor number, and real servers send the whole version in it:
    both read as 3.x.
    """
    if len(body) < 8:
        raise Malformed("a NegotiateProtocolVersion without a version")
    major, minor = struct.unpack_from("!HH", body)
    return NegotiateProtocolVersion((major or 3, minor))


def parse_scram_server_first(data: bytes) -> ScramServerFirst | None:
    """The server-first-message of RFC 5802, or None when it is not one."""
    try:
        parts = dict(part.split("=", 1) for part in data.decode("ascii").split(","))
        # binascii.Error is a ValueError too
        return ScramServerFirst(parts["r"], b64decode(parts["s"], validate=True), int(parts["i"]))
    except (KeyError, ValueError):
        return None


def parse_sasl_initial_response(data: bytes) -> tuple[SaslChoice, int] | None:
    """A client's SASLInitialResponse and its length in bytes; None: more is needed.

    Raises :class:`Malformed` when it is none. What identifies the user, and what proves the
    password, is not read.
    """
    if len(data) < 5:
        return None
    (length,) = struct.unpack_from("!I", data, 1)
    if data[:1] != b"p" or not 8 <= length <= MAX_MESSAGE:
        raise Malformed("no SASLInitialResponse")
    if len(data) < length + 1:
        return None
    mechanism, end, rest = data[5 : length + 1].partition(b"\0")
    flag, comma, _ = rest[4:].partition(b",")
    if not end or not comma:
        raise Malformed("no SASLInitialResponse")
    texts = (part.decode("ascii", "backslashreplace") for part in (mechanism, flag))
    return SaslChoice(*texts), length + 1


def password_message(data: bytes) -> bytes:
    """The bytes of a PasswordMessage or SASLResponse, which differ in nothing but what they say."""
    return b"p" + struct.pack("!I", len(data) + 4) + data


def query_message(text: str) -> bytes:
    """The bytes of a simple Query."""
    body = text.encode() + b"\0"
    return b"Q" + struct.pack("!I", len(body) + 4) + body


def parse_data_row(body: bytes) -> tuple[str | None, ...]:
    """The columns of a DataRow as text, NULL as None. Raises :class:`Malformed`."""
    columns: list[str | None] = []
    try:
        (count,) = struct.unpack_from("!H", body)
        at = 2
        for _ in range(count):
            (length,) = struct.unpack_from("!i", body, at)
            at += 4 + max(length, 0)
            if at > len(body):
                raise Malformed("a DataRow that ends inside a column")
            column = body[at - length : at] if length >= 0 else None
            columns.append(None if column is None else column.decode("utf-8", "backslashreplace"))
    except struct.error as error:
        raise Malformed("a DataRow that ends inside a column") from error
    return tuple(columns)


def sasl_initial_response(mechanism: str, data: bytes) -> bytes:
    """The bytes of a SASLInitialResponse."""
    body = mechanism.encode() + b"\0" + struct.pack("!I", len(data)) + data
    return b"p" + struct.pack("!I", len(body) + 4) + body
