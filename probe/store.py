"""The connections of a capture, kept until they are asked for.

Takes a :class:`~probe.flow.Conversation` when it ends; gives a :class:`~probe.captured.Captured`
whenever one is asked for. A capture may hold very many, and most are never looked at again: so
each is packed, and they stand behind each other in a temporary file once they are more than a
little.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import count
from pathlib import Path
from tempfile import SpooledTemporaryFile, TemporaryDirectory, gettempdir
from typing import IO, Any, NamedTuple, overload
from weakref import finalize

from probe.captured import Captured
from probe.ends import mirrored, named
from probe.flow import Conversation
from probe.note import read_note
from probe.transcript import (
    Closed,
    Connected,
    ConnectFailure,
    Connecting,
    Data,
    Ending,
    Event,
    Layer,
    Missed,
    NotCaptured,
    NotConnected,
    Party,
    Resent,
    StrangeReset,
    Transcript,
)

MAX_CONNECTIONS = 131_072  # of one capture that are kept
MAX_KEPT = 1 << 28  # bytes of them
MAX_IN_MEMORY = 1 << 20  # likewise; more are kept in a file

MakeDigest = Callable[[Captured], Any]  # of what is to be known of each connection at once


class StoreError(OSError):
    """They cannot be kept; the text says where they should be, and why."""


class _Kept(NamedTuple):
    """Where a connection is kept: in which file, and where in it."""

    first_packet: int
    file: int
    begins: int
    size: int
    ends: bytes
    digest: Any


class Connections(Sequence[Captured]):
    """The connections of a capture, in the order of their first packets.

    A capture may hold many. So each is kept packed, behind the others in a temporary file, and
    made anew whenever it is asked for. ``digest`` is asked about each connection when it is known;
    its label counts from 1 only in the end. ``place`` is a file's name: what was added in one
    process can be asked for in another (by pickling) while there is a file of that name.

    Whatever needs the file may raise :class:`StoreError`.
    """

    def __init__(
        self, file: str, digest: MakeDigest | None = None, place: Path | None = None
    ) -> None:
        self.file = file
        self.left_out = self._size = 0
        self._digest, self._place = digest, place
        self._kept: list[_Kept] = []
        self._files = self._closed_in_the_end()
        with _temporary():
            self._files.append(place.open("w+b") if place else _unnamed())

    def _closed_in_the_end(self) -> list[IO[bytes]]:
        files: list[IO[bytes]] = []
        finalize(self, _close, files)
        return files

    def __getstate__(self) -> dict[str, Any]:
        with _temporary():
            self._files[0].flush()
        return self.__dict__ | {"_files": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._files = self._closed_in_the_end()
        assert self._place is not None
        with _temporary():
            self._files.append(self._place.open("rb"))

    def add(self, conversation: Conversation) -> None:
        """Take one more, if there is room; :meth:`sort` when all are there."""
        packed = _packed(conversation)
        if self._has_room(len(packed)):
            number, ends = conversation.first_packet, conversation.ends
            with _temporary():
                begins = self._files[0].tell()
                self._files[0].write(packed)
            digest = self._digest(_captured(conversation, 0, self.file)) if self._digest else None
            self._kept.append(_Kept(number, 0, begins, len(packed), ends, digest))

    def _has_room(self, size: int) -> bool:
        if len(self._kept) == MAX_CONNECTIONS or self._size + size > MAX_KEPT:
            self.left_out += 1
            return False
        self._size += size
        return True

    def adopt(self, later: Connections, packets: int, without: Collection[bytes]) -> None:
        """Take those of a later part behind ``packets``, ``without`` some ends."""
        for kept in later._kept:
            known = kept.ends in without or mirrored(kept.ends) in without
            if not known and self._has_room(kept.size):
                number = packets + kept.first_packet
                self._kept.append(kept._replace(first_packet=number, file=len(self._files)))
        self._files += later._files
        later._files.clear()

    def sort(self) -> Sequence[Any]:
        """Put them in order; gives what was made of them, in that order."""
        self._kept.sort()
        return [kept.digest for kept in self._kept] if self._digest else ()

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Captured: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Captured]: ...
    def __getitem__(self, index: int | slice) -> Captured | Sequence[Captured]:
        if isinstance(index, slice):
            return tuple(self[each] for each in range(*index.indices(len(self))))
        number = range(len(self))[index] + 1
        kept = self._kept[index]
        file = self._files[kept.file]
        with _temporary():
            file.seek(kept.begins)
            packed = file.read(kept.size)
        conversation = _unpacked(packed, kept.first_packet)
        return _captured(conversation, number, self.file)


def _close(files: Iterable[IO[bytes]]) -> None:
    for file in files:
        with suppress(OSError):  # of what was not written yet
            file.close()


@contextmanager
def _temporary() -> Iterator[None]:
    """What the system denies of a temporary file is a :class:`StoreError`."""
    try:
        yield
    except OSError as error:
        where = f"its connections cannot be kept in {gettempdir()!r}"
        raise StoreError(f"{where}: {error.strerror or error}") from error


def _unnamed() -> IO[bytes]:
    """A temporary file, in memory while it is small; always, where none can be written."""
    try:
        gettempdir()
    except FileNotFoundError:
        return BytesIO()
    return SpooledTemporaryFile(MAX_IN_MEMORY)


@contextmanager
def temporary_places() -> Iterator[Iterator[Path]]:
    """Names for the files of as many connections as there are; what was opened can be read on."""
    with TemporaryDirectory(prefix="pgprobe-", ignore_cleanup_errors=True) as folder:
        yield (Path(folder, str(number)) for number in count())


# How a conversation is kept: of what marshal knows, which is much faster than what pickle does.
_FACTS: tuple[tuple[Any, tuple[Any, ...]], ...] = (  # each with the types of its fields
    (Data, (Party, None, Layer)),
    (Connecting, (None,)),
    (Connected, (None, None)),
    (Closed, (Party, Ending)),
    (NotCaptured, (Party, None)),
    (Resent, (Party, None, None)),
    (NotConnected, (ConnectFailure, None)),
    (StrangeReset, (Party, None)),
    (Missed, (Party, None)),
)
_NUMBERS = {kind: number for number, (kind, _) in enumerate(_FACTS)}
_MEMBERS = {enum: dict(enum.__members__.items()) for enum in (Party, Layer, Ending, ConnectFailure)}


def _packed(conversation: Conversation) -> bytes:
    ends, started, events, _, packets, comment = conversation
    flat: list[tuple[Any, ...]] = []
    for at, fact in events:
        number = _NUMBERS[type(fact)]
        values: Any = iter(fact)
        fields = [next(values)._name_ if enum else next(values) for enum in _FACTS[number][1]]
        flat.append((at, number, *fields))
    return marshal.dumps((ends, started, flat, packets, comment))


def _unpacked(packed: bytes, first_packet: int) -> Conversation:
    ends, started, flat, packets, comment = marshal.loads(packed)
    events = []
    for at, number, *values in flat:
        kind, enums = _FACTS[number]
        fields = [
            _MEMBERS[enum][value] if enum else value
            for enum, value in zip(enums, values, strict=True)
        ]
        events.append(Event(at, kind(*fields)))
    return Conversation(ends, started, tuple(events), first_packet, packets, comment)


def _captured(conversation: Conversation, number: int, file: str) -> Captured:
    client, server = named(conversation.ends)
    transcript = Transcript(
        attempt=f"connection {number}",
        door=server,
        events=conversation.events,
        started=conversation.started,
    )
    note = read_note(conversation.comment)
    if note:
        transcript = note.restored(transcript)
    return Captured(
        transcript,
        file,
        conversation.first_packet,
        conversation.packets,
        client,
        server,
        note,
    )
