"""TCP segments to connections: which there are, which are kept, and when each is over.

Takes :class:`~probe.packet.Segment` after segment, in the capture's order; gives each TCP
connection that is kept as a :class:`~probe.flow.Conversation`.

* **A port used again** begins a new connection: a SYN with another initial sequence number.
* **Which are kept** is decided by what the client says, on whatever port; see ``_judge``. Those of
  a recording of our own say themselves that they are wanted (:mod:`probe.note`).
* **Once a connection is past** what pgprobe reads, :meth:`Streams.take` says so, and whoever calls
  may leave its further packets out, except for SYN, FIN and RST.

All state is bounded by the constants below; what they cost is counted in :attr:`Streams.notes`.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from probe.ends import mirrored
from probe.flow import MAX_SAID, Conversation, Flow, Side
from probe.note import is_note
from probe.packet import ACK, SYN, Segment
from probe.transcript import Party
from probe.wire import Malformed, hello, records, startup
from probe.wire.foreign import proxy_header_length

POSTGRESQL_PORT = 5432

MAX_FLOWS = 65_536  # connections followed at a time
MAX_LEFT_OUT = 131_072  # connections remembered as not wanted
MAX_HELD = 1 << 27  # bytes of all connections that are followed, with what keeping them costs
MAX_CLOSING = 65_536  # closed connections that wait for stragglers
LINGER = 1.0  # seconds that a closed connection waits for stragglers
DISORDER = 0.2  # seconds by which times may go back, as those of several queues do


class State(NamedTuple):
    """Where the connections of a part of a capture stand at its end.

    ``orderly``: nothing had to make room, and times did not go back; ``earliest`` and ``now`` are
    its first and last.
    """

    flows: tuple[Flow, ...]
    left_out: tuple[bytes, ...]
    now: float
    began: float | None
    earliest: float
    orderly: bool
    most_flows: int
    most_held: int


class _Way(NamedTuple):
    """One direction of a connection: who sends, and to whom."""

    flow: Flow
    sender: Side
    other: Side


class Streams:
    """All connections of a capture; each goes to ``give`` when it ends, or at :meth:`finish`.

    ``ports``: only connections to these servers' ports, which count as PostgreSQL's; None: every
    port, and only 5432 is PostgreSQL's whatever is said. ``everything``: also connections that
    have nothing to do with PostgreSQL. ``share``: so many keep to the caps together.
    """

    def __init__(
        self,
        give: Callable[[Conversation], None],
        *,
        ports: Collection[int] | None = None,
        everything: bool = False,
        share: int = 1,
    ) -> None:
        self._max_flows, self._max_held = MAX_FLOWS // share, MAX_HELD // share
        self.notes: Counter[str] = Counter()
        self._give = give
        self._only = frozenset(ports) if ports else None
        self._postgresql = self._only or frozenset([POSTGRESQL_PORT])
        self._everything = everything
        # by their ends, the client's first. The oldest first: a plain dict would search for it
        # among what was deleted
        self._flows: OrderedDict[bytes, Flow] = OrderedDict()
        self._ways: dict[bytes, _Way] = {}  # both directions of each
        self._left_out: OrderedDict[bytes, None] = OrderedDict()
        self._closing: deque[tuple[float, Flow]] = deque()
        self.held = self.most_held = self.most_flows = 0
        self.now, self.earliest = 0.0, math.inf
        self.began: float | None = None  # at its first segment
        self.orderly = True  # times go back by no more than DISORDER

    def take(self, segment: Segment, number: int, comment: str = "") -> bool:
        """The next segment, which packet ``number`` holds; False: no more of its bulk is wanted.

        "Bulk" is whatever has neither SYN nor FIN nor RST set.
        """
        at = segment.at
        if at >= self.now and self.began is not None:
            self.now = at
        else:
            self._clock(at)
        if self._closing and self._closing[0][0] < self.now - LINGER - DISORDER:
            self._let_go()
        ends, flags = segment.ends, segment.flags
        way = self._ways.get(ends)
        if way is not None and (flags & SYN or way[0].closed_at is not None):
            flow, side, _ = way
            late = flow.closed_at is not None and at - flow.closed_at > LINGER
            opens = flags & SYN and not flags & ACK
            if late or (opens and (side is flow.server or flow.reused(segment))):
                self._end(flow, at)
                way = None
        if way is None:
            if not flags & SYN and self._is_left_out(ends):
                return False
            wait = self._begin(segment, number, comment)
            way = self._ways.get(ends)
            if way is None:
                return wait
        flow, side, other = way
        before = flow.size
        flow.take(segment, side, other)
        self.held += flow.size - before
        if self.held > self.most_held:
            self.most_held = min(self.held, self._max_held)
            if self.held > self._max_held:
                self._make_room()
        if flow.kept and not flow.closed:
            return not flow.past
        return self._judged(flow, at)

    def _clock(self, at: float) -> None:
        """The first segment's time, or one that may be before another's."""
        if at > self.now:
            self.now = at
        elif at < self.now - DISORDER:
            self.orderly = False
        if at < self.earliest:
            self.began = at if self.began is None else self.began
            self.earliest = at

    def finish(self, at: float | None = None) -> None:
        """The capture ends here, at this time; None: with the last segment."""
        for flow in list(self._flows.values()):
            self._end(flow, self.now if at is None else at)

    # -- several parts of one capture --------------------------------------------------------

    def wants(self, ends: bytes) -> bool:
        """Whether :meth:`take` may do anything with bulk between these ends, in either order."""
        way = self._ways.get(ends)
        return not self._is_left_out(ends) if way is None else not way.flow.past

    def state(self) -> State:
        """What a later part of the same capture goes on from."""
        return State(
            tuple(self._flows.values()),
            tuple(self._left_out),
            self.now,
            self.began,
            self.earliest,
            self.orderly and not self.notes and len(self._left_out) < MAX_LEFT_OUT,
            self.most_flows,
            self.most_held,
        )

    def knows(self, ends: bytes, *, opens: bool) -> bool:
        """Whether what was read before decides what the first segment between these ends does.

        ``opens``: it has SYN set, which begins anew whatever was left out.
        """
        return ends in self._ways or (not opens and self._is_left_out(ends))

    def adopt(self, later: State, packets: int, without: Collection[bytes]) -> None:
        """Go on from what another read in the part behind ``packets``, ``without`` some ends."""
        for ends in later.left_out:
            if ends not in without and mirrored(ends) not in without:
                self._left_out[ends] = None
        for flow in later.flows:
            if flow.ends not in without and mirrored(flow.ends) not in without:
                flow.first_packet += packets
                self._follow(flow)
                if flow.closed_at is not None:
                    self._closing.append((flow.closed_at, flow))
        self.now = max(self.now, later.now)
        self.began = later.began if self.began is None else self.began

    # -- the life of a flow ------------------------------------------------------------------

    def _begin(self, segment: Segment, number: int, comment: str) -> bool:
        """Follow a new flow, if one begins; False: none ever will, of what follows here."""
        ends, begins = segment.ends, bool(segment.flags & SYN)
        if begins:
            sender = Party.SERVER if segment.flags & ACK else Party.CLIENT
        else:
            if self._only and self._only.isdisjoint(_ports(ends)):
                return False
            if not segment.payload:
                return True
            sender = self._who(segment)
        sent = ends if sender is Party.CLIENT else mirrored(ends)
        _, port = _ports(sent)
        if self._only and port not in self._only:
            return False
        flow = Flow(sent, segment.at, number, comment)
        flow.postgresql = port in self._postgresql
        if self._everything or is_note(comment):
            flow.kept = True
        if not begins:
            flow.begin_in_the_middle()
        self._follow(flow)
        if len(self._flows) > self.most_flows:
            self.most_flows = min(len(self._flows), self._max_flows)
            if len(self._flows) > self._max_flows:
                self._make_room()
        return True

    def _follow(self, flow: Flow) -> None:
        ends, back = flow.ends, mirrored(flow.ends)
        self._left_out.pop(ends, None)
        self._left_out.pop(back, None)
        self._flows[ends] = flow
        self._ways[back] = _Way(flow, flow.server, flow.client)
        self._ways[ends] = _Way(flow, flow.client, flow.server)
        self.held += flow.size

    def _is_left_out(self, ends: bytes) -> bool:
        return ends in self._left_out or mirrored(ends) in self._left_out

    def _who(self, segment: Segment) -> Party:
        """Who sent a segment of a connection whose beginning was not captured."""
        said = segment.payload
        if said[:2] == b"\x16\x03" and said[5:6] in (b"\1", b"\2"):  # a Client- or ServerHello
            return Party.CLIENT if said[5] == hello.CLIENT_HELLO else Party.SERVER
        if _judge(said, postgresql=False):
            return Party.CLIENT
        source, destination = _ports(segment.ends)
        if (source in self._postgresql) is not (destination in self._postgresql):
            return Party.CLIENT if destination in self._postgresql else Party.SERVER
        return Party.CLIENT if source > destination else Party.SERVER

    def _judged(self, flow: Flow, at: float) -> bool:
        """Whether more of it is wanted; it ends here if it is not to be kept at all."""
        if flow.kept is None and flow.head:
            flow.kept = _judge(bytes(flow.head), flow.postgresql)
            if flow.kept is None and len(flow.head) >= MAX_SAID:
                flow.kept = False
            if flow.kept is False and flow.holes and flow.postgresql:
                flow.kept = True  # what told it may be what was not captured
            if flow.kept:
                self.held -= flow.drop_head()
        if flow.kept is False:
            self._forget(flow)
            return False
        if flow.closed and flow.closed_at is None:
            flow.closed_at = at
            self._closing.append((at, flow))
            if len(self._closing) > MAX_CLOSING:
                self._end_closed()
        return not flow.past

    def _end(self, flow: Flow, at: float) -> None:
        before = flow.size
        flow.finish(at)
        self.held += flow.size - before
        self._forget(flow)
        if flow.kept is None and flow.head:  # of what was waiting until now
            flow.kept = _judge(bytes(flow.head), flow.postgresql)
        if flow.kept is None:  # the client said nothing, or not enough to tell
            flow.kept = flow.postgresql
        if flow.kept:
            self._give(flow.conversation())

    def _forget(self, flow: Flow) -> None:
        if self._flows.get(flow.ends) is flow:
            del self._flows[flow.ends]
            self._ways.pop(flow.ends)
            self._ways.pop(mirrored(flow.ends), None)  # who speaks to itself has one direction
            self.held -= flow.size
            self._left_out[flow.ends] = None
            if len(self._left_out) > MAX_LEFT_OUT:
                self._left_out.popitem(last=False)

    def _let_go(self) -> None:
        while self._closing and self._closing[0][0] < self.now - LINGER - DISORDER:
            self._end_closed()

    def _end_closed(self) -> None:
        """The one that closed first has waited long enough, unless it has ended otherwise."""
        at, flow = self._closing.popleft()
        if self._flows.get(flow.ends) is flow:
            self._end(flow, at)

    def _make_room(self) -> None:
        """The oldest must go: what it said is told, but a SYN alone is only counted."""
        while self._flows and (len(self._flows) > self._max_flows or self.held > self._max_held):
            flow = next(iter(self._flows.values()))
            if flow.events_beyond_syn:
                self.notes[
                    "connections at the same time: the oldest were not read to their end"
                ] += 1
                self._end(flow, self.now)
            else:
                self.notes["half-open connections were forgotten to make room for others"] += 1
                self._forget(flow)


def _judge(head: bytes, postgresql: bool) -> bool | None:
    """Whether a client that says this is one of PostgreSQL's; None: more bytes are needed.

    It is, on any port, when its first packet is laid out exactly as one of PostgreSQL's, or is a
    ClientHello that offers ALPN ``postgresql``; to a PostgreSQL port, any TLS is. A PROXY header
    may stand before.
    """
    start = proxy_header_length(head)
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


def _offers_postgresql(head: bytes) -> bool | None:
    """Whether a ClientHello offers PostgreSQL's ALPN protocol; None: more bytes are needed."""
    try:
        decoded = records.decode_carried(head, hello.CLIENT_HELLO)
        if decoded is None:
            return None
        return "postgresql" in hello.parse_client_hello(decoded[0].body).alpn
    except Malformed:
        return False


def _ports(ends: bytes) -> tuple[int, int]:
    """The sender's and the receiver's."""
    return int.from_bytes(ends[-4:-2], "big"), int.from_bytes(ends[-2:], "big")
