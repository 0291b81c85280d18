"""What a PostgreSQL client may say first, and the one byte that answers it.

Source: PostgreSQL documentation, "Message Formats" (SSLRequest, GSSENCRequest, CancelRequest,
StartupMessage) and "Message Flow", sections "SSL Session Encryption" and "GSSAPI Session
Encryption". These packets have no type byte: a length, a code, and what the code says.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from probe.wire import Malformed

SSL_REQUEST_CODE = 80877103  # 1234 << 16 | 5679
GSSENC_REQUEST_CODE = 80877104  # 1234 << 16 | 5680
CANCEL_REQUEST_CODE = 80877102  # 1234 << 16 | 5678

SSL_REQUEST = struct.pack("!II", 8, SSL_REQUEST_CODE)
GSSENC_REQUEST = struct.pack("!II", 8, GSSENC_REQUEST_CODE)

MAX_STARTUP_PACKET = 10_000  # bytes; MAX_STARTUP_PACKET_LENGTH of the server
MAX_CANCEL_KEY = 256  # bytes; protocol 3.2 lets the key grow up to this

PROTOCOL_3_0 = (3, 0)
PROTOCOL_3_1002 = (3, 1002)  # a minor that no server has: the answer names the newest it knows


@dataclass(frozen=True, slots=True)
class SSLRequest:
    """May we speak TLS?"""


@dataclass(frozen=True, slots=True)
class GSSENCRequest:
    """May we speak GSSAPI encryption?"""


class CancelRequest(NamedTuple):
    """Stop what the backend ``process_id`` is doing; ``key`` shows the right to ask for it."""

    process_id: int
    key: bytes


class StartupMessage(NamedTuple):
    """Who wants in, to which database, speaking which protocol version (major, minor)."""

    version: tuple[int, int]
    parameters: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """The value of a parameter, or None."""
        return dict(self.parameters).get(name)


FirstPacket = SSLRequest | GSSENCRequest | CancelRequest | StartupMessage


def startup_message(version: tuple[int, int], parameters: dict[str, str]) -> bytes:
    """The bytes of a StartupMessage."""
    pairs = b"".join(
        name.encode() + b"\0" + value.encode() + b"\0" for name, value in parameters.items()
    )
    body = struct.pack("!HH", *version) + pairs + b"\0"
    return struct.pack("!I", len(body) + 4) + body


def cancel_request(process_id: int, key: bytes) -> bytes:
    """The bytes of a CancelRequest."""
    return struct.pack("!III", 12 + len(key), CANCEL_REQUEST_CODE, process_id) + key


def decode_first_packet(buffer: bytes) -> tuple[FirstPacket, int] | None:
    """The packet that opens a connection, and its length in bytes; None: more is needed.

    Raises :class:`Malformed` when the length or the code is one that no client sends.
    """
    if len(buffer) >= 4:
        (length,) = struct.unpack_from("!I", buffer)
        if not 8 <= length <= MAX_STARTUP_PACKET:
            raise Malformed(f"a first packet of {length} bytes")
    if len(buffer) < 8:
        return None
    length, code = struct.unpack_from("!II", buffer)
    if code in (SSL_REQUEST_CODE, GSSENC_REQUEST_CODE):
        if length != 8:
            raise Malformed(f"a request for encryption of {length} bytes, not 8")
        return (SSLRequest() if code == SSL_REQUEST_CODE else GSSENCRequest()), 8
    if code == CANCEL_REQUEST_CODE:
        if not 16 <= length <= 12 + MAX_CANCEL_KEY:
            raise Malformed(f"a CancelRequest of {length} bytes")
    elif code >> 16 not in (2, 3):
        raise Malformed(f"protocol version {code >> 16}.{code & 0xFFFF}")
    if len(buffer) < length:
        return None
    body = buffer[8:length]
    if code == CANCEL_REQUEST_CODE:
        return CancelRequest(int.from_bytes(body[:4], "big"), body[4:]), length
    return StartupMessage((code >> 16, code & 0xFFFF), _parameters(body)), length


def _parameters(body: bytes) -> tuple[tuple[str, str], ...]:
    words = [word.decode("utf-8", "backslashreplace") for word in body.split(b"\0")]
    pairs = []
    for name, value in zip(words[::2], words[1::2], strict=False):
        if not name:
            break
        pairs.append((name, value))
    return tuple(pairs)
