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
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from probe.captured import Captured
from probe.gather import Trace, gather
from probe.packet import Decoder
from probe.pcapng import Reader
from probe.processes import NoProcesses, pool
from probe.split import Part, Slice, record_end, split
from probe.store import Connections, MakeDigest, temporary_places
from probe.stream import DISORDER, MAX_FLOWS, MAX_HELD, MAX_LEFT_OUT, State, Streams
from probe.wire import counted

MAX_NOTES = 20  # kinds of packets that could not be read


class Capture(NamedTuple):
    """What a capture holds.

    ``connections`` are in the order of their first packets, ``digests`` what was made of each of
    them while they were read (or nothing was), ``secrets`` the texts of its
    Decryption Secrets Blocks (key logs), ``problems`` what could not be read, a sentence each;
    ``packets`` counts all packets. It ``began`` with the first TCP segment, and ``ended`` with the
    last packet, in seconds since the epoch; 0 where there is no segment.
    """

    file: str
    connections: Sequence[Captured]
    digests: Sequence[Any]
    secrets: tuple[bytes, ...]
    problems: tuple[str, ...]
    packets: int = 0
    began: float = 0.0
    ended: float = 0.0


def read_capture(
    source: str | Path | BinaryIO,
    *,
    ports: Collection[int] | None = None,
    everything: bool = False,
    name: str | None = None,
    jobs: int = 1,
    digest: MakeDigest | None = None,
    place: Path | None = None,
) -> Capture:
    """Read a capture: the file of that name, or a binary stream (standard input, say).

    ``ports`` and ``everything`` choose connections as :class:`~probe.stream.Streams` says;
    ``name`` is what the capture is called, ``jobs`` how many processes may read a file.
    ``digest`` and ``place`` are those of :class:`~probe.store.Connections`. Raises
    :class:`OSError` and :class:`~probe.pcapng.NotACapture`.
    """
    choice = _Choice(ports, everything, digest, place)
    if isinstance(source, str | Path):
        with Path(source).open("rb", buffering=0) as stream:
            called = name or str(source)
            if jobs > 1 and stream.seekable():
                read = _Parts(stream, str(source), choice).read(called, split(stream, jobs))
                if read is not None:
                    return read
                stream.seek(0)
            return _read(stream, called, choice)
    return _read(source, name or str(getattr(source, "name", "-")), choice)


class _Choice(NamedTuple):
    """Which connections, see :class:`~probe.stream.Streams`, and what is made of each.

    ``share``: of how many that read parts of a file this is for one.
    """

    ports: Collection[int] | None
    everything: bool
    digest: MakeDigest | None
    place: Path | None
    share: int = 1

    def connections(self, name: str) -> Connections:
        return Connections(name, self.digest, self.place)

    def streams(self, connections: Connections) -> Streams:
        give = connections.add
        return Streams(give, ports=self.ports, everything=self.everything, share=self.share)


def _read(stream: BinaryIO, name: str, choice: _Choice) -> Capture:
    connections = choice.connections(name)
    streams, decoder, reader = choice.streams(connections), Decoder(), Reader(stream)
    with _no_collector():
        gather(reader, decoder, streams)
        streams.finish(reader.ended)
    unread = decoder.notes.most_common(MAX_NOTES)
    notes = [f"{counted(count, 'packet')}: {says}" for says, count in unread]
    notes += [f"{count} {says}" for says, count in streams.notes.items()]
    if connections.left_out:
        notes.append(
            f"more connections than are kept: {connections.left_out} were left out; --port, or "
            "a part of the file, has fewer"
        )
    return Capture(
        file=name,
        connections=connections,
        digests=connections.sort(),
        secrets=tuple(reader.secrets),
        problems=(*reader.problems, *notes),
        packets=reader.packets,
        began=streams.began or 0.0,
        ended=0.0 if streams.began is None else reader.ended,
    )


# -- parts of a file, side by side ---------------------------------------------------------------


class _Later(NamedTuple):
    """What a part of a file says, read without what stands before it.

    Nothing in it depends on the packets before, but connections that began there.
    """

    connections: Connections
    state: State
    trace: Trace
    packets: int
    ended: float


def _read_later(file: str, part: Part, choice: _Choice, place: Path) -> bool:
    """Leave what the part says in a file; False: it has to be read in one go with the rest.

    Through a pipe, it would be in memory three times.
    """
    choice = choice._replace(place=place.with_suffix(".connections"))
    connections, trace = choice.connections(file), Trace(choice.share)
    streams, decoder = choice.streams(connections), Decoder()
    with Path(file).open("rb", buffering=0) as stream, _no_collector():
        reader = Reader(Slice(stream, part))  # type: ignore[arg-type]
        gather(reader, decoder, streams, trace)
    state = streams.state()
    sound = state.orderly and trace.complete and _independent(reader, decoder, part, connections)
    if sound:
        with place.open("wb") as left:
            pickle.dump(_Later(connections, state, trace, reader.packets, reader.ended), left)
    return sound


