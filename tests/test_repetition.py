"""The same question has the same answer, however busy the machine is."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fixtures.lab import Lab

Diagnose = Callable[..., dict[str, Any]]

RUNS = 50
TOPOLOGIES = ("postgres-17", "envoy-sni", "haproxy-sni-default")


def _spin() -> None:
    while True:
        pass


@pytest.fixture
def busy_cores() -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    spinning = [context.Process(target=_spin, daemon=True) for _ in range(2)]
    for process in spinning:
        process.start()
    yield
    for process in spinning:
        process.kill()
        process.join()


@pytest.mark.usefixtures("busy_cores")
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_fifty_runs_say_the_same_with_both_cores_busy(
    lab: Lab, diagnose: Diagnose, name: str
) -> None:
    others = ("--other-name", "db-2.example.test") if "sni" in name else ()

    def conclusion(_: int) -> str:
        document = diagnose(lab[name].address, "--sni", "db-1.example.test", *others)
        said = [document["verdict"]["status"], document["verdict"]["stage"], document["path"]]
        said += [[f["code"], f["severity"], f["certainty"]] for f in document["findings"]]
        said += [[c["client"], c["gets_through"]] for c in document["clients"]]
        return json.dumps(said)

    with ThreadPoolExecutor(max_workers=2) as pool:
        conclusions = list(pool.map(conclusion, range(RUNS)))
    assert len(set(conclusions)) == 1
