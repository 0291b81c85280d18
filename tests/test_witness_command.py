"""``pgprobe witness`` as a process: whom it answers, what it bears, how it ends."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from peers import NAME, SSL_REQUEST, converse

from fixtures.lab.components import POSTGRES_17
from probe.attempt import Attempt
from probe.commands import ExitStatus
from probe.handshake import Opening
from probe.sources import witness as source
from probe.wire.startup import GSSENC_REQUEST, startup_message

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Diagnose = Callable[..., dict[str, Any]]

RUBBISH_CONNECTIONS = 10_000
HALF_OPEN = 1_000
MEGABYTE = 1 << 20
MAX_GROWTH = 24 * MEGABYTE  # by connections that have ended
MAX_HELD = 96 * MEGABYTE  # by connections that stay, most of them with a TLS session begun


class Running:
    """A witness, its address and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log
        self.address = self.line(lambda line: line["event"] == "listening")["address"]
        host, _, port = self.address.rpartition(":")
        self.where = (host, int(port))

    def lines(self) -> list[dict[str, Any]]:
        whole = self._log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def line(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first line that is wanted, waited for."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = [line for line in self.lines() if wanted(line)]
            if found:
                return found[0]
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"no such line in {self.lines()[-3:]}")

    def connect(self) -> socket.socket:
        return socket.create_connection(self.where, timeout=20)

    def memory(self) -> int:
        """What it holds in memory now, in bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def answers(self) -> bool:
        """An honest caller in clear gets the whole answer."""
        with self.connect() as honest:
            honest.sendall(startup_message((3, 0), {"user": "honest"}))
            said = b""
            while data := honest.recv(65_536):
                said += data
        return said.startswith(b"E") and b"WT001" in said


@contextmanager
def witness(place: Path, *words: str) -> Iterator[Running]:
    log = place / "witness.log"
    command = [sys.executable, "-m", "probe", "witness", "--host", "127.0.0.1", "--port", "0"]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, *words], stdout=out, stderr=subprocess.STDOUT)
    with process:
        try:
            yield Running(process, log)
        finally:
            process.kill()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with witness(tmp_path, "--name", NAME) as one:
        yield one


def flights() -> Iterator[bytes]:
    """A client's first flight behind SSLRequest, each time another ClientHello."""
    while True:
        said: list[bytes] = []

        def hear(data: bytes, said: list[bytes] = said) -> bytes:
            said.append(data)
            return b""

        converse(Attempt("control", Opening.DIRECT_TLS, NAME), hear)
        yield said[0]


def test_pgprobe_recognises_it_and_proves_passthrough(running: Running, diagnose: Diagnose) -> None:
    document = diagnose(running.address, "--sni", NAME)
    assert document["verdict"]["status"] == "passes"
    assert {f["name"] for f in document["findings"]} == {"passthrough-proved"}
    told = document["path"]["witness"]
    assert (told["end_to_end"], told["changed"], told["refused"]) == (True, [], None)
    assert told["local"] == running.address
    inside = [a for a in document["attempts"] if a["witness"] and a["opening"] != "startup"]
    assert len(inside) >= 14
    for attempt in inside:
        assert attempt["witness"]["end_to_end"], attempt["name"]
        assert attempt["witness"]["changed"] in ([], ["segments"]), attempt["name"]
    assert all(row["gets_through"] for row in document["clients"])


def test_the_text_shows_what_was_sent_beside_what_arrived(pgprobe: Run, running: Running) -> None:
    done = pgprobe(running.address, "--sni", NAME, "--attempts", "quick")
    assert done.returncode == ExitStatus.NOTHING_FOUND
    assert "What was sent, and what arrived at the witness (control)" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["server_name", NAME, "the", "same"] in rows
    assert ["SSLRequest", "yes", "the", "same"] in rows
    table = pgprobe(running.address, "--sni", NAME, "--attempts", "quick", "--format", "table")
    assert "server_name" in table.stdout


