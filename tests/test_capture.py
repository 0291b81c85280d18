"""Capture files to transcripts: what is chosen, skipped, labelled and told."""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from conversations import asks, flights, say, served, write

from fixtures.packets import (
    ACK,
    EPOCH,
    SSL_REQUEST,
    STARTUP,
    Frame,
    Talk,
    enhanced,
    ethernet,
    interface,
    ipv4,
    pcap,
    pcapng,
    section,
    tcp,
)
from probe import gather
from probe.observer import observe
from probe.packet import Decoder, Segment
from probe.pcapng import NotACapture
from probe.sources.capture import MAX_NOTES, Capture, read_capture
from probe.transcript import Asked, Data, Party


def read(frames: list[Frame], make: Callable[..., bytes] = pcap, **options: object) -> Capture:
    return read_capture(io.BytesIO(make(frames)), name="some", **options)  # type: ignore[arg-type]


def bulky(turns: int = 300, port: int = 40_000) -> Talk:
    """A whole handshake, and a long answer."""
    talk = say(asks(port=port), flights())
    for _ in range(turns):
        talk.say("server", b"\x17\x03\x03\x05\xa0" + bytes(1_440)).send("client", ACK)
    return talk


@pytest.mark.parametrize("make", [pcap, pcapng, lambda frames: gzip.compress(pcap(frames))])
def test_a_connection_becomes_a_transcript(make: Callable[..., bytes]) -> None:
    found = read(served().frames, make)
    (row,) = found.connections
    assert (row.client, row.server, row.file) == ("192.0.2.1:40000", "192.0.2.2:5432", "some")
    assert (row.first_packet, row.packets) == (1, len(served().frames))
    transcript = row.transcript
    assert (transcript.attempt, transcript.door) == ("connection 1", "192.0.2.2:5432")
    assert (transcript.asked, transcript.started) == (None, EPOCH)
    seen = observe(transcript)
    assert (seen.server_name, seen.tls_version) == ("db-1.example.com", "1.3")
    assert not found.problems
    assert found.packets == row.packets


def test_connections_are_numbered_by_their_first_packets() -> None:
    """Also where the first ends last."""
    slow, fast = asks(port=1_001), asks(port=1_002, at=0.5)
    slow.at += 10
    found = read([*slow.frames, *fast.close().frames, *slow.close().frames[-3:]])
    assert [row.client for row in found.connections] == ["192.0.2.1:1001", "192.0.2.1:1002"]
    labels = [row.transcript.attempt for row in found.connections]
    assert labels == ["connection 1", "connection 2"]


def test_connections_are_a_sequence() -> None:
    found = read([*asks(port=1_001).frames, *asks(port=1_002, at=1).frames]).connections
    assert len(found) == 2
    assert found[-1] == found[1]
    assert list(found[:2]) == [found[0], found[1]]
    with pytest.raises(IndexError):
        found[2]


def test_connections_are_read_where_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A debugging container may have no writable file system at all."""

    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("probe.store.MAX_IN_MEMORY", 100)
    monkeypatch.setattr("probe.store.gettempdir", none)
    found = read([*asks(port=1_001).frames, *asks(port=1_002, at=1).frames]).connections
    assert [row.client for row in found] == ["192.0.2.1:1001", "192.0.2.1:1002"]


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times of the packets that were looked at."""
    times: list[float] = []
    decode = Decoder.segment

    def counted(self: Decoder, link: int, at: float, data: bytes, length: int) -> Segment | None:
        times.append(at)
        return decode(self, link, at, data, length)

    monkeypatch.setattr(Decoder, "segment", counted)
    return times


def test_the_bulk_of_a_connection_is_not_looked_at(looked_at: list[float]) -> None:
    talk = bulky()
    found = read(talk.close().frames)
    (row,) = found.connections
    assert found.packets == len(talk.frames)
    assert len(looked_at) < 200 < found.packets
    assert observe(row.transcript).ended_by is Party.CLIENT  # its end was found all the same


def test_what_is_skipped_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, looked_at: list[float]
) -> None:
    """Reading with and without the shortcut gives the same, whatever is in the way."""
    chance = random.Random(5)
    talks = [bulky(chance.randrange(60, 120), port) for port in range(1_000, 1_006)]
    again = Talk(port=1_000, isn=(5, 6), at=EPOCH + 60).open().say("client", STARTUP).close()
    http = Talk(port=1_007, to=80).open().say("client", b"GET / HTTP/1.1\r\n" * 4)
    for _ in range(90):
        http.say("server", b"x" * 900)
    frames = [frame for talk in [*talks, http] for frame in talk.frames]
    frames = sorted(frames, key=lambda frame: frame.at) + again.frames
    for make in (pcap, pcapng):
        looked_at.clear()
        quick = read(frames, make)
        most = len(looked_at)
        with monkeypatch.context() as patch:
            patch.setattr(gather, "MAX_IGNORED", 0)
            slow = read(frames, make)
        assert 2 * most < len(looked_at)
        assert list(quick.connections) == list(slow.connections)
        assert len(quick.connections) == 7


