"""The one interpreter: a transcript's events in, a Handshake out.

Live connections, captured ones and replays are all read here, by the same table. What a byte
means depends on what was said before: ``S``, ``N`` and ``E`` are answers only behind an
SSLRequest or GSSENCRequest, at any other time they are message types or nothing. The table
``_READERS`` owns that: (phase, who speaks, layer) -> how the bytes are read. A reader takes the
bytes that are not read yet and gives back how many it read, or None for "more is needed"; it
moves the connection to its next phase by setting ``phase``.

Whatever a peer says wrong becomes a fact (``foreign``, ``alert``, ``outcome``); nothing raises.

A capture may lack bytes, and the keys. What it lacks is never read as absent: the facts that
may have passed unseen are named in ``not_captured``. A hole inside a TLS record of known length
is stepped over; behind any other the reading of that side stops, until a segment begins with
something that can only be a beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from probe.fate import ending_text, outcome_of
from probe.handshake import FACTS, Handshake, Opening, Outcome, Stage
from probe.ladder import KEPT_BYTES, Ladder
from probe.transcript import (
    Closed,
    Connected,
    ConnectFailure,
    Connecting,
    Data,
    Ending,
    Established,
    Event,
    GaveUp,
    Layer,
    LoggedIn,
    Missed,
    NotCaptured,
    NotConnected,
    Party,
    Resent,
    Resolved,
    ServerView,
    StrangeReset,
    TlsFailed,
    Transcript,
    Verified,
)
from probe.wire import Malformed, counted, foreign, hello, messages, printable, records, startup
from probe.wire.witness import find_testimony

MAX_BUFFERED = 262_144  # bytes not read yet, each way
PATIENCE = 1.0  # seconds; a client that leaves later than that was waiting for an answer
MAX_NOTED = 16  # retransmissions and strange resets of a connection that are kept

_SEALED_ALERT = 19  # bytes of an alert's record in TLS 1.3: 2, its type, the AEAD's tag


class Phase(Enum):
    """What is being waited for on the wire, or inside TLS."""

    __hash__ = object.__hash__  # Enum's own is slow, and the table is looked up for every segment

    OPENING = auto()  # the client has said nothing yet
    SSL_ANSWER = auto()  # SSLRequest said, its one byte awaited
    GSS_ANSWER = auto()  # GSSENCRequest said, its one byte awaited
    AFTER_S = auto()  # the client may say ClientHello
    AFTER_N = auto()  # the client may go on in clear
    TLS = auto()  # records
    STARTUP = auto()  # StartupMessage said, messages awaited
    STRANGE = auto()  # the client speaks another protocol: is the server's known?
    UNSEEN = auto()  # the answer is not in the capture; what the client says next tells
    SESSION = auto()  # let in; only an error is of interest, until the server is ready
    OPAQUE = auto()  # nothing more that we read


def observe(transcript: Transcript) -> Handshake:
    """Read a connection's events. Raises nothing: what cannot be read is in the result."""
    observer = _Observer(transcript)
    for event in transcript.events:
        observer.take(event)
    return observer.finish()


