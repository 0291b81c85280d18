"""Bytes to messages and back: no state, no input or output, the standard library only.

Every decoder takes a buffer that begins where the message should begin and has three outcomes:

* the message and the number of bytes that it took,
* ``None``: the buffer holds a good beginning, more bytes are needed,
* :class:`Malformed`: no further byte can make this the message.

Beside them stands how what they say is written for people: text made safe, endpoints, counts.

What a letter means depends on what was said before it (``S`` is an answer only behind an
SSLRequest), so nothing here decides which decoder to use: the observer does.
"""

from __future__ import annotations


class Malformed(ValueError):  # noqa: N818 - it is an outcome, the third one
    """The bytes cannot be the message that the caller asked for; the text says why."""


def printable(data: bytes | str, limit: int = 200) -> str:
    """Network text made safe to show: what is no printable character escaped, length bounded.

    Letters of any script are printable. ``limit`` counts characters of the result; a longer text
    ends in an ellipsis.
    """
    text = data.decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def endpoint(host: str, port: int) -> str:
    """``host:port``, with an IPv6 address in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parted(named: str) -> tuple[str, int]:
    """Host and port of what :func:`endpoint` gave."""
    host, _, port = named.rpartition(":")
    return host.strip("[]"), int(port)


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """So many of them: "1 packet", "2 packets"."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
