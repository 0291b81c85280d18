"""A recorded connection beside its repetition: which step is answered differently now.

Takes two handshakes, the recorded one and the new one; gives what was answered at each step of
both, and whether that is the same. Equal does not mean byte for byte: randoms, key shares and
renewed certificates change each time. What is compared is what one peer, asked with the same bytes,
would say again: that it connects, the byte that answers a request, the way it refuses (closed,
reset, an alert's description, an ErrorResponse's SQLSTATE, another protocol, silence), whether a
ServerHello or a HelloRetryRequest comes, its version and cipher suite, the way of authentication.

What the recording does not show is compared with nothing. Nor is silence with an answer that came
later than the other one had waited for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from probe.handshake import Handshake, Outcome, Stage
from probe.transcript import Ending, Party
from probe.wire import printable, records
from probe.wire.messages import ErrorResponse

SILENT = "no answer"


class Point(StrEnum):
    """What is compared, in order."""

    CONNECT = "connect"
    GSSENC_REQUEST = "gssenc-request"
    SSL_REQUEST = "ssl-request"
    SERVER_HELLO = "server-hello"
    SECOND_HELLO = "second-hello"  # behind a HelloRetryRequest
    TLS_VERSION = "tls-version"
    CIPHER = "cipher"
    STARTUP = "startup"


class Verdict(StrEnum):
    """Whether the answers are the same."""

    SAME = "same"
    DIFFERS = "differs"
    UNKNOWN = "unknown"  # the recording does not tell


class Row(NamedTuple):
    """One step: what was answered then and now; None: it is not known. ``same`` likewise."""

    point: Point
    then: str | None
    now: str | None
    same: bool | None


class Sent(NamedTuple):
    """What was said again: which part of the client's first flight, and its bytes."""

    what: str
    data: bytes
    segments: int


class Replay(NamedTuple):
    """A connection of the recording, said again; ``number`` counts from 1 there."""

    number: int
    sent: tuple[Sent, ...]
    then: Handshake
    now: Handshake
    rows: tuple[Row, ...]

    @property
    def verdict(self) -> Verdict:
        """Different as soon as one step is; the same where each step is."""
        if any(row.same is False for row in self.rows):
            return Verdict.DIFFERS
        return Verdict.SAME if all(row.same for row in self.rows) else Verdict.UNKNOWN

    @property
    def decided(self) -> Row:
        """The row that decides the verdict: the first that is not the same, else the last."""
        return next((row for row in self.rows if not row.same), self.rows[-1])


class Replays(NamedTuple):
    """Everything that was said again: at which door, and which connections were left out, why."""

    file: str
    to: str
    replays: tuple[Replay, ...]
    left_out: tuple[tuple[int, str], ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Of all connections together."""
        verdicts = {replay.verdict for replay in self.replays}
        for verdict in (Verdict.DIFFERS, Verdict.SAME):
            if verdict in verdicts:
                return verdict
        return Verdict.UNKNOWN


def compare(then: Handshake, now: Handshake, points: Sequence[Point]) -> tuple[Row, ...]:
    """The rows of these steps, up to the first that is not the same; and what TLS agreed on."""
    rows: list[Row] = []
    for point in points:
        old, new = _ANSWERS[point](then), _ANSWERS[point](now)
        rows.append(Row(point, old and old.says, new and new.says, _same(old, new)))
        if not rows[-1].same:
            return tuple(rows)
    if then.server_hello and now.server_hello:
        hellos = then.server_hello, now.server_hello
        rows.append(_equal(Point.TLS_VERSION, *(records.version_name(h.version) for h in hellos)))
        rows.append(_equal(Point.CIPHER, *(f"0x{h.cipher:04x}" for h in hellos)))
    return tuple(rows)


def _equal(point: Point, then: str, now: str) -> Row:
    return Row(point, then, now, then == now)


class _Answer(NamedTuple):
    """How a step was answered, and after how many seconds."""

    says: str
    after: float = 0.0


def _same(then: _Answer | None, now: _Answer | None) -> bool | None:
    if then is None or now is None:
        return None
    if then.says == now.says:
        return True
    for silent, other in ((then, now), (now, then)):
        if silent.says == SILENT and other.after >= silent.after:
            return None  # it might have come, had there been more patience
    return False


# -- the answer to each step ---------------------------------------------------------------------


def _connect(seen: Handshake) -> _Answer:
    took = seen.took(Stage.CONNECT)
    failure = seen.not_connected
    return _Answer(failure.value if failure else "connected", took)


def _gss_answer(seen: Handshake) -> _Answer | None:
    return _request(seen, seen.gss_answer)


def _ssl_answer(seen: Handshake) -> _Answer | None:
    return _request(seen, seen.ssl_answer)


def _request(seen: Handshake, letter: str | None) -> _Answer | None:
    took = seen.took(Stage.SSL_REQUEST)
    if letter in ("S", "N", "G"):
        glued = letter == "S" and seen.glued
        return _Answer(f"{letter} and bytes behind it" if glued else letter, took)
    return _words(seen, took) or _ending(seen)


def _server_hello(seen: Handshake) -> _Answer | None:
    took = seen.took(Stage.SERVER_HELLO)
    if seen.retried:
        return _Answer("HelloRetryRequest", took)
    if seen.server_hello:
        return _Answer("ServerHello", took)
    return _words(seen, took) or _ending(seen)


def _second_hello(seen: Handshake) -> _Answer | None:
    if seen.server_hello:
        return _Answer("ServerHello")
    return _words(seen, 0.0) or _ending(seen)


def _startup(seen: Handshake) -> _Answer | None:
    took = seen.took(Stage.STARTUP)
    asked = seen.authentication
    if asked:
        return _Answer(f"asks for {asked.in_words}", took)
    return _words(seen, took) or _ending(seen)


_ANSWERS = {
    Point.CONNECT: _connect,
    Point.GSSENC_REQUEST: _gss_answer,
    Point.SSL_REQUEST: _ssl_answer,
    Point.SERVER_HELLO: _server_hello,
    Point.SECOND_HELLO: _second_hello,
    Point.STARTUP: _startup,
}


def _words(seen: Handshake, took: float) -> _Answer | None:
    """An answer that refuses in words."""
    if seen.error:
        return _Answer(_sqlstate(seen.error), took)
    if seen.foreign:
        return _Answer(f"not PostgreSQL: {seen.foreign.protocol}", took)
    return _Answer(f"TLS {seen.alert}", took) if seen.alert else None


def _sqlstate(error: ErrorResponse) -> str:
    return printable(f"ErrorResponse {error.sqlstate or 'without a code'}", 60)


def _ending(seen: Handshake) -> _Answer | None:
    """How it ended without an answer; None: it is not known whether one came."""
    if seen.ended_by is Party.SERVER:
        how = "reset" if seen.ending is Ending.RST else "closed"
        return _Answer(how, seen.closed_after or 0.0)
    waited = seen.gave_up_after if seen.gave_up_after is not None else seen.left_after
    if seen.outcome is Outcome.SILENT and waited is not None:
        return _Answer(SILENT, waited)
    return None
