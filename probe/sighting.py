"""A connection as one capture has it: what can be compared with another capture's view of it.

Takes a :class:`~probe.handshake.Handshake`, its file and its times; gives a :class:`Sighting`, a
small one, for there may be very many. It judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import NamedTuple

from probe.handshake import Handshake, Opening, Outcome, Stage
from probe.transcript import Party
from probe.wire.hello import ServerHello


class Vantage(NamedTuple):
    """A capture file: the times of its first and last packet, and what was read of it.

    ``everything``: each TCP connection, not only those that say what PostgreSQL's clients say;
    ``narrowed``: only those to some ports. A file without packets began and ended at 0.
    """

    file: str
    began: float
    ended: float
    everything: bool = False
    narrowed: bool = False


class Sighting(NamedTuple):
    """A connection in a file; times in seconds since the epoch, by that file's clock.

    ``ended`` is infinite where the file does not show its end. ``server_name`` is what the client
    said, ``random`` and ``sha256`` are its ClientHello's, of which the second one after a
    HelloRetryRequest (``retried``) has the same random; ``hello_at`` and ``answered_at`` tell when
    it was said, and when its ServerHello came. ``request`` is what the client said where it said
    no ClientHello, ``answer`` what it was answered. ``unseen``: what it said may have been a
    ClientHello that the file does not hold. ``nonce`` is that of its login.
    """

    file: str
    began: float
    ended: float
    server: str | None
    connected: bool
    opening: Opening
    outcome: Outcome
    told: bool
    unseen: bool
    left: bool
    authenticates: bool
    cancels: bool
    request: Hashable
    answer: Hashable
    server_name: str | None
    random: bytes | None
    sha256: str
    retried: bool
    offers_alpn: bool
    server_hello: ServerHello | None
    hello_at: float
    answered_at: float | None
    nonce: str | None

    @property
    def tls_answered(self) -> bool:
        """Its ClientHello was answered in kind."""
        return self.server_hello is not None or self.retried

    def until(self, end: float) -> Sighting:
        """With the end of its file in place of one that the file does not show."""
        return self._replace(ended=end) if math.isinf(self.ended) else self


def sighting(file: str, began: float, ended: float, seen: Handshake) -> Sighting:
    """A connection of which this was seen, from its first to its last event."""
    hello, error = seen.client_hello, seen.error
    over = seen.ended_by is not None or seen.not_connected is not None
    answer = seen.step(Stage.SERVER_HELLO)
    hello_at = began + answer.at if answer else began
    lacks = not {"opening", "sni"}.isdisjoint(seen.not_captured)
    went = seen.outcome is Outcome.CLOSED and seen.ended_by is Party.CLIENT
    return Sighting(
        file=file,
        began=began,
        ended=ended if over else math.inf,
        server=seen.server,
        connected=seen.not_connected is None,
        opening=seen.opening,
        outcome=seen.outcome,
        told=seen.told,
        unseen=lacks or seen.opening is Opening.NOT_CAPTURED,
        left=went or seen.ssl_answer == "S",
        authenticates=seen.authentication is not None,
        cancels=seen.cancel is not None,
        request=(seen.opening, seen.startup, seen.cancel),
        answer=(
            seen.gss_answer,
            seen.ssl_answer,
            seen.authentication,
            error.sqlstate if error else None,
        ),
        server_name=seen.server_name,
        random=hello.random if hello else None,
        sha256=hello.sha256 if hello else "",
        retried=seen.retried,
        offers_alpn=seen.alpn_offered,
        server_hello=seen.server_hello,
        hello_at=hello_at,
        answered_at=hello_at + answer.took if answer and seen.server_hello else None,
        nonce=seen.nonce,
    )
