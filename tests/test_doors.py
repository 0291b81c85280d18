"""One name asked at several doors: which hop breaks it, and what changes on the way."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest

from fixtures.lab import ABSENT, TOPOLOGIES, Lab
from fixtures.lab.listener import Forwarder, Listener
from fixtures.lab.pgbouncer import Bouncer
from fixtures.lab.stunnel import Tunnel
from fixtures.lab.traefik import EntryPoint
from probe.attempt import Attempt, quick
from probe.commands.probe import run
from probe.target import parse_target
from probe.visit import Limits

Run = Callable[..., Any]
Diagnose = Callable[..., dict[str, Any]]

NAME = "db-1.example.test"
FAST = ("--timeout", "3")
SCHEMA = json.loads((Path(__file__).parents[1] / "probe/reports/schema.json").read_text())


class Chain(NamedTuple):
    """Topologies from the outermost door inward, and what must be said of them."""

    doors: tuple[str, ...]
    status: str
    breaks: int | None  # the door that is named; None: no door is
    name: str = NAME

    @property
    def id(self) -> str:
        return " > ".join(self.doors)


SERVER = "postgres-17"
CHAINS = (
    # one proxy and its server, of every kind
    *(Chain((f"{product}-tcp", SERVER), "passes", None) for product in ("haproxy", "envoy")),
    *(Chain((f"{product}-tcp", SERVER), "passes", None) for product in ("nginx", "traefik")),
    *(Chain((f"{product}-sni", SERVER), "broken", 0) for product in ("haproxy", "envoy", "nginx")),
    *(Chain((f"{p}-terminate", SERVER), "broken", 0) for p in ("haproxy", "envoy", "nginx")),
    *(Chain((f"{p}-reencrypt", SERVER), "broken", 0) for p in ("haproxy", "envoy", "nginx")),
    Chain(("traefik-passthrough", SERVER), "passes", None),
    Chain(("traefik-catch-all", SERVER), "passes", None),
    Chain(("traefik-terminate", SERVER), "broken", 0),
    Chain(("traefik-terminate-alpn", SERVER), "degraded", 0),
    Chain(("traefik-passthrough-no-tls", "postgres-no-tls"), "broken", 1),
    Chain(("haproxy-dead", "closed-port"), "unreachable", 1),
    Chain(("nginx-dead", "closed-port"), "unreachable", 1),
    Chain(("haproxy-proxy-protocol", SERVER), "broken", 0),
    Chain(("haproxy-sends-proxy", SERVER), "unreachable", 0),
    Chain(("http", SERVER), "broken", 0),
    Chain(("closed-port", SERVER), "unreachable", 0),
    Chain((SERVER, "closed-port"), "passes", None),
    Chain(("envoy-sni", "closed-port"), "broken", 0),
    Chain(("stunnel-terminate", SERVER), "degraded", 0),
    Chain(("pgbouncer", SERVER), "degraded", 0),
    # a server that a router's default route hides
    Chain(("haproxy-sni-default-db-2", "postgres-17-db-2"), "broken", 0, name="db-2.example.test"),
    # two and three deep
    Chain(("haproxy-tcp-traefik-passthrough", "traefik-passthrough", SERVER), "passes", None),
    Chain(("nginx-tcp-envoy-sni", "envoy-sni", SERVER), "broken", 1),
    Chain(("envoy-tcp-haproxy-sni", "haproxy-sni", SERVER), "broken", 1),
    Chain(("haproxy-tcp-envoy-tcp-nginx-sni", "nginx-sni", SERVER), "broken", 1),
    Chain(("nginx-tcp-traefik-terminate-alpn", "traefik-terminate-alpn", SERVER), "degraded", 1),
    Chain(("haproxy-sni-traefik-passthrough", "traefik-passthrough", SERVER), "broken", 0),
    Chain(("haproxy-tcp-nginx-dead", "nginx-dead", "closed-port"), "unreachable", 2),
    Chain(("envoy-tcp-pgbouncer", "pgbouncer", SERVER), "degraded", 1),
    Chain(
        ("haproxy-tcp-envoy-tcp-pgbouncer", "envoy-tcp-pgbouncer", "pgbouncer", SERVER),
        "degraded",
        2,
    ),
    Chain(
        (
            "envoy-tcp-haproxy-tcp-traefik-passthrough",
            "haproxy-tcp-traefik-passthrough",
            "traefik-passthrough",
            SERVER,
        ),
        "passes",
        None,
    ),
    Chain(
        ("haproxy-tcp-nginx-tcp-envoy-sni", "nginx-tcp-envoy-sni", "envoy-sni", SERVER),
        "broken",
        2,
    ),
)
HERE = [chain for chain in CHAINS if not set(chain.doors) & ABSENT.keys()]


@pytest.fixture(scope="module")
def some() -> Iterator[Lab]:
    """The topologies of the chains alone."""
    with Lab({door: None for chain in HERE for door in chain.doors}) as lab:
        yield lab


@pytest.fixture
def at(some: Lab, diagnose: Diagnose) -> Diagnose:
    """The document of a run that asks for a name at these topologies."""

    def ask(*doors: str, name: str = NAME, more: tuple[str, ...] = FAST) -> dict[str, Any]:
        words = [word for door in doors for word in ("--door", some[door].address)]
        return diagnose(name, *words, *more)

    return ask


def changes(document: dict[str, Any]) -> set[str]:
    return {each["change"] for each in document["differences"]}


def test_a_chain_is_declared_as_the_lab_builds_it() -> None:
    def behind(listener: Listener, name: str) -> set[Listener]:
        match listener:
            case Forwarder() | EntryPoint():
                routes = [route.to for route in listener.routes if route.name in (name, "*")]
                default = getattr(listener, "default", None)
                found = {*routes, *([default] if default else [])}
            case Bouncer() | Tunnel():
                found = {listener.to}
            case _:
                found = set()
        return found | {far for near in found for far in behind(near, name)}

    for chain in CHAINS:
        if len(chain.doors) > 2 and not set(chain.doors) & ABSENT.keys():
            outer, *inner = [TOPOLOGIES[door].listener for door in chain.doors]
            for listener in inner:
                assert listener in behind(outer, chain.name), chain.id


@pytest.mark.parametrize("chain", HERE, ids=lambda chain: chain.id)
def test_the_hop_that_breaks_it_is_named(some: Lab, at: Diagnose, chain: Chain) -> None:
    document = at(*chain.doors, name=chain.name)
    jsonschema.validate(document, SCHEMA)
    verdict = document["verdict"]
    addresses = [some[door].address for door in chain.doors]
    assert verdict["status"] == chain.status, verdict
    assert verdict["door"] == (None if chain.breaks is None else addresses[chain.breaks]), verdict
    assert [door["address"] for door in document["doors"]] == addresses
    assert document["path"] == document["doors"][0]["path"]
    assert document["clients"] == document["doors"][0]["clients"]
    if chain.breaks is not None and chain.breaks + 1 < len(addresses):
        assert addresses[chain.breaks] in verdict["summary"]
    errors = [f for f in document["findings"] if f["severity"] == "error"]
    assert bool(errors) == (chain.status in ("broken", "unreachable"))
    assert {f["door"] for f in document["findings"]} <= set(addresses)


def test_the_sentence_says_where_it_works_and_between_whom_it_breaks(
    some: Lab, at: Diagnose
) -> None:
    doors = ("nginx-tcp-envoy-sni", "envoy-sni", "haproxy-tcp", SERVER)
    outer, breaks, service, pod = (some[door].address for door in doors)
    summary = at(*doors)["verdict"]["summary"]
    assert f"works at {pod} and at {service}, breaks at {breaks}:" in summary
    assert f"between {breaks} and {service}" in summary
    assert outer not in summary


def test_what_changes_without_failing_is_told_for_each_pair(at: Diagnose) -> None:
    ended = at("haproxy-tcp-traefik-passthrough", "traefik-terminate-alpn", SERVER)
    assert changes(ended) >= {"certificate", "tls-end", "time"}
    assert changes(at("traefik-passthrough", SERVER)) == {"time"}
    older = at("stunnel-terminate", SERVER) if "stunnel-terminate" not in ABSENT else None
    assert older is None or changes(older) >= {"certificate", "tls-end", "alpn"}


def test_doors_of_two_clusters_are_an_error_at_the_outer_one(some: Lab, at: Diagnose) -> None:
    document = at("postgres-17", "postgres-17-db-2")
    found = [f for f in document["findings"] if f["name"] == "clusters-differ"]
    assert [f["door"] for f in found] == [some["postgres-17"].address]
    assert document["verdict"]["door"] == some["postgres-17"].address
    assert "addresses-disagree" not in {f["name"] for f in document["findings"]}


def test_a_door_that_does_not_resolve_or_refuses_is_a_finding_there(
    some: Lab, at: Diagnose, diagnose: Diagnose
) -> None:
    address = some[SERVER].address
    inner = diagnose(NAME, "--door", address, "--door", "pod.invalid:5432", *FAST)
    assert inner["verdict"]["status"] == "passes"
    (unresolved,) = [f for f in inner["findings"] if f["name"] == "name-not-resolved"]
    assert (unresolved["door"], unresolved["severity"]) == ("pod.invalid:5432", "warning")
    outer = diagnose(NAME, "--door", "lb.invalid", "--door", address, *FAST)
    assert (outer["verdict"]["status"], outer["verdict"]["door"]) == (
        "unreachable",
        "lb.invalid:5432",
    )
    refused = at("closed-port", SERVER)
    assert refused["findings"][0]["name"] == "connection-refused"


def test_a_door_that_cannot_be_asked_from_here_explains_nothing(
    some: Lab, diagnose: Diagnose
) -> None:
    broken = some["envoy-sni"].address
    document = diagnose(NAME, "--door", broken, "--door", "pod.invalid", *FAST)
    assert document["verdict"]["door"] == broken
    assert "pod.invalid:5432 cannot be asked from here" in document["verdict"]["summary"]


def test_the_targets_own_host_is_not_resolved(
    some: Lab, diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = diagnose("no-such-host.invalid", "--door", some[SERVER].address, *FAST)
    assert document["verdict"]["status"] == "passes"
    assert document["target"]["sni"] == "no-such-host.invalid"


def test_a_door_without_a_port_takes_the_targets(some: Lab, diagnose: Diagnose) -> None:
    host, _, port = some[SERVER].address.partition(":")
    document = diagnose(f"{NAME}:{port}", "--door", host, *FAST)
    assert document["doors"][0]["address"] == some[SERVER].address


@pytest.mark.parametrize("format_name", ["text", "table"])
def test_reports_show_doors_and_steps(some: Lab, pgprobe: Run, format_name: str) -> None:
    doors = [some[door].address for door in ("envoy-sni", SERVER)]
    words = [word for door in doors for word in ("--door", door)]
    text = pgprobe(NAME, *words, *FAST, "--format", format_name).stdout
    (broken,) = [
        line
        for line in text.splitlines()
        if line.strip().startswith(doors[0]) and "reset" in line and "0." in line
    ][:1]
    assert "ssl-request" in text
    assert f"between {doors[0]} and {doors[1]}" in text.replace("\n", " ")
    assert broken


@pytest.mark.parametrize(
    ("doors", "words"),
    [
        (("",), "nothing on one side"),
        (("a:b:c",), "IPv6"),
        (("gateway:0",), "port"),
        (("gateway:x",), "port"),
        (("a,b",), "list"),
        (("/var/run",), "socket"),
        (("postgresql://gateway/",), "only a place"),
        (("host=gateway",), "only a place"),
        (("gateway", "gateway:5432"), "twice"),
        (tuple(f"door-{n}" for n in range(17)), "more than 16"),
    ],
)
def test_a_bad_door_is_one_clear_sentence(pgprobe: Run, doors: tuple[str, ...], words: str) -> None:
    done = pgprobe(NAME, *(word for door in doors for word in ("--door", door)))
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_one_deadline_is_for_all_doors(diagnose: Diagnose) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as b:
        words = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in (one, b)]
        document = diagnose(NAME, "--door", words[0], "--door", words[1], "--deadline", "2")
    assert document["verdict"]["status"] == "unreachable"
    waited = sum(step["ms"] for a in document["attempts"][:1] for step in a["steps"])
    assert waited < 2000


def test_doors_of_a_name_with_two_addresses_are_compared_as_addresses_only(
    some: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = some[SERVER].port

    def look_up(host: object, port: object, *rest: object) -> list[tuple[object, ...]]:
        listed = ("127.0.0.1", "127.0.0.2") if host == "lb.example.test" else (bytes.decode(host),)  # type: ignore[arg-type]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in listed]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    doors = [f"lb.example.test:{port}", f"127.0.0.1:{some['envoy-sni'].port}"]
    target = parse_target(NAME, {}, doors=doors)
    diagnosis = run(target, quick(Attempt("control", server_name=NAME)), Limits(0, 2.0, 8.0))
    disagree = [f for f in diagnosis.findings if f.name == "addresses-disagree"]
    assert [f.evidence[1].door for f in disagree] == [f"127.0.0.2:{port}"]
    assert [door.label for door in diagnosis.hops] == doors
    assert len(diagnosis.doors) == 3
