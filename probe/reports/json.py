"""The report as one JSON document.

``schema.json``, ``read.schema.json`` and ``replay.schema.json`` describe it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from probe import __version__
from probe.certificate import Certificate
from probe.clients import Experience
from probe.door import Difference, Door
from probe.finding import Finding
from probe.handshake import Handshake, Opening, Step
from probe.path import Path
from probe.replay import Replay, Replays
from probe.reports import SHOWN_BYTES, Captures, Report, headline, in_short
from probe.signs import Sign
from probe.verdict import Verdict
from probe.wire import printable
from probe.witness import Comparison, compare

if TYPE_CHECKING:
    from probe.reading import Connection
    from probe.vantage import Paths, Way

SCHEMA = 1


def write(report: Report | Captures | Replays) -> Iterator[str]:
    """The document, indented; every text in it is safe to print."""
    separator = "{"
    for key, value in document(report).items():
        yield f"{separator}\n  {json.dumps(key)}: "
        separator = ","
        if isinstance(value, Iterator):
            yield from _one_by_one(value)
        else:
            yield _indented(value, 2)
    yield "\n}\n"


def _one_by_one(values: Iterator[Any]) -> Iterator[str]:
    """A list of what there may be very much of."""
    separator = "["
    for value in values:
        yield f"{separator}\n    {_indented(value, 4)}"
        separator = ","
    yield "[]" if separator == "[" else "\n  ]"


def _indented(value: Any, margin: int) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=True)
    return text.replace("\n", "\n" + " " * margin)


def document(report: Report | Captures | Replays) -> dict[str, Any]:
    """As plain values, and iterators of some where they are many."""
    match report:
        case Captures():
            return _captures(report)
        case Replays():
            return _replays(report)
        case _:
            return _diagnosis(report)


def _replays(report: Replays) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "pgprobe": __version__,
        "file": printable(report.file, 400),
        "to": report.to,
        "verdict": {"status": report.verdict.value, "summary": headline(report)},
        "connections": [_replay(replay) for replay in report.replays],
        "left_out": [{"connection": number, "why": why} for number, why in report.left_out],
    }


def _replay(replay: Replay) -> dict[str, Any]:
    return {
        "connection": replay.number,
        "client": replay.then.client,
        "server": replay.then.server or replay.then.door,
        "opening": replay.then.opening.value,
        "verdict": replay.verdict.value,
        "step": replay.decided.point.value,
        "summary": in_short(replay),
        "sent": [
            {
                "what": sent.what,
                "bytes": len(sent.data),
                "segments": sent.segments,
                "begins": sent.data[:SHOWN_BYTES].hex(),
            }
            for sent in replay.sent
        ],
        "compared": [
            {"step": row.point.value, "then": row.then, "now": row.now, "same": row.same}
            for row in replay.rows
        ],
        "then": _attempt(replay.then),
        "now": _attempt(replay.now),
    }


def _captures(report: Captures) -> dict[str, Any]:
    reading = report.reading
    return {
        "schema": SCHEMA,
        "pgprobe": __version__,
        "files": [printable(name, 400) for name in reading.files],
        "problems": [printable(problem, 400) for problem in reading.problems],
        "findings": [_finding(finding) for finding in reading.findings],
        "connections": map(_connection, reading.connections),
        "paths": map(_way, reading.paths.ways),
        "vantage": _vantage(reading.paths) if reading.paths.files else None,
    }


def _way(way: Way) -> dict[str, Any]:
    return {
        "connections": list(way.connections),
        "files": [printable(name, 400) for name in way.files],
        "verdict": way.passage.value,
        "certainty": way.certainty.value if way.certainty else None,
        "between": [printable(name, 400) for name in way.between] if way.between else None,
        "why": printable(way.why, 1_000),
        "hops": [
            {
                "between": [printable(name, 400) for name in hop.between],
                "verdict": hop.passage.value,
                "certainty": hop.certainty.value if hop.certainty else None,
                "why": printable(hop.why, 1_000),
            }
            for hop in way.hops
        ],
    }


def _vantage(paths: Paths) -> dict[str, Any]:
    return {
        "files": [printable(name, 400) for name in paths.files],
        "as_given": paths.as_given,
        "clocks": [
            {
                "file": printable(clock.file, 400),
                "against": printable(clock.against, 400),
                "ahead": round(clock.ahead, 6) if clock.known else None,
                "within": round(clock.within, 6) if clock.known else None,
                "connections": clock.connections,
            }
            for clock in paths.clocks
        ],
    }


def _connection(row: Connection) -> dict[str, Any]:
    captured = row.captured
    seen = row.source.handshake_of(captured)
    attempt = _attempt(seen)
    return {
        "files": [printable(captured.file, 400)],
        "first_packet": captured.first_packet,
        "packets": captured.packets,
        "began": row.digest.began,
        "attempt": seen.attempt,
        "client": seen.client,
        "server": seen.server or seen.door,
        "opening": seen.opening.value,
        "ssl_answer": seen.ssl_answer or seen.gss_answer,
        "sni": attempt["sni"],
        "alpn": attempt["alpn"] or None,
        "alpn_selected": attempt["alpn_selected"],
        "tls_version": seen.tls_version,
        "certificate": attempt["certificate"],
        "not_captured": list(seen.not_captured),
        "closed_by": seen.ended_by.value if seen.ended_by else None,
        "close": seen.ending.value if seen.ending else None,
        "reached": attempt["reached"],
        "outcome": attempt["outcome"],
        "steps": attempt["steps"],
        "findings": [_finding(finding) for finding in row.findings],
    }


def _diagnosis(report: Report) -> dict[str, Any]:
    target, diagnosis = report.target, report.diagnosis
    first = diagnosis.first
    return {
        "schema": SCHEMA,
        "pgprobe": __version__,
        "target": {
            "host": target.host,
            "port": target.port,
            "hostaddr": target.hostaddr,
            "sni": target.sni,
            "other_names": list(target.other_names),
            "user": target.user,
            "dbname": target.dbname,
            "sslmode": target.sslmode,
            "sslnegotiation": target.sslnegotiation,
        },
        "verdict": _verdict(diagnosis.verdict),
        "path": _path(first.path),
        "findings": [_finding(finding) for finding in diagnosis.findings],
        "clients": [_client(experience) for experience in first.clients],
        "doors": [_door(door) for door in diagnosis.doors],
        "differences": [_difference(each) for each in diagnosis.differences],
        "attempts": [
            _attempt(seen) for door in diagnosis.doors for seen in door.evidence.handshakes
        ],
        "not_made": [{"attempt": name, "why": why} for name, why in diagnosis.not_made],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "status": verdict.status.value,
        "stage": verdict.stage.value if verdict.stage else None,
        "door": verdict.door,
        "summary": verdict.summary,
    }


def _path(path: Path) -> dict[str, Any]:
    return {
        "ssl_request_answered_by": path.ssl_request_answered_by.value,
        "tls_ends_at": path.tls_ends_at.value,
        "backend_leg": path.backend_leg.value,
        "routing": path.routing.value,
        "direct_tls": path.direct_tls.value,
        "cluster": path.cluster,
        "pooler": path.pooler,
        "signs": [_sign(sign) for sign in path.signs],
        "binding": path.binding.value,
        "binding_why": path.binding_why,
        "login": _login(path),
        "witness": _witness(path.witness) if path.witness else None,
    }


def _sign(sign: Sign) -> dict[str, Any]:
    return {
        "end": sign.end.value,
        "decides": sign.decides,
        "attempt": sign.proof.attempt,
        "says": sign.proof.says,
    }


def _login(path: Path) -> dict[str, Any] | None:
    """What the server says after a login; None where nobody logged in."""
    if path.login is None:
        return None
    view = path.server_view
    texts = view[1:] if view else (None,) * 5
    names = ("version", "cipher", "server_address", "server_port", "server_version")
    shown = (None if text is None else printable(text) for text in texts)
    return {
        "method": path.login.method,
        "server_signature": path.login.signature,
        "tls": view.tls if view else None,
        **dict(zip(names, shown, strict=True)),
    }


def _witness(told: Comparison) -> dict[str, Any]:
    testimony = told.testimony
    return {
        "attempt": told.attempt,
        "end_to_end": told.end_to_end,
        "changed": [part.value for part in told.changed],
        "refused": testimony.refused,
        "peer": printable(testimony.peer),
        "local": printable(testimony.local),
        "compared": [
            {
                "part": row.part.value,
                "sent": row.sent,
                "arrived": row.arrived,
                "changed": row.changed,
            }
            for row in told.rows
        ],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity.value,
        "certainty": finding.certainty.value,
        "door": finding.door,
        "message": finding.message,
        "evidence": [
            {"door": p.door, "attempt": p.attempt, "step": p.step, "says": p.says}
            for p in finding.evidence
        ],
        "fix": [{"who": fix.who, "change": fix.change} for fix in finding.fix],
    }


def _client(experience: Experience) -> dict[str, Any]:
    return {
        "client": experience.client,
        "mode": experience.mode,
        "gets_through": experience.gets_through,
        "why": experience.why,
    }


def _door(door: Door) -> dict[str, Any]:
    return {
        "door": door.label,
        "address": door.address,
        "verdict": _verdict(door.verdict),
        "path": _path(door.path),
        "clients": [_client(experience) for experience in door.clients],
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "outer": difference.outer,
        "inner": difference.inner,
        "change": difference.change.value,
        "says": difference.says,
    }


def _attempt(seen: Handshake) -> dict[str, Any]:
    hello = seen.client_hello
    return {
        "name": seen.attempt,
        "door": seen.door,
        "negotiation": "direct" if seen.opening is Opening.DIRECT_TLS else "postgres",
        "opening": seen.opening.value,
        "sni": printable(hello.server_name) if hello and hello.server_name else None,
        "alpn": [printable(p, 60) for p in hello.alpn] if hello else None,
        "alpn_selected": printable(seen.alpn_selected) if seen.alpn_selected else None,
        "ssl_answer": seen.ssl_answer,
        "tls_version": seen.established.version if seen.established else None,
        "certificate": _certificate(seen),
        "mechanisms": [printable(m, 60) for m in seen.mechanisms],
        "witness": _witness(told) if (told := compare(seen)) else None,
        "reached": seen.reached.value if seen.reached else None,
        "outcome": seen.outcome.value,
        "steps": [_step(step) for step in seen.steps],
    }


def _certificate(seen: Handshake) -> dict[str, Any] | None:
    if seen.leaf is None:
        return None
    leaf = Certificate(seen.leaf)
    validity = leaf.validity
    return {
        "subject": leaf.subject,
        "issuer": leaf.issuer,
        "names": list(leaf.names),
        "not_before": validity[0].isoformat() if validity else None,
        "not_after": validity[1].isoformat() if validity else None,
        "sha256": leaf.fingerprint,
        "chain": len(seen.chain),
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "stage": step.stage.value,
        "at_ms": round(step.at * 1000, 3),
        "ms": round(step.took * 1000, 3),
        "peer": step.peer,
        "sent": step.sent.hex(),
        "sent_bytes": step.sent_bytes,
        "received": step.received.hex(),
        "received_bytes": step.received_bytes,
        "says": step.says,
    }