class _Observer:
    def __init__(self, transcript: Transcript) -> None:
        self.seen = Handshake(
            transcript.attempt, transcript.door, transcript.asked, transcript.login
        )
        self.phase = Phase.OPENING  # of the wire
        self.inner = Phase.OPENING  # inside TLS
        self.unread: dict[tuple[Party, Layer], bytes] = {}
        self.handshake: dict[Party, bytes] = {Party.CLIENT: b"", Party.SERVER: b""}
        self.ciphered: set[Party] = set()  # who has said ChangeCipherSpec
        self.finished: set[Party] = set()  # who has said Finished behind it, in TLS 1.2
        self.finished_at = 0.0
        self.told: set[int] = set()  # kinds of protected messages that a key holder opened
        self.selected: str | None = None  # ALPN, in one of them
        self.lost: set[Party] = set()  # whose side cannot be read on
        self.holes: dict[Party, list[tuple[int, int]]] = {party: [] for party in Party}
        self.missing: set[str] = set()  # of FACTS: they may have stood in what is not captured
        self.sealed: set[Party] = set()  # who has said something encrypted
        self.talking = False  # the client has, and it was no alert
        self.opened = False  # a key holder tells what was said inside
        self.request_segments = 0
        self.first_said = b""
        self.last_sender: Party | None = None
        self.steps = Ladder(self.seen)
        self.last_byte_at = 0.0
        self.at = 0.0

    # -- events ------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        self.at, seen = event.at, self.seen
        match event.fact:
            case Data(sender, data, layer):  # first, for nearly all are that
                self._data(sender, data, layer)
            case Resolved(addresses):
                seen.addresses = addresses
                self.steps.begin(Stage.RESOLVE, 0.0)
                count = counted(len(addresses), "address", "addresses")
                self.steps.end(self.at, f"{count}: {', '.join(addresses)}")
            case Connecting(server):
                seen.server = server
                self.steps.begin(Stage.CONNECT, self.at)
            case Connected(client, server):
                seen.client, seen.server = client, server
                self.steps.end(self.at, "connected")
            case NotConnected(failure, says):
                self._not_connected(failure, says)
            case Established() as agreed:
                self.opened, seen.established = True, agreed
                self._finish_tls()
            case Verified() as verdict:
                self.opened, seen.verified = True, verdict
            case TlsFailed(says):
                self.opened, seen.tls_failed = True, says
            case LoggedIn() as login:
                seen.logged_in = login
            case ServerView() as view:
                seen.server_view = view
            case Closed(sender, how):
                self._closed(sender, how)
            case GaveUp(waited):
                seen.gave_up_after = waited
            case NotCaptured(sender, size):
                self._gap(sender, size)
            case Resent(sender, _, size):
                self._resent(sender, size)
            case Missed(sender, size):
                self._missed(sender, size)
            case StrangeReset(_, says):
                seen.strange_resets = (*seen.strange_resets, printable(says))[:MAX_NOTED]

    def _not_connected(self, failure: ConnectFailure, says: str) -> None:
        if failure is ConnectFailure.NOT_RESOLVED:
            self.steps.begin(Stage.RESOLVE, 0.0)
        self.seen.not_connected = failure
        accepted = failure is ConnectFailure.RESET
        what = failure.value.replace("-", " ")
        self.steps.end(self.at, f"{what}: {printable(says)}", reached=accepted)

    def _closed(self, sender: Party, how: Ending) -> None:
        seen = self.seen
        if how is Ending.CLOSE_NOTIFY or seen.ended_by is not None:
            return
        seen.ended_by, seen.ending = sender, how
        waited = self.at - self.last_byte_at
        if sender is Party.SERVER:
            seen.closed_after = waited
        elif self.last_sender is Party.CLIENT and self._awaits and waited >= PATIENCE:
            seen.left_after = waited

    @property
    def _awaits(self) -> bool:
        """An answer is due; a CancelRequest's is that the server closes."""
        return self.steps.awaits or self.seen.opening is Opening.CANCEL

    def _data(self, sender: Party, data: bytes, layer: Layer) -> None:
        if sender is Party.SERVER and self.seen.ended_by is Party.CLIENT:
            return  # a packet for somebody who has left: he never heard it
        if layer is Layer.TCP:
            self.last_byte_at, self.last_sender = self.at, sender
            self.steps.passed(sender, data)
            self._count(sender, data)
            if sender in self.lost and not self._found_again(sender, data):
                return
        else:
            self.opened = True
        if layer is Layer.HANDSHAKE:
            self._told(data)
            return
        key = (sender, layer)
        self.unread[key] = (self.unread.get(key, b"") + data)[:MAX_BUFFERED]
        self._read(sender, layer)
        if sender is Party.CLIENT:
            self._read(Party.SERVER, layer)  # what it said too early

    def _read(self, sender: Party, layer: Layer) -> None:
        key, on_wire = (sender, layer), layer is Layer.TCP
        data = self.unread.get(key)
        while data:
            phase = self.phase if on_wire else self.inner
            read = _READERS.get((phase, sender), _Observer._skip)(self, data, layer)
            if read is None or (on_wire and sender in self.lost):
                return
            data = self.unread[key] = data[read:]
            if on_wire and self.holes[sender]:
                self.holes[sender] = [(a - read, b - read) for a, b in self.holes[sender]]
                self.holes[sender] = [(max(0, a), b) for a, b in self.holes[sender] if b > 0]

    # -- what is not captured ----------------------------------------------------------------

    def _gap(self, sender: Party, size: int | None) -> None:
        """Bytes that passed and are not here: stepped over inside a record, else the end."""
        self.last_byte_at, self.last_sender = self.at, sender
        if sender is Party.SERVER and size:
            self.seen.server_bytes += size
        unread = self.unread.get((sender, Layer.TCP), b"")
        room = MAX_BUFFERED - len(unread)
        if size is None or size > room or self.phase is not Phase.TLS or sender in self.lost:
            self._lose(sender)
            return
        self.holes[sender].append((len(unread), len(unread) + size))
        self.unread[sender, Layer.TCP] = unread + bytes(size)
        self._read(sender, Layer.TCP)

    def _lose(self, sender: Party) -> None:
        self.lost.add(sender)
        self.unread.pop((sender, Layer.TCP), None)
        self.handshake[sender] = b""
        self.holes[sender].clear()
        self._may_lack(sender)
        if self.phase is Phase.OPENING and self.seen.opening is Opening.NOTHING:
            self.seen.opening = Opening.NOT_CAPTURED
            self.missing |= set(FACTS)
        elif self.phase in (Phase.SSL_ANSWER, Phase.GSS_ANSWER) and sender is Party.SERVER:
            self.phase = Phase.UNSEEN

    def _may_lack(self, sender: Party) -> None:
        """What ``sender`` has not told yet may have been in there."""
        if sender is Party.CLIENT:
            self.missing |= {"opening", "sni", "alpn", "finished", "startup"}
        else:
            self.missing |= set(FACTS) - {"opening", "sni", "alpn", "startup"}

    def _found_again(self, sender: Party, data: bytes) -> bool:
        """Whether a segment behind a hole begins with what can only be a beginning."""
        try:
            record = data[:1] in b"\x14\x15\x16\x17" and len(data) >= 5
            if record:
                records.decode_record(data)
            first = self.phase is Phase.OPENING and sender is Party.CLIENT and not record
            request = first and startup.decode_first_packet(data) is not None
        except Malformed:
            return False
        if not record and not request:
            return False
        self.lost.discard(sender)
        if record and self.phase in (Phase.OPENING, Phase.UNSEEN):
            self._enter_tls()
        return True

    def _resent(self, sender: Party, size: int) -> None:
        """Said again: where it is the ClientHello or the server's flight, it is remembered."""
        seen = self.seen
        if self.phase is not Phase.TLS or seen.established:
            return
        if sender is Party.CLIENT and seen.client_hello and not seen.server_hello:
            seen.hello_resent = (*seen.hello_resent, size)[:MAX_NOTED]
        elif sender is Party.SERVER and Party.CLIENT not in self.sealed:
            seen.flight_resent = (*seen.flight_resent, size)[:MAX_NOTED]

    def _missed(self, sender: Party, size: int) -> None:
        """Never came: where it is of the ClientHello or the server's flight, it is remembered."""
        seen = self.seen
        if sender is Party.CLIENT and seen.ssl_answer == "S" and not seen.client_hello:
            seen.hello_missed = size
        elif sender is Party.SERVER and seen.client_hello and not seen.established:
            seen.flight_missed = size

    def _unseen(self) -> tuple[str, ...]:
        """The facts that may have passed and are not here, in their order."""
        seen, missing = self.seen, set(self.missing)
        sealed = self.sealed if not self.opened else set()
        if Party.SERVER in sealed and not self._tls12:
            missing |= {"certificate", "alpn_selected"}
        if missing and self.opened and not self._tls12:
            missing |= {"alpn_selected"} if hello.ENCRYPTED_EXTENSIONS not in self.told else set()
            missing |= {"certificate"} if hello.CERTIFICATE not in self.told else set()
        if Party.CLIENT in sealed:
            missing |= {"startup", "authentication"}
            if not self._tls12:
                missing.add("finished")
        if seen.gss_answer == "G":
            missing |= {"startup", "authentication"}
        if seen.client_hello and not seen.client_hello.alpn:
            missing.discard("alpn_selected")  # nothing to select from
        told = {
            "opening": seen.opening is not Opening.NOT_CAPTURED,
            "ssl_answer": seen.ssl_answer is not None or seen.gss_answer == "G",
            "sni": seen.client_hello is not None,
            "alpn": seen.client_hello is not None,
            "server_hello": seen.server_hello is not None,
            "tls_version": seen.server_hello is not None,
            "alpn_selected": seen.alpn_selected is not None,
            "certificate": bool(seen.chain),
            "finished": seen.established is not None,
            "startup": seen.startup is not None,
            "authentication": seen.authentication is not None or seen.error is not None,
        }
        missing &= self._expected
        return tuple(fact for fact in FACTS if fact in missing and not told[fact])

    @property
    def _expected(self) -> set[str]:
        """The facts that there can be, behind what was said first and its answer."""
        seen, late = self.seen, {"startup", "authentication"}
        in_tls = set(FACTS) - {"opening", "ssl_answer"}
        match seen.opening:
            case Opening.NOT_CAPTURED:
                return set(FACTS)
            case Opening.DIRECT_TLS:
                return in_tls
            case Opening.STARTUP:
                return late
            case Opening.SSL_REQUEST | Opening.GSSENC_REQUEST:
                if seen.gss_answer == "G" or seen.ssl_answer == "N":
                    return late
                if seen.ssl_answer in ("E", "other") or seen.gss_answer in ("E", "other"):
                    return set()
                return {"ssl_answer", *in_tls}
        return set()

    def _count(self, sender: Party, data: bytes) -> None:
        """Segments: how the request and the ClientHello were cut shows only here."""
        seen = self.seen
        if sender is Party.SERVER:
            seen.server_bytes += len(data)
            return
        if len(self.first_said) < foreign.LOOKED_AT:
            self.first_said = (self.first_said + data)[: foreign.LOOKED_AT]
        if self.phase is Phase.OPENING:
            self.request_segments += 1
        if self.phase in (Phase.OPENING, Phase.AFTER_S, Phase.TLS) and not seen.client_hello:
            seen.hello_segments += 1

    def _skip(self, data: bytes, layer: Layer) -> int:
        return len(data)

    # -- the client's side of the wire -------------------------------------------------------

    def _first_packet(self, data: bytes, layer: Layer) -> int | None:
        seen = self.seen
        if layer is Layer.TCP and data[:1] == bytes([records.HANDSHAKE]):
            if seen.opening is Opening.NOTHING:
                seen.opening = Opening.DIRECT_TLS
            self._enter_tls()
            return 0
        header = self._proxy_header(data) if layer is Layer.TCP else 0
        if header is None or header:
            return header
        try:
            decoded = startup.decode_first_packet(data)
        except Malformed:
            if layer is Layer.TCP and seen.opening is Opening.NOTHING:
                seen.opening = Opening.OTHER
            self._set(layer, Phase.STRANGE)
            return len(data)
        if decoded is None:
            return None
        packet, length = decoded
        match packet:
            case startup.SSLRequest() | startup.GSSENCRequest() if layer is Layer.TLS:
                self.inner = Phase.OPAQUE  # TLS inside TLS: a server says N, and nobody asks
            case startup.SSLRequest():
                self._open(layer, Opening.SSL_REQUEST, Phase.SSL_ANSWER)
                seen.split_request = self.request_segments > 1
                seen.hello_segments = 0
                self.steps.begin(Stage.SSL_REQUEST, self.at, carried=True)
            case startup.GSSENCRequest():
                self._open(layer, Opening.GSSENC_REQUEST, Phase.GSS_ANSWER)
                self.steps.begin(Stage.SSL_REQUEST, self.at, carried=True)
            case startup.CancelRequest():
                self._open(layer, Opening.CANCEL, Phase.OPAQUE)
                seen.cancel = packet
            case startup.StartupMessage():
                self._open(layer, Opening.STARTUP, Phase.STARTUP)
                seen.startup, seen.startup_in_tls = packet, layer is Layer.TLS
                self.steps.begin(Stage.STARTUP, self.at, carried=True)
        return length

    def _proxy_header(self, data: bytes) -> int | None:
        """The length of a PROXY header that stands before everything else; 0: there is none."""
        length = foreign.proxy_header_length(data)
        if length:
            self.seen.proxy_header = True
            self.seen.hello_segments = 0
            self.request_segments = int(len(data) > length)
        return length

    def _open(self, layer: Layer, opening: Opening, phase: Phase) -> None:
        if layer is Layer.TCP:
            # a request for encryption or a cancel begins a connection, whatever was not captured
            unseen = self.seen.opening is Opening.NOT_CAPTURED and opening is not Opening.STARTUP
            if self.seen.opening is Opening.NOTHING or unseen:
                self.seen.opening = opening
            if unseen:  # what was not captured stood before, and was none of this
                self.lost.discard(Party.SERVER)
                self.missing.clear()
        self._set(layer, phase)

    def _set(self, layer: Layer, phase: Phase) -> None:
        if layer is Layer.TCP:
            self.phase = phase
        else:
            self.inner = phase

    def _before_answer(self, data: bytes, layer: Layer) -> int | None:
        """The client did not wait: kept until the answer says how to read it."""
        self.seen.pipelined = True
        return None

    def _after_s(self, data: bytes, layer: Layer) -> int:
        if data[:1] == bytes([records.HANDSHAKE]):
            self._enter_tls()
            return 0
        self.seen.garbage = True
        self.phase = Phase.OPAQUE
        return len(data)

    def _after_unseen(self, data: bytes, layer: Layer) -> int | None:
        """What the client says behind an answer that is not here: TLS, or clear text."""
        if data[:1] == bytes([records.HANDSHAKE]):
            self._enter_tls()
            return 0
        self.phase = Phase.AFTER_N
        return 0

    def _enter_tls(self) -> None:
        self.phase = Phase.TLS
        self.seen.hello_segments = max(1, self.seen.hello_segments)  # it came with other bytes
        self.steps.begin(Stage.SERVER_HELLO, self.at, carried=True)

    # -- the server's side of the wire -------------------------------------------------------

    def _to_strangers(self, data: bytes, layer: Layer) -> int:
        """The server's answer to a client that speaks another protocol."""
        if layer is Layer.TCP and not self.seen.foreign:
            self.seen.foreign = foreign.recognise(data, self.first_said)
        return len(data)

    def _unasked(self, data: bytes, layer: Layer) -> int | None:
        """The server speaks before any request: some other protocol's greeting.

        Or a server that cannot begin at all, which does not wait for the client to say so: what
        may be its ErrorResponse is read when the request is there, or the end.
        """
        if layer is Layer.TCP and data[:1] == b"E" and not foreign.recognise(data):
            return None
        if layer is Layer.TLS and "startup" in self.missing:  # it answers what is not here
            self.inner = Phase.STARTUP
            return 0
        if self.seen.opening is not Opening.NOT_CAPTURED:  # else it may be an answer
            self._foreign(data, layer)
        return len(data)

    def _unasked_error(self, data: bytes) -> None:
        try:
            decoded = messages.decode_error(data)
        except Malformed:
            decoded = None
        if decoded is None:
            self._foreign(data, Layer.TCP)
            return
        self.seen.error = decoded[0]
        self.steps.end(self.at, f"ErrorResponse: {decoded[0].in_words()}", reached=False)

    def _glued(self, data: bytes, layer: Layer) -> int:
        """Clear bytes behind the S, before any ClientHello."""
        if "sni" in self.missing and data[:1] == bytes([records.HANDSHAKE]):
            self._enter_tls()  # the ClientHello is not in the capture
            return 0
        if not self.seen.pipelined:
            self.seen.glued += data[: KEPT_BYTES - len(self.seen.glued)]
        return len(data)

    def _ssl_answer(self, data: bytes, layer: Layer) -> int | None:
        seen, rest = self.seen, data[1:]
        match data[:1]:
            case b"S" if not foreign.recognise(data):
                seen.ssl_answer = "S"
                if rest and not seen.pipelined:
                    seen.glued = rest
                    self.steps.end(self.at, f"S, and {len(rest)} bytes behind it")
                    self.phase = Phase.OPAQUE
                    return len(data)
                self.steps.end(self.at, "S: TLS is spoken here")
                self.phase = Phase.AFTER_S
                self._read(Party.CLIENT, Layer.TCP)  # what it said too early
                return 1
            case b"N" if not foreign.recognise(data):
                seen.ssl_answer = "N"
                self.steps.end(self.at, "N: no TLS here", reached=False)
                self.phase = Phase.AFTER_N
                return 1
            case b"E" if not foreign.recognise(data):
                return self._error_before_tls(data)
        return self._other_answer(data)

    def _other_answer(self, data: bytes, *, whole: bool = False) -> int | None:
        """Neither S nor N nor E; ``whole``: no more of it will come."""
        alert = self._raw_alert(data)
        known = foreign.recognise(data, self.first_said)
        if not (alert or known or whole or len(data) >= foreign.LOOKED_AT):
            return None
        if self.phase is Phase.GSS_ANSWER:
            self.seen.gss_answer = "other"
        else:
            self.seen.ssl_answer = "other"
        if alert:
            self.seen.alert = alert
            self.steps.end(self.at, f"a raw TLS {alert} instead of S or N", reached=False)
            self.phase = Phase.OPAQUE
        else:
            self._foreign(data, Layer.TCP)
        return len(data)

    def _error_before_tls(self, data: bytes) -> int | None:
        try:
            decoded = messages.decode_error(data)
        except Malformed:
            self.seen.ssl_answer = "other"
            self._foreign(data, Layer.TCP)
            return len(data)
        if decoded is None:
            return None
        error, length = decoded
        self.seen.ssl_answer, self.seen.error = "E", error
        self.steps.end(self.at, f"ErrorResponse: {error.in_words()}", reached=False)
        self.phase = Phase.OPAQUE
        return length

    @staticmethod
    def _raw_alert(data: bytes) -> records.Alert | None:
        try:
            decoded = records.decode_record(data)
        except Malformed:
            return None
        if decoded is None or decoded[0].type != records.ALERT:
            return None
        return records.decode_alert(decoded[0].fragment)

    def _gss_answer(self, data: bytes, layer: Layer) -> int | None:
        seen = self.seen
        match data[:1]:
            case b"G" | b"N" if not foreign.recognise(data):
                seen.gss_answer = data[:1].decode()
                offered = "GSSAPI encryption is spoken here" if seen.gss_answer == "G" else "none"
                self.steps.end(self.at, f"{seen.gss_answer}: {offered}")
                self.request_segments = 0
                self.phase = Phase.OPAQUE if seen.gss_answer == "G" else Phase.OPENING
                return 1
            case b"E" if not foreign.recognise(data):
                read = self._error_before_tls(data)
                if read is not None:
                    seen.gss_answer, seen.ssl_answer = "E", None
                return read
        return self._other_answer(data)

    def _foreign(self, data: bytes, layer: Layer) -> None:
        seen = self.seen
        said = self._client_hello_bytes() if self.phase is Phase.TLS else self.first_said
        greeted = seen.foreign  # and what it says now may mean nothing by itself
        seen.foreign = foreign.recognise(data, said) or greeted or foreign.unrecognised(data)
        seen.foreign_in_tls = layer is Layer.TLS
        inside = " inside TLS" if seen.foreign_in_tls else ""
        says = f"not PostgreSQL{inside}: {seen.foreign.protocol}: '{seen.foreign.says}'"
        self.steps.end(self.at, says, reached=False)
        if self.phase is not Phase.OPENING:  # a greeting: the client may still say its part
            self._set(layer, Phase.OPAQUE)

    # -- TLS ---------------------------------------------------------------------------------

    def _client_record(self, data: bytes, layer: Layer) -> int | None:
        return self._record(Party.CLIENT, data)

    def _server_record(self, data: bytes, layer: Layer) -> int | None:
        if not self.seen.server_hello and not self.seen.retried:
            echoed = foreign.recognise(data, self._client_hello_bytes())
            if echoed:
                self._foreign(data, layer)
                return len(data)
        return self._record(Party.SERVER, data)

    def _client_hello_bytes(self) -> bytes:
        start = self.first_said.find(b"\x16\x03")
        return self.first_said[start:] if start >= 0 else b""

    def _record(self, sender: Party, data: bytes) -> int | None:
        hole = self.holes[sender][0][0] if self.holes[sender] else None
        if hole is not None and hole < records.HEADER:
            self._lose(sender)
            return len(data)
        try:
            length = records.record_length(data)
        except Malformed:
            return self._not_a_record(sender, data)
        if length is None:
            return None
        whole = hole is None or hole >= length
        if not whole:
            self._may_lack(sender)
        match data[0]:
            case records.APPLICATION_DATA:
                self._sealed(sender, length - records.HEADER)
            case records.HANDSHAKE if sender not in self.ciphered:
                if sender is Party.CLIENT and not self.seen.client_hello:
                    self.seen.hello_records += 1
                self._handshake(sender, data[records.HEADER : length if whole else hole])
                if not whole:
                    self.handshake[sender] = b""
            case records.HANDSHAKE if self._tls12:
                self.finished.add(sender)
                self.finished_at = self.at
            case records.CHANGE_CIPHER_SPEC if self._tls12 or "server_hello" in self.missing:
                self.ciphered.add(sender)
            case records.ALERT if sender not in self.ciphered and whole:
                alert = records.decode_alert(data[records.HEADER : length])
                if alert and sender is Party.SERVER:
                    self._alert(alert)
                elif alert and alert.description != records.CLOSE_NOTIFY:
                    self._client_alert(alert)
        return length

    def _sealed(self, sender: Party, size: int) -> None:
        """Something encrypted. Once the server answers the client in kind, TLS has finished.

        In TLS 1.3 the client's first is its Finished, in 1.2 both sides have said theirs
        before, which is enough where nothing follows. Nothing more is concluded from sizes than
        that an alert is no such thing.
        """
        answers = sender is Party.SERVER and self.talking
        self.sealed.add(sender)
        if size == _SEALED_ALERT:
            return
        if sender is Party.CLIENT:
            self.talking = True
        if answers:
            self._conclude(self.at)

    def _conclude(self, at: float) -> None:
        """TLS has finished, as the records show without their keys."""
        seen, chosen = self.seen, self.seen.server_hello
        if seen.established or chosen is None:
            return
        seen.established = Established(
            records.version_name(chosen.version),
            f"0x{chosen.cipher:04x}",
            chosen.alpn or self.selected,
        )
        self.steps.end(at, f"TLS {seen.established.version} finished; what follows is encrypted")

    def _client_alert(self, alert: records.Alert) -> None:
        if self.seen.client_alert is None:
            self.seen.client_alert = alert

    def _not_a_record(self, sender: Party, data: bytes) -> int | None:
        """Clear bytes where a record should be: an ErrorResponse, or some other protocol."""
        if sender is Party.SERVER and self.seen.server_hello is None:
            try:
                decoded = messages.decode_error(data) if data[:1] == b"E" else None
                if data[:1] == b"E" and decoded is None:
                    return None
            except Malformed:
                decoded = None
            if decoded:
                self.seen.error = decoded[0]
                says = f"a clear-text ErrorResponse: {decoded[0].in_words()}"
                self.steps.end(self.at, says, reached=False)
                self.phase = Phase.OPAQUE
            else:
                self._foreign(data, Layer.TCP)
        return len(data)

    @property
    def _tls12(self) -> bool:
        """TLS 1.2 or older was chosen; in 1.3 ChangeCipherSpec means nothing (RFC 8446, D.4)."""
        return self.seen.server_hello is not None and self.seen.server_hello.version < 0x0304

    def _handshake(self, sender: Party, fragment: bytes) -> None:
        self.handshake[sender] += fragment
        while True:
            try:
                decoded = records.decode_handshake(self.handshake[sender])
                if decoded is None:
                    return
                (kind, body), length = decoded
                self.handshake[sender] = self.handshake[sender][length:]
                if sender is Party.CLIENT:
                    self._client_message(kind, body)
                else:
                    self._server_message(kind, body, tls13=False)
            except Malformed as problem:
                self.handshake[sender] = b""
                self.seen.tls_failed = self.seen.tls_failed or f"unreadable TLS: {problem}"
                return

    def _client_message(self, kind: int, body: bytes) -> None:
        if kind == hello.CLIENT_HELLO and self.seen.client_hello is None:
            self.seen.client_hello = hello.parse_client_hello(body)

    def _server_message(self, kind: int, body: bytes, *, tls13: bool) -> None:
        seen = self.seen
        match kind:
            case hello.SERVER_HELLO:
                answer = hello.parse_server_hello(body)
                if answer.retry:
                    seen.retried = True
                    return
                seen.server_hello = answer
                version = records.version_name(answer.version)
                asked = ", after a HelloRetryRequest" if seen.retried else ""
                self.steps.end(self.at, f"ServerHello, TLS {version}{asked}")
                self.steps.begin(Stage.CERTIFICATE, self.at)
            case hello.CERTIFICATE:
                seen.chain = hello.parse_certificate(body, tls13=tls13)
            case hello.ENCRYPTED_EXTENSIONS if tls13:
                self.selected = hello.parse_encrypted_extensions(body)
            case hello.NEW_SESSION_TICKET:
                seen.ticket = True
            case hello.CERTIFICATE_REQUEST:
                seen.certificate_asked = True
                seen.authorities = hello.parse_certificate_request(body, tls13=tls13)

    def _told(self, data: bytes) -> None:
        """A protected message from the server that the key holder opened."""
        if len(data) == 2:  # no handshake message is that short: an alert
            alert = records.decode_alert(data)
            if alert:
                self._alert(alert)
            return
        self.told.add(data[0] if data else 0)
        try:
            self._server_message(data[0], data[4:], tls13=True)
        except (Malformed, IndexError):
            self.seen.tls_failed = self.seen.tls_failed or "an unreadable protected message"

    def _alert(self, alert: records.Alert) -> None:
        if alert.description == records.CLOSE_NOTIFY or self.seen.alert:
            return
        self.seen.alert = alert
        self.steps.end(self.at, f"TLS {alert}", reached=False)

    def _finish_tls(self) -> None:
        seen = self.seen
        assert seen.established is not None
        chosen = seen.established.alpn
        alpn = f"ALPN {printable(chosen, 40)}" if chosen else "no ALPN selected"
        self.steps.end(self.at, f"TLS {seen.established.version} finished, {alpn}")

    # -- messages ----------------------------------------------------------------------------

    def _client_reply(self, data: bytes, layer: Layer) -> int | None:
        """What the client chose of a SASL offer; its later messages prove a password: not read."""
        seen = self.seen
        offered = seen.authentication is not None and bool(seen.authentication.mechanisms)
        if not offered or seen.sasl is not None:
            return len(data)
        try:
            decoded = messages.parse_sasl_initial_response(data)
        except Malformed:
            return len(data)
        if decoded is None:
            return None
        seen.sasl, length = decoded
        return length

    def _session_message(self, data: bytes, layer: Layer) -> int | None:
        """Behind AuthenticationOk: the server may still refuse, until it is ready."""
        try:
            decoded = messages.decode_message(data)
        except Malformed:
            self._set(layer, Phase.OPAQUE)
            return len(data)
        if decoded is None:
            return None
        message, length = decoded
        if message.type == "E" and self.seen.login_error is None:
            self.seen.login_error = messages.parse_error(message.body)
        if message.type in "EZ":
            self._set(layer, Phase.OPAQUE)
        return length

    def _message(self, data: bytes, layer: Layer) -> int | None:
        try:
            if data[:1] == b"E":
                decoded_error = messages.decode_error(data)
                if decoded_error is None:
                    return None
                self._startup_error(decoded_error[0])
                return decoded_error[1]
            decoded = messages.decode_message(data)
            if decoded is None:
                return None
            message, length = decoded
            if foreign.recognise(data):
                raise Malformed("another protocol's greeting")
            self._server_said(message, layer)
        except Malformed:
            self._foreign(data, layer)
            return len(data)
        return length

    def _server_said(self, message: messages.Message, layer: Layer) -> None:
        seen = self.seen
        match message.type:
            case "v":
                seen.negotiated = messages.parse_negotiate(message.body)
            case "R":
                asked = messages.parse_authentication(message.body)
                if asked.method == "ok":
                    seen.let_in = True
                    self._set(layer, Phase.SESSION)
                if seen.authentication is None:
                    seen.authentication = asked
                    self._answered()
                    self.steps.begin(Stage.AUTHENTICATION, self.at)
                    self.steps.end(self.at, f"asks for {asked.in_words}")
                elif asked.code == 11 and seen.salt is None:
                    first = messages.parse_scram_server_first(asked.data)
                    if first:
                        seen.salt, seen.nonce = first.salt, first.nonce

    def _answered(self) -> None:
        minor = self.seen.negotiated.newest if self.seen.negotiated else None
        newest = f", protocol {minor[0]}.{minor[1]} is its newest" if minor else ""
        self.steps.end(self.at, f"answered, no error{newest}")

    def _startup_error(self, error: messages.ErrorResponse) -> None:
        if self.seen.authentication is not None:
            self.seen.login_error = self.seen.login_error or error
        elif self.seen.error is None:
            self.seen.error, self.seen.witness = error, find_testimony(error.fields)
            self.steps.end(self.at, f"ErrorResponse: {error.in_words()}")

    # -- the end -----------------------------------------------------------------------------

    def finish(self) -> Handshake:
        self._leftovers()
        seen = self.seen
        if self.finished == set(Party) and not self.opened:
            self._conclude(self.finished_at)
        self.steps.abandon(self.at, self._ending())
        seen.not_captured = self._unseen()
        seen.hello_begun = self._hello_begun()
        seen.outcome = outcome_of(seen)
        if seen.outcome is Outcome.SILENT and self._end_unseen:
            seen.outcome = Outcome.NOT_CAPTURED
        seen.reached = self.steps.reached
        return seen

    def _hello_begun(self) -> int | None:
        """How many bytes a ClientHello has whose end was not said any more."""
        if self.phase is not Phase.TLS or self.seen.client_hello:
            return None
        unread = self.unread.get((Party.CLIENT, Layer.TCP), b"")
        said = self.handshake[Party.CLIENT] + unread[records.HEADER :]
        if len(said) < 4 or said[0] != hello.CLIENT_HELLO:
            return None
        return 4 + int.from_bytes(said[1:4], "big")

    @property
    def _end_unseen(self) -> bool:
        """It may have been answered, or closed, where the capture does not show it."""
        waited = self.seen.gave_up_after is not None or self.seen.left_after is not None
        sealed = bool(self.sealed) and not self.opened
        # what the server says again and again, the client has not got, whatever it is
        if len(self.seen.flight_resent) > 1 and Party.CLIENT not in self.sealed:
            sealed = False
        return Party.SERVER in self.lost or (sealed and not waited)

    def _ending(self) -> str:
        seen = self.seen
        if seen.ended_by is None and Party.SERVER in self.lost:
            return "what came then is not in the capture"
        return ending_text(seen)

    def _leftovers(self) -> None:
        """Bytes that are the beginning of nothing complete are still an answer."""
        for (sender, layer), data in list(self.unread.items()):
            if sender is not Party.SERVER or not data or self.seen.foreign:
                continue
            phase = self.phase if layer is Layer.TCP else self.inner
            if phase in (Phase.SSL_ANSWER, Phase.GSS_ANSWER):
                self._other_answer(data, whole=True)
            elif phase is Phase.OPENING and layer is Layer.TCP:
                self._unasked_error(data)
            elif phase is Phase.STARTUP or (
                phase is Phase.TLS and not self.seen.server_hello and foreign.recognise(data)
            ):
                self._foreign(data, layer)


