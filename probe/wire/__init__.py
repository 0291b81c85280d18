"""Bytes to messages and back: no state, no input or output, the standard library only.

Every decoder takes a buffer that begins where the message should begin and has three outcomes:

* the message and the number of bytes that it took,
* ``None``: the buffer holds a good beginning, more bytes are needed,
* :class:`Malformed`: no further byte can make this the message.

What a letter means depends on what was said before it (``S`` is an answer only behind an
SSLRequest), so nothing here decides which decoder to use: the observer does.
"""

from __future__ import annotations


class Malformed(ValueError):  # noqa: N818 - it is an outcome, the third one
    """The bytes cannot be the message that the caller asked for; the text says why."""


def printable(data: bytes | str, limit: int = 200) -> str:
    """Network text made safe to show: control and non-ASCII characters escaped, length bounded.

    ``limit`` counts characters of the result; a longer text ends in an ellipsis.
    """
    text = data.decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
