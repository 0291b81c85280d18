"""--record: a run kept as a capture reads back as it was judged, and Wireshark opens it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.lab import ABSENT, TOPOLOGIES, Lab
from fixtures.lab.judge import arguments
from fixtures.lab.postgres import DATABASE, PASSWORD, ROLE
from probe.attempt import Attempt
from probe.password import Password
from probe.recorder import Recorder, RecorderError
from probe.tls import TlsClient

Run = Callable[..., "subprocess.CompletedProcess[str]"]

NAME = "db-1.example.test"
WAITS = ("--timeout", "3", "--deadline", "60")
MILLISECOND = 1.0

# Of each family of the lab some, and all ways to end.
KEPT = """
    postgres-17 postgres-no-tls postgres-hostssl postgres-trust postgres-md5 closed-port
    syn-dropped postgres-expired-verified postgres-self-signed-verified postgres-obsolete-tls-only
    postgres-demands-certificates postgres-few-connections
    haproxy-tcp nginx-tcp haproxy-two-clusters haproxy-sends-proxy haproxy-proxy-protocol
    traefik-passthrough traefik-passthrough-dead traefik-passthrough-unknown traefik-catch-all
    envoy-sni haproxy-sni nginx-sni haproxy-sni-waits-briefly envoy-sni-default
    traefik-terminate-alpn haproxy-terminate envoy-terminate nginx-reencrypt
    haproxy-tcp-envoy-tcp-nginx-sni traefik-passthrough-witness traefik-terminate-alpn-witness
    deaf reset-at-once accept-then-close http https ssh mysql echo tls-alert proxy-header-first
    s-with-glued-bytes s-then-silence error-before-tls
    stunnel-reencrypt pgbouncer sniproxy-sni postgres-15