def _independent(reader: Reader, decoder: Decoder, part: Part, connections: Connections) -> bool:
    """Whether a part was read as it would have been in one go with the rest."""
    head = Reader(BytesIO(part.head))
    list(head.read())
    odd = reader.problems or decoder.notes or decoder.fragments or connections.left_out
    return not odd and reader.context == head.context


class _OneByOne(Exception):  # noqa: N818 - what is to be done
    """The parts depend on each other: the file has to be read in one go."""


class _Parts:
    """A file, read in parts: exactly as in one go, or not at all.

    The first part is read here. What the later ones say of a connection that had begun before
    them is thrown away, and its segments are read again where the connection stands then. Where
    that is not enough (a damaged or strange file, times that go back), :meth:`read` gives None.
    """

    def __init__(self, stream: BinaryIO, file: str, choice: _Choice) -> None:
        self.stream, self.file, self.choice = stream, file, choice

    def read(self, name: str, parts: Sequence[Part]) -> Capture | None:
        """The capture, or None: read it in one go."""
        if len(parts) < 2:
            return None
        self.connections = self.choice.connections(name)
        self.streams = self.choice.streams(self.connections)
        first, *rest = parts
        choice = self.choice._replace(share=len(rest))
        try:
            with pool(len(rest)) as processes, temporary_places() as places, _no_collector():
                later = [
                    (part, place, processes.submit(_read_later, self.file, part, choice, place))
                    for part, place in zip(rest, places, strict=False)
                ]
                reader, decoder = Reader(Slice(self.stream, first)), Decoder()  # type: ignore[arg-type]
                gather(reader, decoder, self.streams)
                packets, ended = reader.packets, reader.ended
                if not _independent(reader, decoder, first, self.connections):
                    raise _OneByOne
                for part, place, reading in later:
                    if not reading.result():
                        raise _OneByOne
                    with place.open("rb") as left:
                        done: _Later = pickle.load(left)
                    self._go_on(part, done, packets)
                    packets += done.packets
                    ended = done.ended if done.packets else ended
                self.streams.finish(ended)
        except (_OneByOne, NoProcesses):
            return None
        if self.connections.left_out or self.streams.notes or not self.streams.orderly:
            return None
        return Capture(
            file=name,
            connections=self.connections,
            digests=self.connections.sort(),
            secrets=tuple(reader.secrets),
            problems=(),
            packets=packets,
            began=self.streams.began or 0.0,
            ended=0.0 if self.streams.began is None else ended,
        )

    def _go_on(self, part: Part, later: _Later, packets: int) -> None:
        streams, state, before = self.streams, later.state, self.streams.state()
        room = (
            len(before.flows) + state.most_flows <= MAX_FLOWS
            and streams.held + state.most_held <= MAX_HELD
            and len(before.left_out) + len(state.left_out) < MAX_LEFT_OUT
        )
        in_order = before.orderly and state.earliest >= before.now - DISORDER
        if not (room and in_order):
            raise _OneByOne
        known = {ends for ends, opens in later.trace.ends() if streams.knows(ends, opens=opens)}
        self._again(part, later.trace, known, packets)
        self.connections.adopt(later.connections, packets, known)
        streams.adopt(state, packets, known)

    def _again(self, part: Part, trace: Trace, known: Collection[bytes], packets: int) -> None:
        """Read the segments between these ends as what goes on from the part before."""
        noted = list(trace.of(known))
        place = Slice(self.stream, part).place
        begins = (place(each.position) for each in noted if each.deaf is None)
        records = ((at, record_end(self.stream, part.head, at)) for at in begins)
        again = Reader(Slice(self.stream, part, records)).read()  # type: ignore[arg-type]
        decoder = Decoder()
        deaf: set[bytes] = set()
        doubted: set[bytes] = set()  # no more is heard of them, and more is wanted
        for ends, _, number, marks in noted:
            if marks is not None:  # bulk that was passed over must be bulk that nobody wants
                if marks and self.streams.wants(ends):
                    raise _OneByOne
                (deaf.add if marks else deaf.discard)(ends)
                doubted.discard(ends)
                continue
            if ends in doubted:
                raise _OneByOne
            packet = next(again)
            segment = decoder.segment(packet.link, packet.at, packet.data, packet.length)
            assert segment is not None
            self.streams.take(segment, packets + number, packet.comment)
            if ends in deaf and self.streams.wants(ends):
                doubted.add(ends)
        if doubted:
            raise _OneByOne


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
