"""The pace of a run, as a conversation with a clock that we turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.attempt import Attempt, Needs, everything, standard
from probe.handshake import Opening
from probe.schedule import (
    AGAIN,
    BREATH,
    HEAD_START,
    IN_FLIGHT,
    LEAST_PATIENCE,
    PAST_STARTUP,
    PATIENCE_FACTOR,
    Ended,
    Schedule,
)
from probe.transcript import Layer

TIMEOUT = 7.0
CONTROL = Attempt("control", server_name="db-1.example.com")
DIRECT = replace(CONTROL, name="direct", opening=Opening.DIRECT_TLS)
SILENT = replace(CONTROL, name="silent", opening=Opening.NOTHING)
OTHERS = [replace(CONTROL, name=name, user=name) for name in "abcdef"]
AFTER_S = replace(CONTROL, name="after-s", needs=Needs.SSL_ANSWER)
AFTER_TLS = replace(CONTROL, name="after-tls", needs=Needs.TLS)
IF_NO_BYTE = replace(CONTROL, name="if-no-byte", needs=Needs.NO_BYTE)
FULL = b"SFATAL\0VFATAL\0C53300\0Msorry, too many clients already\0"


class Run:
    """A schedule, and the attempts that it has started by name."""

    def __init__(self, *attempts: Attempt, timeout: float = TIMEOUT) -> None:
        self.schedule = Schedule(attempts, timeout)
        self.started: dict[str, Attempt] = {}
        self.now = 0.0

    def starts(self, at: float | None = None) -> list[str]:
        """The names of those that start at this time, or now."""
        self.now = self.now if at is None else at
        names = []
        while attempt := self.schedule.next(self.now):
            self.schedule.started(attempt)
            self.started[attempt.name] = attempt
            names.append(attempt.name)
        return names

    def hears(self, name: str, data: bytes = b"S", waited: float = 0.01) -> None:
        self.schedule.heard(self.started[name], data, waited, self.now)

    def establishes(self, name: str) -> None:
        self.schedule.established(self.started[name])

    def passes_startup(self, name: str) -> None:
        self.schedule.passed_startup(self.started[name])

    def ends(self, name: str, how: Ended = Ended.LEFT) -> None:
        self.schedule.ended(self.started[name], how)

    def gets_through(self, name: str, waited: float = 0.01) -> None:
        self.hears(name, waited=waited)
        self.establishes(name)
        self.ends(name)

    def patience(self, name: str) -> float:
        return self.schedule.patience(self.started[name])

    @property
    def finished(self) -> bool:
        return self.schedule.finished

    @property
    def left_out(self) -> list[str]:
        return [name for name, _ in self.schedule.not_made]


def through(*others: Attempt) -> Run:
    """A run whose control got through."""
    run = Run(CONTROL, *others)
    assert run.starts(0.0) == ["control"]
    run.gets_through("control")
    return run


def closed(*others: Attempt) -> Run:
    """A run whose control was closed without a byte."""
    run = Run(CONTROL, *others)
    assert run.starts(0.0) == ["control"]
    run.ends("control", Ended.CLOSED)
    return run


# --- the control, first and last ----------------------------------------------------------------


def test_the_control_starts_alone() -> None:
    run = Run(CONTROL, *OTHERS)
    assert run.starts(0.0) == ["control"]
    assert run.starts(HEAD_START / 2) == []


def test_a_single_attempt_is_made_once() -> None:
    run = Run(CONTROL)
    assert run.starts(0.0) == ["control"]
    assert not run.finished
    run.gets_through("control")
    assert run.starts() == []
    assert run.finished


def test_the_others_start_when_the_control_has_ended() -> None:
    assert through(*OTHERS[:2]).starts(0.02) == ["a", "b"]


def test_the_others_start_after_a_head_start_without_a_byte() -> None:
    run = Run(CONTROL, *OTHERS[:2])
    run.starts(0.0)
    assert run.schedule.wakes_at == HEAD_START
    assert run.starts(HEAD_START - 0.001) == []
    assert run.starts(HEAD_START) == ["a", "b"]


def test_each_byte_gives_the_control_a_new_head_start() -> None:
    run = Run(CONTROL, *OTHERS[:2])
    run.starts(0.0)
    run.starts(0.2)
    run.hears("control")
    assert run.schedule.wakes_at == 0.2 + HEAD_START
    assert run.starts(HEAD_START) == []
    assert run.starts(0.2 + HEAD_START) == ["a", "b"]


def test_the_last_control_waits_for_all_others() -> None:
    run = through(*OTHERS[:2])
    assert run.starts(0.1) == ["a", "b"]
    run.ends("a")
    assert run.starts(0.2) == []
    run.ends("b")
    assert run.starts(0.3) == ["control-again"]
    assert not run.finished
    run.ends("control-again")
    assert run.starts(0.4) == []
    assert run.finished
    assert run.left_out == []


def test_the_last_control_waits_until_silence_has_ended() -> None:
    run = through(SILENT, OTHERS[0])
    run.starts(0.1)
    run.ends("a")
    assert run.starts(0.2) == []
    run.ends("silent", Ended.SILENT)
    assert run.starts(0.2) == ["control-again"]


@pytest.mark.parametrize("how", [Ended.CLOSED, Ended.SILENT])
def test_a_control_without_a_byte_is_not_made_again(how: Ended) -> None:
    run = Run(CONTROL, OTHERS[0])
    run.starts(0.0)
    run.ends("control", how)
    assert run.starts(0.1) == ["a"]
    run.ends("a", how)
    assert run.starts(0.2) == []
    assert run.finished


def test_the_last_control_says_what_the_first_said() -> None:
    run = through(OTHERS[0])
    run.starts(0.1)
    run.ends("a")
    run.starts(0.2)
    again = run.started["control-again"]
    assert replace(again, name="control", needs=Needs.NOTHING) == CONTROL


# --- how many at once ---------------------------------------------------------------------------


def test_no_more_than_a_few_are_in_flight() -> None:
    run = through(*OTHERS)
    assert len(run.starts(0.1)) == IN_FLIGHT == 4
    run.ends("a")
    run.ends("c")
    assert run.starts(0.2) == ["e", "f"]


def test_a_control_that_still_waits_is_one_of_them() -> None:
    run = Run(CONTROL, *OTHERS)
    run.starts(0.0)
    assert run.starts(1.0) == ["a", "b", "c"]


def test_no_more_than_two_are_past_startup() -> None:
    run = through(*OTHERS)
    run.starts(0.1)
    assert PAST_STARTUP == 2
    run.passes_startup("a")
    assert run.schedule.may_pass_startup()
    run.passes_startup("b")
    assert not run.schedule.may_pass_startup()
    run.ends("a")
    assert run.schedule.may_pass_startup()


# --- what is left out ---------------------------------------------------------------------------


@pytest.mark.parametrize("data", [FULL, b"E\0\0\0\x3c" + FULL])
def test_too_many_connections_stops_the_run(data: bytes) -> None:
    run = Run(CONTROL, *OTHERS[:2])
    run.starts(0.0)
    run.hears("control")
    run.establishes("control")
    for cut in (data[:-3], data[-3:]):  # wherever a segment ends
        run.schedule.said(CONTROL, cut, Layer.TLS)
    run.ends("control")
    assert run.starts(0.1) == []
    assert run.finished
    assert run.left_out == ["a", "b", "control-again"]
    assert all("53300" in why for _, why in run.schedule.not_made)


def test_too_many_connections_in_clear_stops_it_too() -> None:
    run = through(*OTHERS)
    run.starts(0.1)
    run.hears("a", FULL)
    for name in "abcd":
        run.ends(name)
    assert run.starts(0.2) == []
    assert run.left_out == ["e", "f", "control-again"]


def test_without_a_connection_nothing_else_is_tried() -> None:
    run = Run(CONTROL, SILENT, *OTHERS[:2])
    run.starts(0.0)
    run.ends("control", Ended.NOT_CONNECTED)
    assert run.starts(0.1) == []
    assert run.finished
    assert run.left_out == ["silent", "a", "b"]


def test_what_needs_the_s_starts_once_it_has_come() -> None:
    run = Run(CONTROL, AFTER_S)
    run.starts(0.0)
    assert run.starts(1.0) == []
    run.hears("control", b"S")
    assert run.starts(2.0) == ["after-s"]


@pytest.mark.parametrize("answer", [b"N", b"E\0\0\0", b"HTTP/1.1 400"])
def test_what_needs_the_s_is_left_out_after_another_answer(answer: bytes) -> None:
    run = Run(CONTROL, AFTER_S, AFTER_TLS, OTHERS[0])
    run.starts(0.0)
    run.hears("control", answer)
    run.ends("control")
    assert run.starts(0.1) == ["a"]
    assert run.left_out == ["after-s", "after-tls"]


def test_what_needs_tls_is_left_out_when_the_handshake_broke() -> None:
    run = Run(CONTROL, AFTER_S, AFTER_TLS)
    run.starts(0.0)
    run.hears("control", b"S")
    run.ends("control", Ended.CLOSED)
    assert run.starts(0.1) == ["after-s"]
    assert run.schedule.not_made == [("after-tls", "the plain TLS handshake did not finish")]


def test_what_needs_tls_is_made_when_the_handshake_finished() -> None:
    assert through(AFTER_TLS).starts(0.1) == ["after-tls"]


def test_behind_a_direct_control_the_first_plain_request_is_asked() -> None:
    control = replace(CONTROL, opening=Opening.DIRECT_TLS)
    plain = replace(CONTROL, name="ssl-request")
    run = Run(control, plain, AFTER_S, AFTER_TLS)
    run.starts(0.0)
    run.hears("control", b"\x16\x03\x03")
    run.establishes("control")
    run.ends("control")
    assert run.starts(0.1)[0] == "ssl-request"
    run.hears("ssl-request", b"S")
    assert run.starts(0.2) == ["after-s"]


def test_what_needs_a_mute_close_is_made_only_then() -> None:
    assert closed(IF_NO_BYTE).starts(0.1) == ["if-no-byte"]
    run = through(IF_NO_BYTE, OTHERS[0])
    assert run.starts(0.1) == ["a"]
    run.ends("a")
    run.starts(0.2)
    run.ends("control-again")
    assert run.finished
    assert run.left_out == []


def test_at_a_deaf_endpoint_nothing_more_is_tried_once_both_openings_were_left_unheard() -> None:
    run = Run(CONTROL, DIRECT, SILENT, *OTHERS[:3])
    run.starts(0.0)
    assert run.starts(HEAD_START) == ["direct", "silent", "a"]
    run.ends("control", Ended.SILENT)
    assert run.starts(TIMEOUT) == []
    for name in ("direct", "silent", "a"):
        run.ends(name, Ended.SILENT)
    assert run.starts(TIMEOUT + HEAD_START) == []
    assert run.finished
    assert run.left_out == ["b", "c"]


def test_an_endpoint_that_answers_somebody_is_not_deaf() -> None:
    run = Run(CONTROL, DIRECT, *OTHERS[:4])
    run.starts(0.0)
    run.starts(HEAD_START)
    run.hears("direct", b"\x16\x03\x03")
    run.ends("direct")
    run.ends("control", Ended.SILENT)
    assert run.starts(TIMEOUT)[0] == "c"


def test_cut_off_leaves_out_all_that_waits() -> None:
    run = through(*OTHERS[:2])
    run.schedule.cut_off("no time")
    assert run.schedule.not_made == [
        ("a", "no time"),
        ("b", "no time"),
        ("control-again", "no time"),
    ]
    assert run.starts(0.1) == []
    assert run.finished


# --- patience -----------------------------------------------------------------------------------


def test_the_control_may_take_all_its_time() -> None:
    run = Run(CONTROL, *OTHERS)
    run.starts(0.0)
    assert run.patience("control") == TIMEOUT


def test_behind_a_fast_control_the_others_get_the_least_patience() -> None:
    run = through(*OTHERS)
    run.starts(0.1)
    assert run.patience("a") == LEAST_PATIENCE


def test_behind_a_slow_control_the_others_get_a_multiple_of_its_longest_wait() -> None:
    run = Run(CONTROL, *OTHERS)
    run.starts(0.0)
    run.hears("control", waited=0.2)
    run.hears("control", waited=0.1)
    run.establishes("control")
    run.ends("control")
    run.starts(0.3)
    assert run.patience("a") == pytest.approx(0.2 * PATIENCE_FACTOR)


def test_patience_is_never_longer_than_the_time_out() -> None:
    run = Run(CONTROL, *OTHERS, timeout=0.4)
    run.starts(0.0)
    run.gets_through("control", waited=0.3)
    run.starts(0.5)
    assert run.patience("a") == 0.4


@pytest.mark.parametrize("how", [Ended.CLOSED, Ended.SILENT])
def test_behind_a_control_that_did_not_get_through_the_others_have_all_time(how: Ended) -> None:
    run = Run(CONTROL, *OTHERS)
    run.starts(0.0)
    run.hears("control")
    run.ends("control", how)
    run.starts(0.1)
    assert run.patience("a") == TIMEOUT


def test_silence_listens_while_others_run_and_no_longer_where_somebody_was_heard() -> None:
    run = through(SILENT, OTHERS[0])
    run.starts(0.1)
    assert run.patience("silent") == TIMEOUT
    run.ends("a")
    assert run.starts(0.2) == []
    assert run.patience("silent") == 0.0


def test_silence_listens_to_the_end_where_nobody_was_heard() -> None:
    run = closed(SILENT, OTHERS[0])
    run.starts(0.1)
    run.ends("a", Ended.CLOSED)
    run.starts(0.2)
    assert run.patience("silent") == TIMEOUT


# --- any run ------------------------------------------------------------------------------------

SETS = [
    standard(CONTROL, ["db-2.example.com"]),
    everything(CONTROL),
    standard(replace(CONTROL, opening=Opening.DIRECT_TLS)),
    (CONTROL, SILENT, AFTER_S, AFTER_TLS, IF_NO_BYTE),
]
ENDINGS = st.sampled_from([Ended.CLOSED, Ended.SILENT, Ended.LEFT, Ended.LEFT, Ended.LEFT])
ANSWERS = st.sampled_from([b"", b"S", b"S", b"N", b"\x16\x03\x03", FULL])


@given(st.sampled_from(SETS), st.data())
def test_however_it_goes_a_run_ends_and_every_attempt_is_made_or_accounted_for(
    attempts: Sequence[Attempt], data: st.DataObject
) -> None:
    run = Run(*attempts)
    running: list[str] = []
    for _ in range(200):
        running += run.starts(run.now + 1.0)
        assert len(running) <= IN_FLIGHT
        if run.finished:
            break
        assert running, "nothing runs, nothing starts, and it is not finished"
        name = running.pop(data.draw(st.integers(0, len(running) - 1)))
        if answer := data.draw(ANSWERS):
            run.hears(name, answer)
            if data.draw(st.booleans()):
                run.establishes(name)
        run.ends(name, data.draw(ENDINGS))
    assert run.finished
    assert not running
    silently = {"proxy-header", "if-no-byte", "control-again"}
    names = {attempt.name for attempt in attempts} - silently
    made = {name.removesuffix("-again") for name in (*run.started, *run.left_out)}
    assert names == made - silently
    assert not set(run.started) & set(run.left_out)


def test_when_the_last_control_is_dropped_the_others_still_run_side_by_side() -> None:
    run = Run(CONTROL, *OTHERS[:2])
    run.starts(0)
    run.ends("control", Ended.CLOSED)
    assert run.starts(0.1) == [other.name for other in OTHERS[:2]]


def test_attempts_that_stand_on_an_sslrequest_that_nobody_makes_are_not_made() -> None:
    run = Run(replace(CONTROL, opening=Opening.DIRECT_TLS), AFTER_S)
    run.starts(0)
    run.ends("control", Ended.LEFT)
    run.starts(0.1)
    assert AFTER_S.name in dict(run.schedule.not_made)


# --- what is made twice ---------------------------------------------------------------------------

TWICE = [replace(CONTROL, name=name, user=name, twice=True) for name in ("x", "y")]


def test_what_is_closed_without_a_word_is_made_once_more_by_itself() -> None:
    run = through(*TWICE, *OTHERS[:1])
    assert run.starts(0.1) == ["x", "y", "a"]
    run.ends("x", Ended.CLOSED)
    run.hears("y")
    run.ends("y", Ended.CLOSED)
    assert run.starts(0.2) == []
    run.gets_through("a")
    assert run.starts(0.3) == []
    assert run.schedule.wakes_at == 0.3 + BREATH
    assert run.starts(0.3 + BREATH) == ["x-again"]
    run.ends("x-again", Ended.CLOSED)
    assert run.starts(1.0) == []
    assert run.starts(1.0 + BREATH) == ["y-again"]
    run.gets_through("y-again")
    assert run.starts(1.2) == ["control-again"]
    run.gets_through("control-again")
    assert run.finished


@pytest.mark.parametrize(
    ("answers", "how"),
    [
        (0, Ended.SILENT),  # which would cost as long again
        (1, Ended.LEFT),
        (2, Ended.CLOSED),  # with words: an alert, say
    ],
)
def test_what_got_an_answer_in_words_or_none_in_its_time_is_made_once(
    answers: int, how: Ended
) -> None:
    run = through(TWICE[0])
    assert run.starts(0.1) == ["x"]
    for _ in range(answers):
        run.hears("x")
    run.ends("x", how)
    assert run.starts(0.2) == ["control-again"]


def test_where_the_control_does_not_get_through_nothing_else_is_made_twice() -> None:
    run = Run(CONTROL, DIRECT, *TWICE)
    run.starts(0.0)
    run.hears("control")
    run.ends("control", Ended.CLOSED)
    assert run.starts(0.1) == ["direct", "x", "y"]
    for name in ("direct", "x", "y"):
        run.ends(name, Ended.CLOSED)
    assert run.starts(0.2) == ["control-again"]
    run.ends("control-again", Ended.CLOSED)
    assert run.starts(0.3) == []
    assert run.finished


def test_a_control_that_is_closed_where_others_are_answered_is_made_again() -> None:
    run = closed(DIRECT)
    assert run.starts(0.1) == ["direct"]
    run.gets_through("direct")
    assert run.starts(0.2) == ["control-again"]


def test_a_control_that_waited_in_vain_is_not_made_again() -> None:
    run = Run(CONTROL, DIRECT)
    run.starts(0.0)
    run.starts(HEAD_START)
    run.hears("direct")
    run.ends("direct")
    run.ends("control", Ended.SILENT)
    assert run.starts(TIMEOUT) == []
    assert run.finished


def test_where_the_control_was_closed_late_less_is_no_silence() -> None:
    run = Run(CONTROL, DIRECT)
    run.starts(0.0)
    run.schedule.ended(run.started["control"], Ended.CLOSED, 5.0)
    assert run.schedule.least_patience > 5.0


def test_no_more_than_some_are_made_again() -> None:
    many = [replace(CONTROL, name=f"n{n}", user=f"n{n}", twice=True) for n in range(AGAIN + 3)]
    run = through(*many)
    for _ in range(50):
        for name in run.starts(run.now + 1):
            run.ends(name, Ended.CLOSED)
    again = [name for name in run.started if name.endswith("-again")]
    assert len(again) == AGAIN + 1
    assert again[-1] == "control-again"
