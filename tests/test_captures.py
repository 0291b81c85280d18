"""Every folder of captures/, read, against what its expected.json says must be found there."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fixtures.captures.expected import declared, facts, in_a_capture
from fixtures.lab import DECLARED
from fixtures.lab.expectations import NO_MATTER_UNLESS_VERIFIED
from fixtures.lab.judge import disagreements
from probe.clients import predict
from probe.commands.read import judged, load
from probe.diagnosis import Diagnosis, Door
from probe.evidence import Evidence, Question
from probe.path import trace
from probe.reading import Reading
from probe.reports import Report
from probe.reports.json import document
from probe.rules import judge
from probe.target import parse_target
from probe.verdict import decide_verdict

FOLDER = Path(__file__).parents[1] / "captures"
NAMES = sorted(place.name for place in FOLDER.iterdir())
# Judged by the user's sslmode, of which packets tell nothing.
OF_CERTIFICATES = NO_MATTER_UNLESS_VERIFIED | {"certificate-expires-soon"}
MAX_SIZE = 100_000  # bytes of a capture
LEAST = 160


Expected = dict[str, Any]


class Read(NamedTuple):
    """What was read in a folder."""

    expected: Expected
    reading: Reading


@cache
def read(name: str) -> Read:
    place = FOLDER / name
    expected = json.loads((place / "expected.json").read_text())
    captures = load([str(place / "capture.pcapng")], ports=None, everything=True, jobs=1)
    return Read(expected, judged(captures))


def diagnosed(expected: Expected, reading: Reading) -> dict[str, Any]:
    """What the live probe would say of these handshakes."""
    asked = expected["asked"]
    name = asked["sni"]
    began = reading.connections[0].digest.began  # certificates are judged as of then
    question = Question(name, asked["sslmode"], asked["direct"], identity=name, at=began)
    seen = tuple(row.handshake for row in reading.connections)
    evidence = Evidence(question, seen[0].door, seen)
    path, findings = trace(evidence), judge(evidence)
    verdict = decide_verdict(evidence, path, findings)
    door = Door(evidence, path, findings, predict(evidence), verdict)
    return document(Report(parse_target(door.address, {}, sni=name), Diagnosis(question, (door,))))


def test_there_is_a_capture_of_every_topology_and_of_nothing_else() -> None:
    assert set(NAMES) == set(DECLARED)
    assert len(NAMES) >= LEAST


@pytest.mark.parametrize("name", NAMES)
def test_a_capture_is_small_and_says_where_it_comes_from(name: str) -> None:
    place = FOLDER / name
    files = {path.name: path for path in place.iterdir()}
    assert files.keys() == {"capture.pcapng", "expected.json", "README.md"}
    assert files["capture.pcapng"].stat().st_size < MAX_SIZE
    words = files["README.md"].read_text()
    assert words.startswith(f"# {name}\n")
    assert all(f"\n- {said}: " in words for said in ("What", "How", "When", "client", "sniffer"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_expected_of_a_capture_is_what_its_topology_is_declared_to_be(name: str) -> None:
    expected, topology = read(name).expected, DECLARED[name]
    assert declared(expected["declared"]) == in_a_capture(topology.expect)
    assert expected["asked"]["sni"] == topology.sni


@pytest.mark.parametrize("name", NAMES)
def test_each_attempt_is_read_as_it_was_seen_live(name: str) -> None:
    expected, reading = read(name)
    assert reading.problems == ()
    assert len(reading.connections) == expected["connections"]
    told = {row.handshake.attempt: facts(row.handshake) for row in reading.connections}
    assert told == expected["attempts"]
    assert not [row.handshake.not_captured for row in reading.connections if not row.handshake.told]


@pytest.mark.parametrize("name", NAMES)
def test_the_diagnosis_from_packets_is_the_one_that_the_declaration_asks_for(name: str) -> None:
    expected, reading = read(name)
    assert disagreements(declared(expected["declared"]), diagnosed(expected, reading)) == []


@pytest.mark.parametrize("name", NAMES)
def test_reading_finds_what_is_declared_and_nothing_that_must_not_be(name: str) -> None:
    expected, reading = read(name)
    expect = declared(expected["declared"])
    by_mode = OF_CERTIFICATES if expected["asked"]["sslmode"] != "require" else frozenset()
    loud = {f.name for f in reading.findings if f.severity != "info"}
    assert expect.findings - by_mode <= loud
    assert not expect.absent & {f.name for f in reading.findings}
