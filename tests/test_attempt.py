"""The sets: which attempts a run makes, in which order, and that no two say the same."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.attempt import (
    MADE_UP_DATABASE,
    MADE_UP_USER,
    SETS,
    UNKNOWN_NAME,
    Attempt,
    HelloShape,
    Needs,
    TlsVersions,
    everything,
    mixed_case,
    quick,
    standard,
)
from probe.handshake import Opening
from probe.transcript import Asked

NAME = "db-1.example.com"
OTHER = "db-2.example.com"
CONTROL = Attempt("control", server_name=NAME)
DIRECT = replace(CONTROL, opening=Opening.DIRECT_TLS)

STANDARD = {
    "control",
    "direct",
    "silent",
    "unknown-name",
    "direct-unknown-name",
    "no-alpn",
    "no-name",
    "no-name-no-alpn",
    "direct-no-alpn",
    "direct-unknown-name-no-alpn",
    "split-request",
    "protocol-3.1002",
    "mixed-case",
    "hello-in-two-segments",
    "hello-in-two-records",
    "large-hello",
    "tls-1.2",
    "tls-1.0-1.1",
    "proxy-header",
    "startup",
    "gssenc-request",
    "cancel",
}


def named(attempts: tuple[Attempt, ...]) -> dict[str, Attempt]:
    return {attempt.name: attempt for attempt in attempts}


def says(attempt: Attempt) -> Attempt:
    """The attempt without what does not show on the wire."""
    return replace(attempt, name="", asked=None, needs=Needs.NOTHING, twice=False)


def differences(attempt: Attempt, other: Attempt) -> set[str]:
    """The knobs in which two attempts differ on the wire."""
    one, two = says(attempt), says(other)
    return {f.name for f in fields(one) if getattr(one, f.name) != getattr(two, f.name)}


def test_the_sets_have_these_names() -> None:
    assert {"quick": quick, "standard": standard, "all": everything} == SETS


def test_quick_is_the_control_alone() -> None:
    assert quick(CONTROL, [OTHER]) == (CONTROL,)


def test_standard_makes_these_attempts_and_the_control_first() -> None:
    attempts = standard(CONTROL)
    assert set(named(attempts)) == STANDARD
    assert attempts[0] is CONTROL


def test_all_adds_what_a_healthy_server_logs_as_an_error() -> None:
    more = {"pipelined-hello", "garbage-after-answer"}
    assert set(named(everything(CONTROL))) == STANDARD | more


def test_a_control_over_direct_tls_is_followed_by_a_plain_request() -> None:
    attempts = standard(DIRECT)
    assert attempts[0] is DIRECT
    assert attempts[1].name == "ssl-request"
    assert attempts[1].opening is Opening.SSL_REQUEST
    assert "direct" not in named(attempts)


@pytest.mark.parametrize("control", [CONTROL, DIRECT])
@pytest.mark.parametrize("chosen", SETS)
def test_names_are_unique_and_no_two_attempts_say_the_same(control: Attempt, chosen: str) -> None:
    attempts = SETS[chosen](control, [OTHER, "db-3.example.com"])
    assert len(named(attempts)) == len(attempts)
    assert len({says(attempt) for attempt in attempts}) == len(attempts)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("direct", {"opening"}),
        ("silent", {"opening"}),
        ("startup", {"opening"}),
        ("gssenc-request", {"opening"}),
        ("cancel", {"opening"}),
        ("unknown-name", {"server_name"}),
        ("no-name", {"server_name"}),
        ("no-alpn", {"alpn"}),
        ("split-request", {"split_request"}),
        ("protocol-3.1002", {"protocol"}),
        ("mixed-case", {"server_name"}),
        ("hello-in-two-segments", {"shape"}),
        ("hello-in-two-records", {"shape"}),
        ("large-hello", {"shape"}),
        ("tls-1.2", {"versions"}),
        ("tls-1.0-1.1", {"versions"}),
        ("proxy-header", {"proxy_header"}),
        ("pipelined-hello", {"shape"}),
        ("garbage-after-answer", {"shape"}),
    ],
)
def test_an_attempt_differs_from_the_control_in_one_thing(name: str, knobs: set[str]) -> None:
    assert differences(named(everything(CONTROL))[name], CONTROL) == knobs


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("direct-unknown-name", {"server_name"}),
        ("direct-no-alpn", {"alpn"}),
        ("direct-unknown-name-no-alpn", {"server_name", "alpn", "greets"}),
    ],
)
def test_a_direct_attempt_differs_from_direct_in_little(name: str, knobs: set[str]) -> None:
    attempts = named(standard(CONTROL))
    assert differences(attempts[name], attempts["direct"]) == knobs


def test_the_knobs_are_turned_as_the_names_say() -> None:
    attempts = named(everything(CONTROL))
    assert attempts["unknown-name"].server_name == UNKNOWN_NAME
    assert attempts["no-name"].server_name is None
    assert attempts["large-hello"].shape is HelloShape.LARGE
    assert attempts["tls-1.0-1.1"].versions is TlsVersions.OBSOLETE
    assert attempts["protocol-3.1002"].protocol == (3, 1002)
    assert attempts["proxy-header"].proxy_header == "v2"


def test_what_was_meant_by_the_name_goes_with_the_attempt() -> None:
    attempts = named(standard(CONTROL, [OTHER]))
    assert attempts["control"].asked is Asked.TARGET
    assert attempts["unknown-name"].asked is Asked.UNKNOWN
    assert attempts["direct-unknown-name"].asked is Asked.UNKNOWN
    assert attempts[f"other-name:{OTHER}"].asked is Asked.OTHER
    assert attempts["no-name"].asked is None


def test_another_name_is_asked_for_behind_both_openings() -> None:
    attempts = named(standard(CONTROL, [OTHER]))
    assert set(attempts) == STANDARD | {f"other-name:{OTHER}", f"direct-other-name:{OTHER}"}
    assert attempts[f"other-name:{OTHER}"].server_name == OTHER
    assert attempts[f"direct-other-name:{OTHER}"].opening is Opening.DIRECT_TLS


def test_another_name_that_is_the_targets_own_adds_nothing() -> None:
    assert standard(CONTROL, [NAME]) == standard(CONTROL)


def test_without_a_name_there_is_no_mixed_case_and_no_second_nameless_attempt() -> None:
    nameless = replace(CONTROL, server_name=None, asked=None)
    attempts = standard(nameless)
    assert set(named(attempts)) == STANDARD - {"mixed-case", "no-name", "no-name-no-alpn"}
    assert [a.name for a in attempts if a.server_name] == [
        "unknown-name",
        "direct-unknown-name",
        "direct-unknown-name-no-alpn",
    ]


@pytest.mark.parametrize("named_by", [{"user": "alice"}, {"database": "shop"}])
def test_with_a_user_or_database_of_ones_own_the_made_up_one_is_tried_too(
    named_by: dict[str, str],
) -> None:
    control = replace(CONTROL, **named_by)  # type: ignore[arg-type]
    attempts = named(standard(control))
    made_up = attempts["made-up-user"]
    assert (made_up.user, made_up.database) == (MADE_UP_USER, MADE_UP_DATABASE)
    assert (attempts["direct"].user, attempts["direct"].database) == (
        control.user,
        control.database,
    )


def test_with_a_proxy_header_every_attempt_has_it_and_none_tries_another() -> None:
    attempts = everything(replace(CONTROL, proxy_header="v1"))
    assert {attempt.proxy_header for attempt in attempts} == {"v1"}
    assert "proxy-header" not in named(attempts)


@pytest.mark.parametrize(
    ("needs", "names"),
    [
        (Needs.SSL_ANSWER, {"unknown-name", "no-alpn", "no-name", "tls-1.2", "tls-1.0-1.1"}),
        (Needs.TLS, {"mixed-case", "hello-in-two-segments", "hello-in-two-records", "large-hello"}),
        (Needs.NO_BYTE, {"proxy-header"}),
    ],
)
def test_what_lies_behind_a_stage_needs_that_stage(needs: Needs, names: set[str]) -> None:
    attempts = named(standard(CONTROL))
    assert {attempts[name].needs for name in names} == {needs}


def test_asked_for_by_name_a_proxy_header_needs_nothing() -> None:
    assert named(everything(CONTROL))["proxy-header"].needs is Needs.NOTHING


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?(\.[a-z]{1,9}){1,3}", fullmatch=True)


@given(NAMES)
def test_mixed_case_is_the_same_name_and_not_the_same_bytes(name: str) -> None:
    assert mixed_case(name).lower() == name
    letters_at_odd_places = any(c.isalpha() for c in name[1::2])
    assert (mixed_case(name) != name) == letters_at_odd_places


@given(NAMES | st.none(), st.lists(NAMES, max_size=3), st.sampled_from([CONTROL, DIRECT]))
def test_for_any_names_no_two_attempts_say_the_same(
    name: str | None, others: list[str], control: Attempt
) -> None:
    attempts = everything(replace(control, server_name=name), others)
    assert len({says(attempt) for attempt in attempts}) == len(attempts)
    assert len(named(attempts)) == len(attempts)
