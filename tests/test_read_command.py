"""``pgprobe read`` as users and other programs meet it."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
from conversations import asks, flights, say, served, write
from peers import NAME, asks_for_retry, only_tls12
from sessions import PASSWORD, PROOF, Session, session

from fixtures.packets import (
    EPOCH,
    FIN,
    SSL_REQUEST,
    STARTUP,
    Frame,
    Talk,
    block,
    enhanced,
    interface,
    pcap,
    section,
)
from probe.commands import ExitStatus, main
from probe.transcript import Data, Party

SCHEMA = json.loads(
    (Path(__file__).parents[1] / "probe/reports/read.schema.json").read_text(encoding="utf-8")
)
OTHER = "db-2.example.com"


class Done(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``pgprobe read`` with these arguments, in this process; ``stdin`` is what it may read."""

    def call(*args: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["pgprobe", "read", *args])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Done(int(ended.value.code or 0), out, err)

    return call


def document(done: Done) -> dict[str, Any]:
    assert done.out, done.err
    told: dict[str, Any] = json.loads(done.out)
    jsonschema.validate(told, SCHEMA)
    return told


def closed(
    name: str | None = NAME, client: str = "192.0.2.3", port: int = 41_000, at: float = 5
) -> Talk:
    """S, a ClientHello, and the server hangs up."""
    return say(asks(client, port, at=at), flights(name)[:1]).send("server", FIN | 16)


def clear(at: float = 10) -> Talk:
    talk = Talk("192.0.2.4", "192.0.2.9", port=42_000)
    talk.at += at
    return talk.open().say("client", STARTUP).say("server", b"R\0\0\0\x08\0\0\0\x03").close()


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """One that gets through, one that is closed, one that never asks for TLS."""
    return write(tmp_path, served(OTHER), closed(), clear())


# --- what is shown ----------------------------------------------------------------------------


def test_the_table_of_connections(run: Command, mixed: str) -> None:
    done = run(mixed)
    assert done.out.startswith(f"{mixed}\n3 connections, 1 did not get through\n")
    rows = [re.split(r"  +", line.strip()) for line in done.out.splitlines()]
    start = rows.index("no. client server opening SNI ALPN TLS outcome findings".split())
    assert rows[start + 1] == [
        *("1", "192.0.2.1:40000", "192.0.2.2:5432", "ssl-request"),
        *(OTHER, "postgresql", "1.3", "closed", "-"),
    ]
    assert rows[start + 2][:8] == [
        *("2", "192.0.2.3:41000", "192.0.2.2:5432", "ssl-request"),
        *(NAME, "postgresql", "-", "closed"),
    ]
    assert rows[start + 3][:4] == ["3", "192.0.2.4:42000", "192.0.2.9:5432", "startup"]
    assert rows[start + 3][-1] == "N210"
    assert "  N210 tls-not-asked (warning, proved): " in done.out
    assert "Connection 1," not in done.out


def test_steps_show_the_ladder_of_each_connection(run: Command, mixed: str) -> None:
    done = run(mixed, "--steps")
    assert "Connection 1, 192.0.2.1:40000 to 192.0.2.2:5432: " in done.out
    assert "Connection 3, " in done.out
    assert "S: TLS is spoken here" in done.out
    assert "not captured: alpn_selected, certificate, startup, authentication" in done.out


def test_a_table_for_notes_and_tickets(run: Command, mixed: str) -> None:
    done = run(mixed, "--format", "table")
    assert done.out.startswith(mixed)
    assert re.search(r"^1 +192\.0\.2\.1:40000 .* closed *$", done.out, re.MULTILINE)
    assert re.search(r"^N210 +tls-not-asked +warning +proved ", done.out, re.MULTILINE)


def test_json_is_as_its_schema_says(run: Command, mixed: str) -> None:
    told = document(run(mixed, "--format", "json"))
    assert told["files"] == [mixed]
    first, second, third = told["connections"]
    del first["steps"]
    assert first == {
        "files": [mixed],
        "first_packet": 1,
        "packets": len(served().frames),
        "began": EPOCH,
        "attempt": "connection 1",
        "client": "192.0.2.1:40000",
        "server": "192.0.2.2:5432",
        "opening": "ssl-request",
        "ssl_answer": "S",
        "sni": OTHER,
        "alpn": ["postgresql"],
        "alpn_selected": None,
        "tls_version": "1.3",
        "certificate": None,
        "not_captured": ["alpn_selected", "certificate", "startup", "authentication"],
        "closed_by": "client",
        "close": "fin",
        "reached": "certificate",
        "outcome": "closed",
        "findings": [],
    }
    assert (second["sni"], second["closed_by"], second["tls_version"]) == (NAME, "server", None)
    assert (third["opening"], third["sni"], third["ssl_answer"]) == ("startup", None, None)
    assert [finding["code"] for finding in third["findings"]] == ["N210"]


