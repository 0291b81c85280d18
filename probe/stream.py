"""TCP segments to connections: what each side said, in order, as events of ``probe.transcript``.

Takes :class:`~probe.packet.Segment` after segment, in the capture's order; gives each TCP
connection that is kept as a :class:`Conversation`. Source: RFC 9293 (sequence numbers, RST),
RFC 7413 (data in a SYN), RFC 9293 section 3.8.4 (keep-alives).

How two accounts are made one:

* **What arrives first is kept.** A receiver that was given a byte cannot be given another in its
  place, and an injected segment is to be seen, not to hide what it was injected over.
* **A side's bytes are told in order.** What came out of order waits for what stands before it.
* **Causes before effects.** A segment that acknowledges bytes which the capture has not shown
  waits a moment, since captures of several queues or interfaces are not in order; then the bytes
  count as *not captured*.
* **The same packet seen twice** (``-i any``, a mirror port) is not a retransmission: it has the
  same IP identification, or follows within milliseconds.
* **A port used again** begins a new connection: a SYN with another initial sequence number.
* **A SYN-ACK that changes**: the one that the client acknowledges counts.

Which connections are kept is decided by what the client says, on whatever port; see ``_judge``.
Those of a recording of our own say themselves that they are wanted (:mod:`probe.note`).
Once a connection is past what pgprobe reads, :meth:`Streams.take` says so, and whoever calls may
leave its further packets out, except for SYN, FIN and RST. All state is bounded by the constants
below; what they cost is counted in :attr:`Streams.notes`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from probe.note import is_note
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
    NotCaptured,
    NotConnected,
    Party,
    Resent,
    StrangeReset,
)
from probe.wire import Malformed, hello, records, startup
from probe.wire.foreign import PROXY_V2_SIGNATURE

POSTGRESQL_PORT = 5432

MAX_FLOWS = 65_536  # connections followed at a time
MAX_LEFT_OUT = 131_072  # connections remembered as not wanted
MAX_HELD = 1 << 27  # bytes of all connections that are followed
MAX_SAID = 65_536  # bytes that are kept of a side
MAX_DELIVERIES = 4_096  # segments with data, of both sides
MAX_EVENTS = 16_384  # of a connection
MAX_PENDING = 65_536  # bytes of a side that wait for what stands before them
MAX_PENDING_SEGMENTS = 64
MAX_GAP = 1 << 30  # bytes; the largest window (RFC 7323), so no honest hole is larger
MAX_WAITING = 16  # segments of a connection that wait for what they acknowledge
WAIT_FOR_ACKED = 0.02  # seconds, likewise
CAPTURED_TWICE = 0.002  # seconds; no stack retransmits that soon
LINGER = 1.0  # seconds that a closed connection waits for stragglers
UNANSWERED = 1.0  # seconds; the least time after which any stack sends its SYN again (RFC 6298)
SESSION_RECORDS = 12  # application data records of a client: it is past its login
SESSION_QUERIES = 4  # messages in clear that only a session has
REMEMBERED = 32  # segments of a side, to tell what is said again

_tuple = tuple.__new__  # a named tuple without the cost of its names

PROXY_V1_LONGEST = 107  # bytes; the PROXY protocol, section 2.1


class Conversation(NamedTuple):
    """A TCP connection as the capture tells it; ``client`` and ``server`` as "addr:port".

    Events are timed in seconds since ``started``, which is its first packet's time since the
    epoch. ``comment`` is the first packet's. ``packets`` counts those that were looked at.
    """

    client: str
    server: str
    started: float
    events: tuple[Event, ...]
    first_packet: int
    packets: int
    comment: str = ""


class Streams:
    """All connections of a capture; each goes to ``give`` when it ends, or at :meth:`finish`.

    ``ports``: only connections to these servers' ports, which count as PostgreSQL's; None: every
    port, and only 5432 is PostgreSQL's whatever is said. ``everything``: also connections that
    have nothing to do with PostgreSQL.
    """

    def __init__(
        self,
        give: Callable[[Conversation], None],
        *,
        ports: Collection[int] | None = None,
        everything: bool = False,
    ) -> None:
        self.notes: Counter[str] = Counter()
        self._give = give
        self._only = frozenset(map(str, ports)) if ports else None
        self._postgresql = self._only or frozenset([str(POSTGRESQL_PORT)])
        self._everything = everything
        self._flows: dict[tuple[str, str], _Flow] = {}
        self._left_out: dict[tuple[str, str], None] = {}
        self._closing: deque[tuple[float, _Flow]] = deque()
        self._held = 0
        self._now = 0.0

    def take(self, segment: Segment, number: int, comment: str = "") -> bool:
        """The next segment, which packet ``number`` holds; False: no more of its bulk is wanted.

        "Bulk" is whatever has neither SYN nor FIN nor RST set.
        """
        if segment.at > self._now:
            self._now = segment.at
        if self._closing and self._closing[0][0] < self._now - LINGER:
            self._let_go()
        name = segment[1:3]
        sender: Party | None = Party.CLIENT
        flow = self._flows.get(name)
        if flow is None:
            flow, sender = self._flows.get(name[::-1]), Party.SERVER
        opens = segment.flags & SYN
        if opens and not segment.flags & ACK:
            if flow is not None and (sender is Party.SERVER or flow.reused(segment)):
                self._end(flow)
                flow = None
            sender = Party.CLIENT
        if flow is None:
            if not opens and (name in self._left_out or name[::-1] in self._left_out):
                return False
            flow, sender = self._begin(segment, number, comment)
            if flow is None:
                return sender is not None
        assert sender is not None
        before = flow.size
        flow.take(segment, sender)
        self._held += flow.size - before
        if flow.kept and not flow.closed:
            return not flow.past
        return self._judged(flow)

    def finish(self) -> None:
        """The capture ends here."""
        for flow in list(self._flows.values()):
            self._end(flow)

    # -- the life of a flow ------------------------------------------------------------------

    def _begin(
        self, segment: Segment, number: int, comment: str
    ) -> tuple[_Flow | None, Party | None]:
        """A new flow and who speaks; no flow and anyone: wait and see; no flow and None: no."""
        source, destination = segment.source, segment.destination
        begins = bool(segment.flags & SYN)
        if begins:
            sender = Party.SERVER if segment.flags & ACK else Party.CLIENT
        else:
            if self._only and not self._only & {_port(source), _port(destination)}:
                return None, None
            if not segment.payload:
                return None, Party.CLIENT
            sender = self._who(segment)
        client, server = source, destination
        if sender is Party.SERVER:
            client, server = server, client
        if self._only and _port(server) not in self._only:
            return None, None
        self._left_out.pop((client, server), None)
        self._left_out.pop((server, client), None)
        flow = _Flow(client, server, segment.at, number, comment)
        flow.postgresql = _port(server) in self._postgresql
        if self._everything or is_note(comment):
            flow.kept = True
        if not begins:
            flow.begin_in_the_middle()
        self._flows[client, server] = flow
        if len(self._flows) > MAX_FLOWS or self._held > MAX_HELD:
            self._make_room()
        return flow, sender

    def _who(self, segment: Segment) -> Party:
        """Who sent a segment of a connection whose beginning was not captured."""
        if _judge(segment.payload, postgresql=True):
            return Party.CLIENT
        if segment.payload[:2] == b"\x16\x03" and segment.payload[5:6] == b"\x02":
            return Party.SERVER  # a ServerHello
        source, destination = _port(segment.source), _port(segment.destination)
        if source in self._postgresql or destination in self._postgresql:
            return Party.CLIENT if destination in self._postgresql else Party.SERVER
        return Party.CLIENT if int(source) > int(destination) else Party.SERVER

    def _judged(self, flow: _Flow) -> bool:
        """Whether more of it is wanted; it ends here if it is not to be kept at all."""
        if flow.kept is None and flow.head:
            flow.kept = _judge(bytes(flow.head), flow.postgresql)
            if flow.kept is None and len(flow.head) >= MAX_SAID:
                flow.kept = False
            if flow.kept is False and flow.holes and flow.postgresql:
                flow.kept = True  # what told it may be what was not captured
            if flow.kept:
                flow.head.clear()
        if flow.kept is False:
            self._forget(flow)
            return False
        if flow.closed and not flow.closing:
            flow.closing = True
            self._closing.append((self._now, flow))
        return not flow.past

    def _end(self, flow: _Flow) -> None:
        flow.finish(self._now)
        self._forget(flow)
        if flow.kept is None:  # the client said nothing, or not enough to tell
            flow.kept = flow.postgresql
        if flow.kept:
            self._give(flow.conversation())

    def _forget(self, flow: _Flow) -> None:
        name = flow.client.name, flow.server.name
        if self._flows.get(name) is flow:
            del self._flows[name]
            self._held -= flow.size
            self._left_out[name] = None
            if len(self._left_out) > MAX_LEFT_OUT:
                del self._left_out[next(iter(self._left_out))]

    def _let_go(self) -> None:
        while self._closing and self._closing[0][0] < self._now - LINGER:
            _, flow = self._closing.popleft()
            if self._flows.get((flow.client.name, flow.server.name)) is flow:
                self._end(flow)

    def _make_room(self) -> None:
        """The oldest must go: what it said is told, but a SYN alone is only counted."""
        while self._flows and (len(self._flows) > MAX_FLOWS or self._held > MAX_HELD):
            flow = next(iter(self._flows.values()))
            if flow.events_beyond_syn:
                self.notes[
                    "connections at the same time: the oldest were not read to their end"
                ] += 1
                self._end(flow)
            else:
                self.notes["half-open connections were forgotten to make room for others"] += 1
                self._forget(flow)


def _judge(head: bytes, postgresql: bool) -> bool | None:
    """Whether a client that says this is one of PostgreSQL's; None: more bytes are needed.

    It is, on any port, when its first packet is laid out exactly as one of PostgreSQL's, or is a
    ClientHello that offers ALPN ``postgresql``; to a PostgreSQL port, any TLS is. A PROXY header
    may stand before.
    """
    start = _behind_proxy_header(head)
    if start is None:
        return None
    head = head[start:]
    if not head:
        return None
    if head[0] == records.HANDSHAKE:
        if len(head) < 2:
            return None
        if head[1] != 3:
            return False
        return True if postgresql else _offers_postgresql(head)
    if postgresql and head[0] in (records.ALERT, records.APPLICATION_DATA) and head[1:2] == b"\3":
        return True  # in mid-stream
    try:
        decoded = startup.decode_first_packet(head)
    except Malformed:
        return False
    if decoded is None:
        return None
    packet, length = decoded
    if isinstance(packet, startup.StartupMessage):
        if packet.version[0] == 2:
            return length == 296  # a fixed layout, PostgreSQL 13's protocol documentation
        return packet.get("user") is not None and head[length - 1] == 0
    return True


def _behind_proxy_header(head: bytes) -> int | None:
    """Where the bytes behind a PROXY header begin; 0: there is none; None: more is needed."""
    if head.startswith(b"PROXY "):
        end = head.find(b"\r\n", 0, PROXY_V1_LONGEST)
        return end + 2 if end >= 0 else None if len(head) < PROXY_V1_LONGEST else 0
    if head.startswith(PROXY_V2_SIGNATURE):
        if len(head) < 16:
            return None
        end = 16 + int.from_bytes(head[14:16], "big")
        return end if len(head) > end else None
    if head and (b"PROXY ".startswith(head) or PROXY_V2_SIGNATURE.startswith(head)):
        return None
    return 0


def _offers_postgresql(head: bytes) -> bool | None:
    """Whether a ClientHello offers PostgreSQL's ALPN protocol; None: more bytes are needed."""
    said = b""
    try:
        while True:
            decoded = records.decode_record(head)
            if decoded is None:
                return None
            record, length = decoded
            if record.type != records.HANDSHAKE:
                return False
            said, head = said + record.fragment, head[length:]
            message = records.decode_handshake(said)
            if message is not None:
                (kind, body), _ = message
                if kind != hello.CLIENT_HELLO:
                    return False
                return "postgresql" in hello.parse_client_hello(body).alpn
    except Malformed:
        return False


