"""All handshakes of a run at one door, and the questions that rules ask of them.

Handshakes are chosen by what was said on the wire, never by an attempt's name: so a capture
that holds both openings answers as a live run does. ``Variation`` names the one thing in which
a handshake differs from a plain client's; the control differs in none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from probe.attempt import MADE_UP_DATABASE, MADE_UP_USER
from probe.fate import (
    broke_off,
    disagreement,
    in_turn,
    in_words,
    placeholder,
    reach,
    server_is_full,
)
from probe.finding import MAX_SAYS, Proof
from probe.handshake import Handshake, Opening
from probe.transcript import Asked, ConnectFailure
from probe.wire import parted, printable
from probe.wire.hello import ClientHello
from probe.wire.startup import PROTOCOL_3_1002

MUCH_LARGER = 1_000  # bytes by which a large ClientHello exceeds the plain one


class Variation(StrEnum):
    """In what a handshake differs from that of a plain client."""

    SPLIT_REQUEST = "SSLRequest in two segments"
    PROXY_HEADER = "a PROXY header first"
    PIPELINED = "ClientHello in the SSLRequest's segment"
    GARBAGE = "clear bytes behind the S"
    TWO_SEGMENTS = "ClientHello in two segments"
    TWO_RECORDS = "ClientHello in two TLS records"
    LARGE = "a large ClientHello"
    MIXED_CASE = "the name in mixed case"
    ONLY_TLS_1_2 = "TLS 1.2 alone"
    OBSOLETE_TLS = "TLS 1.0 and 1.1 alone"
    NEWEST_PROTOCOL = "StartupMessage 3.1002"
    OTHER_USER = "another user"
    VERIFIED = "the chain verified against roots"


class Question(NamedTuple):
    """What the run is about.

    ``name`` is the asked name (None: no server_name), ``sslmode`` the mode that certificates
    are judged by, ``direct`` whether the client in question speaks direct TLS, ``user`` who
    asks for entry. ``proxy_header``: every attempt was told to begin with one. ``identity`` is
    what a certificate should be for: the name, else the host as written. ``proves``: the channel
    binding was to be tested.

    ``strangers``: the connections are other people's, from a capture. What a client leaves out
    is its habit then, not a test, and ``user`` is None, since each has its own. ``alpn``: the
    plain client offers it. ``at`` is when they were seen, in seconds since the epoch (None: nobody
    knows).
    """

    name: str | None = None
    sslmode: str = "require"
    direct: bool = False
    user: str | None = MADE_UP_USER
    proxy_header: bool = False
    identity: str | None = None
    strangers: bool = False
    alpn: bool = True
    at: float | None = None
    proves: bool = False


@dataclass(frozen=True, eq=False)
class Evidence:
    """One door's handshakes in the order in which they began, and what they are compared with.

    ``elsewhere`` are further addresses of the same name, ``inner`` the doors behind this one, the
    nearest first. Only handshakes that are told take part: where a capture does not hold what was
    asked for, or how far it got, no rule may read that as absent.
    """

    question: Question
    door: str
    handshakes: tuple[Handshake, ...]
    elsewhere: tuple[Evidence, ...] = ()
    inner: tuple[Evidence, ...] = ()
    ask_for_tls: frozenset[str] = frozenset()  # clients that did at this door, by their address
    ask_for_names: frozenset[str] = frozenset()  # likewise, by a server_name
    blind: bool = False  # some got through, and the capture lacks what they asked for

    def __post_init__(self) -> None:
        told = tuple(seen for seen in self.handshakes if seen.told)
        object.__setattr__(self, "handshakes", told)

    # -- choosing ----------------------------------------------------------------------------

    def variations(self, seen: Handshake) -> frozenset[Variation]:
        """In what the handshake differs from a plain client's."""
        return frozenset(self._variations(seen))

    def _variations(self, seen: Handshake) -> Iterator[Variation]:
        if seen.split_request:
            yield Variation.SPLIT_REQUEST
        if seen.proxy_header and not self.question.proxy_header:
            yield Variation.PROXY_HEADER
        if seen.verified:
            yield Variation.VERIFIED
        if seen.pipelined:
            yield Variation.PIPELINED
        if seen.garbage:
            yield Variation.GARBAGE
        hello, plain = seen.client_hello, self._plain_hello
        if seen.hello_begun and plain and plain.client_hello:
            # a plain ClientHello leaves whole: this one was to follow in pieces
            large = seen.hello_begun > plain.client_hello.size + MUCH_LARGER
            yield Variation.LARGE if large else Variation.TWO_SEGMENTS
        if hello and plain and plain.client_hello:
            # clients differ in what is plain: post-quantum key shares fill two segments
            large = hello.size > plain.client_hello.size + MUCH_LARGER
            if large:
                yield Variation.LARGE
            if seen.hello_records > 1:
                yield Variation.TWO_RECORDS
            elif seen.hello_segments > plain.hello_segments and not large:
                yield Variation.TWO_SEGMENTS
            newest = _newest(hello)
            if newest < _newest(plain.client_hello):  # clients may be old, all of them
                if newest < 0x0303:
                    yield Variation.OBSOLETE_TLS
                elif newest == 0x0303:
                    yield Variation.ONLY_TLS_1_2
            name, asked = hello.server_name, self.question.name
            if seen.asked is Asked.TARGET and name and asked and name != asked:
                yield Variation.MIXED_CASE
        if seen.startup and seen.startup.version == PROTOCOL_3_1002:
            yield Variation.NEWEST_PROTOCOL
        user = self.question.user
        if seen.startup and user is not None and seen.startup.get("user") != user:
            yield Variation.OTHER_USER

    @property
    def _plain_hello(self) -> Handshake | None:
        """The first handshake with a ClientHello: what the others' shapes are measured by."""
        return next((seen for seen in self.handshakes if seen.client_hello), None)

    def all(
        self,
        opening: Opening = Opening.SSL_REQUEST,
        asked: Asked | None = Asked.TARGET,
        *,
        alpn: bool | None = None,
        variation: Variation | None = None,
    ) -> Iterator[Handshake]:
        """The handshakes that asked so, and differ from a plain client in ``variation`` only.

        ``alpn``: offered or not; None: as the plain client does. A handshake that ended before
        its ClientHello has shown neither name nor ALPN: it stands for all that begin as it did.
        """
        wanted = frozenset() if variation is None else frozenset((variation,))
        if alpn is None:
            alpn = self.question.alpn or opening is Opening.DIRECT_TLS  # which cannot do without
        for seen in self.handshakes:
            told = seen.client_hello is not None
            if seen.opening is not opening or seen.asked is not asked:
                continue
            if told and seen.alpn_offered is not alpn:
                continue
            if self.variations(seen) == wanted:
                yield seen

    def one(
        self,
        opening: Opening = Opening.SSL_REQUEST,
        asked: Asked | None = Asked.TARGET,
        *,
        alpn: bool | None = None,
        variation: Variation | None = None,
    ) -> Handshake | None:
        """The one of :meth:`all` that got furthest, or None when nobody asked so.

        A fault of the way is there each time: what worked once is not such a fault.
        """
        alike = self.all(opening, asked, alpn=alpn, variation=variation)
        return min(alike, key=reach, default=None)

    @property
    def first(self) -> Handshake | None:
        """The first connection of all: its end tells whether there is anybody."""
        return self.handshakes[0] if self.handshakes else None

    @property
    def control(self) -> Handshake | None:
        """SSLRequest, the asked name, ALPN: libpq 17 and later with its defaults."""
        return self.one()

    @property
    def controls(self) -> tuple[Handshake, ...]:
        """The control and its repetitions, of the client that the question is about."""
        return tuple(self.all(Opening.DIRECT_TLS if self.question.direct else Opening.SSL_REQUEST))

    @property
    def main(self) -> Handshake | None:
        """The control of the client that the question is about."""
        return min(self.controls, key=reach, default=self.first)

    @property
    def unsteady(self) -> str | None:
        """What the controls of a run disagree on, or None. A full server is not a changed path."""
        if self.question.strangers:
            return None
        told = disagreement(seen for seen in self.controls if not server_is_full(seen))
        return in_turn(told) if told else None

    @cached_property
    def varying(self) -> tuple[Handshake, ...]:
        """Handshakes of a run that asked alike and ended differently; none, where all is steady.

        Then chance may be in any single end, and nothing is proved by comparing two.
        """
        return () if self.question.strangers else next(self._disagreements(), ())

    def _disagreements(self) -> Iterator[tuple[Handshake, ...]]:
        main = self.main
        for seen in self.handshakes:  # who was not taken in has asked nothing yet
            if main and main.authenticates and seen.not_connected:
                yield main, seen
        known = set()
        for seen in self.handshakes:
            variations = self.variations(seen)
            asks = seen.opening, seen.asked, seen.alpn_offered, variations
            if asks in known or not seen.client_hello or len(variations) > 1:
                continue
            known.add(asks)
            variation = next(iter(variations), None)
            alike = self.all(seen.opening, seen.asked, alpn=seen.alpn_offered, variation=variation)
            if told := disagreement(other for other in alike if not server_is_full(other)):
                yield told

    @property
    def direct(self) -> Handshake | None:
        """A bare ClientHello with the asked name and ALPN."""
        return self.one(Opening.DIRECT_TLS)

    @property
    def unknown(self) -> Handshake | None:
        """The control with a name that nobody configured."""
        return self.one(asked=Asked.UNKNOWN)

    @property
    def others(self) -> tuple[Handshake, ...]:
        """The control with each other name that is known to be routed."""
        return tuple(self.all(asked=Asked.OTHER))

    def with_opening(self, opening: Opening) -> Handshake | None:
        """The one with this opening, and no PROXY header of our own, that got furthest."""
        plain = (
            seen
            for seen in self.handshakes
            if seen.opening is opening and Variation.PROXY_HEADER not in self.variations(seen)
        )
        return min(plain, key=reach, default=None)

    # -- what several handshakes say together -------------------------------------------------

    @property
    def got_a_byte(self) -> bool:
        """The server said anything at all on any connection."""
        return any(seen.server_bytes for seen in self.handshakes)

    @property
    def mute(self) -> bool:
        """TCP is accepted (a reset inside connect counts), and no connection got a byte."""
        reset = any(seen.not_connected is ConnectFailure.RESET for seen in self.handshakes)
        return (reset or any(seen.client for seen in self.handshakes)) and not self.got_a_byte

    @property
    def unreachable(self) -> bool:
        """No TCP connection, or no attempt got a single byte."""
        return not self.got_a_byte

    def cluster(self, seen: Handshake) -> str | None:
        """A short id of the cluster that answered, or None where it did not show itself.

        The salt that a server makes up for a user it does not know depends on that user's name
        and a secret of the cluster (PostgreSQL, ``mock_scram_secret``); for a user that exists
        it is the user's own, so only the made-up one counts. Some proxies make up another salt
        for each connection (Neon's): where none came twice, none tells a cluster.
        """
        salt = _made_up_salt(seen)
        if salt is None or not self._salts_last:
            return None
        return hashlib.sha256(b"pgprobe cluster\0" + salt).hexdigest()[:12]

    @cached_property
    def _salts_last(self) -> bool:
        """One came twice, or there is but one."""
        salts = [salt for salt in map(_made_up_salt, self.handshakes) if salt is not None]
        return len(salts) < 2 or len(set(salts)) < len(salts)

    def same_place(self, one: Handshake, other: Handshake) -> bool | None:
        """Whether two handshakes ended at one place: by cluster, else by leaf certificate.

        None: not enough was shown. One cluster may show several certificates: its replicas' own,
        or one for each name. Equal leaves prove nothing where a wildcard certificate serves many.
        """
        clusters = self.cluster(one), self.cluster(other)
        if all(clusters):
            return clusters[0] == clusters[1]
        return one.leaf == other.leaf if one.leaf and other.leaf else None

    def home(self, seen: Handshake) -> tuple[Handshake, ...]:
        """The handshakes that finished TLS with the same opening and the same name.

        They differ from a plain client in nothing that a router could look at.
        """
        return tuple(
            other
            for other in self.handshakes
            if other.established
            and other.opening is seen.opening
            and other.server_name == seen.server_name
            and self.variations(other) <= BEHIND_THE_HELLO
        )

    def leads_elsewhere(self, seen: Handshake, home: Iterable[Handshake]) -> bool:
        """Whether it ended at another place than every one of ``home``.

        Behind a balancer one name ends at several places: one that they share is no other.
        """
        compared = [self.same_place(other, seen) for other in home]
        return bool(compared) and all(same is False for same in compared)

    def broken_by(self, variation: Variation) -> Handshake | None:
        """The handshake that differs so, if it does not fare as the plain one that gets through.

        It broke off, was refused, or was led elsewhere; None as well where nobody tried.
        """
        main = self.main
        if main is None or not main.established:
            return None
        seen = self.one(main.opening, variation=variation)
        if seen is None or self.leads_elsewhere(seen, self.home(main)):
            return seen
        broken = not seen.established and (broke_off(seen) or seen.alert is not None)
        return seen if broken else None

    def proof(self, seen: Handshake, says: str | None = None) -> Proof:
        """The handshake as a finding's evidence: its last step, unless ``says`` tells better.

        ``says`` may quote what a peer said.
        """
        step = seen.steps[-1] if seen.steps else None
        wordless = seen.opening in (Opening.NOTHING, Opening.CANCEL)
        text = says or (step.says if step and not wordless else in_words(seen))
        stage = step.stage.value if step else None
        return Proof(seen.door, seen.attempt, stage, printable(text, MAX_SAYS))


