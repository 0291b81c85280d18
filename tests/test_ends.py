"""Both ends of a connection, as packets have them and as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.ends import ends_between, mirrored, named


@pytest.mark.parametrize(
    ("source", "destination", "ends"),
    [
        ("192.0.2.1:40000", "192.0.2.2:5432", "c0000201 c0000202 9c40 1538"),
        ("0.0.0.0:0", "255.255.255.255:65535", "00000000 ffffffff 0000 ffff"),
        (
            "[2001:db8::1]:40000",
            "[::1]:5432",
            "20010db8000000000000000000000001 00000000000000000000000000000001 9c40 1538",
        ),
    ],
)
def test_ends_are_the_addresses_and_ports_of_the_headers(
    source: str, destination: str, ends: str
) -> None:
    assert ends_between(source, destination) == bytes.fromhex(ends)
    assert named(bytes.fromhex(ends)) == (source, destination)


def test_a_scope_id_is_left_out() -> None:
    assert named(ends_between("[fe80::1%2]:1", "[fe80::2%2]:2")) == ("[fe80::1]:1", "[fe80::2]:2")


@given(st.binary(min_size=12, max_size=12) | st.binary(min_size=36, max_size=36))
def test_mirrored_ends_are_those_of_the_answer(ends: bytes) -> None:
    assert named(mirrored(ends)) == named(ends)[::-1]
    assert mirrored(mirrored(ends)) == ends
    assert ends_between(*named(ends)) == ends