def _port(endpoint: str) -> str:
    return endpoint.rpartition(":")[2]


class _Side:
    """What one end says: offsets count its bytes, and its FIN, from the first on."""

    __slots__ = (
        "acked", "base", "candidates", "fin", "name", "next", "packets", "party", "pending",
        "recent", "reset", "said", "ttl",
    )  # fmt: skip

    def __init__(self, party: Party, name: str) -> None:
        self.party, self.name = party, name
        self.base: int | None = None  # the sequence number of offset 0
        self.candidates: tuple[int, ...] = ()  # bases of SYN-ACKs that were not acknowledged yet
        self.next = 0  # everything before it was told
        self.acked = 0  # everything before it has arrived
        self.said = 0  # bytes of data that were told
        self.pending: dict[int, tuple[bytes, int, bool, Segment]] | None = None
        # of its last segments: begins, ends, at, IP identification
        self.recent: deque[tuple[int, int, float, int | None]] | None = None
        self.fin = self.reset = False
        self.ttl: int | None = None  # of all its packets; -1: they differ
        self.packets = 0

    def offset(self, seq: int) -> int:
        """The offset nearest to ``next`` that has this sequence number."""
        assert self.base is not None
        ahead = (seq - self.base - self.next) & 0xFFFFFFFF
        return self.next + (ahead - 0x100000000 if ahead & 0x80000000 else ahead)