_Reader = Callable[[_Observer, bytes, Layer], int | None]

_READERS: dict[tuple[Phase, Party], _Reader] = {
    (Phase.OPENING, Party.CLIENT): _Observer._first_packet,
    (Phase.OPENING, Party.SERVER): _Observer._unasked,
    (Phase.SSL_ANSWER, Party.CLIENT): _Observer._before_answer,
    (Phase.SSL_ANSWER, Party.SERVER): _Observer._ssl_answer,
    (Phase.GSS_ANSWER, Party.CLIENT): _Observer._before_answer,
    (Phase.GSS_ANSWER, Party.SERVER): _Observer._gss_answer,
    (Phase.AFTER_S, Party.CLIENT): _Observer._after_s,
    (Phase.AFTER_S, Party.SERVER): _Observer._glued,
    (Phase.UNSEEN, Party.CLIENT): _Observer._after_unseen,
    (Phase.AFTER_N, Party.CLIENT): _Observer._first_packet,
    (Phase.AFTER_N, Party.SERVER): _Observer._unasked,
    (Phase.TLS, Party.CLIENT): _Observer._client_record,
    (Phase.TLS, Party.SERVER): _Observer._server_record,
    (Phase.STARTUP, Party.CLIENT): _Observer._client_reply,
    (Phase.STARTUP, Party.SERVER): _Observer._message,
    (Phase.STRANGE, Party.SERVER): _Observer._to_strangers,
    (Phase.SESSION, Party.SERVER): _Observer._session_message,
}
