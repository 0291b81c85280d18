"""Reports: each takes what was learnt and gives text. What stands here is what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from probe.certificate import Certificate
from probe.diagnosis import Diagnosis
from probe.door import Door
from probe.handshake import Handshake, Stage
from probe.refusal import through
from probe.replay import Replay, Replays, Sent, Verdict
from probe.target import Target
from probe.wire import printable

if TYPE_CHECKING:  # only those who read captures need them
    from probe.clock import Clock
    from probe.reading import Connection, Reading
    from probe.vantage import Paths, Way

FORMATS = ("text", "table", "json")

NAME = 40  # characters of a name in a table


class Report(NamedTuple):
    """What is to be shown: the target as asked, and the diagnosis."""

    target: Target
    diagnosis: Diagnosis


class Captures(NamedTuple):
    """What is to be shown of captures; ``steps``: the ladder of each connection, too."""

    reading: Reading
    steps: bool = False


def render(report: Report | Captures | Replays, format_name: str) -> Iterator[str]:
    """The report in one of ``FORMATS``, piece by piece, since it may be long; ends in a newline."""
    module = import_module(f"probe.reports.{format_name}")
    write: Callable[[Report | Captures | Replays], Iterator[str]] = module.write
    return write(report)


def milliseconds(seconds: float) -> str:
    """A time for people."""
    ms = seconds * 1000
    return f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"


def yes_no(value: bool | None) -> str:
    """True, False or None for people."""
    return {True: "yes", False: "no", None: "not known"}[value]


# -- doors and steps -----------------------------------------------------------------------------

_STAGES = tuple(stage for stage in Stage if stage is not Stage.RESOLVE)


def matrix(doors: Sequence[Door]) -> list[tuple[str, ...]]:
    """A row for each door and a column for each step: its time, or how it ended there."""
    rows = [("door", *(stage.value for stage in _STAGES))]
    for door in doors:
        main = door.evidence.main
        rows.append((door.label, *(_cell(main, stage) for stage in _STAGES)))
    return rows


def _cell(seen: Handshake | None, stage: Stage) -> str:
    if seen is None:
        return ""
    step = seen.step(stage)
    if step is None:
        unresolved = stage is Stage.CONNECT and seen.reached is None
        return seen.outcome.value if unresolved else ""
    came = seen.reached is not None and seen.reached.rank >= stage.rank
    return f"{step.took * 1000:.1f}" if came else seen.outcome.value


def properties(doors: Sequence[Door]) -> list[tuple[str, ...]]:
    """A row for each door: its verdict, and what is worth comparing."""
    head = ("door", "verdict", "SSLRequest answered by", "TLS ends", "certificate", "cluster")
    rows: list[tuple[str, ...]] = [head]
    for door in doors:
        seen, path = through(door.evidence) or door.evidence.main, door.path
        rows.append(
            (
                door.label,
                door.verdict.status.value,
                path.ssl_request_answered_by.value,
                path.tls_ends_at.value,
                Certificate(seen.leaf).fingerprint[:8] if seen and seen.leaf else "",
                path.cluster or "not shown",
            )
        )
    return rows


def one_cluster(doors: Sequence[Door]) -> str | None:
    """What equal cluster ids at several doors mean, in a sentence; None where there are none."""
    clusters = [door.path.cluster for door in doors if door.path.cluster]
    if len(clusters) < 2 or len(set(clusters)) > 1:
        return None
    return (
        "the cluster id is the same at every door that shows one: one cluster is likely, never "
        "certain, for replicas, restored backups and cloned volumes share it"
    )


# -- several captures --------------------------------------------------------------------------


def fates(paths: Paths) -> list[list[Way]]:
    """Ways of which the same is to be said stand together, the worst first, the unknown last."""
    groups: dict[tuple[object, ...], list[Way]] = {}
    for way in paths.ways:
        groups.setdefault((way.passage, way.between, way.certainty, way.why), []).append(way)
    return sorted(groups.values(), key=lambda ways: ways[0].passage.rank)


def steps_of(way: Way, reading: Reading) -> str:
    """The numbers that its connections have in the table: "1 → 4"."""
    return " → ".join(number_of(reading.connections[each]) for each in way.connections)


def number_of(row: Connection) -> str:
    """Its number for people, which it keeps where others are left out."""
    return str(row.number + 1)


def order_of(paths: Paths) -> str:
    """The files from the outermost on, and how that is known."""
    given = "" if paths.as_given else " (not as given: ServerHellos come sooner farther in)"
    return printable(", ".join(paths.files), 400) + given


def clock_of(clock: Clock) -> str:
    """A clock, in a sentence."""
    if not clock.known:
        return printable(
            f"no ClientHello is in both {clock.against} and {clock.file}: their clocks are taken "
            "to agree",
            600,
        )
    how = f"{abs(clock.ahead):.3f} s {'behind' if clock.ahead < 0 else 'ahead of'}"
    if abs(clock.ahead) <= clock.within:
        how = "the same as"
    return printable(
        f"the clock of {clock.file} is {how} that of {clock.against}, give or take "
        f"{milliseconds(clock.within)}, by {clock.connections} ClientHello"
        f"{'' if clock.connections == 1 else 's'} in both",
        600,
    )


# -- captured connections -----------------------------------------------------------------------


def cells(row: Connection) -> tuple[str, ...]:
    """A captured connection in a table: client, server, opening, SNI, ALPN, TLS, outcome."""
    seen = row.handshake
    hello = seen.client_hello
    unseen = "?" if "sni" in seen.not_captured else "-"
    alpn = ",".join(printable(name, 12) for name in hello.alpn[:2]) if hello else ""
    return (
        seen.client or "?",
        seen.server or seen.door,
        seen.opening.value,
        printable(hello.server_name, NAME) if hello and hello.server_name else unseen,
        alpn or unseen,
        seen.tls_version or "-",
        seen.outcome.value,
    )


# -- replays ------------------------------------------------------------------------------------

SHOWN_BYTES = 16  # of what is said again

_HEADLINES = {
    Verdict.SAME: "SAME: what could be compared is answered as it was then",
    Verdict.DIFFERS: "DIFFERS: answered differently now: {count} of {all}",
    Verdict.UNKNOWN: "UNKNOWN: the recording does not show what was answered then",
}


def headline(report: Replays) -> str:
    """The verdict on all connections, in a sentence."""
    count = sum(replay.verdict is Verdict.DIFFERS for replay in report.replays)
    return _HEADLINES[report.verdict].format(count=count, all=len(report.replays))


def in_short(replay: Replay) -> str:
    """What became of one connection, in a sentence."""
    row, verdict = replay.decided, replay.verdict
    if verdict is Verdict.SAME:
        return f"the same up to {row.point.value}: {row.now}"
    if verdict is Verdict.UNKNOWN:
        return (
            f"{row.point.value}: {row.now or 'not known'} now, and then {row.then or 'not known'}"
        )
    return f"{row.point.value}: {row.now} now, was {row.then}"


def sent_line(sent: Sent) -> str:
    """Bytes that are said again: what they are, and a bounded view of them."""
    more = " …" if len(sent.data) > SHOWN_BYTES else ""
    pieces = f" in {sent.segments} segments" if sent.segments > 1 else ""
    return f"{sent.what}, {len(sent.data)} bytes{pieces}: {sent.data[:SHOWN_BYTES].hex(' ')}{more}"
