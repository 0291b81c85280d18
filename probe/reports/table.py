"""The report as tables, for notes and tickets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tabulate import tabulate

from probe.diagnosis import Diagnosis
from probe.fate import in_words
from probe.finding import Finding
from probe.replay import Replays
from probe.reports import (
    Captures,
    Report,
    cells,
    clock_of,
    fates,
    headline,
    in_short,
    matrix,
    milliseconds,
    number_of,
    order_of,
    properties,
    steps_of,
    yes_no,
)
from probe.wire import printable
from probe.witness import label

if TYPE_CHECKING:
    from probe.reading import Reading


def write(report: Report | Captures | Replays) -> Iterator[str]:
    """Verdict, attempts, findings and clients, each as a table; or connections and findings."""
    match report:
        case Captures():
            yield _captures(report)
        case Replays():
            yield _replays(report)
        case _:
            yield _diagnosis(report)


def _replays(report: Replays) -> str:
    rows = [
        (str(r.number), r.then.client or "?", r.verdict.value, r.decided.point.value, in_short(r))
        for r in report.replays
    ]
    left = [(str(number), why) for number, why in report.left_out]
    parts = [
        f"{printable(report.file)}, said again to {report.to}",
        headline(report),
        _table(rows, ("no.", "client", "answer", "step", "why")),
        *([_table(left, ("no.", "not said again"))] if left else []),
    ]
    return "\n\n".join(parts) + "\n"


def _captures(report: Captures) -> str:
    reading = report.reading
    connections = [
        (number_of(row), *cells(row), ", ".join(finding.code for finding in row.findings))
        for row in reading.connections
    ]
    titles = "no. client server opening SNI ALPN TLS outcome findings".split()
    parts = [", ".join(map(printable, reading.files)), *map(printable, reading.problems)]
    parts += _paths(reading)
    parts += [_table(connections, tuple(titles)), _finding_table(reading.findings)]
    return "\n\n".join(parts) + "\n"


def _paths(reading: Reading) -> list[str]:
    """What became of connections from file to file, and how the files' clocks differ."""
    paths = reading.paths
    rows = [
        (
            steps_of(way, reading),
            way.passage.value,
            way.certainty.value if way.certainty else "",
            printable(" and ".join(way.between), 200) if way.between else "",
            printable(way.why, 1_000),
        )
        for ways in fates(paths)
        for way in ways
    ]
    if not rows:
        return []
    titles = ("connections", "verdict", "certainty", "between", "why")
    order = f"from file to file, the outermost first: {order_of(paths)}"
    return [order, _table(rows, titles), "\n".join(map(clock_of, paths.clocks))]


def _diagnosis(report: Report) -> str:
    diagnosis = report.diagnosis
    door, verdict = diagnosis.first, diagnosis.verdict
    path = door.path
    several = len(diagnosis.doors) > 1
    stage = f" at {verdict.stage.value}" if verdict.stage else ""
    attempts = [
        (
            *((each.label,) if several else ()),
            seen.attempt,
            seen.opening.value,
            seen.server_name or "",
            seen.reached.value if seen.reached else "",
            seen.outcome.value,
            in_words(seen),
            milliseconds(seen.steps[-1].at + seen.steps[-1].took) if seen.steps else "",
        )
        for each in diagnosis.doors
        for seen in each.evidence.handshakes
    ]
    labels = {each.address: each.label for each in diagnosis.doors} if several else {}
    at = ("door",) if several else ()
    between = [
        ("SSLRequest answered by", path.ssl_request_answered_by.value),
        ("TLS ends at", path.tls_ends_at.value),
        ("backend leg", path.backend_leg.value),
        ("routing", path.routing.value),
        ("direct TLS", path.direct_tls.value),
        ("cluster", path.cluster or ""),
        ("channel binding", path.binding.value),
    ]
    arrived = [
        (label(row.part), row.sent, row.arrived, yes_no(row.changed))
        for row in (path.witness.rows if path.witness else ())
    ]
    clients = [(c.client, c.mode, yes_no(c.gets_through), c.why) for c in door.clients]
    parts = [
        f"{report.target.label}: {verdict.status.value}{stage}: {verdict.summary}",
        *_doors(diagnosis),
        _table(
            attempts, (*at, "attempt", "opening", "name", "reached", "outcome", "ended", "after")
        ),
        _table(between, ("between", "")),
        *([_table(arrived, ("witness", "sent", "arrived", "changed"))] if arrived else []),
        _finding_table(diagnosis.findings, labels),
        _table(clients, ("client", "mode", "gets through", "why")),
    ]
    return "\n\n".join(parts) + "\n"


def _doors(diagnosis: Diagnosis) -> list[str]:
    """Doors and steps, and what changes between neighbours, where there are several."""
    if len(diagnosis.hops) < 2:
        return []
    tables = [matrix(diagnosis.hops), properties(diagnosis.hops)]
    changes = [(d.outer, d.inner, d.change.value, d.says) for d in diagnosis.differences]
    made = [_table(rows[1:], rows[0]) for rows in tables]
    return [*made, _table(changes, ("door", "before", "change", "what"))] if changes else made


def _finding_table(findings: Sequence[Finding], labels: Mapping[str, str] | None = None) -> str:
    """With a column for the door where it has ``labels``."""
    rows = [
        (
            *((labels[f.door],) if labels else ()),
            *(f.code, f.name, f.severity.value, f.certainty.value, f.message),
        )
        for f in findings
    ]
    at = ("door",) if labels else ()
    return _table(rows, (*at, "code", "finding", "severity", "certainty", "message"))


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    widths = [60 if header in ("message", "ended", "why") else None for header in headers]
    table = tabulate(rows, headers, tablefmt="simple", maxcolwidths=widths, disable_numparse=True)
    return str(table)
