"""What else may answer where PostgreSQL should, and the PROXY header that some listeners want.

Source: the first bytes of each protocol as its specification gives them (RFC 9112 section 4,
RFC 4253 section 4.2, the MySQL protocol's initial handshake packet, RFC 5321 section 4.2,
RFC 3501 section 7.1.1, RFC 1939 section 3, the Redis serialisation protocol), and the PROXY
protocol specification, sections 2.1 (v1) and 2.2 (v2).
"""

import ipaddress
import re
import struct
from typing import NamedTuple

from probe.wire import Malformed, endpoint, printable

PROXY_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

# Version 2, command LOCAL, family unspecified, no addresses: "I am a health check".
PROXY_V2_LOCAL = PROXY_V2_SIGNATURE + b"\x20\x00\x00\x00"
PROXY_V1_UNKNOWN = b"PROXY UNKNOWN\r\n"
PROXY_HEADERS = {"v1": PROXY_V1_UNKNOWN, "v2": PROXY_V2_LOCAL}

MAX_PROXY_V1 = 107  # bytes, its line end included
MAX_PROXY_V2 = 4_096  # bytes; with TLVs, more than any proxy was seen to send

LOOKED_AT = 512  # bytes of an answer that are enough to tell what it is
LEAST_ECHO = 6  # bytes; a TLS record of any message begins with the same five


class Foreign(NamedTuple):
    """Another protocol's first words: which protocol, and the words, safe to show."""

    protocol: str
    says: str


_PATTERNS = (
    ("HTTP", rb"HTTP/\d"),
    ("HTTP", rb"(?i:\s*<(?:!doctype\s+)?html)"),
    ("SSH", rb"SSH-\d"),
    ("MySQL", rb"(?s:...\0[\x09\x0a][\x20-\x7e]{3,64}\0)"),
    ("MySQL", rb"(?s:...\x00\xff..(?:#.{5})?[\x20-\x7e]{4})"),  # an error packet
    ("PROXY protocol", rb"PROXY (?:TCP[46]|UNKNOWN)"),
    ("PROXY protocol", re.escape(PROXY_V2_SIGNATURE)),
    ("FTP or SMTP", rb"\d{3}[ -][\x20-\x7e]"),
    ("IMAP", rb"\* (?:OK|BYE|PREAUTH)"),
    ("POP3 or Redis", rb"[+-](?:OK|ERR)\b"),
    ("AMQP", rb"AMQP[\x00-\x09]"),
)
_ANY = re.compile(b"|".join(b"(%b)" % pattern for _, pattern in _PATTERNS))


def proxy_header_length(data: bytes) -> int | None:
    """The length of the PROXY header that the bytes begin with; 0: none; None: more is needed."""
    if data.startswith(PROXY_V2_SIGNATURE):
        if len(data) < 16:
            return None
        length = 16 + int.from_bytes(data[14:16], "big")
        if length > MAX_PROXY_V2:
            return 0
        return length if len(data) >= length else None
    if data.startswith(b"PROXY "):
        end = data.find(b"\r\n", 0, MAX_PROXY_V1)
        if end >= 0:
            return end + 2
        return None if len(data) < MAX_PROXY_V1 else 0
    unfinished = data and (PROXY_V2_SIGNATURE.startswith(data) or b"PROXY ".startswith(data))
    return None if unfinished else 0


def recognise(answer: bytes, sent: bytes = b"") -> Foreign | None:
    """Which other protocol these first bytes belong to, or None when none that we know.

    ``sent`` is what was said before: an answer that repeats it is an echo.
    """
    head = answer[:LOOKED_AT]
    found = _ANY.match(head)
    if found and found.lastindex:
        protocol, _ = _PATTERNS[found.lastindex - 1]
        return Foreign(protocol, _readable(head) if protocol == "MySQL" else _words(head))
    long_enough = len(head) >= min(len(sent), LEAST_ECHO)
    if sent and long_enough and (sent.startswith(head) or head.startswith(sent)):
        return Foreign("an echo of what was sent", _words(head))
    return None


def unrecognised(answer: bytes) -> Foreign:
    """Bytes that belong to no protocol known here."""
    return Foreign("an unknown protocol", _words(answer))


def _words(head: bytes) -> str:
    first, _, _ = head.partition(b"\n")
    return printable(first.rstrip(b"\r") or head, 80)


def _readable(head: bytes) -> str:
    """The first words among binary fields."""
    found = re.search(rb"[\x20-\x7e]{4,}", head)
    return printable(found.group() if found else head, 80)


class ProxyHeader(NamedTuple):
    """A PROXY header: version, and the connection's ends as "addr:port".

    Both are None where the sender does not tell them: UNKNOWN (v1), LOCAL or a family that is
    not TCP over IP (v2).
    """

    version: int
    source: str | None = None
    destination: str | None = None


def decode_proxy_header(buffer: bytes) -> tuple[ProxyHeader, int] | None:
    """The PROXY header that the buffer begins with, and its length; None: more is needed.

    Raises :class:`Malformed` when it begins with anything else.
    """
    length = proxy_header_length(buffer) if buffer else None
    if length is None:
        return None
    if not length:
        raise Malformed("no PROXY header")
    v2 = buffer.startswith(PROXY_V2_SIGNATURE)
    return (_proxy_v2 if v2 else _proxy_v1)(buffer[:length]), length


def _proxy_v1(header: bytes) -> ProxyHeader:
    match header.decode("ascii", "replace").removesuffix("\r\n").split(" "):
        case ["PROXY", "UNKNOWN", *_]:
            return ProxyHeader(1)
        case ["PROXY", "TCP4" | "TCP6", source, destination, source_port, destination_port]:
            try:
                return ProxyHeader(
                    1,
                    endpoint(str(ipaddress.ip_address(source)), int(source_port)),
                    endpoint(str(ipaddress.ip_address(destination)), int(destination_port)),
                )
            except ValueError as error:
                raise Malformed("a PROXY header with strange addresses") from error
    raise Malformed("no PROXY header")


def _proxy_v2(header: bytes) -> ProxyHeader:
    command, family, length = struct.unpack_from("!BBH", header, 12)
    if command not in (0x20, 0x21):
        raise Malformed(f"a PROXY header of version and command 0x{command:02x}")
    size = {0x11: 4, 0x21: 16}.get(family)
    if command == 0x20 or size is None:
        return ProxyHeader(2)
    if length < 2 * size + 4:
        raise Malformed(f"a PROXY header whose addresses have {length} bytes")
    source, destination, source_port, destination_port = struct.unpack_from(
        f"!{size}s{size}sHH", header, 16
    )
    return ProxyHeader(
        2,
        endpoint(str(ipaddress.ip_address(source)), source_port),
        endpoint(str(ipaddress.ip_address(destination)), destination_port),
    )
