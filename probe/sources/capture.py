"""Capture files to transcripts: packets, TCP streams, events, as live probing has them.

Takes the name of a file or a stream; gives a :class:`Capture`. What cannot be read is told in
``problems``, in sentences; only a file that cannot be opened (:class:`OSError`) or does not begin
as a capture (:class:`~probe.pcapng.NotACapture`) raises.
"""

from __future__ import annotations

import contextlib
import gc
import pickle
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, overload

from probe.note import Note, read_note
from probe.packet import SYN, Decoder
from probe.pcapng import Reader, mirrored
from probe.stream import Conversation, Streams
from probe.transcript import Transcript

MAX_IGNORED = 131_072  # directions of connections whose bulk is skipped unread


class Captured(NamedTuple):
    """A connection that a capture holds; ``first_packet`` is its first packet's number.

    ``packets`` counts the packets that were looked at: not the bulk behind the login. ``note`` is
    what a recording of pgprobe's own says beside it.
    """

    transcript: Transcript
    first_packet: int
    packets: int
    client: str
    server: str
    file: str
    note: Note | None = None


class Capture(NamedTuple):
    """What a capture holds.

    ``connections`` are in the order of their first packets, ``secrets`` the texts of its
    Decryption Secrets Blocks (key logs), ``problems`` what could not be read, a sentence each;
    ``packets`` and ``segments`` count all packets, and the TCP segments looked at; these ``began``
    and ``ended`` in seconds since the epoch, 0 where there are none.
    """

    file: str
    connections: Sequence[Captured]
    secrets: tuple[bytes, ...]
    problems: tuple[str, ...]
    packets: int = 0
    segments: int = 0
    began: float = 0.0
    ended: float = 0.0


def read_capture(
    source: str | Path | BinaryIO,
    *,
    ports: Collection[int] | None = None,
    everything: bool = False,
    name: str | None = None,
    jobs: int = 1,
) -> Capture:
    """Read a capture: the file of that name, or a binary stream (standard input, say).

    ``ports`` and ``everything`` choose connections as :class:`~probe.stream.Streams` says;
    ``name`` is what the capture is called, ``jobs`` how many processes may read it. Raises
    :class:`OSError` and :class:`~probe.pcapng.NotACapture`.
    """
    del jobs  # not yet
    if isinstance(source, str | Path):
        with Path(source).open("rb", buffering=0) as stream:
            return _read(stream, name or str(source), ports, everything)
    return _read(source, name or str(getattr(source, "name", "-")), ports, everything)


def _read(stream: BinaryIO, name: str, ports: Collection[int] | None, everything: bool) -> Capture:
    connections = Connections(name)
    streams = Streams(connections.add, ports=ports, everything=everything)
    decoder, reader = Decoder(), Reader(stream)
    ignored: set[bytes] = set()
    segments = 0
    began = ended = 0.0
    with _no_collector():
        for number, at, link, data, length, comment, key in reader.read(ignored):
            segment = decoder.segment(link, at, data, length)
            if segment is None:
                continue
            if not segments:
                began = at
            segments += 1
            ended = at
            if not streams.take(segment, number, comment):
                if key is not None and key not in ignored:
                    if len(ignored) >= MAX_IGNORED:
                        ignored.clear()
                    ignored.add(key)
            elif segment.flags & SYN and ignored:
                if key is None:
                    ignored.clear()
                else:
                    ignored.discard(key)
                    ignored.discard(mirrored(key))
        streams.finish()
    connections.sort()
    notes = [f"{count} packets: {says}" for says, count in decoder.notes.items()]
    notes += [f"{count} {says}" for says, count in streams.notes.items()]
    return Capture(
        file=name,
        connections=connections,
        secrets=tuple(reader.secrets),
        problems=(*reader.problems, *notes),
        packets=reader.packets,
        segments=segments,
        began=began,
        ended=ended,
    )


class Connections(Sequence[Captured]):
    """The connections of a capture, in the order of their first packets.

    Each is kept packed, since a capture may hold many, and made anew whenever it is asked for.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._packed: list[tuple[int, bytes]] = []

    def add(self, conversation: Conversation) -> None:
        """Take one more; :meth:`sort` when all are there."""
        packed = pickle.dumps(conversation, pickle.HIGHEST_PROTOCOL)
        self._packed.append((conversation.first_packet, packed))

    def sort(self) -> None:
        """Put them in order."""
        self._packed.sort()

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> Captured: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Captured]: ...
    def __getitem__(self, index: int | slice) -> Captured | Sequence[Captured]:
        if isinstance(index, slice):
            return tuple(self[each] for each in range(*index.indices(len(self))))
        number = range(len(self))[index] + 1
        return _captured(pickle.loads(self._packed[index][1]), number, self._file)


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Nothing that is made while a capture is read has cycles, and there is a lot of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _captured(conversation: Conversation, number: int, file: str) -> Captured:
    transcript = Transcript(
        attempt=f"connection {number}",
        door=conversation.server,
        events=conversation.events,
        started=conversation.started,
    )
    note = read_note(conversation.comment)
    if note:
        transcript = note.restored(transcript)
    return Captured(
        transcript,
        conversation.first_packet,
        conversation.packets,
        conversation.client,
        conversation.server,
        file,
        note,
    )
