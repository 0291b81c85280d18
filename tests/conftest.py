"""What several test modules start from: the lab, started once, and pgprobe as a program."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from fixtures.lab import ABSENT, Lab

# What a change is judged by is the same each time; at a developer's desk the search goes on.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")

DIAGNOSED = "test_a_topology_is_diagnosed_as_what_it_is"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Every topology. A component that is missing is an error, never a skip."""
    with Lab() as running:
        yield running


@pytest.fixture(scope="session")
def pgprobe() -> Run:
    """Run ``pgprobe`` with these arguments as a process of its own."""

    def run(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "probe", *args]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, **options
        )

    return run


@pytest.fixture(scope="session")
def diagnose(pgprobe: Run) -> Callable[..., dict[str, Any]]:
    """The JSON document of a run with these arguments."""

    def run(*args: str) -> dict[str, Any]:
        done = pgprobe(*args, "--format", "json")
        assert done.stdout, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many topologies were diagnosed, and why the others were not; none: nobody asked."""
    diagnosed = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        if report.when == "call" and f"{DIAGNOSED}[" in report.nodeid
    ]
    if diagnosed:
        terminalreporter.section("lab")
        terminalreporter.line(f"topologies: {len(diagnosed)} ran, {len(ABSENT)} not here")
        for reason, names in itertools.groupby(sorted(ABSENT, key=why), key=why):
            terminalreporter.line(f"  {reason}: {', '.join(names)}")


def why(name: str) -> str:
    """Why a topology cannot be built here."""
    return str(ABSENT[name])
