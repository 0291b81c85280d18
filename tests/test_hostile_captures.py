"""Hostile captures: a share of what ``make fuzz`` does at length."""

from __future__ import annotations

import itertools

import pytest

from fixtures.fuzz_read import FLOODS, endure, made, run, seeds, try_one

SHARE = 3_000
MEMORY = 256  # MiB


def test_no_mutated_capture_crashes_or_hangs() -> None:
    outcome = run(0, SHARE)
    assert outcome.failures == []
    assert sum(outcome.ends.values()) == SHARE
    assert outcome.ends["some connections"] > SHARE // 5
    assert outcome.ends["problems told, some connections"] > SHARE // 5
    assert outcome.ends["not a capture"]


def test_a_case_follows_from_its_number_alone() -> None:
    assert [made(case) for case in range(50)] == [made(case) for case in range(50)]
    assert len({made(case) for case in range(50)}) > 45


def test_a_failure_is_told_with_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(case: int) -> str:
        if case == 3:
            raise IndexError("found it")
        return try_one(case)

    monkeypatch.setattr("fixtures.fuzz_read.try_one", fails)
    ((case, why),) = run(0, 5).failures
    assert case == 3
    assert "found it" in why


@pytest.mark.parametrize("number", range(len(seeds())))
def test_every_truncation_of_every_kind_of_capture(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = seeds()[number]
    for cut in itertools.chain(range(0, 400), range(400, len(whole), 11)):
        monkeypatch.setattr("fixtures.fuzz_read.made", lambda case, cut=cut: whole[:cut])
        assert try_one(3 * 17)


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_endured_in_bounded_memory(name: str) -> None:
    done = endure(name, 20_000, 1)
    assert done.memory < MEMORY
    assert done.says
