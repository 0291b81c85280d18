"""Transcripts to a capture file that Wireshark opens: what passed, made into packets again.

Takes the transcripts of a run, how it judges them, and its key log; gives the bytes of a pcapng
file. It needs no privileges, and claims none: the file says that it was synthesised. Each Data
event becomes a segment, each segment is acknowledged at once; no link layer is made up. What no
packet carries stands in a comment beside a connection's first packet (:mod:`probe.note`).

Where there was no connection, the client's address is not known and stands as 0.0.0.0 or ::. A
refused connection is a SYN and a RST, one that timed out a SYN alone, a name without an address
no packet at all: the comment of the section tells of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from probe import __version__
from probe.blocks import decryption_secrets, enhanced_packet, interface, section_header
from probe.datagram import MAX_PAYLOAD, ip_packet, unspecified
from probe.ends import ends_between, mirrored
from probe.note import Run, write_note
from probe.packet import ACK, FIN, PSH, RST, SYN, Segment
from probe.pcapng import RAW
from probe.transcript import (
    Closed,
    Connected,
    ConnectFailure,
    Connecting,
    Data,
    Ending,
    Event,
    Layer,
    NotConnected,
    Party,
    Transcript,
)

SYNTHESISED = "synthesised from pgprobe's transcript, not sniffed"
SPACING = 1 << 20  # between initial sequence numbers


class Take(NamedTuple):
    """One connection of a run, and how the run judges it."""

    transcript: Transcript
    run: Run | None = None


def record(takes: Sequence[Take], key_log: bytes = b"") -> bytes:
    """The pcapng file. Where a login was made, the key log stays out of it."""
    login = any(take.transcript.login for take in takes)
    said = [f"{SYNTHESISED}; the client's side of each connection is pgprobe's own"]
    if login:
        said.append("a login was made: no TLS secrets are embedded")
    packets: list[tuple[int, bytes]] = []
    for number, take in enumerate(takes, 1):
        note, began = write_note(take.transcript, take.run), _nanoseconds(take.transcript.started)
        segments = list(_segments(take.transcript, number))
        if not segments:
            said.append(note)
        for segment in segments:
            at = began + _nanoseconds(segment.at)
            packets.append((at, enhanced_packet(at, ip_packet(segment), note)))
            note = ""
    packets.sort(key=lambda packet: packet[0])
    blocks = [
        section_header(f"pgprobe {__version__}", "\n".join(said)),
        interface(RAW, "pgprobe", SYNTHESISED),
    ]
    if key_log and not login:
        blocks.append(decryption_secrets(key_log))
    return b"".join([*blocks, *(block for _, block in packets)])


def _segments(transcript: Transcript, number: int) -> Iterator[Segment]:
    """The transcript's segments, timed as its events are."""
    connection: _Connection | None = None
    for event in transcript.events:
        if isinstance(event.fact, Connecting):
            connection = _Connection(transcript, event.fact.server, number)
        if connection:
            yield from connection.take(event)


class _Connection:
    """Where both ends stand in their sequence numbers."""

    def __init__(self, transcript: Transcript, server: str, number: int) -> None:
        facts = (event.fact for event in transcript.events)
        known = next((fact.client for fact in facts if isinstance(fact, Connected)), None)
        sent = ends_between(known or unspecified(server, number), server)
        self.ends = {Party.CLIENT: sent, Party.SERVER: mirrored(sent)}
        # of its own, so that a port that is used again is another connection
        first = number * 2 * SPACING % (1 << 32)
        self.next = {Party.CLIENT: first, Party.SERVER: first + SPACING}

    def take(self, event: Event) -> Iterator[Segment]:
        match event.fact:
            case Connecting():
                yield self._say(event.at, Party.CLIENT, SYN)
            case Connected():
                yield self._say(event.at, Party.SERVER, SYN | ACK)
                yield self._say(event.at, Party.CLIENT, ACK)
            case NotConnected(ConnectFailure.REFUSED):
                yield self._say(event.at, Party.SERVER, RST | ACK)
            case NotConnected(ConnectFailure.RESET):
                yield self._say(event.at, Party.SERVER, SYN | ACK)
                yield self._say(event.at, Party.SERVER, RST | ACK)
            case Data(sender, data, Layer.TCP):
                for at in range(0, len(data), MAX_PAYLOAD):
                    yield self._say(event.at, sender, PSH | ACK, data[at : at + MAX_PAYLOAD])
                    yield self._say(event.at, _other(sender), ACK)
            case Closed(sender, Ending.FIN):
                yield self._say(event.at, sender, FIN | ACK)
                yield self._say(event.at, _other(sender), ACK)
            case Closed(sender, Ending.RST):
                yield self._say(event.at, sender, RST | ACK)

    def _say(self, at: float, sender: Party, flags: int, payload: bytes = b"") -> Segment:
        """The sender's next segment."""
        other = _other(sender)
        seq, ack = self.next[sender], self.next[other] if flags & ACK else 0
        self.next[sender] = (seq + len(payload) + bool(flags & (SYN | FIN))) % (1 << 32)
        return Segment(
            at=at,
            ends=self.ends[sender],
            seq=seq,
            ack=ack,
            flags=flags,
            payload=payload,
            ip_id=0,
        )


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)


def _other(party: Party) -> Party:
    return Party.SERVER if party is Party.CLIENT else Party.CLIENT
