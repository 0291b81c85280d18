"""One file read in parts: exactly what reading it in one go gives, wherever it is cut."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conversations import flights
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.packets import (
    ACK,
    EPOCH,
    FIN,
    RST,
    SSL_REQUEST,
    STARTUP,
    SYN,
    Frame,
    Talk,
    block,
    enhanced,
    ethernet,
    interface,
    ipv4,
    pcap,
    pcapng,
    section,
    tcp,
)
from probe import gather, split
from probe.digest import Digester
from probe.sources import capture
from probe.sources.capture import Capture, read_capture

PASSED = flights()
Make = Callable[[Sequence[Frame]], bytes]


class Here:
    """In place of other processes: reads a part at once, in this one."""

    read = 0

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *raised: object) -> None:
        return

    def shutdown(self, **how: object) -> None:
        return

    def submit(self, call: Callable[..., object], *args: object) -> Here:
        Here.read += 1
        self.done = call(*args)
        later = Here(1)
        later.done = self.done
        return later

    def result(self) -> object:
        return self.done


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small captures have parts."""
    monkeypatch.setattr(split, "LEAST", 2_000)
    monkeypatch.setattr(split, "CHAIN", 4)
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", Here)


def as_told(found: Capture) -> tuple[object, ...]:
    return (
        list(found.connections),
        list(found.digests),
        found.secrets,
        found.problems,
        found.packets,
    )


def compared(file: Path, data: bytes, jobs: int, **options: object) -> int:
    """Read it both ways; gives the number of parts that were not read in one go."""
    file.write_bytes(data)
    alone = read_capture(file, digest=Digester(), **options)  # type: ignore[arg-type]
    gone_back = 0
    read = capture._read

    def counted(*args: object) -> Capture:
        nonlocal gone_back
        gone_back += 1
        return read(*args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture, "_read", counted)
        Here.read = 0
        together = read_capture(file, jobs=jobs, digest=Digester(), **options)  # type: ignore[arg-type]
    assert as_told(together) == as_told(alone)
    return 0 if gone_back else Here.read


# --- traffic ----------------------------------------------------------------------------------


def connection(chance: random.Random, number: int) -> list[Frame]:
    """One of many kinds, at some time; its bulk is long."""
    talk = Talk(
        f"192.0.2.{number % 7 + 1}",
        port=40_000 + number % 23,  # ports are used again
        to=chance.choice((5_432, 5_432, 6_432, 80)),
        isn=(chance.randrange(2**32), chance.randrange(2**32)),
        at=EPOCH + chance.random() * 20,
        step=chance.choice((0.0005, 0.01, 0.2)),
    )
    kind = chance.randrange(8)
    if kind == 0:  # nobody answers
        for _ in range(chance.randrange(1, 4)):
            talk.send("client", SYN, seq=7)
            talk.at += 1
        return talk.frames
    talk.open()
    if kind == 1:  # says nothing, or another protocol
        talk.say("client", chance.choice((b"GET / HTTP/1.1\r\n\r\n", STARTUP)))
    else:
        talk.say("client", SSL_REQUEST).say("server", b"S")
        for who, flight in PASSED[: chance.randrange(1, len(PASSED) + 1)]:
            talk.say(who, flight, dropped=chance.random() < 0.03)
            talk.send("server" if who == "client" else "client", ACK)
    for _ in range(chance.choice((0, 0, 10, 120))):
        talk.say(chance.choice(("client", "server")), b"\x17\x03\x03\0\x40" + bytes(64))
        if chance.random() < 0.5:
            talk.send("client", ACK)
    if chance.random() < 0.1:
        talk.frames += talk.frames[-3:]  # captured twice
    if kind > 3:
        talk.send("server", RST, ttl=9) if kind == 4 else talk.close()
    if chance.random() < 0.3:
        talk.say("server", b"late")
    return talk.frames


def traffic(seed: int, count: int) -> list[Frame]:
    chance = random.Random(seed)
    frames = [frame for n in range(count) for frame in connection(chance, n)]
    frames.sort(key=lambda frame: frame.at)
    return frames[chance.randrange(5) :]


