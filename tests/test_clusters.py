"""The cluster id on real servers: stable, shared by all doors and by copies, and by nobody else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fixtures.lab import ABSENT, Lab
from fixtures.lab.certificates import Leaf
from fixtures.lab.declaration import Topology
from fixtures.lab.expectations import PASSES
from fixtures.lab.lab import Endpoint
from fixtures.lab.postgres import Cluster
from probe.attempt import Attempt
from probe.evidence import Evidence, Question
from probe.observer import observe
from probe.sources.live import probe_door

Run = Callable[..., Any]
Diagnose = Callable[..., dict[str, Any]]

NAME = "db-1.example.test"
CONNECTIONS, CLUSTERS = 1_000, 20

DOORS = """
    postgres-17 haproxy-tcp envoy-tcp traefik-passthrough traefik-terminate-alpn
    stunnel-terminate stunnel-reencrypt postgres-clone
""".split()
DIRECT_DOORS = ["haproxy-reencrypt", "nginx-terminate-alpn", "envoy-sni"]
OTHERS = ["postgres-17-db-2", "traefik-terminate-wrong-route", "postgres-md5", "pgbouncer"]
HERE = [name for name in (*DOORS, *DIRECT_DOORS, *OTHERS) if name not in ABSENT]


@pytest.fixture(scope="module")
def some() -> Iterator[Lab]:
    with Lab(HERE) as lab:
        yield lab


def cluster(endpoint: Endpoint, name: str = NAME) -> str | None:
    """The id that one control shows."""
    told, _ = probe_door(
        endpoint.host,
        endpoint.port,
        [Attempt("control", server_name=name)],
        timeout=10,
        deadline=20,
    )
    (seen,) = map(observe, told)
    return Evidence(Question(name), endpoint.address, (seen,)).cluster(seen)


def test_it_is_stable_over_many_connections_which_are_all_that_the_log_shows(some: Lab) -> None:
    server, endpoint = some.postgres("db-1"), some["postgres-17"]
    before = len(server.log())
    with ThreadPoolExecutor(2) as pool:
        ids = set(pool.map(lambda _: cluster(endpoint), range(CONNECTIONS)))
    assert len(ids) == 1
    assert None not in ids
    lines = server.log()[before:].splitlines()
    assert len(lines) >= CONNECTIONS
    assert {re.sub(r"^.*?LOG:  ([a-z ]+): .*$", r"\1", line) for line in lines} == {
        "connection received"
    }


def test_it_is_equal_at_all_doors_of_one_cluster_and_at_its_clone(some: Lab) -> None:
    ids = {name: cluster(some[name]) for name in DOORS if name in some}
    assert len(set(ids.values())) == 1, ids
    assert None not in ids.values()


def test_it_is_the_same_where_only_direct_tls_gets_through(some: Lab, diagnose: Diagnose) -> None:
    own = cluster(some["postgres-17"])
    for name in DIRECT_DOORS:
        document = diagnose(some[name].address, "--sni", NAME, "--attempts", "direct")
        assert document["path"]["cluster"] == own, name


@pytest.mark.parametrize("name", ["postgres-md5", "pgbouncer"])
def test_other_methods_show_none_and_a_pooler_answers_for_itself(
    some: Lab, diagnose: Diagnose, name: str
) -> None:
    if name in ABSENT:
        pytest.skip(str(ABSENT[name]))
    document = diagnose(some[name].address, "--sni", NAME, "--attempts", "protocol-3.1002")
    assert document["path"]["cluster"] is None


def test_an_existing_users_salt_is_not_taken_for_one(some: Lab, diagnose: Diagnose) -> None:
    words = (some["postgres-17"].address, "--sni", NAME, "--user", "app", "--attempts")
    assert diagnose(*words, "quick")["path"]["cluster"] is None
    beside = diagnose(*words, "made-up-user")["path"]["cluster"]
    assert beside == cluster(some["postgres-17"])


def test_a_route_to_another_database_shows_where_tls_ends_at_the_proxy(
    some: Lab, diagnose: Diagnose
) -> None:
    doors = [some[name].address for name in ("traefik-terminate-wrong-route", "postgres-17")]
    alone = diagnose(doors[0], "--sni", NAME)
    assert alone["verdict"]["status"] == "degraded"
    document = diagnose(NAME, *(word for door in doors for word in ("--door", door)))
    found = {f["name"]: f for f in document["findings"]}
    assert found["clusters-differ"]["door"] == doors[0]
    assert found["clusters-differ"]["certainty"] == "proved"
    assert (document["verdict"]["status"], document["verdict"]["door"]) == ("broken", doors[0])
    assert {d["change"] for d in document["differences"]} >= {"cluster", "certificate", "tls-end"}


def test_equal_ids_are_called_likely_and_never_certain(some: Lab, pgprobe: Run) -> None:
    doors = [some[name].address for name in ("postgres-17", "postgres-clone")]
    words = [word for door in doors for word in ("--door", door)]
    text = " ".join(pgprobe(NAME, *words, "--attempts", "quick").stdout.split())
    assert "one cluster is likely, never certain" in text
    assert "clusters-differ" not in text


def test_twenty_clusters_have_twenty_ids() -> None:
    made = [
        Topology(f"cluster-{n}", "a cluster", Cluster(f"cluster-{n}", Leaf.of(NAME)), PASSES)
        for n in range(CLUSTERS)
    ]
    with Lab((), made) as lab:
        ids = {cluster(endpoint) for endpoint in lab.values()}
    assert len(ids - {None}) == CLUSTERS
