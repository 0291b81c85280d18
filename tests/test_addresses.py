"""A name with several addresses: the first that takes a connection is asked everything."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from peers import Peer, deaf

from fixtures.lab import Lab
from probe.attempt import Attempt, quick
from probe.commands.probe import run
from probe.diagnosis import Diagnosis
from probe.target import parse_target
from probe.visit import Limits

NAME = "db-1.example.test"
Ask = Callable[..., Diagnosis]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Probe NAME at a port, as if the name service had given these addresses."""

    def probe(port: int, *addresses: str, deadline: float | None = None) -> Diagnosis:
        def look_up(host: object, port: object, *rest: object) -> list[tuple[object, ...]]:
            listed = addresses if host == NAME else (bytes.decode(host),)  # type: ignore[arg-type]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in listed]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        control = Attempt("control", server_name=NAME)
        return run(parse_target(f"{NAME}:{port}", {}), quick(control), Limits(0, 2.0, deadline))

    return probe


def test_addresses_that_answer_alike_give_no_finding(lab: Lab, ask: Ask) -> None:
    diagnosis = ask(lab["postgres-17"].port, "127.0.0.1", "127.0.0.1")
    assert diagnosis.findings == ()


def test_an_address_that_refuses_beside_one_that_answers_is_told(lab: Lab, ask: Ask) -> None:
    port = lab["postgres-17"].port
    diagnosis = ask(port, "127.0.0.2", "127.0.0.1", "127.0.0.3")
    assert diagnosis.first.address == f"127.0.0.1:{port}"
    assert [f.name for f in diagnosis.findings] == ["addresses-disagree"] * 2
    assert diagnosis.first.verdict.status.value == "passes"
    assert {door.verdict.status.value for door in diagnosis.doors[1:]} == {"unreachable"}


def test_the_resolving_is_a_step_of_the_control(lab: Lab, ask: Ask) -> None:
    diagnosis = ask(lab["postgres-17"].port, "127.0.0.1")
    control = diagnosis.first.evidence.handshakes[0]
    assert control.steps[0].stage.value == "resolve"
    assert "127.0.0.1" in control.steps[0].says


def test_no_address_that_answers_leaves_the_first_one_in_question(ask: Ask) -> None:
    with socket.create_server(("127.0.0.9", 0)) as listener:
        port = listener.getsockname()[1]
    diagnosis = ask(port, "127.0.0.2", "127.0.0.3")
    assert diagnosis.first.address == f"127.0.0.2:{port}"
    assert diagnosis.first.verdict.status.value == "unreachable"


def test_one_deadline_is_for_all_addresses(ask: Ask) -> None:
    addresses = [f"127.0.0.{n}" for n in range(2, 8)]
    with ExitStack() as open_:
        first = open_.enter_context(Peer(deaf, addresses[0]))
        for address in addresses[1:]:
            listener = socket.create_server((address, first.port))
            open_.enter_context(listener)
        began = time.monotonic()
        diagnosis = ask(first.port, *addresses, deadline=1.2)
        assert time.monotonic() - began < 2
    assert len(diagnosis.doors) == 6
    assert {door.verdict.status.value for door in diagnosis.doors} == {"unreachable"}
