"""--prove and --login against real servers and proxies: what they say, and what they leave."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fixtures.lab import ABSENT, Lab
from fixtures.lab.postgres import DATABASE, PASSWORD, ROLE, Server

Run = Callable[..., Any]
Diagnose = Callable[..., dict[str, Any]]

NAME = "db-1.example.test"
FAST = ("--timeout", "3")
SCHEMA = json.loads((Path(__file__).parents[1] / "probe/reports/schema.json").read_text())

END_TO_END, RE_ENCRYPTED, NOT_DECIDABLE = "end-to-end", "re-encrypted", "not-decidable"
PROVED = {
    **dict.fromkeys(
        """
        postgres-17 haproxy-tcp envoy-tcp nginx-tcp traefik-tcp traefik-passthrough
        traefik-catch-all envoy-sni haproxy-sni nginx-sni haproxy-tcp-traefik-passthrough
        postgres-ed25519
        """.split(),
        (END_TO_END, "nothing speaks for one"),
    ),
    **dict.fromkeys(
        "haproxy-reencrypt envoy-reencrypt nginx-reencrypt stunnel-reencrypt".split(),
        (RE_ENCRYPTED, "channel binding check failed"),
    ),
    **dict.fromkeys(
        "traefik-terminate-alpn haproxy-terminate stunnel-terminate".split(),
        (NOT_DECIDABLE, "no SCRAM-SHA-256-PLUS is offered: TLS ends at a proxy"),
    ),
    "pgbouncer": (NOT_DECIDABLE, "a pooler answers"),
    "pgbouncer-tls-upstream": (NOT_DECIDABLE, "a pooler answers"),
    "postgres-ed25519-signed": (NOT_DECIDABLE, "names no hash (Ed25519, Ed448); the server's own"),
    "postgres-md5": (NOT_DECIDABLE, "asked for md5-password, not for SASL"),
    "postgres-no-tls": (NOT_DECIDABLE, "gets to authentication over TLS"),
    "stunnel-reencrypt-same-certificate": (
        NOT_DECIDABLE,
        "a proxy may end TLS that holds the server's own certificate",
    ),
}
HERE = [name for name in PROVED if name not in ABSENT]
FOR_LOGIN = ("postgres-password", "postgres-hostssl")


@pytest.fixture(scope="module")
def some() -> Iterator[Lab]:
    with Lab([*HERE, *FOR_LOGIN]) as lab:
        yield lab


@pytest.fixture
def prove(some: Lab, diagnose: Diagnose) -> Diagnose:
    def ask(name: str, *more: str) -> dict[str, Any]:
        return diagnose(some[name].address, "--sni", NAME, "--prove", *FAST, *more)

    return ask


def grown(server: Server, before: str) -> list[str]:
    """What the server wrote since, once it has nothing more to write."""
    now = ""
    for _ in range(100):
        time.sleep(0.05)
        now, earlier = server.log()[len(before) :], now
        if now and now == earlier:
            break
    return now.splitlines()


@pytest.mark.parametrize("name", HERE)
def test_the_binding_is_what_the_topology_makes_of_it(prove: Diagnose, name: str) -> None:
    document = prove(name)
    jsonschema.validate(document, SCHEMA)
    result, why = PROVED[name]
    path = document["path"]
    assert (path["binding"], why in path["binding_why"]) == (result, True), path["binding_why"]
    found = {f["name"]: f for f in document["findings"]}
    assert ("tls-re-encrypted" in found) == (result == RE_ENCRYPTED)
    if result == RE_ENCRYPTED:
        assert found["tls-re-encrypted"]["certainty"] == "proved"
        assert (path["tls_ends_at"], path["backend_leg"]) == ("proxy", "tls")
        assert document["verdict"]["status"] == "broken"
        assert not [
            c for c in document["clients"] if c["client"] == "libpq-17" and c["gets_through"]
        ]
    if result == END_TO_END:
        assert path["tls_ends_at"] == "server"


@pytest.mark.parametrize("name", [n for n in HERE if n.endswith("-reencrypt")])
def test_a_re_encrypting_terminator_wins_over_the_router_that_it_looks_like(
    prove: Diagnose, name: str
) -> None:
    names = {f["name"] for f in prove(name)["findings"]}
    assert "sni-router-without-starttls" not in names
    starttls = name.startswith("stunnel")
    assert ("tls-terminator-without-starttls" in names) is not starttls


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("postgres-17", 'password authentication failed for user "pgprobe-nobody"'),
        ("envoy-sni", 'password authentication failed for user "pgprobe-nobody"'),
        ("haproxy-reencrypt", "SCRAM channel binding check failed"),
    ],
)
def test_it_leaves_exactly_one_failed_login(
    some: Lab, prove: Diagnose, name: str, words: str
) -> None:
    server = some.postgres("db-1")
    before = server.log()
    prove(name, "--attempts", "direct,no-alpn")
    lines = grown(server, before)
    failed = [line for line in lines if "FATAL" in line]
    assert len(failed) == 1, failed
    assert words in failed[0]


def test_without_prove_nothing_fails_in_the_log_and_the_binding_is_not_tried(
    some: Lab, diagnose: Diagnose
) -> None:
    server = some.postgres("db-1")
    before = server.log()
    path = diagnose(some["postgres-17"].address, "--sni", NAME, "--attempts", "quick")["path"]
    assert (path["binding"], path["binding_why"], path["login"]) == ("not-tried", "", None)
    lines = grown(server, before)
    assert not [line for line in lines if "FATAL" in line or "ERROR" in line]
    assert lines


def test_one_failed_login_at_each_door(some: Lab, diagnose: Diagnose) -> None:
    server = some.postgres("db-1")
    before = server.log()
    doors = [some[name].address for name in ("haproxy-tcp", "traefik-passthrough", "postgres-17")]
    words = [word for door in doors for word in ("--door", door)]
    document = diagnose(NAME, *words, "--prove", *FAST, "--attempts", "no-alpn")
    assert [door["path"]["binding"] for door in document["doors"]] == [END_TO_END] * 3
    assert len([line for line in grown(server, before) if "FATAL" in line]) == 3


def test_the_hop_that_re_encrypts_is_named(some: Lab, diagnose: Diagnose) -> None:
    doors = [some[name].address for name in ("haproxy-reencrypt", "postgres-17")]
    target = f"host={NAME} sslmode=require sslnegotiation=direct"
    words = [word for door in doors for word in ("--door", door)]
    document = diagnose(target, *words, "--prove", *FAST)
    assert (document["verdict"]["status"], document["verdict"]["door"]) == ("broken", doors[0])
    assert f"between {doors[0]} and {doors[1]}" in document["verdict"]["summary"]


# -- logging in ----------------------------------------------------------------------------------

AS_APP = ("--login", "--user", ROLE, "--dbname", DATABASE, *FAST, "--attempts", "no-alpn,direct")


@pytest.fixture
def log_in(some: Lab, pgprobe: Run, tmp_path: Path) -> Run:
    """Run with --login, with these variables and no others of libpq's."""

    def ask(name: str, *more: str, **variables: str) -> Any:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        environment = clean | {"HOME": str(tmp_path)} | variables
        words = (some[name].address, "--sni", NAME, *AS_APP, *more)
        return pgprobe(*words, env=environment)

    return ask