def test_the_log_keeps_the_client_hello_byte_for_byte(running: Running) -> None:
    hello = next(flights())
    with running.connect() as caller:
        caller.sendall(SSL_REQUEST)
        assert caller.recv(1) == b"S"
        caller.sendall(hello)
        assert caller.recv(1) == b"\x16"
        peer = "{}:{}".format(*caller.getsockname())
    line = running.line(lambda line: line.get("peer") == peer)
    kept = bytes.fromhex(line["client_hello"])
    assert kept == hello[5:]  # behind the header of its record
    assert line["hello"]["sha256"] == hashlib.sha256(kept).hexdigest()
    assert line["hello"]["server_name"] == NAME
    assert (line["outcome"], line["ssl_request"]) == ("unfinished", True)


def psql(running: Running, *words: str) -> str:
    programs = POSTGRES_17.executable.parent
    host, port = running.where
    done = subprocess.run(
        [programs / "psql", "--no-psqlrc", f"host={host} port={port} user=x {' '.join(words)}"],
        env={"LD_LIBRARY_PATH": str(programs.parent / "lib"), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    return done.stderr


@pytest.mark.parametrize(
    ("words", "came"),
    [
        ("sslmode=require", "TLS arrived behind SSLRequest"),
        ("sslmode=require sslnegotiation=direct", "TLS arrived directly"),
        ("sslmode=disable", "arrived in clear text, without TLS"),
    ],
)
def test_psql_shows_a_message_that_people_understand(
    running: Running, words: str, came: str
) -> None:
    shown = psql(running, words)
    assert f"FATAL:  pgprobe witness: {came}" in shown or came in shown.partition("DETAIL")[0]
    assert 'DETAIL:  {"witness":1,' in shown
    assert "HINT:  This is no database" in shown


def rubbish(hello: bytes) -> Iterator[bytes]:
    """Endlessly, what scanners and broken clients say first."""
    yield from itertools.cycle(
        [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\0" * 40,
            b"\xff" * 300,
            b"SSH-2.0-scanner\r\n",
            SSL_REQUEST + b"nonsense",
            SSL_REQUEST + hello[:90] + b"\xff" * 500,
            GSSENC_REQUEST * 3,
            hello[:60],
            hello,
            hello + b"\xff" * 500,
            b"\x16\x03\x01\x40\x00" + b"\x01\x00\x3f\xfc" + os.urandom(5_000),
            b"PROXY TCP4 1.2.3.4\r\n",
            b"",
        ]
    )


def test_ten_thousand_connections_of_rubbish_leave_nothing_behind(running: Running) -> None:
    hello = next(flights())
    said = rubbish(hello)

    def rubbish_connections(count: int) -> None:
        for words in itertools.islice(said, count):
            with running.connect() as caller:
                caller.sendall(words)

    rubbish_connections(500)  # whatever it keeps for good, it has by now
    assert running.answers()
    before = running.memory()
    rubbish_connections(RUBBISH_CONNECTIONS)
    assert running.answers()
    assert running.memory() - before < MAX_GROWTH
    running.line(lambda line: line.get("connection", 0) > RUBBISH_CONNECTIONS)
    assert {line["outcome"] for line in running.lines() if line["event"] == "connection"} == {
        *("testified", "not-postgresql", "unfinished", "tls-failed")
    }


def test_a_thousand_that_stay_half_open_keep_nobody_out(
    running: Running, diagnose: Diagnose
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = HALF_OPEN + 200
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    hello = next(flights())
    halves = itertools.cycle([b"", SSL_REQUEST[:5], SSL_REQUEST, hello[:200], hello, hello, hello])
    before = running.memory()
    with ExitStack() as stack:
        for words in itertools.islice(halves, HALF_OPEN):
            held = stack.enter_context(running.connect())
            held.sendall(words)
        assert running.answers()
        document = diagnose(running.address, "--sni", NAME, "--attempts", "quick")
        assert document["verdict"]["status"] == "passes"
        assert running.memory() - before < MAX_HELD
        running.line(lambda line: line.get("ended") == "too-many")
        ended = [line for line in running.lines() if line.get("ended") == "too-many"]
        assert len(ended) >= HALF_OPEN - source.MAX_CONNECTIONS
        # the oldest went first
        numbers = [line["connection"] for line in ended]
        assert numbers == sorted(numbers)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_whoever_says_nothing_for_long_is_sent_away(tmp_path: Path) -> None:
    with witness(tmp_path, "--seconds", "0.3") as running, running.connect() as mute:
        assert mute.recv(1) == b""
        line = running.line(lambda line: line["event"] == "connection")
        assert (line["ended"], line["outcome"]) == ("timed-out", "unfinished")
        assert running.answers()


def test_whoever_says_too_much_is_sent_away(running: Running) -> None:
    empty_record = b"\x16\x03\x01\x00\x00"
    with running.connect() as talker, suppress(OSError):  # reset, or pipe
        talker.sendall(empty_record * 200_000)  # a megabyte
    line = running.line(lambda line: line["event"] == "connection")
    assert line["ended"] == "too-much"
    assert line["received"] <= source.MAX_BYTES + source.READ_SIZE
    assert running.answers()


def test_the_oldest_makes_room_for_the_newest(tmp_path: Path) -> None:
    with witness(tmp_path, "--connections", "2") as running, ExitStack() as stack:
        first, second = (stack.enter_context(running.connect()) for _ in range(2))
        first.sendall(SSL_REQUEST)
        second.sendall(SSL_REQUEST)
        assert (first.recv(1), second.recv(1)) == (b"S", b"S")
        assert running.answers()
        assert first.recv(1) == b""
        line = running.line(lambda line: line.get("ended") == "too-many")
        assert line["peer"] == "{}:{}".format(*first.getsockname())


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(running: Running, ending: signal.Signals) -> None:
    with running.connect() as caller:
        caller.sendall(SSL_REQUEST)
        assert caller.recv(1) == b"S"
        running.process.send_signal(ending)
        assert running.process.wait(10) == 0
        assert caller.recv(1) == b""
    *_, connection, stopped = running.lines()
    assert connection["ended"] == "stopped"
    assert (stopped["event"], stopped["connections"]) == ("stopped", 1)
    with pytest.raises(ConnectionRefusedError):
        running.connect()


@pytest.mark.parametrize(
    "words", [("--key", "k.pem"), ("--cert", "c.pem", "--name", "a.example.com"), ("--port", "x")]
)
def test_a_wrong_call_is_told(pgprobe: Run, words: tuple[str, ...]) -> None:
    done = pgprobe("witness", "--host", "127.0.0.1", *words)
    assert done.returncode == ExitStatus.USAGE
    assert "Error: " in done.stderr


def test_what_it_cannot_use_is_told(pgprobe: Run, tmp_path: Path) -> None:
    calls: list[tuple[str, ...]] = [
        ("--cert", str(tmp_path / "missing.pem")),
        ("--host", "not-an-address"),
    ]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        calls.append(("--host", "127.0.0.1", "--port", str(taken.getsockname()[1])))
        for words in calls:
            done = pgprobe("witness", *words)
            assert done.returncode == ExitStatus.COULD_NOT_LOOK
            assert done.stderr.startswith("Error: cannot ")
            assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        (("127.0.0.1", 5432), "127.0.0.1:5432"),
        (("::ffff:10.0.1.7", 40000, 0, 0), "10.0.1.7:40000"),
        (("2001:db8::1", 40000, 0, 0), "[2001:db8::1]:40000"),
        (("fe80::1%eth0", 40000, 0, 2), "[fe80::1]:40000"),
    ],
)
def test_addresses_are_shown_as_what_they_are(where: tuple[Any, ...], shown: str) -> None:
    assert source._endpoint(where) == shown