class _Flow:
    """A connection being put together."""

    __slots__ = (
        "agreed", "at", "client", "closed", "closing", "comment", "connected", "deliveries",
        "events", "first_packet", "head", "holes", "kept", "last_syn", "packets", "past",
        "postgresql", "queries", "refused", "server", "session_records", "size", "started",
        "syns", "waiting",
    )  # fmt: skip

    def __init__(
        self, client: str, server: str, started: float, first_packet: int, comment: str
    ) -> None:
        self.client = _Side(Party.CLIENT, client)
        self.server = _Side(Party.SERVER, server)
        self.started, self.first_packet, self.comment = started, first_packet, comment
        self.at = 0.0  # of the last event: they are in order
        self.events: list[Event] = []
        self.packets = 0
        self.size = 0  # bytes held
        self.head = bytearray()  # the client's first bytes, until it is judged
        self.kept: bool | None = None
        self.postgresql = False  # to one of its ports
        self.holes = False  # some of what the client said was not captured
        self.past = False  # what follows is not read
        self.connected = self.refused = False
        self.agreed = False  # where both ends' bytes begin is known
        self.closed = self.closing = False  # it has ended; it waits for stragglers
        self.syns, self.last_syn = 0, started
        self.deliveries = self.session_records = self.queries = 0
        self.waiting: list[tuple[Segment, Party]] | None = None

    @property
    def events_beyond_syn(self) -> bool:
        return self.connected or self.refused or len(self.events) > 1

    def reused(self, syn: Segment) -> bool:
        """A SYN that is not the flow's own, sent again, opens another connection."""
        return self.client.base != (syn.seq + 1) & 0xFFFFFFFF

    def begin_in_the_middle(self) -> None:
        self.connected = self.holes = True
        self.events += (
            Event(0.0, NotCaptured(Party.CLIENT, None)),
            Event(0.0, NotCaptured(Party.SERVER, None)),
            Event(0.0, Connected(self.client.name, self.server.name)),
        )

    def conversation(self) -> Conversation:
        return Conversation(
            self.client.name,
            self.server.name,
            self.started,
            tuple(self.events),
            self.first_packet,
            self.packets,
            self.comment,
        )

    def tell(self, at: float, fact: Fact) -> None:
        """Add an event; a clock that went back (several queues) does not move it."""
        if len(self.events) < MAX_EVENTS:
            if at - self.started > self.at:
                self.at = at - self.started
            self.events.append(_tuple(Event, (self.at, fact)))

    # -- segments ----------------------------------------------------------------------------

    def take(self, segment: Segment, sender: Party) -> None:
        self.packets += 1
        if sender is Party.CLIENT:
            side, other = self.client, self.server
        else:
            side, other = self.server, self.client
        at, _, _, seq, ack, flags, payload, cut, ttl, ip_id = segment
        if not flags & RST:
            side.packets += 1
            if side.ttl != ttl:
                side.ttl = ttl if side.ttl is None else -1
            if self.agreed and flags & ~PSH == ACK and not self.waiting and not self.past:
                # nearly all segments are this: in order, and acknowledging what was told
                assert side.base is not None and other.base is not None  # noqa: PT018
                behind = (other.base + other.next - ack) & 0xFFFFFFFF
                if behind < 0x80000000:
                    if other.next - behind > other.acked:
                        other.acked = other.next - behind
                    if not payload and not cut:
                        return
                    expected = not (seq - side.base - side.next) & 0xFFFFFFFF
                    if expected and not cut and not side.pending:
                        size = len(payload)
                        if side.recent is None:
                            side.recent = deque(maxlen=REMEMBERED)
                        side.recent.append((side.next, side.next + size, at, ip_id))
                        side.next += size
                        self.size += size
                        self._count(side, payload)
                        self.tell(at, _tuple(Data, (side.party, payload, Layer.TCP)))
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
            if any(who is sender for _, who in self.waiting) or self._ahead(segment, other):
                self.waiting.append((segment, sender))
            else:
                self._deliver(segment, side, other)
            self._release(at)
        elif self._ahead(segment, other):
            self.waiting = [(segment, sender)]
        else:
            self._deliver(segment, side, other)

    def finish(self, now: float) -> None:
        """The connection, or the capture, ends: what still waits is told now."""
        self._release(None)
        for side in (self.client, self.server):
            while side.pending:
                self._skip(side, min(side.pending), self.at + self.started)
        answered = self.connected or self.refused or self.server.packets
        if self.syns and not answered and (self.syns > 1 or now - self.started >= UNANSWERED):
            waited = max(now, self.last_syn) - self.started
            says = f"{self.syns} SYN and no answer in {waited:.1f} s"
            self.tell(self.started + waited, NotConnected(ConnectFailure.TIMED_OUT, says))

    def _ends(self, sender: Party) -> tuple[_Side, _Side]:
        if sender is Party.CLIENT:
            return self.client, self.server
        return self.server, self.client

    def _syn(self, segment: Segment, side: _Side, other: _Side) -> None:
        base = (segment.seq + 1) & 0xFFFFFFFF
        if side is self.client:
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

    def _agree(self, segment: Segment, side: _Side, other: _Side) -> None:
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

    def _ahead(self, segment: Segment, other: _Side) -> bool:
        """It acknowledges what was not told yet."""
        if not segment.flags & ACK or other.base is None or segment.flags & SYN:
            return False
        return 0 < other.offset(segment.ack) - other.next < MAX_GAP

    def _release(self, now: float | None) -> None:
        """Let those go on that have waited long enough, or, at the end (None), all."""
        while self.waiting:
            segment, sender = self.waiting[0]
            side, other = self._ends(sender)
            if self._ahead(segment, other):
                soon = now is not None and now - segment.at <= WAIT_FOR_ACKED
                if soon and len(self.waiting) <= MAX_WAITING:
                    return
                self._skip(other, other.offset(segment.ack), segment.at)
            del self.waiting[0]
            self._deliver(segment, side, other)
        self.waiting = None

    def _skip(self, side: _Side, upto: int, at: float) -> None:
        """What ``side`` said before ``upto``, and is not here, was not captured."""
        while side.next < upto:
            until = min([upto, *(side.pending or ())])
            if until > side.next:
                self.tell(at, NotCaptured(side.party, until - side.next))
                self.holes = self.holes or side is self.client
                side.next = until
            self._flush(side, at)
        self._flush(side, at)

    def _deliver(self, segment: Segment, side: _Side, other: _Side) -> None:
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

    def _put(self, segment: Segment, side: _Side) -> None:
        payload, cut, fin = segment.payload, segment.cut, bool(segment.flags & FIN)
        begins = side.offset((segment.seq + bool(segment.flags & SYN)) & 0xFFFFFFFF)
        ends = begins + len(payload) + cut
        if begins < side.next or (side.pending and begins in side.pending):
            self._again(segment, side, begins, ends)
        self._remember(segment, side, begins, ends)
        if begins > side.next:
            self._wait(segment, side, begins)
            return
        self._say(side, segment.at, begins, payload, cut, fin)
        if side.pending:
            self._flush(side, segment.at)

    def _wait(self, segment: Segment, side: _Side, begins: int) -> None:
        """Out of order: it waits for what stands before it."""
        if side.pending is None:
            side.pending = {}
        if begins in side.pending or begins - side.next > MAX_GAP:
            return
        fin = bool(segment.flags & FIN)
        side.pending[begins] = (segment.payload, segment.cut, fin, segment)
        self.size += len(segment.payload)
        held = sum(len(payload) for payload, *_ in side.pending.values())
        if held > MAX_PENDING or len(side.pending) > MAX_PENDING_SEGMENTS:
            self._skip(side, min(side.pending), segment.at)

    def _flush(self, side: _Side, at: float) -> None:
        while side.pending:
            begins = min(side.pending)
            if begins > side.next:
                return
            payload, cut, fin, _ = side.pending.pop(begins)
            self.size -= len(payload)
            self._say(side, at, begins, payload, cut, fin)

    def _say(
        self, side: _Side, at: float, begins: int, payload: bytes, cut: int, fin: bool
    ) -> None:
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
            side.next += 1
            side.fin = True
            self.closed = self.closed or (self.client.fin and self.server.fin)
            self.tell(at, Closed(side.party, Ending.FIN))

    def _count(self, side: _Side, data: bytes) -> None:
        """How far the connection is: past its login, nothing more is read."""
        side.said += len(data)
        self.deliveries += 1
        if side is self.client:
            if self.kept is None:
                self.head += data
            self.session_records += data[:2] == b"\x17\x03"
            self.queries += data[:1] in (b"Q", b"P", b"B", b"X")
        self.past = (
            side.said >= MAX_SAID
            or self.session_records >= SESSION_RECORDS
            or self.queries >= SESSION_QUERIES
            or self.deliveries >= MAX_DELIVERIES
        )
        if self.past:
            for each in (self.client, self.server):
                each.pending = each.recent = None

    # -- what is said again, and how it ends -------------------------------------------------

    def _remember(self, segment: Segment, side: _Side, begins: int, ends: int) -> None:
        if side.recent is None:
            side.recent = deque(maxlen=REMEMBERED)
        side.recent.append((begins, ends, segment.at, segment.ip_id))

    def _again(self, segment: Segment, side: _Side, begins: int, ends: int) -> None:
        """Bytes that were said before: lost on their way, unless something else explains it."""
        ends = min(ends, side.next) if begins < side.next else ends
        begins = max(begins, side.acked, 0)
        if ends - begins < 2:  # acknowledged, or a keep-alive's byte
            return
        for first, last, at, ip_id in side.recent or ():
            if first < ends and begins < last:
                twice = segment.ip_id and segment.ip_id == ip_id
                if twice or segment.at - at < CAPTURED_TWICE:
                    return
        self.tell(segment.at, Resent(side.party, begins, ends - begins))

    def _reset(self, segment: Segment, side: _Side) -> None:
        if side is self.server and self.syns and not self.connected:
            if not self.refused:
                self.refused = self.closed = True
                says = "a RST answered the SYN"
                self.tell(segment.at, NotConnected(ConnectFailure.REFUSED, says))
            return
        if side is self.client and not self.connected:
            return  # it refuses some older packet, and goes on trying
        if side.packets > 1 and side.ttl not in (None, -1, segment.ttl):
            says = f"TTL {segment.ttl}, where all its other packets have {side.ttl}"
            self.tell(segment.at, StrangeReset(side.party, says))
        if not side.reset:
            side.reset = self.closed = True
            self.tell(segment.at, Closed(side.party, Ending.RST))

    def _ending(self, segment: Segment, side: _Side) -> None:
        """Of a connection that is past, only its end is told."""
        if segment.flags & FIN and not side.fin:
            side.fin = True
            self.closed = self.closed or (self.client.fin and self.server.fin)
            self.tell(segment.at, Closed(side.party, Ending.FIN))
        if segment.flags & RST:
            self._reset(segment, side)