@pytest.mark.parametrize(
    ("name", "method", "tls", "binding"),
    [
        ("postgres-17", "SCRAM-SHA-256-PLUS", True, END_TO_END),
        ("traefik-passthrough", "SCRAM-SHA-256-PLUS", True, END_TO_END),
        ("envoy-sni", "SCRAM-SHA-256-PLUS", True, END_TO_END),
        ("postgres-ed25519-signed", "SCRAM-SHA-256", True, "not-tried"),
        ("traefik-terminate-alpn", "SCRAM-SHA-256", False, "not-tried"),
        ("stunnel-terminate", "SCRAM-SHA-256", False, "not-tried"),
        ("pgbouncer", "SCRAM-SHA-256", False, "not-tried"),
        ("postgres-password", "cleartext-password", True, "not-tried"),
        ("postgres-md5", "md5-password", True, "not-tried"),
    ],
)
def test_a_login_says_what_the_server_sees(
    some: Lab, log_in: Run, name: str, method: str, tls: bool, binding: str
) -> None:
    if name in ABSENT:
        pytest.skip(str(ABSENT[name]))
    document = json.loads(log_in(name, "--format", "json", PGPASSWORD=PASSWORD).stdout)
    jsonschema.validate(document, SCHEMA)
    path, login = document["path"], document["path"]["login"]
    assert login["method"] == method
    assert login["server_signature"] is (True if method.startswith("SCRAM") else None)
    assert (login["tls"], path["binding"]) == (tls, binding)
    assert path["backend_leg"] == ("tls" if tls else "plaintext")
    assert login["server_address"] == "127.0.0.1"
    assert int(login["server_port"]) in {some.postgres(n).port for n in some._servers}
    assert login["server_version"].startswith("17.")
    assert (login["version"] == "TLSv1.3") == tls
    if not tls:
        assert path["tls_ends_at"] == "proxy"


