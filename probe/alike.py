"""Which conversations are said alike, so that one need not be read where another was.

Takes a :class:`~probe.transcript.Transcript`; gives what two have in common that lead to the same
facts, but for addresses, times and nonces. What is left out of the comparison is what the
observer passes over, and nothing else:

* the addresses of both ends, and the times of a connection that takes less than a second;
* the random, the session id and the key exchange values of a ClientHello and a ServerHello;
* what application data records carry once a ServerHello came: it is ciphertext.

Wherever it is not certain that a record begins where one seems to (it has several segments, or
anything but SSLRequest and ``S`` stands before), bytes are compared as they are. A conversation
that a key holder opened, or of which something was not captured, is like no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from probe.transcript import Connected, Connecting, Data, Layer, NotCaptured, Party, Transcript
from probe.wire import Malformed, hello, records, startup

SHORT = 1.0  # seconds; in less than that, nothing is concluded from any time
MAX_EVENTS = 64  # of a conversation that is compared

_BEFORE_TLS = {Party.CLIENT: startup.SSL_REQUEST, Party.SERVER: b"S"}
_RANDOM = slice(11, 43)  # of a hello that a segment begins with

Outline = tuple[object, ...]  # what the events are, and their sizes
Spans = tuple[tuple[tuple[int, int], ...], ...]  # in each event's bytes: begins and ends


class Likeness(NamedTuple):
    """What two conversations that are said alike have in common; the rest as its SHA-256."""

    outline: Outline
    spans: Spans
    rest: bytes


def outline(transcript: Transcript) -> Outline | None:
    """What is said by whom, and how much of it; None: it is like no other."""
    events = transcript.events
    if not 0 < len(events) <= MAX_EVENTS or events[-1].at >= SHORT:
        return None
    told: list[object] = []
    for _, fact in events:
        if isinstance(fact, Data):
            sender, data, layer = fact
            if layer is not Layer.TCP:
                return None
            told += sender, len(data), data[_RANDOM] == hello.RETRY_RANDOM
        elif isinstance(fact, Connecting | Connected):
            told.append(type(fact))
        elif isinstance(fact, NotCaptured):
            return None
        else:
            told += type(fact), fact
    return tuple(told)


def spans(transcript: Transcript) -> Spans:
    """What the observer passes over, in the bytes of each event that has some."""
    reader = _Reader()
    return tuple(tuple(reader.spans(*said)) for said in _said(transcript))


def likeness(transcript: Transcript, outline: Outline, spans: Spans) -> Likeness:
    """The transcript's, of which that is the outline, with these spans left out."""
    rest = []
    for (_, data), left_out in zip(_said(transcript), spans, strict=True):
        at = 0
        for begins, ends in left_out:
            rest.append(data[at:begins])
            at = ends
        rest.append(data[at:])
    return Likeness(outline, spans, hashlib.sha256(b"".join(rest)).digest())


def _said(transcript: Transcript) -> Iterator[tuple[Party, bytes]]:
    return (event.fact[:2] for event in transcript.events if isinstance(event.fact, Data))


class _Reader:
    """Goes through a conversation's segments, as long as each begins with a record."""

    def __init__(self) -> None:
        self._silent = set(Party)  # who has said nothing yet
        self._lost: set[Party] = set()  # where records begin is not known
        self._sealed = False  # a ServerHello came

    def spans(self, sender: Party, data: bytes) -> Iterator[tuple[int, int]]:
        """What is passed over in this segment, which is the next one."""
        first = sender in self._silent
        self._silent.discard(sender)
        if first and data == _BEFORE_TLS[sender]:
            return
        at = 0
        while at < len(data) and sender not in self._lost:
            ends = _end_of_record(data, at)
            if ends is None:
                self._lost.add(sender)
                return
            begins = at + records.HEADER
            if data[at] == records.APPLICATION_DATA and self._sealed:
                yield begins, ends
            elif data[at] == records.HANDSHAKE and at == 0:
                yield from self._hello(sender, data, begins, ends)
            at = ends

    def _hello(
        self, sender: Party, data: bytes, begins: int, ends: int
    ) -> Iterator[tuple[int, int]]:
        kind = hello.CLIENT_HELLO if sender is Party.CLIENT else hello.SERVER_HELLO
        if data[begins] != kind or data[_RANDOM] == hello.RETRY_RANDOM:
            return
        try:
            message = records.decode_handshake(data[begins:ends])
            if message is None:
                return
            (_, body), _ = message
            for start, end in hello.nonces(body, of_client=sender is Party.CLIENT):
                yield begins + 4 + start, begins + 4 + end
        except Malformed:
            self._lost.add(sender)
            return
        self._sealed = self._sealed or sender is Party.SERVER


def _end_of_record(data: bytes, at: int) -> int | None:
    try:
        length = records.record_length(data[at:])
    except Malformed:
        return None
    return None if length is None else at + length
