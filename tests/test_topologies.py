"""Every topology of the lab, diagnosed, against what its declaration says must be found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fixtures.lab import ABSENT, DECLARED, TOPOLOGIES, Lab, Topology, needs
from fixtures.lab.components import SYSTEM_PROGRAMS
from fixtures.lab.judge import arguments, disagreements
from fixtures.lab.system import is_here
from probe.rules import all_rules

Diagnose = Callable[..., dict[str, Any]]
Documents = Callable[[str], dict[str, Any]]

# What is declared, by what must be there beside the wheels; and wheels are always there.
WHEELS: frozenset[str] = frozenset()
VERSIONS, SYSTEM = frozenset({"make lab-versions"}), frozenset({"make lab-system"})
LEAST_TOPOLOGIES = {WHEELS: 113, VERSIONS: 16, SYSTEM: 22}
WAITS = ("--timeout", "4", "--deadline", "60")  # shorter than the default
SCHEMA = json.loads((Path(__file__).parents[1] / "probe/reports/schema.json").read_text())


@pytest.fixture(scope="session")
def documents(lab: Lab, diagnose: Diagnose) -> Iterator[Documents]:
    """A topology's document; all are made side by side, since most of the time is waiting."""
    with ThreadPoolExecutor(max_workers=6) as pool:
        made = {name: pool.submit(diagnose, *arguments(lab[name]), *WAITS) for name in lab}
        yield lambda name: made[name].result()


def test_the_lab_gives_all_the_topologies_that_its_components_can_give(lab: Lab) -> None:
    from_wheels = {name for name, topology in DECLARED.items() if needs(topology) == WHEELS}
    assert from_wheels <= set(lab)
    assert set(lab) == set(TOPOLOGIES) == set(DECLARED) - set(ABSENT)


def test_what_debian_packages_runs_where_all_of_it_is_installed() -> None:
    if all(map(is_here, SYSTEM_PROGRAMS)):
        assert not [name for name in ABSENT if needs(DECLARED[name]) == SYSTEM]


@pytest.mark.parametrize("needed", LEAST_TOPOLOGIES)
def test_no_topology_is_lost(needed: frozenset[str]) -> None:
    declared = [name for name, topology in DECLARED.items() if needs(topology) == needed]
    assert len(declared) >= LEAST_TOPOLOGIES[needed]


@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=lambda t: t.name)
def test_a_topology_is_diagnosed_as_what_it_is(documents: Documents, topology: Topology) -> None:
    assert disagreements(topology.expect, documents(topology.name)) == []


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_document_keeps_to_the_schema_and_to_the_invariants(
    documents: Documents, name: str
) -> None:
    document = documents(name)
    jsonschema.validate(document, SCHEMA)
    errors = [f for f in document["findings"] if f["severity"] == "error"]
    status = document["verdict"]["status"]
    assert not (status == "passes" and errors)
    assert not (status in ("broken", "unreachable") and not errors)
    assert len({a["name"] for a in document["attempts"]}) == len(document["attempts"]) <= 40


def test_no_finding_is_at_error_where_the_client_of_most_people_gets_in(
    documents: Documents,
) -> None:
    for name, topology in TOPOLOGIES.items():
        if topology.expect.status == "passes":
            assert not [f for f in documents(name)["findings"] if f["severity"] == "error"], name


def test_rules_that_fired_on_real_components_are_not_marked_from_documents(
    documents: Documents,
) -> None:
    real = [t.name for t in TOPOLOGIES.values() if "peers" not in type(t.listener).__module__]
    fired = {f["code"] for name in real for f in documents(name)["findings"]}
    marked = {rule.code for rule in all_rules() if rule.from_documents}
    assert not fired & marked