# What shows only when the route is chosen.
BEHIND_THE_HELLO = {Variation.NEWEST_PROTOCOL, Variation.OTHER_USER, Variation.VERIFIED}


def _made_up_salt(seen: Handshake) -> bytes | None:
    """The salt that was made up for the user whom pgprobe made up, or None."""
    if seen.startup is None:
        return None
    who = (seen.startup.get("user"), seen.startup.get("database"))
    return seen.salt if who == (MADE_UP_USER, MADE_UP_DATABASE) else None


def _newest(hello: ClientHello) -> int:
    """The newest version of TLS that is offered, GREASE (RFC 8701) apart."""
    return max((v for v in hello.versions if v & 0x0F0F != 0x0A0A), default=0)


def host_of(client: str | None) -> str:
    """The address of "addr:port"; empty where it is not known."""
    return parted(client)[0] if client else ""


def asking(evidence: Evidence) -> Handshake | None:
    """The one that asked for TLS and got furthest: at once, or behind a GSSENCRequest's N."""
    plain = evidence.with_opening(Opening.SSL_REQUEST)
    kerberos = evidence.with_opening(Opening.GSSENC_REQUEST)
    return plain or (kerberos if kerberos and kerberos.ssl_answer else None)


def breaks_on_request(evidence: Evidence) -> Handshake | None:
    """The control, where SSLRequest got no S, N or E: a close, silence, a raw TLS alert."""
    seen = evidence.with_opening(Opening.SSL_REQUEST)
    if seen is None or seen.not_connected:
        return None
    raw_alert = seen.ssl_answer == "other" and seen.alert is not None
    wordless = not seen.server_bytes and broke_off(seen)
    return seen if raw_alert or wordless else None


def foreign_answer(evidence: Evidence) -> Handshake | None:
    """The handshake in which another protocol answered where PostgreSQL should."""
    asking = evidence.with_opening(Opening.SSL_REQUEST)
    if asking and asking.foreign and not asking.glued:
        return asking
    if asking and asking.ssl_answer == "S" and asking.startup_in_tls and not asking.foreign:
        return None
    listening = evidence.one(Opening.NOTHING)
    if listening and listening.foreign:
        return listening
    if asking is None or not asking.server_bytes:  # who waits for a line's end, say
        clear = (s for s in evidence.handshakes if s.foreign and not (s.foreign_in_tls or s.glued))
        if found := next(clear, None):
            return found
    inside = (seen for seen in evidence.handshakes if seen.foreign_in_tls and not placeholder(seen))
    if asking and asking.ssl_answer in ("S", "N"):
        return next((seen for seen in inside if seen.opening is Opening.SSL_REQUEST), None)
    return next(inside, None)
