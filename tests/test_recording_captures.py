"""How captures are recorded: which packets are whose, which secrets go with them, and what is said
where nobody may sniff."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.captures.__main__ import main
from fixtures.captures.writing import connections_of, pcapng, secrets_of
from fixtures.packets import RST, Frame, Talk
from fixtures.sniffer import NoSnifferError, Packet
from probe.attempt import Attempt
from probe.handshake import Handshake
from probe.observer import observe
from probe.pcapng import Reader
from probe.tls import TlsClient
from probe.transcript import Data, Event, Party, Transcript

PORT = 5432
SERVERS = frozenset({PORT})


def packets(frames: list[Frame]) -> list[Packet]:
    return [Packet(round(frame.at * 10**9), frame.data) for frame in frames]


def test_ports_that_are_used_again_are_another_connection() -> None:
    first = Talk(isn=(1, 2)).open().send("client", RST)
    second = Talk(isn=(77, 78), at=first.at).open().say("client", b"again")
    found = connections_of(packets(first.frames + second.frames), SERVERS)
    assert [(seen.client, seen.server, len(seen.packets)) for seen in found] == [
        (40_000, PORT, 4),
        (40_000, PORT, 4),
    ]


def test_a_syn_that_is_sent_again_is_the_same_connection() -> None:
    talk = Talk().open()
    again = Frame(talk.at, talk.frames[0].data)
    (seen,) = connections_of(packets([*talk.frames, again]), SERVERS)
    assert len(seen.packets) == 4


def test_what_began_before_is_nobodys() -> None:
    talk = Talk().open().say("server", b"late")
    assert connections_of(packets(talk.frames[1:]), SERVERS) == []


def greeted() -> tuple[Handshake, bytes]:
    client = TlsClient(Attempt("control", server_name="db-1.example.test"))
    client.handshake()
    said = Event(0.0, Data(Party.CLIENT, client.drain()))
    seen = observe(Transcript("control", "192.0.2.2:5432", (said,)))
    assert seen.client_hello is not None
    return seen, seen.client_hello.random.hex().encode()


def test_the_secrets_are_those_of_the_runs_own_sessions_that_open_something() -> None:
    seen, random = greeted()
    line = b"SERVER_TRAFFIC_SECRET_0 %s aa\n" % random
    others = b"SERVER_TRAFFIC_SECRET_0 %s bb\n" % (b"00" * 32)
    exporter = b"EXPORTER_SECRET %s cc\n" % random
    assert secrets_of([seen], others + line + exporter + b"# a remark\n") == line


def test_the_file_has_each_note_at_its_first_packet_and_the_packets_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fixtures.captures.writing.version", lambda: "tcpdump 0")
    one, two = Talk(port=40_001).open(), Talk(port=40_002, at=Talk().at + 0.005).open()
    seen = connections_of(packets(two.frames + one.frames), SERVERS)
    made = pcapng([(each, f"pgprobe attempt {each.client}") for each in seen], b"secret\n")
    (place := tmp_path / "made.pcapng").write_bytes(made)
    with place.open("rb") as stream:
        reader = Reader(stream)
        read = list(reader.read())
    assert [packet.comment for packet in read] == [
        "pgprobe attempt 40001",
        "pgprobe attempt 40002",
        *[""] * 4,
    ]
    assert [packet.at for packet in read] == sorted(packet.at for packet in read)
    assert reader.secrets == [b"secret\n"]
    assert reader.problems == []


def test_where_nobody_may_sniff_it_is_said_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing() -> str:
        raise NoSnifferError("tcpdump is not installed")

    monkeypatch.setattr("fixtures.sniffer.program", nothing)
    monkeypatch.setattr("fixtures.captures.__main__.write", None)
    assert main(["ssh"]) == 3
    assert capsys.readouterr().err == "nothing can be recorded here: tcpdump is not installed\n"
