"""The blocks of a pcapng file, as far as we write one.

Takes what they say; gives bytes, in little endian, times in nanoseconds.

Source: the IETF draft "PCAP Next Generation Capture File Format" (draft-ietf-opsawg-pcapng),
section 4.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from probe.pcapng import (
    DECRYPTION_SECRETS,
    ENHANCED_PACKET,
    IF_DESCRIPTION,
    IF_NAME,
    IF_TSRESOL,
    INTERFACE,
    MAX_COMMENT,
    OPT_COMMENT,
    SECTION_HEADER,
    SHB_USERAPPL,
    TLS_KEY_LOG,
)

_NANOSECONDS = b"\x09"  # 10 to the minus 9


def section_header(application: str, comment: str) -> bytes:
    """The block that a file begins with; its section's length is left open."""
    body = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)
    return _block(SECTION_HEADER, body, {OPT_COMMENT: comment, SHB_USERAPPL: application})


def interface(link: int, name: str, description: str) -> bytes:
    """An interface whose packets are whole, and timed in nanoseconds."""
    told: dict[int, str | bytes] = {IF_NAME: name, IF_DESCRIPTION: description}
    told[IF_TSRESOL] = _NANOSECONDS
    return _block(INTERFACE, struct.pack("<HHI", link, 0, 0), told)


def decryption_secrets(key_log: bytes) -> bytes:
    """A key log for the packets behind it."""
    return _block(DECRYPTION_SECRETS, struct.pack("<II", TLS_KEY_LOG, len(key_log)) + key_log)


def enhanced_packet(nanoseconds: int, data: bytes, comment: str = "") -> bytes:
    """A packet of the section's first interface; its time is since the epoch."""
    high, low = divmod(nanoseconds, 1 << 32)
    head = struct.pack("<IIIII", 0, high, low, len(data), len(data))
    return _block(ENHANCED_PACKET, head + data, {OPT_COMMENT: comment} if comment else {})


def _block(kind: int, body: bytes, options: Mapping[int, str | bytes] | None = None) -> bytes:
    body = _padded(body)
    for code, value in (options or {}).items():
        data = value if isinstance(value, bytes) else _bounded(value)
        body += struct.pack("<HH", code, len(data)) + _padded(data)
    if options:
        body += struct.pack("<HH", 0, 0)
    total = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + total + body + total


def _bounded(text: str) -> bytes:
    """As much as we read ourselves."""
    return text.encode("utf-8", "replace")[:MAX_COMMENT].decode("utf-8", "ignore").encode()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