""".split()
HERE = [name for name in KEPT if name not in ABSENT]
DIRECT = [name for name in HERE if TOPOLOGIES[name].direct]


@pytest.fixture(scope="module")
def some() -> Iterator[Lab]:
    with Lab([*HERE, "envoy-tcp", "envoy-reencrypt"]) as lab:
        yield lab


class Kept:
    """A run and its recording, each as a document."""

    def __init__(self, pgprobe: Run, file: Path, *words: str, **options: Any) -> None:
        live = pgprobe("probe", *words, "--record", str(file), "--format", "json", **options)
        assert live.stdout, live.stderr
        read = pgprobe("read", str(file), "--format", "json")
        assert read.stdout, read.stderr
        self.file = file
        self.live, self.read = json.loads(live.stdout), json.loads(read.stdout)

    def compare(self) -> None:
        assert self.read["problems"] == []
        rows = {(row["server"], row["attempt"]): row for row in self.read["connections"]}
        assert len(rows) == len(self.read["connections"]) == len(self.live["attempts"])
        for attempt in self.live["attempts"]:
            row = rows[attempt["door"], attempt["name"]]
            for key in ("outcome", "reached", "sni", "alpn_selected", "certificate"):
                assert row[key] == attempt[key], (attempt["name"], key)
            assert list(map(told, row["steps"])) == list(map(told, attempt["steps"]))
            assert apart(row, attempt) < 1e-2 * MILLISECOND
        assert list(map(said, self.read["findings"])) == sorted(map(said, self.live["findings"]))


def words(text: str) -> str:
    """Without times, whose last digit is rounded."""
    return re.sub(r"\d+(\.\d+)? (m?s)\b", r"… \2", text)


def told(step: dict[str, Any]) -> tuple[Any, ...]:
    return step["stage"], step["peer"], step["sent"], step["received"], words(step["says"])


def apart(row: dict[str, Any], attempt: dict[str, Any]) -> float:
    """Milliseconds by which what is seen on the bare wire is told at another time.

    What is said inside TLS is timed by its packet in a capture, and live by when it was opened.
    """
    bare = ("resolve", "connect", "ssl-request", "server-hello")
    pairs = [
        (a, b)
        for a, b in zip(row["steps"], attempt["steps"], strict=True)
        if a["stage"] in bare and row["outcome"] != "alert"
    ]
    return max((abs(a[k] - b[k]) for a, b in pairs for k in ("at_ms", "ms")), default=0.0)


def said(finding: dict[str, Any]) -> tuple[Any, ...]:
    order = ["error", "warning", "info"].index(finding["severity"])
    seen = [(p["door"], p["attempt"], p["step"], words(p["says"])) for p in finding["evidence"]]
    keys = "code severity certainty door fix".split()
    return order, finding["code"], words(finding["message"]), repr([finding[k] for k in keys]), seen


@pytest.mark.parametrize("name", KEPT)
def test_a_recording_reads_back_as_the_run_was_judged(
    some: Lab, pgprobe: Run, tmp_path: Path, name: str
) -> None:
    if name in ABSENT:
        pytest.skip(str(ABSENT[name]))
    Kept(pgprobe, tmp_path / "run.pcapng", *arguments(some[name]), *WAITS).compare()


@pytest.mark.parametrize("name", ["postgres-17", "envoy-reencrypt", "haproxy-tcp"])
def test_so_it_does_with_a_proof_and_with_a_client_that_speaks_direct_tls(
    some: Lab, pgprobe: Run, tmp_path: Path, name: str
) -> None:
    place = some[name]
    target = f"host={place.host} port={place.port} sslmode=require sslnegotiation=direct"
    kept = Kept(pgprobe, tmp_path / "run.pcapng", target, "--sni", NAME, "--prove", *WAITS)
    assert kept.live["path"]["binding"] in ("end-to-end", "re-encrypted")
    assert "prove" in {attempt["name"] for attempt in kept.live["attempts"]}
    kept.compare()


@pytest.mark.parametrize(
    "chain",
    [
        ("haproxy-tcp", "traefik-passthrough", "postgres-17"),
        ("envoy-sni", "postgres-17"),
        ("haproxy-tcp", "closed-port"),
        ("closed-port", "postgres-17"),
        ("envoy-tcp", "syn-dropped"),
    ],
    ids=" > ".join,
)
def test_so_it_does_with_several_doors(
    some: Lab, pgprobe: Run, tmp_path: Path, chain: tuple[str, ...]
) -> None:
    doors = [word for name in chain for word in ("--door", some[name].address)]
    Kept(pgprobe, tmp_path / "run.pcapng", NAME, *doors, "--prove", *WAITS).compare()


def test_an_address_that_asks_for_no_name_is_judged_alike(
    some: Lab, pgprobe: Run, tmp_path: Path
) -> None:
    kept = Kept(pgprobe, tmp_path / "run.pcapng", some["postgres-17"].address, *WAITS)
    kept.compare()
    assert "certificate-name-mismatch" in {finding["name"] for finding in kept.read["findings"]}


def test_a_name_with_two_addresses_reads_back(some: Lab, pgprobe: Run, tmp_path: Path) -> None:
    port = some["postgres-17"].port  # where nobody listens at ::1
    kept = Kept(pgprobe, tmp_path / "run.pcapng", f"localhost:{port}", *WAITS)
    assert kept.live["attempts"][0]["steps"][0]["stage"] == "resolve"
    kept.compare()


def test_a_name_without_an_address_leaves_a_file_that_says_so(pgprobe: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.pcapng"
    live = pgprobe("nowhere.invalid", "--record", str(file), *WAITS)
    assert live.returncode == 1
    assert b"no connection, not-resolved" in file.read_bytes()
    assert pgprobe("read", str(file)).returncode == 3


# --- who may read it ------------------------------------------------------------------------


def test_it_is_for_its_owner_alone_whatever_stood_there(
    some: Lab, pgprobe: Run, tmp_path: Path
) -> None:
    file = tmp_path / "run.pcapng"
    file.write_text("something older")
    file.chmod(0o644)
    done = pgprobe(some["postgres-17"].address, "--attempts", "quick", "--record", str(file))
    assert done.returncode in (0, 1)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_bytes().startswith(b"\x0a\x0d\x0d\x0a")
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_a_device_and_a_folder_that_is_not_there_are_refused_before_anything_is_asked(
    pgprobe: Run, tmp_path: Path
) -> None:
    link = tmp_path / "link.pcapng"
    link.symlink_to(tmp_path / "elsewhere")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        for path in (link, Path("/dev/null"), tmp_path / "nowhere" / "run.pcapng"):
            done = pgprobe(address, "--timeout", "1", "--record", str(path))
            assert done.returncode == 3
            assert "cannot write" in done.stderr
            assert "Traceback" not in done.stderr
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert not (tmp_path / "elsewhere").exists()


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "probe", address, "--record", str(tmp_path / "x.pcapng")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        listener.settimeout(30)
        with listener.accept()[0]:
            assert list(tmp_path.iterdir()) != []
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
    assert list(tmp_path.iterdir()) == []


def test_the_key_log_has_no_name_and_takes_what_tls_gives(tmp_path: Path) -> None:
    with Recorder(str(tmp_path / "run.pcapng")) as recorder:
        told = Path(recorder.key_log).readlink()
        assert not told.exists()
        TlsClient(Attempt("control", key_log=recorder.key_log)).handshake()
        mode = Path(recorder.key_log).stat().st_mode
        assert mode & 0o077 == 0


def test_a_login_has_no_key_log(tmp_path: Path) -> None:
    file = tmp_path / "key.log"
    TlsClient(Attempt("login", key_log=str(file), password=Password("s3cret")))
    assert not file.exists()
    TlsClient(Attempt("control", key_log=str(file)))
    assert file.exists()


def test_no_secret_is_embedded_where_somebody_logs_in(
    some: Lab, pgprobe: Run, tmp_path: Path
) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    words = (some["postgres-17"].address, "--sni", NAME, "--attempts", "quick", "--login")
    file = tmp_path / "run.pcapng"
    kept = Kept(
        pgprobe,
        file,
        *(*words, "--user", ROLE, "--dbname", DATABASE),
        env=clean | {"PGPASSWORD": PASSWORD},
    )
    assert kept.live["path"]["login"]["tls"] is True
    data = file.read_bytes()
    assert b"TRAFFIC_SECRET" not in data
    assert b"CLIENT_RANDOM" not in data
    assert PASSWORD.encode() not in data
    assert b"no TLS secrets are embedded" in data
    assert {row["attempt"] for row in kept.read["connections"]} == {"control", "login"}
    pgprobe(*words[:-1], "--record", str(file))
    assert b"CLIENT_HANDSHAKE_TRAFFIC_SECRET" in file.read_bytes()


def test_a_file_that_cannot_be_kept_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecorderError, match="not a plain file"), Recorder(str(tmp_path)):
        pass
    with contextlib.suppress(RecorderError), Recorder(str(tmp_path / "run.pcapng")) as recorder:
        (tmp_path / "run.pcapng").mkdir()
        recorder.keep([])
        pytest.fail("a folder was replaced")
    assert [each.name for each in tmp_path.iterdir()] == ["run.pcapng"]


# --- in Wireshark ---------------------------------------------------------------------------

TSHARK = shutil.which("tshark")
NO_TSHARK = "tshark is not installed (make lab-system): Wireshark's view was not looked at"
# A warning or worse; but a reset is what happened there, not a fault of the file.
BAD = "_ws.malformed or (_ws.expert.severity >= 0x600000 and not tcp.connection.rst)"
CHECKED = ("-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE")


def tshark(file: Path, *words: str) -> str:
    assert TSHARK
    command = [TSHARK, "-r", str(file), *CHECKED, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


@pytest.mark.skipif(TSHARK is None, reason=NO_TSHARK)
@pytest.mark.parametrize(
    "name",
    ["postgres-17", "traefik-passthrough", "envoy-sni", "closed-port", "syn-dropped", "http"],
)
def test_wireshark_has_nothing_to_complain_of(
    some: Lab, pgprobe: Run, tmp_path: Path, name: str
) -> None:
    kept = Kept(pgprobe, tmp_path / "run.pcapng", *arguments(some[name]), *WAITS)
    decode = ("-d", f"tcp.port=={some[name].port},pgsql") if name != "http" else ()
    told = ("-T", "fields", "-e", "_ws.expert.message", "-Y")
    assert tshark(kept.file, *decode, *told, BAD) == ""
    spoilt = tmp_path / "spoilt.pcapng"  # it would have complained
    spoilt.write_bytes(kept.file.read_bytes().replace(b"\xff\xd7", b"\xff\xd8"))
    assert "Bad checksum" in tshark(spoilt, *decode, *told, BAD)
    attempts = {attempt["name"] for attempt in kept.live["attempts"]}
    comments = tshark(kept.file, "-T", "fields", "-e", "frame.comment", "-Y", "frame.comment")
    assert {line.split("\\n")[0].split()[2] for line in comments.splitlines()} == attempts


@pytest.mark.skipif(TSHARK is None, reason=NO_TSHARK)
def test_wireshark_decrypts_it_at_once(some: Lab, pgprobe: Run, tmp_path: Path) -> None:
    place = some["postgres-17"]
    kept = Kept(pgprobe, tmp_path / "run.pcapng", *arguments(place), "--attempts", "tls-1.2")
    decode = f"tcp.port=={place.port},pgsql"
    fields = ("-T", "fields", "-e", "pgsql.parameter_value", "-e", "pgsql.auth.sasl.mech")
    for stream in ("0", "1"):
        seen = tshark(kept.file, "-d", decode, "-Y", f"tcp.stream == {stream}", *fields)
        assert "pgprobe-nobody,postgres,pgprobe" in seen
        assert "SCRAM-SHA-256-PLUS" in seen
    shown = ("-Y", "tls.handshake.type == 11", "-T", "fields", "-e", "tcp.stream")
    streams = tshark(kept.file, "-d", decode, *shown)  # in TLS 1.3 the Certificate is encrypted
    assert {"0", "1"} <= set(streams.split())


def test_the_recording_says_what_it_is(some: Lab, pgprobe: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.pcapng"
    before = time.time()
    pgprobe(some["postgres-17"].address, "--attempts", "quick", "--record", str(file))
    data = file.read_bytes()
    assert data.count(b"synthesised from pgprobe's transcript, not sniffed") == 2
    assert b"pgprobe attempt control asked=target" in data
    assert file.stat().st_mtime >= before - 1
