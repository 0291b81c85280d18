"""Players of the client's part: commands out, what the server said in; no socket and no clock.

A player is a generator. It yields what it wants done, and is sent the server's next bytes where
it asked for them:

* :class:`Send`: these bytes, as one segment.
* :class:`Receive`: the server's next bytes; the player is sent them, or None when no more will
  come (it closed, reset, or the wait ran out). How it ended is the source's to record.
* :class:`Pause`: nothing for so many seconds, so that two Sends arrive apart.
* :class:`AwaitTurn`: before what costs the server a process slot.
* any :data:`~probe.transcript.Fact`: something that only the one who holds the keys can know.

It judges nothing: it looks at the wire only to choose its next bytes. When it returns, the
connection is to be closed.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

from probe.transcript import Fact

FIRST_WORDS = 8  # bytes; a shorter answer that is no letter is only the beginning of one


class Send(NamedTuple):
    """Put these bytes on the wire, in one segment where they fit."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for the server's next bytes."""


class Pause(NamedTuple):
    """Do nothing for ``seconds``."""

    seconds: float


@dataclass(frozen=True, slots=True)
class AwaitTurn:
    """Wait for a turn to go past StartupMessage."""


Command = Send | Receive | Pause | AwaitTurn | Fact
Player = Generator[Command, bytes | None, None]
