"""The steps of a connection, one for each stage, with what passed while it was the current one.

Takes word of when a stage begins and how it ends, and the bytes that pass; gives the
:class:`~probe.handshake.Step` of each stage to a Handshake. What is kept of the bytes is bounded.
"""

from __future__ import annotations

from probe.handshake import Handshake, Stage, Step
from probe.transcript import Party

KEPT_BYTES = 4_096  # of what passed in a step, each way


class Ladder:
    """The steps of ``seen``, as they come; ``reached`` is the last stage that was."""

    def __init__(self, seen: Handshake) -> None:
        self.seen = seen
        self.reached: Stage | None = None
        self._stage: Stage | None = None
        self._began = 0.0
        self._passed: dict[Party, bytearray] = {}
        self._lengths: dict[Party, int] = {}
        self._clear()

    def begin(self, stage: Stage, at: float, *, carried: bool = False) -> None:
        """The stage begins; ``carried``: the bytes just seen are its own."""
        self._stage, self._began = stage, at
        if not carried:
            self._clear()

    @property
    def awaits(self) -> bool:
        """A stage's answer is awaited."""
        return self._stage is not None

    def passed(self, sender: Party, data: bytes) -> None:
        """These bytes passed meanwhile."""
        kept = self._passed[sender]
        kept += data[: KEPT_BYTES - len(kept)]
        self._lengths[sender] += len(data)

    def end(self, at: float, says: str, *, reached: bool = True) -> None:
        """The stage's answer came (``reached``), or one that ends the connection."""
        if self._stage is None:
            # an answer to nothing: a greeting before the request
            if self.reached is None or reached:
                return
            self._stage, self._began = Stage.SSL_REQUEST, at
        self.seen.steps.append(
            Step(
                stage=self._stage,
                at=self._began,
                took=max(0.0, at - self._began),
                peer=self.seen.server or self.seen.door,
                sent=bytes(self._passed[Party.CLIENT]),
                received=bytes(self._passed[Party.SERVER]),
                sent_bytes=self._lengths[Party.CLIENT],
                received_bytes=self._lengths[Party.SERVER],
                says=says,
            )
        )
        if reached:
            self.reached = self._stage
        self._stage = None
        self._clear()

    def abandon(self, at: float, says: str) -> None:
        """The connection ended while the stage was waited for."""
        if self._stage is not None:
            self.end(at, says, reached=False)

    def _clear(self) -> None:
        self._passed = {Party.CLIENT: bytearray(), Party.SERVER: bytearray()}
        self._lengths = {Party.CLIENT: 0, Party.SERVER: 0}