def test_the_password_is_nowhere_to_be_seen(some: Lab, log_in: Run, tmp_path: Path) -> None:
    for name in ("postgres-17", "postgres-password"):
        for format_name in ("text", "table", "json"):
            done = log_in(name, "--format", format_name, PGPASSWORD=PASSWORD)
            for shown in (PASSWORD, PASSWORD.encode().hex()):
                assert shown not in done.stdout + done.stderr


def test_a_password_file_serves_as_libpqs_does(some: Lab, log_in: Run, tmp_path: Path) -> None:
    port = some["postgres-17"].port
    passfile = tmp_path / ".pgpass"
    passfile.write_text(f"# ours\nother:*:*:*:no\n127.0.0.1:{port}:*:{ROLE}:{PASSWORD}\n")
    passfile.chmod(0o600)
    done = log_in("postgres-17", "--format", "json")
    assert json.loads(done.stdout)["path"]["login"]["server_signature"] is True
    passfile.chmod(0o640)
    done = log_in("postgres-17")
    assert done.returncode == 2
    assert "chmod 0600" in done.stderr


@pytest.mark.parametrize(
    ("more", "variables", "words"),
    [
        (("--user", ""), {"PGPASSWORD": "x"}, "needs a user"),
        ((), {}, "needs a password"),
        ((), {"PGPASSFILE": "/no/such/file"}, "is not there"),
    ],
)
def test_a_login_without_user_or_password_is_refused_with_a_sentence(
    log_in: Run, more: tuple[str, ...], variables: dict[str, str], words: str
) -> None:
    done = log_in("postgres-17", *more, **variables)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("more", "password", "words"),
    [
        ((), "wrong", "28P01"),
        (("--dbname", "no-such"), PASSWORD, "3D000"),
        (("--user", "no-such-role"), PASSWORD, "28P01"),
    ],
)
def test_a_refused_login_is_a_finding_that_quotes_the_server(
    log_in: Run, more: tuple[str, ...], password: str, words: str
) -> None:
    done = log_in("postgres-17", *more, "--format", "json", PGPASSWORD=password)
    document = json.loads(done.stdout)
    (found,) = [f for f in document["findings"] if f["name"] == "login-refused"]
    assert words in found["message"]
    assert (found["severity"], document["verdict"]["status"]) == ("error", "broken")
    assert password not in done.stdout


def test_a_login_through_a_re_encrypting_proxy_is_stopped_by_the_binding(log_in: Run) -> None:
    done = log_in("haproxy-reencrypt", "--format", "json", PGPASSWORD=PASSWORD)
    document = json.loads(done.stdout)
    assert document["path"]["binding"] == RE_ENCRYPTED
    assert "login-refused" not in {f["name"] for f in document["findings"]}


def test_a_password_is_not_said_to_a_server_that_verify_full_would_refuse(
    some: Lab, pgprobe: Run
) -> None:
    server = some.postgres("db-1")
    before = server.log()
    target = f"host=127.0.0.1 port={some['postgres-17'].port} sslmode=verify-full"
    environment = {**os.environ, "PGPASSWORD": PASSWORD}
    words = (f"{target} sslrootcert={some.ca_file}", "--sni", "db-9.example.test", *AS_APP)
    document = json.loads(pgprobe(*words, "--format", "json", env=environment).stdout)
    assert document["path"]["login"] is None
    assert {"attempt": "login", "why": "the certificate is for another name"} in document[
        "not_made"
    ]
    assert not [line for line in grown(server, before) if "connection authenticated" in line]


def test_where_there_is_no_tls_no_password_is_sent(some: Lab, log_in: Run) -> None:
    document = json.loads(log_in("postgres-no-tls", "--format", "json", PGPASSWORD=PASSWORD).stdout)
    assert document["path"]["login"] is None
    assert not [a for a in document["attempts"] if a["name"] == "login"]
