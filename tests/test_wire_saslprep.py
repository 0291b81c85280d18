"""SASLprep by its examples."""

from __future__ import annotations

import pytest

from probe.wire.saslprep import prepared


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("I\u00adX", "IX"),  # RFC 4013, section 3: a soft hyphen is mapped to nothing
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("\u0007", "\u0007"),  # forbidden: taken as it is, as PostgreSQL does
        ("\u0627\u0031", "\u0627\u0031"),  # forbidden by the rule about directions
        ("\u00ad", "\u00ad"),  # nothing would be left
        ("", ""),
    ],
)
def test_passwords_are_prepared_as_rfc_4013_says(given: str, expected: str) -> None:
    assert prepared(given.encode()) == expected.encode()


def test_a_password_that_is_no_utf_8_is_taken_as_it_is() -> None:
    assert prepared(b"p\xe4ss") == b"p\xe4ss"
