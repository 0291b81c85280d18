"""Which attempt may start now, and how long it may wait: the manners of a run at one door.

Takes the attempts in order, and word of what became of each; gives the next one to start. It
has no clock and no socket: the source tells it the time. The rules, and why:

* The control runs alone, since its times are the ones reported. The others start when it ends,
  or after ``HEAD_START`` without a new byte, so that a deaf endpoint costs about one time-out.
* An attempt that differs from the control only behind a point that the control did not reach is
  not made: it could tell nothing, and would cost the endpoint a connection.
* At most ``IN_FLIGHT`` connections, ``PAST_STARTUP`` of them past StartupMessage.
* ``53300 too many connections`` ends the run: we would only make it worse.
* Once the control got through, a peer that lets an attempt wait many times as long as the
  control had to is silent; a healthy endpoint must not cost a time-out.
* *Silent* listens until the others are done, and to its full time-out only where nobody got a
  byte; the last control shows whether the endpoint is still what it was.
* What was closed without a word, where the control got through, is made once more, by itself: a
  node that is down, a limit on connections and a rate limiter must not look like a rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from probe.attempt import Attempt, Needs
from probe.handshake import Opening
from probe.transcript import Layer
from probe.wire.messages import TOO_MANY_CONNECTIONS

HEAD_START = 0.25  # seconds
IN_FLIGHT = 4  # connections
PAST_STARTUP = 2  # connections
BREATH = 0.1  # seconds before what is made once more
AGAIN = 14  # attempts that are made once more: as many as there are with one name
PATIENCE_FACTOR = 20  # times the control's longest wait
LEAST_PATIENCE = 2.0  # seconds

FULL = f"C{TOO_MANY_CONNECTIONS}\0".encode()  # as a field of an ErrorResponse

_MISSING = {
    Needs.SSL_ANSWER: "SSLRequest was not answered with S",
    Needs.TLS: "the plain TLS handshake did not finish",
}


class Ended(StrEnum):
    """How an attempt ended, as far as pace is concerned."""

    NOT_CONNECTED = "not-connected"
    CLOSED = "closed"
    SILENT = "silent"
    LEFT = "left"  # the player had seen enough


@dataclass(eq=False, repr=False)
class _Progress:
    attempt: Attempt
    heard: bool = False
    ssl_answer: bool = False
    answers: int = 0
    established: bool = False
    slowest: float = 0.0  # seconds waited for an answer, or a close
    last_heard: float = 0.0  # seconds since the run began
    past_startup: bool = False
    ended: Ended | None = None
    tails: dict[Layer, bytes] = field(default_factory=dict)  # of what was heard

    @property
    def lost(self) -> bool:
        """Closed without a word, or with an S alone."""
        without = not self.heard or (self.ssl_answer and self.answers == 1)
        return without and self.ended in (Ended.CLOSED, Ended.NOT_CONNECTED)


@dataclass(eq=False, repr=False)
class Schedule:
    """The pace of one door's attempts. ``timeout`` in seconds, for each wait."""

    attempts: Iterable[Attempt]
    timeout: float
    not_made: list[tuple[str, str]] = field(default_factory=list)
    _waiting: list[Attempt] = field(init=False)
    _made: dict[str, _Progress] = field(init=False, default_factory=dict)
    _control: Attempt = field(init=False)
    _asks: Attempt | None = field(init=False)  # the first with a plain SSLRequest
    _again: list[Attempt] = field(init=False, default_factory=list)  # the control is the last
    _full: bool = field(init=False, default=False)
    _idle_since: float | None = field(init=False, default=None)  # nothing runs

    def __post_init__(self) -> None:
        self._waiting = list(self.attempts)
        self._control = self._waiting[0]
        plain = (a for a in self._waiting if a.opening is Opening.SSL_REQUEST)
        self._asks = next((a for a in plain if a.needs is Needs.NOTHING), None)
        if len(self._waiting) > 1:
            self._again.append(_once_more(self._control, Needs.A_BYTE))

    # -- what the source tells ---------------------------------------------------------------

    def started(self, attempt: Attempt) -> None:
        """The attempt's connection is being made."""
        (self._again if attempt in self._again else self._waiting).remove(attempt)
        self._idle_since = None
        self._made[attempt.name] = _Progress(attempt)

    def heard(self, attempt: Attempt, data: bytes, waited: float, now: float) -> None:
        """The server said these bytes on the wire at ``now``, after so many seconds."""
        progress = self._made[attempt.name]
        progress.last_heard = now
        progress.answers += 1
        if not progress.heard:
            progress.heard = True
            progress.ssl_answer = data[:1] == b"S" and attempt.opening is Opening.SSL_REQUEST
        progress.slowest = max(progress.slowest, waited)
        self.said(attempt, data, Layer.TCP)

    def said(self, attempt: Attempt, data: bytes, layer: Layer) -> None:
        """The server said this, in clear or inside TLS; a segment may end anywhere in it."""
        tails = self._made[attempt.name].tails
        data = tails.get(layer, b"") + data
        self._full = self._full or FULL in data
        tails[layer] = data[1 - len(FULL) :]

    def established(self, attempt: Attempt) -> None:
        """The attempt's TLS handshake finished."""
        self._made[attempt.name].established = True

    def passed_startup(self, attempt: Attempt) -> None:
        """The attempt's StartupMessage goes out."""
        self._made[attempt.name].past_startup = True

    def ended(self, attempt: Attempt, how: Ended, waited: float = 0.0) -> None:
        """The attempt is over; it had waited for so many seconds."""
        progress = self._made[attempt.name]
        progress.ended = how
        if how is Ended.CLOSED:
            progress.slowest = max(progress.slowest, waited)
        if attempt.twice and progress.lost and len(self._again) <= AGAIN:
            self._again.insert(-1, _once_more(attempt, Needs.TLS))

    # -- what the source asks ----------------------------------------------------------------

    def next(self, now: float) -> Attempt | None:
        """The attempt to start now, or None; ``now`` in seconds since the run began."""
        if not self._made:
            return self._control
        self._drop()
        running = [p for p in self._made.values() if p.ended is None]
        if len(running) >= IN_FLIGHT or not self._head_start_over(now) or self._seems_deaf():
            return None
        if first := next(filter(self._ready, self._waiting), None):
            return first
        if running or self._waiting:
            return None
        return self._alone(next(filter(self._ready, self._again), None), now)

    def _alone(self, attempt: Attempt | None, now: float) -> Attempt | None:
        """Each by itself, when the one before is forgotten; and the control behind all others."""
        if attempt is None or attempt is self._again[-1]:
            return attempt
        self._idle_since = now if self._idle_since is None else self._idle_since
        return attempt if now >= self._idle_since + BREATH else None

    def may_pass_startup(self) -> bool:
        """Whether one more connection may send its StartupMessage."""
        past = [p for p in self._made.values() if p.past_startup and p.ended is None]
        return len(past) < PAST_STARTUP

    def patience(self, attempt: Attempt) -> float:
        """How many seconds the attempt may wait for its next bytes, as things stand now."""
        others = [p for p in self._made.values() if p.attempt is not attempt]
        if attempt.opening is Opening.NOTHING:
            busy = any(p.ended is None for p in others) or bool(self._waiting)
            return self.timeout if busy or not self._anybody_heard() else 0.0
        control = self._made[self._control.name]
        if attempt is self._control or control.ended is not Ended.LEFT or not control.established:
            return self.timeout
        return min(self.timeout, self.least_patience)

    @property
    def least_patience(self) -> float:
        """How many seconds without an answer are silence, by what the control had to wait."""
        return max(LEAST_PATIENCE, PATIENCE_FACTOR * self._made[self._control.name].slowest)

    @property
    def wakes_at(self) -> float:
        """When another may start though nothing happens, as things stand now."""
        if self._idle_since is not None:
            return self._idle_since + BREATH
        control = self._made.get(self._control.name)
        return control.last_heard + HEAD_START if control else 0.0

    @property
    def finished(self) -> bool:
        """Nothing runs and nothing is to be started."""
        self._drop()
        return not (self._waiting or self._again) and all(p.ended for p in self._made.values())

    def cut_off(self, why: str) -> None:
        """Nothing more is to be started."""
        left = *self._waiting, *filter(self._ready, self._again)
        self.not_made += [(attempt.name, why) for attempt in left]
        self._waiting.clear()
        self._again.clear()

    # -- how it decides ----------------------------------------------------------------------

    def _head_start_over(self, now: float) -> bool:
        return self._made[self._control.name].ended is not None or now >= self.wakes_at

    def _ready(self, attempt: Attempt) -> bool:
        reference = self._reference(attempt)
        told = self._made.get(reference.name) if reference else None
        match attempt.needs:
            case Needs.NOTHING:
                return True
            case Needs.SSL_ANSWER:
                return told is not None and told.ssl_answer
            case Needs.TLS:
                return told is not None and told.established
            case Needs.A_BYTE:
                spoke = told is not None and (told.heard or told.ended is Ended.CLOSED)
                return spoke and self._anybody_heard()
            case Needs.NO_BYTE:
                return told is not None and told.ended is Ended.CLOSED and not told.heard

    def _reference(self, attempt: Attempt) -> Attempt | None:
        """The attempt that shows whether this one can tell anything."""
        behind = attempt.needs in (Needs.SSL_ANSWER, Needs.TLS)
        return self._asks if behind and attempt.opening is Opening.SSL_REQUEST else self._control

    def _hopeless(self, attempt: Attempt) -> bool:
        """What it needs has not come and cannot come any more."""
        reference = self._reference(attempt)
        if reference is None:
            return True
        progress = self._made.get(reference.name)
        return progress is not None and progress.ended is not None and not self._ready(attempt)

    def _drop(self) -> None:
        """Take out what can tell nothing any more, saying why."""
        control = self._made.get(self._control.name)
        if control is None or control.ended is None:
            return
        if self._full:
            self.cut_off("the server has no connection left (53300)")
        elif control.ended is Ended.NOT_CONNECTED:
            self.cut_off("there is no connection")
        elif self._deaf():
            self.cut_off("nothing is ever answered here")
        if not self._waiting and all(p.ended for p in self._made.values()):
            self._again = [a for a in self._again if self._ready(a)]
        for attempt in [a for a in self._waiting if self._hopeless(a)]:
            self._waiting.remove(attempt)
            if attempt.needs in _MISSING:
                self.not_made.append((attempt.name, _MISSING[attempt.needs]))

    def _seems_deaf(self) -> bool:
        """The control got no byte in all its time, and nobody else has got one yet.

        The bare ClientHello that is still waiting will decide whether to go on.
        """
        control = self._made[self._control.name]
        waiting = any(
            p.attempt.opening is Opening.DIRECT_TLS and p.ended is None for p in self._made.values()
        )
        return control.ended is Ended.SILENT and waiting and not self._anybody_heard()

    def _deaf(self) -> bool:
        """The control and a bare ClientHello were left without a byte, and nobody got one."""
        silent = {p.attempt.opening for p in self._made.values() if p.ended is Ended.SILENT}
        both = {self._control.opening, Opening.DIRECT_TLS} <= silent
        return both and not self._anybody_heard()

    def _anybody_heard(self) -> bool:
        return any(p.heard for p in self._made.values())


def _once_more(attempt: Attempt, needs: Needs) -> Attempt:
    return replace(attempt, name=f"{attempt.name}-again", needs=needs, twice=False)
