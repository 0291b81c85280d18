"""What a run leaves behind at a real server, which may be somebody's production."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from fixtures.lab import Lab
from probe.wire.startup import startup_message

Diagnose = Callable[..., dict[str, Any]]
SNI = ("--sni", "db-1.example.test")

ROUTING = re.compile(r"^[NSTC]\d")


@contextmanager
def held_connections(lab: Lab, name: str, count: int) -> Iterator[None]:
    """Connections that keep a slot of the server each, by never answering its question."""
    with ExitStack() as stack:
        for _ in range(count):
            address = (lab[name].host, lab[name].port)
            held = stack.enter_context(socket.create_connection(address, timeout=10))
            held.sendall(startup_message((3, 0), {"user": "app", "database": "app"}))
            assert held.recv(100)[:1] == b"R"
        yield


def new_lines(log: str, before: str) -> list[str]:
    return [line for line in log[len(before) :].splitlines() if "connection received" not in line]


@pytest.fixture(scope="module")
def own_lab() -> Iterator[Lab]:
    """Servers whose logs no other test writes to."""
    with Lab(["postgres-17", "postgres-few-connections"]) as running:
        yield running


def test_a_quick_run_leaves_nothing_in_the_log_but_its_connection(
    own_lab: Lab, diagnose: Diagnose
) -> None:
    before = own_lab.postgres("db-1").log()
    diagnose(own_lab["postgres-17"].address, *SNI, "--attempts", "quick")
    after = own_lab.postgres("db-1").log()
    assert new_lines(after, before) == []
    assert after[len(before) :].count("connection received") == 1


def test_a_standard_run_leaves_only_the_lines_that_the_help_tells_of(
    own_lab: Lab, diagnose: Diagnose
) -> None:
    before = own_lab.postgres("db-1").log()
    diagnose(own_lab["postgres-17"].address, *SNI)
    lines = new_lines(own_lab.postgres("db-1").log(), before)
    told = "unsupported protocol|did not match any process|without ALPN|HINT:"
    assert [line for line in lines if not re.search(told, line)] == []
    assert len(lines) <= 5


def test_no_more_than_about_twenty_five_connections_are_made(
    own_lab: Lab, diagnose: Diagnose
) -> None:
    before = own_lab.postgres("db-1").log()
    diagnose(own_lab["postgres-17"].address, *SNI, "--other-name", "db-2.example.test")
    after = own_lab.postgres("db-1").log()
    assert after[len(before) :].count("connection received") <= 26


def test_a_server_with_one_slot_left_is_not_broken_by_us_and_not_called_broken(
    own_lab: Lab, diagnose: Diagnose
) -> None:
    with held_connections(own_lab, "postgres-few-connections", 2):
        document = diagnose(own_lab["postgres-few-connections"].address, *SNI)
    assert document["verdict"]["status"] == "passes"
    assert not [f for f in document["findings"] if ROUTING.match(f["code"])]


def test_a_full_server_is_startup_refused_and_nothing_else_and_is_left_alone(
    own_lab: Lab, diagnose: Diagnose
) -> None:
    with held_connections(own_lab, "postgres-few-connections", 3):
        document = diagnose(own_lab["postgres-few-connections"].address, *SNI)
    assert [f["name"] for f in document["findings"]] == ["startup-refused"]
    assert "53300" in document["findings"][0]["message"]
    verdict = document["verdict"]
    assert (verdict["status"], verdict["stage"]) == ("broken", "authentication")
    assert len(document["attempts"]) == 1
    assert {c["gets_through"] for c in document["clients"]} == {False}


def test_attempts_say_who_they_are_and_send_no_password(own_lab: Lab, diagnose: Diagnose) -> None:
    document = diagnose(own_lab["postgres-17"].address, *SNI, "--attempts", "startup")
    clear = next(a for a in document["attempts"] if a["name"] == "startup")
    sent = b"".join(bytes.fromhex(step["sent"]) for step in clear["steps"])
    assert sent == startup_message(
        (3, 0),
        {"user": "pgprobe-nobody", "database": "postgres", "application_name": "pgprobe"},
    )
