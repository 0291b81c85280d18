"""Reading side by side: by default where it is of use, and alone where there can be no process."""

from __future__ import annotations

import errno
import os
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest

from fixtures.packets import SSL_REQUEST, Talk, pcap
from probe import split
from probe.commands import read
from probe.processes import USEFUL, NoProcesses, pool, useful
from probe.sources import capture
from probe.sources.capture import read_capture

CAPTURES = [
    Talk(port=40_000 + n, at=1_700_000_000 + n).open().say("client", SSL_REQUEST).close()
    for n in range(50)
]


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A capture that is worth splitting."""
    monkeypatch.setattr(split, "LEAST", 1_000)
    monkeypatch.setattr(read, "useful", lambda: 2)
    file = tmp_path / "large.pcap"
    file.write_bytes(pcap([frame for talk in CAPTURES for frame in talk.frames]))
    return str(file)


def load(*files: str, jobs: int | None = None) -> list[int]:
    captures = read.load(files, ports=None, everything=False, jobs=jobs)
    return [len(each.connections) for each in captures]


def die(*_: Any) -> NoReturn:
    os._exit(9)


def test_as_many_as_there_are_cores_are_useful_and_never_more_than_eight() -> None:
    assert 1 <= useful() <= min(USEFUL, os.cpu_count() or 1)


def test_a_large_capture_is_read_by_several_unless_told_otherwise(
    large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def noting(*args: Any, jobs: int, **rest: Any) -> capture.Capture:
        asked.append(jobs)
        return read_capture(*args, jobs=jobs, **rest)

    monkeypatch.setattr(read, "read_capture", noting)
    assert load(large) == load(large, jobs=1) == [50]
    assert asked == [2, 1]


def test_small_captures_are_read_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "pool", lambda count: pytest.fail("a pool was asked for"))
    monkeypatch.setattr(capture, "pool", lambda count: pytest.fail("a pool was asked for"))
    small = tmp_path / "small.pcap"
    small.write_bytes(pcap(CAPTURES[0].frames))
    assert load(str(small)) == [1]
    assert load(str(small), str(small)) == [1, 1]


def test_several_large_captures_are_read_side_by_side(
    large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def noting(count: int) -> Any:
        asked.append(count)
        return pool(count)

    monkeypatch.setattr(read, "pool", noting)
    assert load(large, large) == [50, 50]
    assert asked == [2]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSYS, "no semaphores"),
        BlockingIOError(errno.EAGAIN, "too many processes"),
        NotImplementedError("no semaphores"),
        ImportError("no _multiprocessing"),
        BrokenExecutor("one of them died"),
    ],
)
def test_what_the_system_denies_is_no_processes(error: Exception) -> None:
    with pytest.raises(NoProcesses), pool(1):
        raise error


def test_where_a_process_dies_the_capture_is_read_all_the_same(
    large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "_read_later", die)
    assert len(read_capture(large, jobs=2).connections) == 50
    with pytest.raises(NoProcesses), pool(1) as one:
        one.submit(die).result()


def test_where_there_are_no_processes_several_captures_are_read_in_turn(
    large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(count: int) -> NoReturn:
        raise NoProcesses

    monkeypatch.setattr(read, "pool", none)
    monkeypatch.setattr(capture, "pool", none)
    assert load(large, large) == [50, 50]
    assert load(large) == [50]
