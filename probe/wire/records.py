"""TLS records and alerts, and handshake messages across records.

Source: RFC 8446 sections 5.1 (records), 4 (handshake messages) and 6 (alerts); the alert
numbers of the IANA registry "TLS Alerts".
"""

import struct
from typing import NamedTuple

from probe.wire import Malformed

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23

HEADER = 5  # bytes: content type, version, length
MAX_FRAGMENT = 16_384 + 2_048  # bytes; the most that TLS 1.2 lets a protected record carry
MAX_HANDSHAKE_MESSAGE = 131_072  # bytes; more than any chain of certificates seen in the field

ALERTS = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    22: "record_overflow",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    109: "missing_extension",
    110: "unsupported_extension",
    112: "unrecognized_name",
    113: "bad_certificate_status_response",
    115: "unknown_psk_identity",
    116: "certificate_required",
    120: "no_application_protocol",
}

VERSIONS = {0x0300: "SSL 3.0", 0x0301: "1.0", 0x0302: "1.1", 0x0303: "1.2", 0x0304: "1.3"}

_DRAFT = 0x7F00  # of TLS 1.3 (RFC 8446 drafts, section 4.2.1.1): the low byte is its number


def version_name(number: int) -> str:
    """The version of TLS for people: "1.3", "1.3d28" for a draft, else the number."""
    if number & 0xFF00 == _DRAFT:
        return f"1.3d{number & 0xFF}"
    return VERSIONS.get(number, f"0x{number:04x}")


class Record(NamedTuple):
    """One TLS record: content type, legacy version, fragment."""

    type: int
    version: int
    fragment: bytes


class Alert(NamedTuple):
    """A TLS alert: level (1 warning, 2 fatal) and description."""

    level: int
    description: int

    @property
    def name(self) -> str:
        """The registered name, or the number."""
        return ALERTS.get(self.description, f"alert {self.description}")

    def __str__(self) -> str:
        return f"alert {self.description} {ALERTS.get(self.description, '')}".rstrip()


NO_APPLICATION_PROTOCOL = 120
HANDSHAKE_FAILURE, BAD_CERTIFICATE, CERTIFICATE_REQUIRED = 40, 42, 116
UNRECOGNIZED_NAME = 112
CLOSE_NOTIFY = 0


def record_length(buffer: bytes) -> int | None:
    """The length of the record that the buffer begins with, in bytes; None: more is needed.

    Raises :class:`Malformed` when the first bytes are not those of a TLS record.
    """
    if buffer and not CHANGE_CIPHER_SPEC <= buffer[0] <= APPLICATION_DATA:
        raise Malformed(f"a record of type 0x{buffer[0]:02x}")
    if len(buffer) > 1 and buffer[1] != 3:
        raise Malformed(f"a record of version 0x{buffer[1]:02x}…")
    if len(buffer) < HEADER:
        return None
    length = buffer[3] << 8 | buffer[4]
    if length > MAX_FRAGMENT:
        raise Malformed(f"a record of {length} bytes")
    return HEADER + length if len(buffer) >= HEADER + length else None


def decode_record(buffer: bytes) -> tuple[Record, int] | None:
    """The record that the buffer begins with, and its length in bytes; None: more is needed.

    Raises :class:`Malformed` when the first bytes are not those of a TLS record.
    """
    length = record_length(buffer)
    if length is None:
        return None
    version = int.from_bytes(buffer[1:3], "big")
    return Record(buffer[0], version, bytes(buffer[HEADER:length])), length


def decode_alert(fragment: bytes) -> Alert | None:
    """The alert in a record's fragment, or None when it is protected or not an alert."""
    if len(fragment) == 2 and fragment[0] in (1, 2):
        return Alert(fragment[0], fragment[1])
    return None


def decode_handshake(buffer: bytes) -> tuple[tuple[int, bytes], int] | None:
    """A handshake message (type, body) and its length with its header; None: more is needed.

    ``buffer`` is the fragments of successive handshake records, joined. Raises
    :class:`Malformed` for a message longer than ``MAX_HANDSHAKE_MESSAGE``.
    """
    if len(buffer) < 4:
        return None
    length = int.from_bytes(buffer[1:4], "big")
    if length > MAX_HANDSHAKE_MESSAGE:
        raise Malformed(f"a handshake message of {length} bytes")
    if len(buffer) < 4 + length:
        return None
    return (buffer[0], bytes(buffer[4 : 4 + length])), 4 + length


class Carried(NamedTuple):
    """A handshake message with its header, and how many records carried it."""

    message: bytes
    records: int

    @property
    def body(self) -> bytes:
        """The message without its header."""
        return self.message[4:]


def decode_carried(buffer: bytes, kind: int) -> tuple[Carried, int] | None:
    """The handshake message of this type that the buffer's records begin with, and their length.

    None: more is needed. Raises :class:`Malformed` where they begin otherwise.
    """
    message, at, count = b"", 0, 0
    while decoded := decode_record(buffer[at:]):
        record, length = decoded
        if record.type != HANDSHAKE:
            raise Malformed(f"a record of type {record.type} instead of a handshake message")
        message, at, count = message + record.fragment, at + length, count + 1
        if message and message[0] != kind:
            raise Malformed(f"handshake message {message[0]} instead of {kind}")
        if found := decode_handshake(message):
            return Carried(message[: found[1]], count), at
    return None


def split_record(record: bytes, at: int) -> bytes:
    """One record made two: the first carries the fragment's first ``at`` bytes.

    RFC 8446 section 5.1 lets any handshake message be cut so; the handshake's own hash does
    not change.
    """
    head, fragment = record[:3], record[5:]
    parts = (fragment[:at], fragment[at:])
    return b"".join(head + struct.pack("!H", len(part)) + part for part in parts)
