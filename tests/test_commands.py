"""The program as users and other programs meet it: words, files, exit statuses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conversations import asks
from peers import Backend, Peer

from fixtures.lab import Lab
from fixtures.packets import pcap
from probe.commands import COMMANDS, ExitStatus
from probe.identity import make_identity

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Diagnose = Callable[..., dict[str, Any]]

SNI = ("--sni", "db-1.example.test")
FAST = ("--timeout", "1")


@contextmanager
def answering(reply: bytes, family: int = socket.AF_INET) -> Iterator[int]:
    """A port on loopback where everybody who says something gets ``reply`` and a close."""
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    listener = socket.create_server((host, 0), family=socket.AddressFamily(family))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(1)
                try:
                    connection.recv(4096)
                    connection.sendall(reply)
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("127.0.0.1:0",), "port"),
        (("127.0.0.1:65536",), "port"),
        (("127.0.0.1:postgres",), "port"),
        (("postgresql://127.0.0.1:x/",), "port"),
        (("postgresql://[::1/",), ""),
        (("host=127.0.0.1 nonsense=1",), "nonsense"),
        (("host=/var/run/postgresql",), "socket"),
        (("host=a.example.com,b.example.com",), "list"),
        (("127.0.0.1", "--sni", "127.0.0.1"), "IP address"),
        (("127.0.0.1", "--sni", "db-1.example.test."), "dot"),
        (("127.0.0.1", "--sni", "a.example.test", "--no-sni"), ""),
        (("127.0.0.1", "--attempts", "nonsense"), "nonsense"),
        (("127.0.0.1", "--attempts", ","), "attempt"),
        (("127.0.0.1", "--timeout", "0"), "timeout"),
        (("127.0.0.1", "--timeout", "soon"), "timeout"),
        (("127.0.0.1", "--timeout", "nan"), "not a number of seconds"),
        (("127.0.0.1", "--deadline", "nan"), "not a number of seconds"),
        (("127.0.0.1", "--deadline", "-1"), "deadline"),
        (("127.0.0.1", "-4", "-6"), "-4 and -6"),
        (("127.0.0.1", "-6"), "exclude each other"),
        (("[::1]:5432", "-4"), "exclude each other"),
        (("5432",), "write HOST:5432"),
        (("127.0.0.1", "--format", "xml"), "format"),
        (("127.0.0.1", "--fail-on", "sometimes"), "fail-on"),
        (("127.0.0.1", "--nonsense"), "--nonsense"),
        (("explain", "X999"), "X999"),
        (("explain",), ""),
    ],
)
def test_a_wrong_call_is_one_clear_sentence_and_status_2(
    pgprobe: Run, arguments: tuple[str, ...], words: str
) -> None:
    done = pgprobe(*arguments)
    assert done.returncode == ExitStatus.USAGE
    assert "Error: " in done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "content", [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n"]
)
def test_a_bad_ca_file_is_a_clear_sentence_and_status_3(
    pgprobe: Run, tmp_path: Path, content: bytes | None
) -> None:
    roots = tmp_path / "roots.pem"
    if content is not None:
        roots.write_bytes(content)
    uri = f"postgresql://127.0.0.1:{closed_port()}/?sslmode=verify-ca&sslrootcert={roots}"
    done = pgprobe(uri)
    assert done.returncode == ExitStatus.COULD_NOT_LOOK
    assert "cannot use the CA file" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_that_cannot_be_written_is_told_before_anything_is_asked(
    pgprobe: Run, tmp_path: Path
) -> None:
    with answering(b"") as port:
        done = pgprobe(f"127.0.0.1:{port}", "--output", str(tmp_path / "no" / "report"))
    assert done.returncode == ExitStatus.COULD_NOT_LOOK
    assert "cannot write" in done.stderr


def test_a_report_that_was_not_made_leaves_no_empty_file(pgprobe: Run, tmp_path: Path) -> None:
    report = tmp_path / "report"
    done = pgprobe("read", str(tmp_path / "absent.pcap"), "--output", str(report))
    assert done.returncode == ExitStatus.COULD_NOT_LOOK
    assert not report.exists()


@pytest.mark.parametrize(
    "args",
    [
        ("read", "{file}", "--output", "{file}"),
        ("replay", "{file}", "--to", "127.0.0.1:1", "--record", "{file}"),
        ("replay", "{file}", "--to", "127.0.0.1:1", "--output", "{file}"),
        ("127.0.0.1:1", "--record", "{file}", "--output", "{file}"),
        ("read", "captures/closed-port/capture.pcapng", "--keylog", "{file}", "--output", "{file}"),
        ("127.0.0.1:1", "--login", "--user", "app", "--output", "{file}"),
        ("127.0.0.1:1", "--record", "{file}"),
    ],
)
def test_nothing_is_written_over_what_is_read_or_written_besides(
    pgprobe: Run, tmp_path: Path, args: tuple[str, ...]
) -> None:
    file = tmp_path / "evidence.pcapng"
    file.write_bytes(b"evidence")
    environment = {**os.environ, "PGPASSFILE": str(file)}
    done = pgprobe(*(arg.format(file=file) for arg in args), env=environment)
    assert done.returncode == ExitStatus.USAGE
    assert "would be written over" in done.stderr
    assert file.read_bytes() == b"evidence"


SMALL_DISK = """
import resource, sys, probe.store
from probe.commands import main
probe.store.MAX_IN_MEMORY = 100
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
main()
"""


def test_a_full_disk_under_the_temporary_files_is_not_blamed_on_the_capture(tmp_path: Path) -> None:
    file = tmp_path / "many.pcap"
    file.write_bytes(pcap([f for n in range(9) for f in asks(port=1_000 + n, at=n).close().frames]))
    command = [sys.executable, "-c", SMALL_DISK, "read", str(file)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode == ExitStatus.COULD_NOT_LOOK
    (line,) = done.stderr.splitlines()
    assert f"its connections cannot be kept in '{tmp_path}': File too large" in line


@pytest.mark.parametrize("option", ["--output", "--record"])
@pytest.mark.parametrize("name", ["ca.pem", "app.pem", "app.key"])
def test_no_certificate_file_is_written_over(
    pgprobe: Run, tmp_path: Path, name: str, option: str
) -> None:
    identity = make_identity(("app",))
    for file in ("ca.pem", "app.pem"):
        (tmp_path / file).write_bytes(identity.chain)
    (tmp_path / "app.key").write_bytes(identity.key)
    before = (tmp_path / name).read_bytes()
    uri = f"postgresql://127.0.0.1:1/?sslrootcert={tmp_path}/ca.pem&sslmode=verify-ca"
    uri += f"&sslcert={tmp_path}/app.pem&sslkey={tmp_path}/app.key"
    done = pgprobe(uri, option, str(tmp_path / name))
    assert done.returncode == ExitStatus.USAGE, done.stderr
    assert "would be written over" in done.stderr
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("args", [("rules",), ("explain", "N201"), ("--help",)])
def test_a_full_disk_is_told_in_a_sentence(args: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "probe", *args]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == ExitStatus.COULD_NOT_LOOK
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_who_leaves_early_changes_no_exit_status() -> None:
    command = f"{sys.executable} -m probe rules | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (ExitStatus.NOTHING_FOUND, "")
    assert done.stdout.startswith("C101")


def test_who_speaks_http_to_a_bare_client_hello_alone_is_named(diagnose: Diagnose) -> None:
    def behave(connection: socket.socket, heard: bytearray) -> None:
        while data := connection.recv(4096):
            heard += data
            if heard[0] == 0x16:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                return

    with Peer(behave) as peer:
        document = diagnose(f"127.0.0.1:{peer.port}", *FAST, *SNI)
    assert document["verdict"]["status"] == "broken"
    assert [f["name"] for f in document["findings"]] == ["not-postgresql"]


def test_output_writes_the_report_and_prints_nothing(pgprobe: Run, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = pgprobe(f"127.0.0.1:{closed_port()}", "--format", "json", "--output", str(report))
    assert (done.stdout, done.returncode) == ("", ExitStatus.FOUND)
    assert json.loads(report.read_text())["verdict"]["status"] == "unreachable"


def test_a_refused_port_and_a_name_that_does_not_resolve_are_findings(diagnose: Diagnose) -> None:
    refused = diagnose(f"127.0.0.1:{closed_port()}")
    assert [f["name"] for f in refused["findings"]] == ["connection-refused"]
    assert refused["verdict"]["stage"] == "connect"
    unresolved = diagnose("db-1.example.invalid", *FAST)
    assert [f["name"] for f in unresolved["findings"]] == ["name-not-resolved"]
    assert unresolved["verdict"]["stage"] == "resolve"


@pytest.mark.parametrize(
    ("topology", "fail_on", "status"),
    [
        ("postgres-17", "info", 0),
        ("traefik-terminate-alpn", "error", 0),
        ("traefik-terminate-alpn", "warning", 1),
        ("envoy-sni", "error", 1),
        ("envoy-sni", "never", 0),
        ("closed-port", "error", 1),
        ("closed-port", "never", 0),
    ],
)
def test_the_exit_status_is_what_fail_on_asks_for(
    lab: Lab, pgprobe: Run, topology: str, fail_on: str, status: int
) -> None:
    done = pgprobe(lab[topology].address, *SNI, "--fail-on", fail_on)
    assert done.returncode == status, done.stdout + done.stderr


def test_text_from_the_server_is_never_printed_raw(pgprobe: Run) -> None:
    hostile = b"\x1b]0;owned\x07\x1b[31mHTTP/1.1\r\n\x9b\xe2\x80\xae" + b"A" * 100_000
    with answering(hostile) as port:
        for format_name in ("text", "table", "json"):
            done = pgprobe(f"127.0.0.1:{port}", *FAST, "--format", format_name)
            printed = done.stdout.replace("\n", "")
            assert printed.isprintable()
            assert "\u202e" not in done.stdout
            assert "A" * 500 not in done.stdout.replace("41" * 300, "")


def test_hostile_text_in_an_error_is_escaped_and_bounded(pgprobe: Run) -> None:
    text = b"SFATAL\0C08P01\0M\x1b[2Jgone\x07" + b"x" * 9000 + b"\0\0"
    error = b"E" + (len(text) + 4).to_bytes(4, "big") + text
    with answering(error) as port:
        done = pgprobe(f"127.0.0.1:{port}", *FAST)
    assert "\x1b" not in done.stdout
    assert "\\x1b[2Jgone\\x07" in done.stdout
    assert "x" * 1000 not in done.stdout
    assert done.returncode == ExitStatus.FOUND


ESCAPES = b"\x1b]0;owned\x07\x1b[2J" + b"x" * 9000


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(b"R", b"\0\0\0\x0a" + ESCAPES + b"\0SCRAM-SHA-256\0\0", id="mechanisms"),
        pytest.param(b"E", b"SFATAL\0C28" + ESCAPES + b"\0Mno\0\0", id="refusal"),
        pytest.param(b"E", b"SFATAL\0C57" + ESCAPES + b"\0Mno\0Rx\0\0", id="sqlstate"),
    ],
)
def test_hostile_text_inside_tls_is_escaped_and_bounded(
    pgprobe: Run, kind: bytes, body: bytes
) -> None:
    message = kind + (len(body) + 4).to_bytes(4, "big") + body

    def behave(connection: socket.socket, heard: bytearray) -> None:
        backend = None
        while data := connection.recv(65_536):
            heard += data
            backend = backend or Backend(messages=lambda _: message, direct=data[:1] == b"\x16")
            connection.sendall(backend.hear(data))

    with Peer(behave) as peer:
        for format_name in ("text", "table", "json"):
            done = pgprobe(f"127.0.0.1:{peer.port}", *SNI, *FAST, "--format", format_name)
            assert "owned" in done.stdout
            assert "\x1b" not in json.dumps(done.stdout, ensure_ascii=False)
            assert "\x07" not in done.stdout
            assert "x" * 1_000 not in done.stdout


def test_libpq_uris_strings_and_the_environment_lead_to_the_same_place(
    lab: Lab, pgprobe: Run
) -> None:
    host, port = lab["postgres-17"].host, lab["postgres-17"].port
    name = "db-1.example.test"
    environment = {**os.environ, "PGHOST": name, "PGHOSTADDR": host, "PGPORT": str(port)}
    calls: list[tuple[tuple[str, ...], dict[str, str]]] = [
        ((f"postgresql://{name}:{port}/app?hostaddr={host}",), dict(os.environ)),
        ((f"host={name} hostaddr={host} port={port} dbname=app",), dict(os.environ)),
        (("--attempts", "quick"), environment),
        (("probe", "--dbname", "app"), environment),
        ((), environment),
    ]
    for arguments, variables in calls:
        done = pgprobe(*arguments, "--attempts", "quick", "--format", "json", env=variables)
        document = json.loads(done.stdout)
        assert document["verdict"]["status"] == "passes", arguments
        assert document["target"]["sni"] == name
        assert document["doors"][0]["address"] == f"{host}:{port}"


def test_ipv6_is_asked_at_its_address_in_brackets(diagnose: Diagnose) -> None:
    with answering(b"N", socket.AF_INET6) as port:
        document = diagnose(f"[::1]:{port}", *FAST)
    assert document["doors"][0]["address"] == f"[::1]:{port}"
    assert "tls-refused" in {f["name"] for f in document["findings"]}


def test_verify_full_judges_trust_and_name(lab: Lab, diagnose: Diagnose) -> None:
    where = f"hostaddr={lab['postgres-17'].host} port={lab['postgres-17'].port}"
    roots = f"sslmode=verify-full sslrootcert={lab.ca_file}"
    good = diagnose(f"host=db-1.example.test {where} {roots}", "--attempts", "quick")
    assert good["verdict"]["status"] == "passes"
    other = diagnose(f"host=db-9.example.test {where} {roots}", "--attempts", "quick")
    assert other["verdict"]["status"] == "broken"
    assert "certificate-name-mismatch" in {f["name"] for f in other["findings"]}
    system = f"sslmode=verify-full sslrootcert=system host=db-1.example.test {where}"
    untrusted = diagnose(system, "--attempts", "quick")
    assert untrusted["verdict"]["status"] == "broken"
    assert "certificate-not-trusted" in {f["name"] for f in untrusted["findings"]}


def test_direct_negotiation_makes_the_direct_client_the_one_in_question(
    lab: Lab, diagnose: Diagnose
) -> None:
    def status(topology: str) -> str:
        where = f"hostaddr={lab[topology].host} port={lab[topology].port}"
        document = diagnose(f"host=db-1.example.test {where} sslmode=require sslnegotiation=direct")
        verdict: str = document["verdict"]["status"]
        return verdict

    assert status("postgres-17") == "passes"
    assert status("haproxy-terminate") == "broken"


def test_interrupting_ends_at_once_with_130() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        command = [sys.executable, "-m", "probe", f"127.0.0.1:{deaf.getsockname()[1]}"]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        accepted, _ = deaf.accept()
        running.send_signal(2)
        _, told = running.communicate(timeout=5)
        accepted.close()
    assert running.returncode == ExitStatus.INTERRUPTED
    assert b"Traceback" not in told


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(pgprobe: Run, command: str) -> None:
    done = pgprobe(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: pgprobe {command}")


def test_version_names_the_program(pgprobe: Run) -> None:
    done = pgprobe("--version")
    assert done.stdout.startswith("pgprobe 0.")
    assert done.returncode == 0


def test_quick_makes_the_control_alone_and_named_attempts_come_behind_it(
    lab: Lab, diagnose: Diagnose
) -> None:
    address = lab["postgres-17"].address
    quick = diagnose(address, *SNI, "--attempts", "quick")
    assert [a["name"] for a in quick["attempts"]] == ["control"]
    named = diagnose(address, *SNI, "--attempts", "direct,cancel")
    assert {a["name"] for a in named["attempts"]} == {
        "control",
        "direct",
        "cancel",
        "control-again",
    }


def test_the_text_report_is_read_top_down(lab: Lab, pgprobe: Run) -> None:
    text = pgprobe(lab["envoy-sni"].address, *SNI).stdout
    order = [
        "BROKEN at ssl-request: ",
        "Step by step: ssl-request",
        "> 00 00 00 08 04 d2 16 2f (8)",
        "The attempts side by side",
        "What stands between",
        "N201 sni-router-without-starttls (error, proved)",
        "change, client: sslnegotiation=direct",
        "Which clients get through",
        "libpq-17-direct  yes",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 130