def test_directions_that_are_skipped_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "MAX_IGNORED", 3)
    talks = [bulky(70, port) for port in range(1_000, 1_010)]
    frames = sorted((f for talk in talks for f in talk.frames), key=lambda frame: frame.at)
    assert len(read(frames).connections) == 10


def test_ports_and_everything_choose() -> None:
    http = Talk(port=1, to=80).open().say("client", b"GET / HTTP/1.1\r\n\r\n").close()
    frames = [*asks().frames, *asks(port=40_001, to=6_432, at=1).frames, *http.frames]
    assert [row.server[-4:] for row in read(frames).connections] == ["5432", "6432"]
    assert [row.server[-4:] for row in read(frames, ports=[6_432]).connections] == ["6432"]
    assert len(read(frames, everything=True).connections) == 3


@pytest.mark.parametrize(("cap", "most"), [("MAX_CONNECTIONS", 2), ("MAX_KEPT", 600)])
def test_more_connections_than_are_kept_are_counted(
    monkeypatch: pytest.MonkeyPatch, cap: str, most: int
) -> None:
    monkeypatch.setattr(f"probe.store.{cap}", most)
    frames = [f for n in range(5) for f in asks(port=1_000 + n, at=n).close().frames]
    found = read(frames)
    assert [row.client for row in found.connections] == ["192.0.2.1:1000", "192.0.2.1:1001"]
    assert found.problems == (
        "more connections than are kept: 3 were left out; --port, or a part of the file, has fewer",
    )


# --- what a recording of pgprobe's own says beside the packets --------------------------------


def commented(text: str) -> Capture:
    first, *rest = asks().frames
    data = section() + interface() + enhanced(first, 0, (1, text.encode()))
    return read_capture(io.BytesIO(data + b"".join(enhanced(frame) for frame in rest)), name="x")


@pytest.mark.parametrize(
    ("text", "attempt", "asked"),
    [
        ("pgprobe attempt ssl-request asked=target", "ssl-request", Asked.TARGET),
        ("pgprobe attempt unknown-name asked=unknown", "unknown-name", Asked.UNKNOWN),
        ("pgprobe attempt direct", "direct", None),
        ("pgprobe attempt direct asked=nonsense", "direct", None),
        ("somebody else's comment", "connection 1", None),
        ("", "connection 1", None),
    ],
)
def test_a_recording_names_its_attempts(text: str, attempt: str, asked: Asked | None) -> None:
    (row,) = commented(text).connections
    assert (row.transcript.attempt, row.transcript.asked) == (attempt, asked)


# --- what cannot be read ----------------------------------------------------------------------


def test_problems_of_file_packets_and_streams_are_told_together() -> None:
    cut = ethernet(ipv4("192.0.2.1", "192.0.2.2", tcp(1, 2, 3, 4, ACK)))[:40]
    data = pcap([*asks().frames, Frame(EPOCH + 1, cut, 54)])
    found = read_capture(io.BytesIO(data + b"half a header"), name="x")
    assert len(found.connections) == 1
    assert [problem.partition(":")[0] for problem in found.problems] == [
        f"the file ends within packet {len(asks().frames) + 2}",
        "1 packet",
    ]


def test_kinds_of_problems_are_bounded() -> None:
    links = b"".join(interface(60_000 + n) for n in range(100))
    packets = b"".join(enhanced(Frame(EPOCH, b"x" * 60), n) for n in range(100))
    found = read_capture(io.BytesIO(section() + links + packets), name="x")
    assert len(found.problems) == MAX_NOTES


def test_a_file_that_cannot_be_opened_raises(tmp_path: Path) -> None:
    for name in (tmp_path / "absent", tmp_path):
        with pytest.raises(OSError, match=r"No such file|directory"):
            read_capture(name)


def test_what_is_no_capture_raises(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("hello")
    with pytest.raises(NotACapture):
        read_capture(file)


def test_every_truncation_gives_a_beginning_of_what_was_said() -> None:
    frames = say(asks(), flights()).frames
    whole = pcap(frames)
    told = Data(Party.CLIENT, SSL_REQUEST)
    for cut in range(24, len(whole), 7):
        found = read_capture(io.BytesIO(whole[:cut]), name="x")
        for row in found.connections:
            facts = [event.fact for event in row.transcript.events]
            assert told in facts or not any(isinstance(fact, Data) for fact in facts)
    every = [Frame(frame.at, frame.data[:size]) for frame in frames for size in range(0, 60, 3)]
    assert read(every).packets == len(every)


def test_a_name_is_the_files_or_the_one_that_is_given(tmp_path: Path) -> None:
    file = write(tmp_path, asks())
    assert read_capture(file).file == file
    assert read_capture(Path(file), name="other").connections[0].file == "other"
