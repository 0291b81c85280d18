"""How clocks of captures differ, from what both hold; and which of two lies farther in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.clock import CLOCKS_AGREE, Pair, difference, outermost_first
from probe.handshake import Handshake, Stage, Step
from probe.sighting import Sighting, sighting
from probe.wire.hello import ServerHello

ANSWER = ServerHello(0x0304, 0x1301, None, False, bytes(32))
DELAYS = st.floats(0, 0.5)
EPOCH = 1_700_000_000.0


def sighted(file: str, asked: float, took: float | None) -> Sighting:
    """A ClientHello at ``asked``, by the file's clock, and its ServerHello so much later."""
    seen = Handshake("connection 1", "192.0.2.1:5432")
    step = Step(Stage.SERVER_HELLO, 0.0, took or 0.0, "", b"", b"", 0, 0, "")
    seen.steps.append(step)
    seen.server_hello = ANSWER if took is not None else None
    return sighting(file, EPOCH + asked, EPOCH + asked + 1, seen)


def passed(at: float, there: float, served: float, back: float, ahead: float) -> Pair:
    """A connection at two places; ``there`` and ``back`` are what the way between takes."""
    out = sighted("a", at, there + served + back)
    return out, sighted("b", at + there + ahead, served)


ROUNDS = st.lists(st.tuples(st.floats(0, 3600), DELAYS, DELAYS, DELAYS), min_size=1, max_size=8)


@given(ROUNDS, st.floats(-1e6, 1e6))
def test_the_true_difference_lies_within_the_bounds(
    rounds: list[tuple[float, float, float, float]], ahead: float
) -> None:
    clock = difference("a", "b", [passed(*each, ahead) for each in rounds])
    assert abs(clock.ahead - ahead) <= clock.within
    assert clock.connections == len(rounds)


def test_the_quickest_ways_there_and_back_bound_it() -> None:
    clock = difference("a", "b", [passed(0, 0.1, 0.2, 0.004, 5.0), passed(9, 0.002, 0.2, 0.3, 5.0)])
    assert clock.ahead == pytest.approx(4.999, abs=1e-5)
    assert clock.within == pytest.approx(0.003 + 0.001, abs=1e-5)


def test_without_an_answer_it_is_bounded_from_one_side() -> None:
    pair = sighted("a", 0.0, None), sighted("b", 5.01, None)
    clock = difference("a", "b", [pair])
    assert clock.ahead == pytest.approx(5.01, abs=1e-5)
    assert clock.within == CLOCKS_AGREE


def test_with_nothing_in_common_it_is_not_known() -> None:
    clock = difference("a", "b", [])
    assert not clock.known
    assert (clock.file, clock.against, clock.ahead) == ("b", "a", 0.0)


def test_another_answer_is_no_measure() -> None:
    out, into = passed(0, 0.01, 0.1, 0.01, 0.0)
    into = into._replace(server_hello=ANSWER._replace(random=b"x" * 32))
    assert difference("a", "b", [(out, into)]).within == CLOCKS_AGREE


@pytest.mark.parametrize("ahead", [0.0, 7_200.0, -7_200.0])
def test_where_the_answer_takes_longer_is_farther_out(ahead: float) -> None:
    def pairs(outer: str, inner: str) -> list[Pair]:
        pair = passed(0, 0.01, 0.1, 0.01, ahead)
        return {("a", "b"): [pair], ("b", "a"): [pair[::-1]]}.get((outer, inner), [])

    assert outermost_first(["a", "b"], pairs) == ("a", "b")
    assert outermost_first(["b", "a"], pairs) == ("a", "b")
    assert outermost_first(["b", "c", "a"], pairs) == ("c", "a", "b")


@pytest.mark.parametrize(
    ("turned", "order"),
    [
        ({("a", "b")}, "bac"),
        ({("b", "c")}, "acb"),
        ({("a", "c")}, "bca"),
        ({("a", "b"), ("b", "c")}, "cba"),
        ({("a", "b"), ("a", "c")}, "bca"),
    ],
)
def test_only_files_that_contradict_the_order_change_places(
    turned: set[tuple[str, str]], order: str
) -> None:
    pair = passed(0, 0.01, 0.1, 0.01, 0.0)[::-1]
    found = outermost_first(["a", "b", "c"], lambda *both: [pair] if both in turned else [])
    assert found == tuple(order)
