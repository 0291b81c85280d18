"""The connections of a capture, kept until they are asked for.

Takes a :class:`~probe.flow.Conversation` when it ends; gives a :class:`~probe.captured.Captured`
whenever one is asked for. A capture may hold very many, and most are never looked at again: so
each is packed, and they stand behind each other in a temporary file once they are more than a
little.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Collection, Sequence
from tempfile import SpooledTemporaryFile
from typing import Any, NamedTuple, overload

from probe.captured import Captured
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

Digest = Callable[[Captured], Any]  # what is to be known of each connection at once


class _Kept(NamedTuple):
    """Where a connection is kept."""

    first_packet: int
    begins: int
    size: int
    name: tuple[str, str]
    digest: Any


class Connections(Sequence[Captured]):
    """The connections of a capture, in the order of their first packets.

    A capture may hold many. So each is kept packed, behind the others in a temporary file, and
    made anew whenever it is asked for. ``digest`` is asked about each connection when it is known;
    its label counts from 1 only in the end.
    """

    def __init__(self, file: str, digest: Digest | None = None) -> None:
        self.file = file
        self.left_out = self._size = 0
        self._digest = digest
        self._kept: list[_Kept] = []
        self._packed = SpooledTemporaryFile(MAX_IN_MEMORY)  # noqa: SIM115 - it goes with this

    def __del__(self) -> None:
        self._packed.close()

    def __getstate__(self) -> dict[str, Any]:
        self._packed.seek(0)
        return self.__dict__ | {"_packed": self._packed.read()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._packed = SpooledTemporaryFile(MAX_IN_MEMORY)  # noqa: SIM115
        self._packed.write(state["_packed"])

    def add(self, conversation: Conversation) -> None:
        """Take one more, if there is room; :meth:`sort` when all are there."""
        number, packed = conversation.first_packet, _packed(conversation)
        digest = self._digest(_captured(conversation, 0, self.file)) if self._digest else None
        self._keep(_Kept(number, self._size, len(packed), conversation[:2], digest), packed)

    def _keep(self, kept: _Kept, packed: bytes) -> None:
        if len(self._kept) == MAX_CONNECTIONS or self._size + len(packed) > MAX_KEPT:
            self.left_out += 1
            return
        self._size += len(packed)
        self._packed.write(packed)
        self._kept.append(kept)

    def adopt(self, later: Connections, packets: int, without: Collection[tuple[str, str]]) -> None:
        """Take those of a later part behind ``packets``, ``without`` some names."""
        for kept in later._kept:
            if kept.name not in without and kept.name[::-1] not in without:
                moved = kept._replace(first_packet=packets + kept.first_packet, begins=self._size)
                self._keep(moved, later._packed_at(kept))

    def sort(self) -> Sequence[Any]:
        """Put them in order; gives what was made of them, in that order."""
        self._kept.sort()
        return [kept.digest for kept in self._kept] if self._digest else ()

    def _packed_at(self, kept: _Kept) -> bytes:
        self._packed.seek(kept.begins)
        return self._packed.read(kept.size)

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
        conversation = _unpacked(self._packed_at(kept), kept.first_packet)
        return _captured(conversation, number, self.file)


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
)
_NUMBERS = {kind: number for number, (kind, _) in enumerate(_FACTS)}
_MEMBERS = {enum: dict(enum.__members__.items()) for enum in (Party, Layer, Ending, ConnectFailure)}


def _packed(conversation: Conversation) -> bytes:
    client, server, started, events, _, packets, comment = conversation
    flat: list[tuple[Any, ...]] = []
    for at, fact in events:
        number = _NUMBERS[type(fact)]
        values: Any = iter(fact)
        fields = [next(values)._name_ if enum else next(values) for enum in _FACTS[number][1]]
        flat.append((at, number, *fields))
    return marshal.dumps((client, server, started, flat, packets, comment))


def _unpacked(packed: bytes, first_packet: int) -> Conversation:
    client, server, started, flat, packets, comment = marshal.loads(packed)
    events = []
    for at, number, *values in flat:
        kind, enums = _FACTS[number]
        fields = [
            _MEMBERS[enum][value] if enum else value
            for enum, value in zip(enums, values, strict=True)
        ]
        events.append(Event(at, kind(*fields)))
    return Conversation(client, server, started, tuple(events), first_packet, packets, comment)


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
        file,
        conversation.first_packet,
        conversation.packets,
        conversation.client,
        conversation.server,
        note,
    )
