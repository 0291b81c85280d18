"""A connection as a capture file holds it: the transcript, and where it stands in the file."""

from __future__ import annotations

from typing import NamedTuple

from probe.note import Note
from probe.transcript import Transcript


class Captured(NamedTuple):
    """A connection that a capture holds; ``first_packet`` counts from 1 in its file.

    ``packets`` counts the packets that were looked at: not the bulk behind the login. ``client``
    and ``server`` are "addr:port". ``note`` is what a recording of pgprobe's own says beside it.
    """

    transcript: Transcript
    file: str
    first_packet: int = 0
    packets: int = 0
    client: str = ""
    server: str = ""
    note: Note | None = None
