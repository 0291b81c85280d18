"""A connection as one capture has it: what can be compared with another capture's view of it.

Takes a :class:`~probe.handshake.Handshake`, its file and its times; judges nothing.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from probe.handshake import Handshake, Opening, Stage, Step


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

    What passed in the steps of its handshake is left out: there may be very many sightings.
    """

    file: str
    handshake: Handshake
    began: float
    ended: float

    @property
    def random(self) -> bytes | None:
        """The ClientHello's; the second one after a HelloRetryRequest has the same."""
        hello = self.handshake.client_hello
        return hello.random if hello else None

    @property
    def unseen(self) -> bool:
        """What the client said may have been a ClientHello that the file does not hold."""
        seen = self.handshake
        lacks = not {"opening", "sni"}.isdisjoint(seen.not_captured)
        return lacks or seen.opening is Opening.NOT_CAPTURED

    @property
    def request(self) -> Hashable:
        """What the client said where it said no ClientHello."""
        seen = self.handshake
        return seen.opening, seen.startup, seen.cancel

    @property
    def answer(self) -> Hashable:
        """What the client was answered where it said no ClientHello."""
        seen = self.handshake
        error = seen.error.sqlstate if seen.error else None
        return seen.gss_answer, seen.ssl_answer, seen.authentication, error

    @property
    def tls_answered(self) -> bool:
        """Its ClientHello was answered in kind."""
        return self.handshake.server_hello is not None or self.handshake.retried

    @property
    def hello_at(self) -> float:
        """When its ClientHello was said."""
        return self.began + (self._hello.at if self._hello else 0.0)

    @property
    def answered_at(self) -> float | None:
        """When its ServerHello came."""
        if self._hello is None or self.handshake.server_hello is None:
            return None
        return self.hello_at + self._hello.took

    @property
    def _hello(self) -> Step | None:
        steps = self.handshake.steps
        return next((step for step in steps if step.stage is Stage.SERVER_HELLO), None)
