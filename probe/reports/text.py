"""The report as a person reads it, top down: verdict, ladder, comparison, path, findings."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from probe.binding import Binding
from probe.certificate import Certificate
from probe.diagnosis import Diagnosis
from probe.door import Door
from probe.fate import in_words
from probe.finding import Finding
from probe.handshake import Handshake, Opening, Step
from probe.path import Answerer, BackendLeg, DirectTls, Path, Routing
from probe.replay import Replays, Verdict
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
    one_cluster,
    order_of,
    properties,
    sent_line,
    steps_of,
    yes_no,
)
from probe.signs import TlsEnd
from probe.target import Target
from probe.wire import counted, printable
from probe.witness import Comparison, compare, label

if TYPE_CHECKING:
    from probe.reading import Connection, Reading

WIDTH = 100  # columns
SHOWN = 8  # bytes of a step that are shown
LISTED = 8  # attempts that were not made, and connections of one fate, that are named
ENDED = 72  # characters of how an attempt ended
ROWS = 40  # connections of captures that are shown

_ANSWERED_BY = {
    Answerer.SERVER: "the server",
    Answerer.PROXY: "a proxy, before it asked any server",
    Answerer.RELAYED: "whoever is behind (the server, or a forwarder that relays it)",
    Answerer.NOBODY: "nobody",
    Answerer.OTHER: "somebody who does not speak PostgreSQL",
    Answerer.UNKNOWN: "not known",
}
_ENDS = {
    TlsEnd.SERVER: "at the server, as far as can be told from outside",
    TlsEnd.PROXY: "at a proxy in front of the server",
    TlsEnd.NOWHERE: "nowhere: there is none",
    TlsEnd.UNKNOWN: "not known",
}
_LEG = {
    BackendLeg.TLS: "TLS",
    BackendLeg.PLAINTEXT: "clear text",
    BackendLeg.UNKNOWN: "not known",
}
_ROUTING = {
    Routing.BY_NAME: "by name",
    Routing.CATCH_ALL: "by name, and unknown names land somewhere too",
    Routing.IGNORES_NAME: "the name decides nothing",
    Routing.NOT_ROUTED: "there is no route for the name",
    Routing.UNKNOWN: "not known",
}
_BINDING = {
    Binding.END_TO_END: "end to end",
    Binding.RE_ENCRYPTED: "re-encrypted",
    Binding.NOT_DECIDABLE: "not decidable",
}
_DIRECT = {
    DirectTls.WORKS: "works (sslnegotiation=direct)",
    DirectTls.FAILS: "does not work",
    DirectTls.UNKNOWN: "not tried",
}


def write(report: Report | Captures | Replays) -> Iterator[str]:
    """The report as lines of at most about ``WIDTH`` columns."""
    match report:
        case Captures():
            lines = _captures(report)
        case Replays():
            lines = _replays(report)
        case _:
            lines = _lines(report)
    return (f"{line}\n" for line in lines)


def _lines(report: Report) -> Iterator[str]:
    target, diagnosis = report.target, report.diagnosis
    first, told = diagnosis.first, _told_of(diagnosis)
    yield from _headline(target, diagnosis)
    if len(diagnosis.hops) > 1:
        yield from _door_by_door(diagnosis)
    at = f" (at {told.label})" if len(diagnosis.hops) > 1 else ""
    yield from _ladder(told, at)
    if len(told.evidence.handshakes) > 1:
        yield from _comparison(told, at)
    yield from _left_out(diagnosis)
    if told.path != Path():
        yield from _between(told, at)
    if told.path.witness:
        yield from _witnessed(told, told.path.witness, at)
    labels = {door.address: door.label for door in diagnosis.hops}
    yield from _findings(diagnosis.findings, labels if len(labels) > 1 else {})
    if first.evidence.got_a_byte:
        yield from _clients(first)
    if len(diagnosis.doors) > len(diagnosis.hops):
        yield from _addresses(diagnosis.doors)


def _told_of(diagnosis: Diagnosis) -> Door:
    """The door that is told in full: the one that the verdict names, else the outermost."""
    named = (door for door in diagnosis.hops if door.address == diagnosis.verdict.door)
    return next(named, diagnosis.first)


def _headline(target: Target, diagnosis: Diagnosis) -> Iterator[str]:
    verdict = diagnosis.verdict
    name = f", asked for {target.sni}" if target.sni and target.sni != target.host else ""
    several = len(diagnosis.hops) > 1
    where = f"{len(diagnosis.hops)} doors" if several else diagnosis.first.address
    yield f"{target.label}{name}, at {where}"
    if target.sni_note:
        yield from _wrapped(target.sni_note, "  ")
    yield ""
    stage = f" at {verdict.stage.value}" if verdict.stage else ""
    yield from _wrapped(f"{verdict.status.value.upper()}{stage}: {verdict.summary}", "")


def _door_by_door(diagnosis: Diagnosis) -> Iterator[str]:
    """Doors and steps, the outermost first, and what changes from one to the next."""
    yield from _section("Door by door, the outermost first; milliseconds for each step")
    yield from _columns(matrix(diagnosis.hops))
    yield ""
    yield from _columns(properties(diagnosis.hops))
    labels = {door.address: door.label for door in diagnosis.hops}
    for each in diagnosis.differences:
        pair = f"{labels[each.outer]}, before {labels[each.inner]}"
        yield from _wrapped(f"  {pair}: {each.says}", "    ")
    if same := one_cluster(diagnosis.hops):
        yield from _wrapped(f"  {same}", "    ")


def _ladder(door: Door, at: str) -> Iterator[str]:
    main = door.evidence.main
    if main is None:
        return
    yield from _steps(main, f"Step by step{at}: {_asks(main)}")


def _steps(seen: Handshake, title: str) -> Iterator[str]:
    yield from _section(title)
    for step in seen.steps:
        times = f"at {milliseconds(step.at):<9} took {milliseconds(step.took):<9}"
        yield from _wrapped(f"  {step.stage.value:<15} {times}  {step.says}", " " * 47)
        passed = _bytes(step)
        if passed:
            yield " " * 18 + passed
    if seen.leaf:
        leaf = Certificate(seen.leaf)
        dates = leaf.validity
        until = f", until {dates[1]:%Y-%m-%d}" if dates else ""
        yield from _wrapped(
            f"  certificate: {leaf.subject}, for {', '.join(leaf.names[:5])}{until}; issued by "
            f"{leaf.issuer}; SHA-256 {leaf.fingerprint[:16]}…",
            "    ",
        )


def _asks(seen: Handshake) -> str:
    if seen.opening is Opening.NOTHING:
        return "nothing could be said"
    first = "bare ClientHello" if seen.opening is Opening.DIRECT_TLS else seen.opening.value
    hello = seen.client_hello
    if hello is None:
        return first
    name = f"server_name {hello.server_name}" if hello.server_name else "no server_name"
    return f"{first}, {name}, {'ALPN postgresql' if seen.alpn_offered else 'no ALPN'}"


def _bytes(step: Step) -> str:
    parts = []
    for arrow, data, count in (
        (">", step.sent, step.sent_bytes),
        ("<", step.received, step.received_bytes),
    ):
        if count:
            more = "…" if count > SHOWN else ""
            parts.append(f"{arrow} {data[:SHOWN].hex(' ')}{more} ({count})")
    return "  ".join(parts)


def _comparison(door: Door, at: str) -> Iterator[str]:
    yield from _section(f"The attempts side by side{at}")
    rows = [("attempt", "reached", "ended", "certificate, cluster")]
    for seen in door.evidence.handshakes:
        shown = Certificate(seen.leaf).fingerprint[:8] if seen.leaf else ""
        cluster = door.evidence.cluster(seen) or ""
        reached = seen.reached.value if seen.reached else "-"
        rows.append((seen.attempt, reached, _ended(seen), f"{shown} {cluster}".strip()))
    yield from _columns(rows)


def _ended(seen: Handshake) -> str:
    words = in_words(seen).removeprefix("answered with ")
    words = words.replace("left without an answer for", "no answer in")
    return printable(words.replace("let through to authentication", "let through"), ENDED)


def _left_out(diagnosis: Diagnosis) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for name, why in diagnosis.not_made:
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        listed = ", ".join(names) if len(names) <= LISTED else f"{len(names)} attempts"
        yield from _wrapped(f"  not made, since {why}: {listed}", "    ")


def _between(door: Door, at: str) -> Iterator[str]:
    path: Path = door.path
    yield from _section(f"What stands between{at}")
    rows = [
        ("SSLRequest answered by", _ANSWERED_BY[path.ssl_request_answered_by]),
        ("TLS ends", _tls_ends(path)),
        ("the server sees", _LEG[path.backend_leg]),
        ("routing", _ROUTING[path.routing]),
        ("direct TLS", _DIRECT[path.direct_tls]),
        ("cluster", path.cluster or "not shown"),
    ]
    if path.binding is not Binding.NOT_TRIED:
        rows.append(("channel binding", f"{_BINDING[path.binding]}: {path.binding_why}"))
    rows += [("login", said) for said in _login(path)]
    yield from _columns(rows)
    for sign in path.signs:
        yield from _wrapped(f"  sign: {sign.proof.says} ({sign.proof.attempt})", "    ")


def _login(path: Path) -> Iterator[str]:
    """What came of a real login, in sentences."""
    if path.login is None:
        return
    knows = {
        True: ", and the server proved that it knows the password",
        False: ", and the server did not prove that it knows the password",
        None: "",
    }
    yield f"let in by {path.login.method}{knows[path.login.signature]}"
    view = path.server_view
    if view is not None:
        sees = f"TLS {view.version}, {view.cipher}" if view.tls else "clear text"
        where = f"{view.address or '?'}:{view.port or '?'}"
        yield printable(
            f"the server sees {sees}, at {where}, and is PostgreSQL {view.server_version or '?'}"
        )


def _witnessed(door: Door, told: Comparison, at: str) -> Iterator[str]:
    yield from _section(f"What was sent, and what arrived at the witness ({told.attempt}){at}")
    rows = [("", "sent", "arrived")]
    for row in told.rows:
        arrived = "the same" if row.sent == row.arrived else row.arrived
        rows.append((label(row.part), row.sent, arrived + (", changed" if row.changed else "")))
    yield from _columns(rows)
    inside = [seen for seen in door.evidence.handshakes if seen.startup_in_tls]
    others = [each for seen in inside if (each := compare(seen))]
    whole = sum(each.end_to_end for each in others)
    yield f"  of {len(others)} attempts that it answered over TLS, {whole} arrived byte for byte"


def _tls_ends(path: Path) -> str:
    if path.witness and path.witness.end_to_end:
        return "at the witness in the server's place"
    return _ENDS[path.tls_ends_at]


def _findings(findings: Sequence[Finding], labels: Mapping[str, str]) -> Iterator[str]:
    """Each finding, with the doors where it was found if these have ``labels``."""
    yield from _section("Findings")
    if not findings:
        yield "  none"
    for alike in _alike(findings):
        finding = alike[0]
        how = f"{finding.severity.value}, {finding.certainty.value}"
        at = f" at {', '.join(labels[f.door] for f in alike)}" if labels else ""
        head = f"  {finding.code} {finding.name} ({how}){at}: {finding.message}"
        yield from _wrapped(head, "    ")
        for proof in finding.evidence:
            step = f", {proof.step}" if proof.step else ""
            yield from _wrapped(f"    seen: {proof.attempt}{step}: {proof.says}", "      ")
        for fix in finding.fix:
            yield from _wrapped(f"    change, {fix.who}: {fix.change}", "      ")
    if findings:
        yield "  pgprobe explain CODE tells more."


def _alike(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings that say the same at several doors stand together."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        key = (finding.code, finding.severity.value, finding.message)
        groups.setdefault(key, []).append(finding)
    return list(groups.values())


def _clients(door: Door) -> Iterator[str]:
    yield from _section("Which clients get through (default settings, TLS required)")
    yield from _columns(
        [(row.client, yes_no(row.gets_through), row.mode, row.why) for row in door.clients]
    )


def _addresses(doors: Iterable[Door]) -> Iterator[str]:
    yield from _section("The addresses")
    rows = []
    for door in doors:
        verdict = door.verdict
        stage = verdict.stage.value if verdict.stage else ""
        rows.append((door.address, verdict.status.value, stage))
    yield from _columns(rows)


# -- captures ----------------------------------------------------------------------------------


def _captures(report: Captures) -> Iterator[str]:
    reading = report.reading
    connections = reading.connections
    broken = sum(row.digest.broken is True for row in connections)
    yield from _wrapped(", ".join(map(printable, reading.files)), "  ")
    yield f"{counted(len(connections), 'connection')}, {broken} did not get through"
    for problem in reading.problems:
        yield from _wrapped(f"  not read: {printable(problem, 400)}", "    ")
    if reading.paths.ways:
        yield from _paths(reading)
    shown = _chosen(connections)
    yield from _section("Connections")
    yield from _connection_table(reading, shown)
    left = len(connections) - len(shown)
    if left:
        yield f"  … and {left} more: --broken, --sni and --client choose, --format json has all"
    if report.steps:
        for number in shown:
            yield from _connection_steps(connections[number])
    yield from _findings(reading.findings, {})


def _paths(reading: Reading) -> Iterator[str]:
    """What became of connections from file to file; each sentence with those that it is about."""
    paths = reading.paths
    yield from _section(f"From file to file, the outermost first: {order_of(paths)}")
    for ways in fates(paths):
        way = ways[0]
        where = f" between {' and '.join(way.between)}" if way.between else ""
        how = f" ({way.certainty.value})" if way.certainty else ""
        head = printable(f"{way.passage.value.upper()}{where}{how}: {way.why}", 1_200)
        yield from _wrapped(f"  {head}", "    ")
        listed = ", ".join(steps_of(each, reading) for each in ways[:LISTED])
        more = f" and {len(ways) - LISTED} more" if len(ways) > LISTED else ""
        number = "connection" if len(ways) == 1 else "connections"
        yield from _wrapped(f"    {number} {listed}{more}", "      ")
    for clock in paths.clocks:
        yield from _wrapped(f"  {clock_of(clock)}", "    ")


def _chosen(connections: Sequence[Connection]) -> list[int]:
    """Which rows are shown: those with something wrong first to be kept, in their order."""
    worth = sorted(
        range(len(connections)),
        key=lambda n: (not connections[n].digest.broken, not connections[n].findings, n),
    )
    return sorted(worth[:ROWS])


def _connection_table(reading: Reading, shown: Sequence[int]) -> Iterator[str]:
    titles = "no. client server opening SNI ALPN TLS outcome findings"
    rows = [tuple(titles.split())]
    for number in shown:
        row = reading.connections[number]
        rows.append((number_of(row), *cells(row), ", ".join(f.code for f in row.findings) or "-"))
    yield from _columns(rows)


def _connection_steps(row: Connection) -> Iterator[str]:
    seen = row.handshake
    where = f"{seen.client or '?'} to {seen.server or seen.door}"
    number = number_of(row)
    called = "" if seen.attempt == f"connection {number}" else f", {seen.attempt}"
    title = f"Connection {number}{called}, {where}: {_asks(seen)}"
    yield from _steps(seen, printable(title, 300))
    if seen.not_captured:
        yield from _wrapped(f"  not captured: {', '.join(seen.not_captured)}", "    ")


# -- replays -----------------------------------------------------------------------------------


def _replays(report: Replays) -> Iterator[str]:
    yield from _wrapped(f"{printable(report.file)}, said again to {report.to}", "  ")
    yield ""
    yield from _wrapped(headline(report), "")
    for replay in report.replays:
        then = replay.then
        where = f"{then.client or '?'} to {then.server or then.door}"
        yield from _section(f"Connection {replay.number}, {where}: {in_short(replay)}")
        for sent in replay.sent:
            yield from _wrapped(f"  > {sent_line(sent)}", "    ")
        if replay.verdict is not Verdict.SAME:
            rows = [("step", "then", "now")]
            rows += [
                (r.point.value, r.then or "not known", r.now or "not known") for r in replay.rows
            ]
            yield from _columns(rows)
    if report.left_out:
        yield from _section("Not said again")
        for number, why in report.left_out:
            yield from _wrapped(f"  connection {number}: {why}", "    ")


def _section(title: str) -> Iterator[str]:
    yield ""
    yield title


def _wrapped(text: str, indent: str) -> Iterator[str]:
    yield from textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False) or [""]


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Aligned columns; the last one is as long as it is, wrapped below itself."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]) - 1)] if rows else []
    indent = 2 + sum(width + 2 for width in widths)
    for row in rows:
        head = "  " + "".join(
            f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False)
        )
        room = max(30, WIDTH - indent)
        tail = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
        yield (head + tail[0]).rstrip()
        for line in tail[1:]:
            yield " " * indent + line