def test_more_rows_than_are_shown_are_counted(run: Command, tmp_path: Path) -> None:
    talks = [asks(port=1_000 + n, at=n / 10).close() for n in range(45)]
    done = run(write(tmp_path, *talks, closed()))
    assert "  … and 6 more: --broken, --sni and --client choose" in done.out
    assert "192.0.2.3:41000" in done.out  # the broken one is among those shown


def test_output_goes_to_a_file(run: Command, mixed: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = run(mixed, "--format", "json", "--output", str(file))
    assert done.out == ""
    jsonschema.validate(json.loads(file.read_text()), SCHEMA)
    done = run(mixed, "--output", str(tmp_path / "absent" / "report"))
    assert done.status == ExitStatus.COULD_NOT_LOOK


# --- what is chosen ---------------------------------------------------------------------------


def clients(done: Done) -> list[str]:
    return [row["client"] for row in document(done)["connections"]]


@pytest.mark.parametrize("name", [NAME, NAME.upper()])
def test_sni_chooses_by_name_whatever_its_case(run: Command, mixed: str, name: str) -> None:
    assert clients(run(mixed, "--sni", name, "--format", "json")) == ["192.0.2.3:41000"]


@pytest.mark.parametrize("who", ["192.0.2.1", "192.0.2.1:40000"])
def test_client_chooses_by_address_with_or_without_port(run: Command, mixed: str, who: str) -> None:
    assert clients(run(mixed, "--client", who, "--format", "json")) == ["192.0.2.1:40000"]


def test_broken_chooses_what_did_not_get_through(run: Command, mixed: str) -> None:
    done = run(mixed, "--broken", "--format", "json")
    assert clients(done) == ["192.0.2.3:41000"]
    codes = {finding["code"] for finding in document(done)["findings"]}
    assert "N210" not in codes


def test_findings_are_those_of_what_is_chosen(run: Command, mixed: str) -> None:
    told = document(run(mixed, "--client", "192.0.2.1", "--format", "json"))
    assert told["findings"] == []


def test_nothing_broken_is_good_news_and_nothing_chosen_is_not(
    run: Command, tmp_path: Path
) -> None:
    file = write(tmp_path, served())
    done = run(file, "--broken")
    assert done.status == ExitStatus.NOTHING_FOUND
    assert "0 connections" in done.out
    done = run(file, "--sni", "nobody.example.com")
    assert done.status == ExitStatus.COULD_NOT_LOOK
    assert "no connection is as --sni and --client ask" in done.err


def test_ports_narrow(run: Command, tmp_path: Path) -> None:
    file = write(tmp_path, served(), asks(port=40_001, to=6_432, at=3).close())
    done = run(file, "--port", "6432", "--format", "json")
    assert [row["server"] for row in document(done)["connections"]] == ["192.0.2.2:6432"]
    both = run(file, "--port", "6432", "--port", "5432", "--format", "json")
    assert len(document(both)["connections"]) == 2


def test_all_lists_every_tcp_connection(run: Command, tmp_path: Path) -> None:
    web = Talk(port=40_001, to=80).open().say("client", b"GET / HTTP/1.1\r\n\r\n").close()
    file = write(tmp_path, served(), web)
    assert len(document(run(file, "--format", "json"))["connections"]) == 1
    rows = document(run(file, "--all", "--format", "json"))["connections"]
    assert [row["opening"] for row in rows] == ["ssl-request", "other"]


# --- one handshake ----------------------------------------------------------------------------


def test_a_hello_retry_request_is_read_as_one_handshake(run: Command, tmp_path: Path) -> None:
    file = write(tmp_path, say(asks(), flights(server=asks_for_retry())).close())
    done = run(file, "--format", "json")
    (row,) = document(done)["connections"]
    assert [step["stage"] for step in row["steps"]].count("server-hello") == 1
    assert row["tls_version"] == "1.3"
    assert done.status == ExitStatus.NOTHING_FOUND


def test_tls_12_shows_its_certificate(run: Command, tmp_path: Path) -> None:
    file = write(tmp_path, say(asks(), flights(server=only_tls12())).close())
    (row,) = document(run(file, "--format", "json"))["connections"]
    assert row["certificate"]["names"] == [NAME]
    assert row["alpn_selected"] == "postgresql"


def test_text_from_the_network_is_escaped(run: Command, tmp_path: Path) -> None:
    evil = b"HTTP/1.1 \x1b[31mred\x07\r\n\r\n"
    talk = Talk().open().say("client", SSL_REQUEST).say("server", evil).close()
    file = write(tmp_path, talk)
    for kind in ("text", "table", "json"):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", run(file, "--format", kind).out)


# --- secrets ----------------------------------------------------------------------------------


def recorded(passed: Session) -> Talk:
    talk = Talk().open()
    for fact in passed.facts:
        assert isinstance(fact, Data)
        talk.say("client" if fact.sender is Party.CLIENT else "server", fact.data)
    return talk.close()


def test_a_key_log_opens_what_was_said_and_shows_no_password(run: Command, tmp_path: Path) -> None:
    log = tmp_path / "keys.log"
    file = write(tmp_path, recorded(session(log)))
    shut = document(run(file, "--format", "json"))["connections"][0]
    assert shut["outcome"] == "closed"
    done = run(file, "--keylog", str(log), "--format", "json")
    (row,) = document(done)["connections"]
    assert (row["outcome"], row["alpn_selected"]) == ("authentication", "postgresql")
    assert row["certificate"]["names"] == [NAME]
    assert row["not_captured"] == []
    for kind in ("text", "table", "json"):
        shown = run(file, "--keylog", str(log), "--steps", "--format", kind).out
        for secret in (PASSWORD, PROOF):
            assert secret.decode() not in shown
            assert secret.hex() not in shown


def test_secrets_in_a_pcapng_open_it_at_once(run: Command, tmp_path: Path) -> None:
    passed = session(tmp_path / "keys.log")
    text = passed.key_log.encode()
    head = (0x544C534B).to_bytes(4, "little") + len(text).to_bytes(4, "little")
    secrets = block(10, head + text + bytes(-len(text) % 4))
    file = tmp_path / "some.pcapng"
    packets = b"".join(enhanced(frame) for frame in recorded(passed).frames)
    file.write_bytes(section() + interface() + secrets + packets)
    (row,) = document(run(str(file), "--format", "json"))["connections"]
    assert row["outcome"] == "authentication"


def test_a_key_log_that_cannot_be_read(run: Command, mixed: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("# nothing yet\n")
    done = run(mixed, "--keylog", str(empty))
    assert (done.status, done.out) == (ExitStatus.COULD_NOT_LOOK, "")
    assert "holds no TLS secrets" in done.err
    done = run(mixed, "--keylog", str(tmp_path / "absent"))
    assert done.status == ExitStatus.COULD_NOT_LOOK
    assert done.err.startswith("Error: cannot read ")


# --- files, and several of them ---------------------------------------------------------------


def test_standard_input(run: Command) -> None:
    for data in (pcap(served().frames), gzip.compress(pcap(served().frames))):
        told = document(run("-", "--format", "json", stdin=data))
        assert told["files"] == ["-"]
        assert len(told["connections"]) == 1


def test_standard_input_while_it_is_still_written() -> None:
    """``tcpdump -w - | pgprobe read -``: what came until the end of the pipe is told."""
    data = pcap(served().frames)
    child = subprocess.Popen(
        [sys.executable, "-m", "probe", "read", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin
    for at in range(0, len(data) - 10, 500):
        child.stdin.write(data[at : min(at + 500, len(data) - 10)])
        child.stdin.flush()
    out, err = child.communicate(timeout=60)
    assert child.returncode == ExitStatus.NOTHING_FOUND, err
    assert b"1 connection, 0 did not get through" in out
    assert b"not read: -: the file ends within packet" in out


@pytest.mark.parametrize("jobs", ["1", "2", "5"])
def test_several_files_are_read_in_their_order(run: Command, tmp_path: Path, jobs: str) -> None:
    names = [
        write(tmp_path, served(port=41_000 + n), name=f"{n}.pcap" if n % 2 else f"{n}.cap")
        for n in range(4)
    ]
    told = document(run(*names, "--jobs", jobs, "--format", "json"))
    assert told["files"] == names
    assert [row["client"][-5:] for row in told["connections"]] == [
        "41000",
        "41001",
        "41002",
        "41003",
    ]
    assert told["connections"][1]["attempt"] == f"connection 1 of {names[1]}"


def test_several_jobs_tell_of_a_file_that_cannot_be_read(run: Command, tmp_path: Path) -> None:
    done = run(write(tmp_path, served()), str(tmp_path / "absent"), "--jobs", "2")
    assert done.status == ExitStatus.COULD_NOT_LOOK
    assert re.fullmatch(r"Error: cannot read '.*absent': No such file or directory\n", done.err)


def test_problems_name_their_file(run: Command, tmp_path: Path) -> None:
    file = tmp_path / "cut.pcap"
    file.write_bytes(pcap(served().frames)[:-5])
    told = document(run(str(file), "--format", "json"))
    (problem,) = told["problems"]
    assert problem.startswith(f"{file}: the file ends within packet {len(served().frames)}: ")


# --- exit statuses ----------------------------------------------------------------------------


def test_the_exit_status_tells_whether_something_was_found(run: Command, tmp_path: Path) -> None:
    good = write(tmp_path, served(), name="good")
    warned = write(tmp_path, clear(), name="warned")
    bad = write(tmp_path, closed(), name="bad")
    assert run(good).status == ExitStatus.NOTHING_FOUND
    assert run(warned).status == ExitStatus.NOTHING_FOUND
    assert run(warned, "--fail-on", "warning").status == ExitStatus.FOUND
    assert run(bad).status == ExitStatus.FOUND
    assert run(bad, "--fail-on", "never").status == ExitStatus.NOTHING_FOUND


def test_words_that_cannot_be_used(run: Command, mixed: str) -> None:
    for args in ((), ("-", "-"), (mixed, "--port", "0"), (mixed, "--jobs", "0"), (mixed, "--x")):
        done = run(*args)
        assert done.status == ExitStatus.USAGE
        assert "Error: " in done.err


GARBAGE = {
    "empty": (b"", "it is empty"),
    "text": (b"hello, world\n" * 9, "it is neither pcap nor pcapng"),
    "header": (pcap([])[:10], "ends within its header"),
    "gzip": (b"\x1f\x8b" + bytes(40), "gzip file is damaged"),
    "zeros": (bytes(100), "it is neither pcap nor pcapng"),
    "section": (section()[:9], "has no byte order"),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_what_is_no_capture_gets_one_clear_sentence(
    run: Command, tmp_path: Path, kind: str
) -> None:
    data, says = GARBAGE[kind]
    file = tmp_path / "garbage"
    file.write_bytes(data)
    for done in (run(str(file)), run("-", stdin=data)):
        assert done.status == ExitStatus.COULD_NOT_LOOK
        assert done.out == ""
        assert done.err.count("\n") == 1
        assert says in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(run: Command, mixed: str) -> None:
    Path(mixed).chmod(0)
    assert run(mixed).status == ExitStatus.COULD_NOT_LOOK


def test_a_folder_or_a_missing_file_is_told(run: Command, tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "absent")):
        done = run(name)
        assert done.status == ExitStatus.COULD_NOT_LOOK
        assert done.err.startswith(f"Error: cannot read {name!r}: ")


def test_a_capture_with_nothing_of_ours_could_not_be_looked_at(
    run: Command, tmp_path: Path
) -> None:
    web = Talk(to=80).open().say("client", b"GET / HTTP/1.1\r\n\r\n").close()
    for talks in ([web], []):
        file = write(tmp_path, *talks)
        done = run(file)
        assert done.status == ExitStatus.COULD_NOT_LOOK
        assert "no connection of PostgreSQL's" in done.err
        assert "--all shows every TCP connection" in done.err


def test_why_nothing_was_read_is_told_even_where_nothing_is_left(
    run: Command, tmp_path: Path
) -> None:
    frames = [Frame(EPOCH, b"x" * 80)]
    file = tmp_path / "odd.pcap"
    file.write_bytes(pcap(frames, link=65_000))
    done = run(str(file))
    assert done.status == ExitStatus.COULD_NOT_LOOK
    assert "of link type 65000, which nobody here knows" in done.err