@pytest.mark.parametrize("make", [pcap, pcapng])
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), jobs=st.integers(2, 9), everything=st.booleans())
def test_any_number_of_parts_gives_what_one_gives(
    tmp_path_factory: pytest.TempPathFactory, make: Make, seed: int, jobs: int, everything: bool
) -> None:
    file = tmp_path_factory.mktemp("parts") / "some"
    compared(file, make(traffic(seed, 25)), jobs, everything=everything)


@pytest.mark.parametrize("make", [pcap, pcapng])
def test_parts_are_nearly_always_enough(tmp_path: Path, make: Make) -> None:
    """Else the test above would compare one way of reading with itself."""
    parts = [compared(tmp_path / "some", make(traffic(seed, 25)), 3) for seed in range(30)]
    assert sum(part == 2 for part in parts) > 20


def test_several_orders_resolutions_and_ports(tmp_path: Path) -> None:
    frames = traffic(1, 40)
    for data in (pcap(frames, order=">", nano=True), pcapng(frames, order=">")):
        assert compared(tmp_path / "some", data, 4) == 3
    assert compared(tmp_path / "some", pcap(frames), 4, ports=[6_432]) == 3


def test_every_place_of_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through all packets of a few connections, one of them long."""
    monkeypatch.setattr(split, "LEAST", 1)
    talks = [Talk(port=port, isn=(port, 9)).open() for port in (1, 2, 3)]
    for talk in talks:
        talk.say("client", SSL_REQUEST).say("server", b"S")
        for who, flight in PASSED:
            talk.say(who, flight[:300]).send("server" if who == "client" else "client", ACK)
    for _ in range(30):
        talks[0].say("client", b"\x17\x03\x03\0\5hello").say("server", b"x" * 50)
    frames = sorted((f for talk in talks for f in talk.close().frames), key=lambda f: f.at)
    data, sizes = pcap(frames), [len(pcap(frames[:n])) for n in range(1, len(frames))]
    file = tmp_path / "some"
    for size in sizes:
        with monkeypatch.context() as patch:
            head = data[:24]
            parts = [split.Part(head, 24, size), split.Part(head, size, len(data))]
            patch.setattr(capture, "split", lambda file, jobs, parts=parts: parts)
            assert compared(file, data, 2) == 1


# --- what makes it go back to reading in one go -----------------------------------------------


def enough(count: int = 40) -> list[Frame]:
    talks = [Talk(port=n + 1, isn=(n, n)).open().say("client", SSL_REQUEST) for n in range(count)]
    for number, talk in enumerate(talks):
        talk.say("server", b"S").close()
        talk.frames = [f._replace(at=f.at + number) for f in talk.frames]
    return [frame for talk in talks for frame in talk.frames]


def fragments() -> list[Frame]:
    whole = tcp(9, 5_432, 1, 1, ACK, SSL_REQUEST)
    return [
        Frame(EPOCH + 25, ethernet(ipv4("192.0.2.1", "192.0.2.2", part, fragment=at)))
        for part, at in ((whole[:16], 0x2000), (whole[16:], 2))
    ]


def odd(*frames: Frame) -> list[Frame]:
    return sorted([*enough(), *frames], key=lambda frame: frame.at)


SECRETS = block(10, b"KSLT" + b"\4\0\0\0" + b"none")
DEPENDENT: dict[str, bytes] = {
    "it ends within a packet": pcap(enough())[:-3],
    "fragments": pcap(odd(*fragments())),
    "packets too short for their headers": pcap(odd(Frame(EPOCH + 20, enough()[0].data[:30], 60))),
    "an interface in the middle": pcapng(enough()) + interface(101) + enhanced(enough()[0]),
    "a section in the middle": pcapng(enough()) + pcapng(enough(3)),
    "secrets in the middle": pcapng(enough()) + SECRETS + enhanced(enough()[-1]),
    "packets without a time": pcapng(enough()) + block(3, b"\4\0\0\0" + b"abcd"),
    "times that go back": pcap(enough() + enough()),
    "times that go back at once": pcap([f._replace(at=EPOCH - f.at % 100) for f in enough()]),
}


@pytest.mark.parametrize("why", DEPENDENT)
def test_parts_that_depend_on_each_other_are_read_in_one_go(tmp_path: Path, why: str) -> None:
    assert compared(tmp_path / "some", DEPENDENT[why], 3) == 0


@pytest.mark.parametrize("cap", ["MAX_FLOWS", "MAX_HELD", "MAX_LEFT_OUT", "MAX_CONNECTIONS"])
def test_where_something_has_to_make_room_it_is_read_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: str
) -> None:
    small = {"MAX_FLOWS": 5, "MAX_HELD": 20_000, "MAX_LEFT_OUT": 10, "MAX_CONNECTIONS": 10}
    for module in ("probe.stream", "probe.store", "probe.sources.capture"):
        monkeypatch.setattr(f"{module}.{cap}", small[cap], raising=False)
    assert compared(tmp_path / "some", pcap(odd(*enough())), 3) == 0


@pytest.mark.parametrize("cap", ["MAX_NOTED", "MAX_TRACED"])
def test_a_trace_that_is_too_long_is_given_up_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: str
) -> None:
    monkeypatch.setattr(gather, cap, 10)
    traces: list[gather.Trace] = []

    class Kept(gather.Trace):
        def __init__(self, share: int) -> None:
            super().__init__(share)
            traces.append(self)

    monkeypatch.setattr(capture, "Trace", Kept)
    assert compared(tmp_path / "some", pcap(enough()), 3) == 0
    assert len(traces) == 2
    for trace in traces:
        assert (trace.complete, list(trace.ends()), list(trace.of([]))) == (False, [], [])


@pytest.mark.parametrize("patience", [0, 1, 3, 1_000])
def test_patience_with_connections_without_a_beginning_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    monkeypatch.setattr(gather, "PATIENCE", patience)
    for seed in range(10):
        compared(tmp_path / "some", pcap(traffic(seed, 30)), 4)


# --- where a file may be cut ------------------------------------------------------------------


def cuts(data: bytes, jobs: int) -> list[int]:
    parts = split.split(io.BytesIO(data), jobs)
    assert parts[0].begins == len(parts[0].head)
    assert parts[-1].ends == len(data)
    borders = [part.ends for part in parts[:-1]]
    assert borders == [part.begins for part in parts[1:]]
    return borders


@pytest.mark.parametrize("make", [pcap, pcapng])
@pytest.mark.parametrize("jobs", [2, 3, 8])
def test_cuts_are_where_packets_begin(make: Make, jobs: int) -> None:
    frames = enough(200)
    borders = cuts(make(frames), jobs)
    assert len(borders) == jobs - 1
    assert set(borders) <= {len(make(frames[:n])) for n in range(len(frames))}


def test_payload_that_looks_like_packets_is_found_out(tmp_path: Path) -> None:
    """A capture within a capture: the cut may be wrong, and the reading never is."""
    inner = pcap([Frame(EPOCH, bytes(40))] * 30)[24:]
    talk = Talk(port=9, to=80).open()
    for _ in range(40):
        talk.say("client", b"x" * 7 + inner)
    for make in (pcap, pcapng):
        compared(tmp_path / "some", make([*enough(5), *talk.frames]), 3)


def test_what_cannot_be_cut_is_one_part() -> None:
    noise = random.Random(1).randbytes(9_000)
    for data in (b"", noise, pcap([]), pcap([]) + noise, section(), section() + noise):
        assert cuts(data, 4) == []


def test_small_files_are_not_worth_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "LEAST", 10**6)
    assert cuts(pcap(enough()), 4) == []


def test_real_processes_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    big = Talk(port=7).open().say("client", SSL_REQUEST).say("server", b"S")
    for _ in range(13_000):
        big.say("server", b"x" * 1_400)
    file = tmp_path / "some"
    file.write_bytes(pcap([*big.frames, *(f._replace(at=f.at + 400) for f in enough())]))
    assert file.stat().st_size > 2 * split.LEAST
    assert as_told(read_capture(file, jobs=2)) == as_told(read_capture(file))


def test_an_end_of_a_connection_in_another_part_is_found(tmp_path: Path) -> None:
    talk = Talk(port=7).open().say("client", SSL_REQUEST).say("server", b"S")
    for _ in range(300):
        talk.say("server", b"x" * 400)
    talk.send("server", FIN | ACK)
    assert compared(tmp_path / "some", pcap(talk.frames), 3) == 2
