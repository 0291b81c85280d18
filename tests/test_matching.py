"""Other halves by the times: never a wrong one, and none where there are two possibilities."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from probe.clock import Clock
from probe.handshake import Handshake, Opening
from probe.matching import match
from probe.sighting import Sighting, sighting
from probe.wire.hello import ClientHello

CLOCK = Clock("inner", "outer", 3_600.0, 0.01, 1)


def said(began: float, ended: float, opening: Opening, random: int | None = None) -> Sighting:
    seen = Handshake("connection 1", "192.0.2.1:5432", opening=opening)
    if random is not None:
        seen.client_hello = ClientHello(random.to_bytes(32), None, (), (), (), (), 0, 0)
    return sighting("", began, ended, seen).until(ended)


def out(began: float, ended: float) -> Sighting:
    """With a ClientHello: anything may be its other half."""
    return said(began, ended, Opening.DIRECT_TLS, 1)


def into(began: float) -> Sighting:
    """By a clock that is an hour ahead."""
    return said(began + 3_600, began + 3_601, Opening.STARTUP)


def request(began: float, ended: float) -> Sighting:
    return said(began, ended, Opening.SSL_REQUEST)


def test_one_that_begins_while_one_is_open_is_its_other_half() -> None:
    assert match([out(0, 1), out(5, 6)], [into(5.1), into(0.1)], CLOCK) == {0: 1, 1: 0}


def test_one_that_begins_while_none_is_open_is_nobodys() -> None:
    assert match([out(0, 1)], [into(2), into(-1)], CLOCK) == {}


def test_a_hop_may_be_late_when_the_client_has_left() -> None:
    assert match([out(0, 1)], [into(1.05)], CLOCK) == {0: 0}
    assert match([out(0, 1), out(1.02, 2)], [into(1.05)], CLOCK) == {0: None, 1: None}


def test_while_two_are_open_it_is_neither_of_them() -> None:
    assert match([out(0, 1), out(0.1, 1)], [into(0.5)], CLOCK) == {0: None, 1: None}


def test_doubt_lasts_as_long_as_those_are_open() -> None:
    outer = [out(0, 9), out(0.1, 2), out(5, 6), out(20, 21)]
    assert match(outer, [into(0.5), into(5.5), into(20.5)], CLOCK) == {
        0: None,
        1: None,
        2: None,
        3: 2,
    }


def test_a_second_one_for_one_leaves_it_open_which() -> None:
    assert match([out(0, 9)], [into(1), into(2)], CLOCK) == {0: None}


def test_a_request_leads_only_to_one_like_it() -> None:
    inner = [into(0.1), said(3_600.2, 3_601, Opening.SSL_REQUEST)]
    assert match([request(0, 1)], inner, CLOCK) == {0: 1}
    assert match([request(0, 1)], inner[:1], CLOCK) == {}
    assert match([request(0, 1), out(0, 1)], inner[:1], CLOCK) == {1: 0}


def test_clocks_that_are_not_known_may_be_one_clock() -> None:
    clock = Clock("inner", "outer", 3_600.0, 0.1, 0)
    outer = [out(0, 0.1), out(0.21, 0.3)]
    assert match(outer, [into(0.05), into(0.22)], clock) == {0: 0, 1: 1}
    assert match(outer, [into(0.15), into(0.22), into(0.5)], clock) == {0: None, 1: None}


def test_what_was_not_captured_may_be_anything() -> None:
    unseen = said(3_600.1, 3_601, Opening.NOT_CAPTURED)
    assert match([request(0, 1)], [unseen], CLOCK) == {0: 0}
    assert match([request(0, 1), out(0, 1)], [unseen], CLOCK) == {0: None, 1: None}


LEGS = st.lists(
    st.tuples(st.floats(0, 20), st.floats(0, 5), st.floats(0, 1), st.booleans()), max_size=12
)


@given(LEGS)
def test_where_each_has_one_other_half_or_none_no_pair_is_wrong(
    legs: list[tuple[float, float, float, bool]],
) -> None:
    outer = [out(began, began + lasts) for began, lasts, _, _ in legs]
    goes_on = [n for n, leg in enumerate(legs) if leg[3]]
    inner = [into(legs[n][0] + legs[n][1] * legs[n][2]) for n in goes_on]
    found = match(outer, inner, CLOCK)
    assert all(goes_on[half] == n for n, half in found.items() if half is not None)
