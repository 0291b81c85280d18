"""One TCP connection, put together from its segments: what each side said, in order.

Takes the segments of one connection in the capture's order; gives its events, as
``probe.transcript`` has them, in a :class:`Conversation`. Source: RFC 9293 (sequence numbers, RST;
section 3.8.4: keep-alives), RFC 7413 (data in a SYN).

How two accounts are made one:

* **What arrives first is kept.** A receiver that was given a byte cannot be given another in its
  place, and an injected segment is to be seen, not to hide what it was injected over.
* **A side's bytes are told in order.** What came out of order waits for what stands before it.
* **Causes before effects.** A segment that acknowledges bytes which the capture has not shown
  waits a moment, since captures of several queues or interfaces are not in order; then the bytes
  count as *not captured*.
* **The same packet seen twice** (``-i any``, a mirror port) is not a retransmission: it has the
  same IP identification, or follows within milliseconds.
* **A SYN-ACK that changes**: the one that the client acknowledges counts.

All state is bounded by the constants below.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from probe.ends import named
from probe.packet import ACK, FIN, PSH, RST, SYN, Segment
from probe.transcript import (
    Closed,
    Connected,
    ConnectFailure,
    Connecting,
    Data,
    Ending,
    Event,
    Fact,
    Layer,
    Missed,
    NotCaptured,
    NotConnected,
    Party,
    Resent,
    StrangeReset,
)

MAX_SAID = 65_536  # bytes that are kept of a side
MAX_DELIVERIES = 4_096  # segments with data, of both sides
MAX_EVENTS = 16_384  # of a connection
MAX_PENDING = 65_536  # bytes of a side that wait for what stands before them
MAX_PENDING_SEGMENTS = 64
MAX_GAP = 1 << 30  # bytes; the largest window (RFC 7323), so no honest hole is larger
MAX_OFF = 1 << 24  # bytes that an RST may be ahead: windows are smaller
MAX_WAITING = 16  # segments of a connection that wait for what they acknowledge
WAIT_FOR_ACKED = 0.02  # seconds, likewise
CAPTURED_TWICE = 0.002  # seconds; no stack retransmits that soon
UNANSWERED = 1.0  # seconds; the least time after which any stack sends its SYN again (RFC 6298)
SESSION_RECORDS = 12  # application data records of a client: it is past its login
SESSION_QUERIES = 4  # messages in clear that only a session has
STEADY, STEADY_STEP = 4, 16  # packets whose IP identification counts up, by no more than that
SOON, FAR = 1.0, 4_096  # seconds in which no counter gets so far
REMEMBERED = 32  # segments of a side, to tell what is said again
FLOW_COST, EVENT_COST, SEGMENT_COST = 2_048, 256, 512  # bytes beside the payload

_tuple = tuple.__new__  # a named tuple without the cost of its names


class Conversation(NamedTuple):
    """A TCP connection as the capture tells it; its ``ends`` are the client's first.

    Events are timed in seconds since ``started``, which is its first packet's time since the
    epoch. ``comment`` is the first packet's. ``packets`` counts those that were looked at.
    """

    ends: bytes
    started: float
    events: tuple[Event, ...]
    first_packet: int
    packets: int
    comment: str = ""


class Side:
    """What one end says: offsets count its bytes, and its FIN, from the first on."""

    __slots__ = (
        "acked", "asked", "base", "candidates", "fin", "name", "next", "packets", "party",
        "pending", "recent", "reset", "said", "ttl",
    )  # fmt: skip

    def __init__(self, party: Party, name: str) -> None:
        self.party, self.name = party, name
        self.base: int | None = None  # the sequence number of offset 0
        self.candidates: tuple[int, ...] = ()  # bases of SYN-ACKs that were not acknowledged yet
        self.next = 0  # everything before it was told
        self.acked = 0  # everything before it has arrived
        self.asked = -1  # the other side asked for this while it was sent what stands behind it
        self.said = 0  # bytes of data that were told
        self.pending: dict[int, tuple[bytes, int, bool]] | None = None
        # of its last segments: begins, ends, at, IP identification
        self.recent: list[tuple[int, int, float, int | None]] = []
        self.fin = self.reset = False
        self.ttl: int | None = None  # of all its packets; -1: they differ
        self.packets = 0

    def remember(self, begins: int, ends: int, at: float, ip_id: int | None) -> None:
        """A segment of its, for when it is said again."""
        self.recent.append((begins, ends, at, ip_id))
        if len(self.recent) > REMEMBERED:
            del self.recent[0]

    def offset(self, seq: int) -> int:
        """The offset nearest to ``next`` that has this sequence number."""
        assert self.base is not None
        ahead = (seq - self.base - self.next) & 0xFFFFFFFF
        return self.next + (ahead - 0x100000000 if ahead & 0x80000000 else ahead)


def _foreign_id(reset: Segment, side: Side) -> str:
    """Why a RST is not its sender's, by its IP identification; empty: it may well be.

    A connection's own counter goes up by one with each packet, a machine's counter by one with
    each packet to anybody, and neither runs far in a second. What a stack sends without a
    connection has 0 or, where fragments are not forbidden, anything (Linux, ``ip_select_ident``).
    """
    recent = side.recent[-STEADY:]
    if not reset.whole or not reset.ip_id or len(recent) < STEADY:
        return ""
    idents = [ident or 0 for _, _, _, ident in recent]
    steps = [(b - a) & 0xFFFF for a, b in itertools.pairwise(idents)]
    steady = all(idents) and all(0 < step <= STEADY_STEP for step in steps)
    ahead = (reset.ip_id - idents[-1]) & 0xFFFF
    if not steady or reset.at - recent[-1][2] > SOON or min(ahead, 0x10000 - ahead) < FAR:
        return ""
    return (
        f"IP identification {reset.ip_id}, where its other packets count up and were at "
        f"{idents[-1]}"
    )


class Flow:
    """A connection being put together."""

    __slots__ = (
        "agreed", "at", "client", "closed", "closed_at", "comment", "connected", "deliveries",
        "ends", "events", "first_packet", "head", "holes", "kept", "last_syn", "packets", "past",
        "postgresql", "queries", "refused", "server", "session_records", "size", "started",
        "syns", "waiting",
    )  # fmt: skip

    def __init__(self, ends: bytes, started: float, first_packet: int, comment: str) -> None:
        self.ends = ends  # the client's first
        client, server = named(ends)
        self.client = Side(Party.CLIENT, client)
        self.server = Side(Party.SERVER, server)
        self.started, self.first_packet, self.comment = started, first_packet, comment
        self.at = 0.0  # of the last event: they are in order
        self.events: list[Event] = []
        self.packets = 0
        self.size = FLOW_COST  # bytes held
        self.head = bytearray()  # the client's first bytes, until it is judged
        self.kept: bool | None = None
        self.postgresql = False  # to one of its ports
        self.holes = False  # some of what the client said was not captured
        self.past = False  # what follows is not read
        self.connected = self.refused = False
        self.agreed = False  # where both ends' bytes begin is known
        self.closed = False
        self.closed_at: float | None = None  # it has ended then; it waits for stragglers
        self.syns, self.last_syn = 0, started
        self.deliveries = self.session_records = self.queries = 0
        self.waiting: list[tuple[Segment, Side]] | None = None

    @property
    def events_beyond_syn(self) -> bool:
        """Somebody answered, or there was more than one SYN."""
        return self.connected or self.refused or len(self.events) > 1

    def reused(self, syn: Segment) -> bool:
        """A SYN that is not the flow's own, sent again, opens another connection."""
        return self.client.base != (syn.seq + 1) & 0xFFFFFFFF

    def begin_in_the_middle(self) -> None:
        """The capture does not hold its beginning."""
        self.connected = self.holes = True
        self.events += (
            Event(0.0, NotCaptured(Party.CLIENT, None)),
            Event(0.0, NotCaptured(Party.SERVER, None)),
            Event(0.0, Connected(self.client.name, self.server.name)),
        )

    def conversation(self) -> Conversation:
        """What was told of it so far."""
        return Conversation(
            self.ends,
            self.started,
            tuple(self.events),
            self.first_packet,
            self.packets,
            self.comment,
        )

    def tell(self, at: float, fact: Fact) -> None:
        """Add an event; a clock that went back (several queues) does not move it."""
        if len(self.events) < MAX_EVENTS:
            at -= self.started
            if at > self.at:
                self.at = at
            self.size += EVENT_COST
            self.events.append(_tuple(Event, (self.at, fact)))

    # -- segments ----------------------------------------------------------------------------

    def take(self, segment: Segment, side: Side, other: Side) -> None:
        """The next segment, in the capture's order, which ``side`` sent."""
        if self.past and not segment.flags & (SYN | FIN | RST):
            return  # some of what is not wanted comes all the same
        self.packets += 1
        at, _, seq, ack, flags, payload, cut, ttl, ip_id, _ = segment
        if not flags & RST:
            side.packets += 1
            if side.ttl != ttl:
                side.ttl = ttl if side.ttl is None else -1
            if self.agreed and flags & ~(PSH | FIN) == ACK and not (self.waiting or self.past):
                # nearly all segments are this: in order, and acknowledging what was told
                assert side.base is not None and other.base is not None  # noqa: PT018
                behind = (other.base + other.next - ack) & 0xFFFFFFFF
                if behind < 0x80000000:
                    if other.next - behind > other.acked:
                        other.acked = other.next - behind
                    if other.pending and not behind:
                        other.asked = other.next
                    if not (payload or cut or flags & FIN):
                        return
                    expected = not (seq - side.base - side.next) & 0xFFFFFFFF
                    if expected and not (cut or side.pending or side.fin):
                        self._in_order(side, at, payload, ip_id, bool(flags & FIN))
                        return
        if self._of_another_time(segment, side):
            return
        if flags & SYN:
            self._syn(segment, side, other)
            if not payload and not cut:
                return
        elif flags & ACK and not self.agreed and not flags & RST:
            self._agree(segment, side, other)
        if self.past:
            self._ending(segment, side)
            return
        if side.base is None:  # only a RST gets here, or a segment without ACK
            side.base = seq
        if self.waiting:
            if any(who is side for _, who in self.waiting) or self._ahead(segment, other):
                self._hold(segment, side)
            else:
                self._deliver(segment, side, other)
            self._release(at)
        elif self._ahead(segment, other):
            self._hold(segment, side)
        else:
            self._deliver(segment, side, other)

    def _in_order(
        self, side: Side, at: float, payload: bytes, ip_id: int | None, fin: bool
    ) -> None:
        begins, ends = side.next, side.next + len(payload)
        side.remember(begins, ends, at, ip_id)
        if payload:
            side.next = ends
            self.size += ends - begins
            self._count(side, payload)
            self.tell(at, _tuple(Data, (side.party, payload, Layer.TCP)))
        if fin:
            self._fin(side, at)

    def drop_head(self) -> int:
        """It is judged, and its first bytes are not needed a second time; gives their number."""
        dropped = len(self.head)
        self.head.clear()
        self.size -= dropped
        return dropped

    def _of_another_time(self, segment: Segment, side: Side) -> bool:
        """It belongs to an older connection between these ends, and no receiver takes it.

        What answers a SYN has to acknowledge it (RFC 9293, 3.10.7.3), and an RST has to be in the
        window (3.10.7.4).
        """
        flags = segment.flags
        if side is self.server and self.syns and not self.connected:
            base = self.client.base
            acked = (segment.ack - base) & 0xFFFFFFFF if base is not None else 0
            return not flags & ACK or acked > MAX_SAID
        if flags & RST and self.agreed and side.base is not None:
            offset = side.offset(segment.seq)
            return offset < side.acked or offset - side.next > MAX_OFF
        return False

    def finish(self, now: float) -> None:
        """The connection, or the capture, ends: what still waits is told now."""
        self._release(None)
        for side in (self.client, self.server):
            if side.pending and side.asked == side.next:
                missed = Missed(side.party, min(side.pending) - side.next)
                self.tell(self.at + self.started, missed)
                side.pending = None
            while side.pending:
                self._skip(side, min(side.pending), self.at + self.started)
        answered = self.connected or self.refused or self.server.packets
        if self.syns and not answered and (self.syns > 1 or now - self.started >= UNANSWERED):
            waited = max(now, self.last_syn) - self.started
            says = f"{self.syns} SYN and no answer in {waited:.1f} s"
            self.tell(self.started + waited, NotConnected(ConnectFailure.TIMED_OUT, says))

    def _syn(self, segment: Segment, side: Side, other: Side) -> None:
        base = (segment.seq + 1) & 0xFFFFFFFF
        if side is self.client:
            if self.syns and segment.at - self.last_syn < CAPTURED_TWICE:
                return
            self.syns, self.last_syn = self.syns + 1, segment.at
            side.base = base
            if self.syns == 1:
                self.tell(segment.at, Connecting(other.name))
            return
        if other.base is None:  # the SYN itself was not captured
            other.base = segment.ack
            self.tell(segment.at, Connecting(side.name))
        if side.base is None or (side.candidates and not side.next):
            side.base = base
            side.candidates = (*side.candidates[-3:], base)
        self._connect(segment.at)

    def _connect(self, at: float) -> None:
        if not self.connected:
            self.connected = True
            self.tell(at, Connected(self.client.name, self.server.name))

    def _agree(self, segment: Segment, side: Side, other: Side) -> None:
        """Where both ends' bytes begin, from a segment with an acknowledgement."""
        if side.base is None:
            side.base = segment.seq
        if other.base is None:
            other.base = segment.ack
        if side is self.client:
            if segment.ack in other.candidates:  # this SYN-ACK was the one
                other.base = segment.ack
            other.candidates = ()
            self._connect(segment.at)
            self.agreed = True

    def _ahead(self, segment: Segment, other: Side) -> bool:
        """It acknowledges what was not told yet."""
        if not segment.flags & ACK or other.base is None or segment.flags & SYN:
            return False
        return 0 < other.offset(segment.ack) - other.next < MAX_GAP

    def _hold(self, segment: Segment, side: Side) -> None:
        """It waits for what it acknowledges."""
        self.size += SEGMENT_COST + len(segment.payload)
        self.waiting = [*(self.waiting or ()), (segment, side)]

    def _release(self, now: float | None) -> None:
        """Let those go on that have waited long enough, or, at the end (None), all."""
        while self.waiting:
            segment, side = self.waiting[0]
            other = self.server if side is self.client else self.client
            if self._ahead(segment, other):
                soon = now is not None and now - segment.at <= WAIT_FOR_ACKED
                if soon and len(self.waiting) <= MAX_WAITING:
                    return
                self._skip(other, other.offset(segment.ack), segment.at)
            del self.waiting[0]
            self.size -= SEGMENT_COST + len(segment.payload)
            self._deliver(segment, side, other)
        self.waiting = None

    def _skip(self, side: Side, upto: int, at: float) -> None:
        """What ``side`` said before ``upto``, and is not here, was not captured."""
        while side.next < upto:
            until = min([upto, *(side.pending or ())])
            if until > side.next:
                self.tell(at, NotCaptured(side.party, until - side.next))
                self.holes = self.holes or side is self.client
                side.next = until
            self._flush(side, at)
        self._flush(side, at)

    def _deliver(self, segment: Segment, side: Side, other: Side) -> None:
        if self.past:
            self._ending(segment, side)
            return
        if segment.flags & ACK and other.base is not None and not segment.flags & SYN:
            acked = other.offset(segment.ack)
            if other.acked < acked < other.next + MAX_GAP:
                other.acked = acked
        if segment.payload or segment.cut or segment.flags & FIN:
            self._put(segment, side)
        if segment.flags & RST:
            self._reset(segment, side)

    def _put(self, segment: Segment, side: Side) -> None:
        payload, cut, fin = segment.payload, segment.cut, bool(segment.flags & FIN)
        begins = side.offset((segment.seq + bool(segment.flags & SYN)) & 0xFFFFFFFF)
        ends = begins + len(payload) + cut
        if begins < side.next or (side.pending and begins in side.pending):
            self._again(segment, side, begins, ends)
        side.remember(begins, ends, segment.at, segment.ip_id)
        if begins > side.next:
            self._wait(segment, side, begins)
            return
        self._say(side, segment.at, begins, payload, cut, fin)
        if side.pending:
            self._flush(side, segment.at)

    def _wait(self, segment: Segment, side: Side, begins: int) -> None:
        """Out of order: it waits for what stands before it."""
        if begins - side.next > MAX_GAP:
            return
        if side.pending is None:
            side.pending = {}
        fin = bool(segment.flags & FIN)
        size = len(segment.payload) + segment.cut
        self.size += SEGMENT_COST if begins not in side.pending else 0
        # what came first counts, and what a longer one has behind it
        first, lacks, ended = side.pending.get(begins, (b"", 0, False))
        known = len(first) + lacks
        text = first + segment.payload[len(first) :]
        fin = ended if known > size else fin or (ended and known == size)
        side.pending[begins] = (text, max(known, size) - len(text), fin)
        self.size += len(text) - len(first)
        held = sum(len(payload) for payload, *_ in side.pending.values())
        if held > MAX_PENDING or len(side.pending) > MAX_PENDING_SEGMENTS:
            self._skip(side, min(side.pending), segment.at)

    def _flush(self, side: Side, at: float) -> None:
        while side.pending:
            begins = min(side.pending)
            if begins > side.next:
                return
            payload, cut, fin = side.pending.pop(begins)
            self.size -= SEGMENT_COST + len(payload)
            self._say(side, at, begins, payload, cut, fin)

    def _say(self, side: Side, at: float, begins: int, payload: bytes, cut: int, fin: bool) -> None:
        """Tell what is new in these bytes, which begin no later than ``next``."""
        if self.past:
            return
        known = side.next - begins
        new, lost = payload[known:], cut - max(0, known - len(payload))
        if new:
            side.next += len(new)
            self.size += len(new)
            self._count(side, new)
            self.tell(at, Data(side.party, new))
        if lost > 0:
            side.next += lost
            self.holes = self.holes or side is self.client
            self.tell(at, NotCaptured(side.party, lost))
        if fin and not side.fin and begins + len(payload) + cut == side.next:
            self._fin(side, at)

    def _fin(self, side: Side, at: float) -> None:
        side.next += 1
        side.fin = True
        self.closed = self.closed or (self.client.fin and self.server.fin)
        self.tell(at, _tuple(Closed, (side.party, Ending.FIN)))

    def _count(self, side: Side, data: bytes) -> None:
        """How far the connection is: past its login, nothing more is read."""
        side.said += len(data)
        self.deliveries += 1
        if side is self.client:
            if self.kept is None:
                self.head += data
                self.size += len(data)
            self.session_records += data[:2] == b"\x17\x03"
            self.queries += data[0] in b"QPBX" and data[1:2] == b"\0" and len(data) >= 5
        if (
            side.said >= MAX_SAID
            or self.session_records >= SESSION_RECORDS
            or self.queries >= SESSION_QUERIES
            or self.deliveries >= MAX_DELIVERIES
        ):
            self.past = True
            for each in (self.client, self.server):
                each.pending = None
                each.recent = []

    # -- what is said again, and how it ends -------------------------------------------------

    def _again(self, segment: Segment, side: Side, begins: int, ends: int) -> None:
        """Bytes that were said before: lost on their way, unless something else explains it."""
        ends = min(ends, side.next) if begins < side.next else ends
        begins = max(begins, side.acked, 0)
        if ends - begins < 2:  # acknowledged, or a keep-alive's byte
            return
        for first, last, at, ip_id in side.recent:
            if first < ends and begins < last:
                twice = segment.ip_id and segment.ip_id == ip_id
                if twice or segment.at - at < CAPTURED_TWICE:
                    return
        self.tell(segment.at, Resent(side.party, begins, ends - begins))

    def _reset(self, segment: Segment, side: Side) -> None:
        if side is self.server and self.syns and not self.connected:
            if not self.refused:
                self.refused = self.closed = True
                says = "a RST answered the SYN"
                self.tell(segment.at, NotConnected(ConnectFailure.REFUSED, says))
            return
        if side is self.client and not self.connected:
            return  # it refuses some older packet, and goes on trying
        if side.ttl not in (None, -1, segment.ttl):
            others = (
                "all its other packets have" if side.packets > 1 else "its only other packet has"
            )
            says = f"TTL {segment.ttl}, where {others} {side.ttl}"
            self.tell(segment.at, StrangeReset(side.party, says))
        elif says := _foreign_id(segment, side):
            self.tell(segment.at, StrangeReset(side.party, says))
        if not side.reset:
            side.reset = self.closed = True
            self.tell(segment.at, Closed(side.party, Ending.RST))

    def _ending(self, segment: Segment, side: Side) -> None:
        """Of a connection that is past, only its end is told."""
        if segment.flags & FIN and not side.fin:
            self._fin(side, segment.at)
        if segment.flags & RST:
            self._reset(segment, side)
