"""Captures made by others: every stated fact, where they stand beside the project."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conversations import served, write

from fixtures.shared_captures import OF_FILE, OF_STREAM, USUAL, check, check_one, stated
from probe.pcapng import Reader

HERE = pytest.mark.skipif(not USUAL.is_dir(), reason=f"no captures at {USUAL}")


@HERE
@pytest.mark.parametrize("expected", stated(USUAL), ids=lambda each: each["name"])
def test_every_stated_fact_is_right(expected: dict[str, Any]) -> None:
    assert list(check_one(USUAL / expected["name"], expected)) == []


@HERE
def test_none_is_missing_and_none_is_strange() -> None:
    assert list(check(USUAL)) == []


Change = Callable[[dict[str, Any]], object]


def complaints(tmp_path: Path, change: Change) -> list[str]:
    """Of a folder with one capture of our own, whose stated facts are changed so."""
    name = Path(write(tmp_path, served())).name
    expected: dict[str, Any] = {"name": name, "streams": [{}]}
    with (tmp_path / name).open("rb") as file:
        expected["packets"] = sum(1 for _ in Reader(file).read())
    change(expected)
    (tmp_path / "expected.json").write_text(json.dumps([expected]))
    return list(check(tmp_path))


def test_a_fact_that_is_not_stated_is_a_complaint(tmp_path: Path) -> None:
    told = complaints(tmp_path, lambda expected: None)
    assert {f"some.pcap: {key} is not stated" for key in OF_FILE - {"packets", "streams"}} <= {
        *told
    }
    assert {f"some.pcap, stream 0: {key} is not stated" for key in OF_STREAM} <= {*told}


def test_a_fact_that_differs_is_a_complaint(tmp_path: Path) -> None:
    told = complaints(tmp_path, lambda expected: expected.update(packets=99))
    assert f"some.pcap: packets is {len(served().frames)}, and 99 is stated" in told


def test_a_fact_that_nobody_checks_is_a_complaint(tmp_path: Path) -> None:
    told = complaints(tmp_path, lambda expected: expected.update(colour="green"))
    assert "some.pcap: colour is stated, and nothing here checks it" in told


def test_a_connection_that_is_not_stated_is_a_complaint(tmp_path: Path) -> None:
    told = complaints(tmp_path, lambda expected: expected.update(streams=[]))
    assert "some.pcap: 1 connections, where 0 are stated" in told


def test_a_capture_that_is_missing_or_strange_is_a_complaint(tmp_path: Path) -> None:
    told = complaints(tmp_path, lambda expected: expected.update(name="other.pcap"))
    assert told == ["some.pcap: nothing is stated about it", "other.pcap: it is not there"]


def test_a_folder_that_is_missing_or_empty_is_a_complaint(tmp_path: Path) -> None:
    assert list(check(tmp_path / "absent")) == [
        f"{tmp_path}/absent/expected.json: there is nothing"
    ]
    assert len(list(check(tmp_path))) == 1


@HERE
@pytest.mark.parametrize("expected", stated(USUAL), ids=lambda each: each["name"])
def test_one_wrong_word_is_a_complaint(expected: dict[str, Any]) -> None:
    """Each stated fact is changed in turn: none of them is passed over."""
    file = USUAL / expected["name"]
    for key in OF_FILE - {"streams"}:
        assert list(check_one(file, expected | {key: "wrong"})), key
    for number, stream in enumerate(expected["streams"]):
        for key in stream:
            streams = list(expected["streams"])
            streams[number] = stream | {key: "wrong"}
            assert list(check_one(file, expected | {"streams": streams})), key
