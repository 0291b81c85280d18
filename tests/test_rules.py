"""Rules and verdicts on middleboxes in memory: each attempt meets a fate that the test chooses.

Real components are in ``test_topologies``. Here stand the rules that no real component makes
fire, the borders between look-alikes, and middleboxes that nobody would build: what is not
understood must never be called healthy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from middleboxes import (
    CLOSED,
    CONTROL,
    DIRECT,
    NO_ROUTE,
    ONLY_SCRAM,
    OTHER,
    RESET,
    S_THEN_CLOSED,
    SERVED,
    SILENT,
    Fate,
    ask,
    but,
    names,
    server,
)
from peers import DOOR, NAME

from probe.attempt import UNKNOWN_NAME, Attempt, HelloShape, standard
from probe.diagnosis import diagnose
from probe.evidence import Evidence, Question
from probe.finding import Certainty, Severity
from probe.handshake import Opening
from probe.rules import SECTIONS, Found, Rule, all_rules
from probe.transcript import Closed, Data, Ending, Established, Event, Party, Transcript


def test_a_whole_server_passes_without_a_finding_at_warning() -> None:
    diagnosis = ask(server)
    assert diagnosis.first.verdict.status == "passes"
    assert [f for f in diagnosis.findings if f.severity != "info"] == []


@pytest.mark.parametrize("fate", [CLOSED, RESET, SILENT])
@pytest.mark.parametrize(
    ("condition", "name"),
    [
        (lambda a: a.split_request, "split-ssl-request-breaks"),
        (lambda a: a.shape is HelloShape.SEGMENTS, "split-client-hello-breaks"),
        (lambda a: a.shape is HelloShape.RECORDS, "split-client-hello-breaks"),
        (lambda a: a.shape is HelloShape.LARGE, "large-client-hello-breaks"),
        (lambda a: a.name == "mixed-case", "sni-case-sensitive"),
    ],
)
def test_what_breaks_in_one_shape_only_is_named_and_the_rest_passes(
    condition: Callable[[Attempt], bool], name: str, fate: Fate
) -> None:
    after_s = name != "split-ssl-request-breaks"
    broken = replace(fate, answers=(b"S",)) if after_s else fate
    diagnosis = ask(but(condition, broken))
    assert name in names(diagnosis)
    assert diagnosis.first.verdict.status == "passes"
    assert names(diagnosis) - {name} <= names(ask(server))


def test_a_rule_that_no_real_component_made_fire_is_never_sure() -> None:
    def find(evidence: Evidence) -> Iterator[Found]:
        yield Found("seen", (evidence.proof(evidence.handshakes[0]),), Certainty.PROVED)

    evidence = ask(server).first.evidence
    for from_documents, certainty in ((False, Certainty.PROVED), (True, Certainty.LIKELY)):
        rule = Rule("X900", "x", Severity.ERROR, find, from_documents=from_documents)
        assert [found.certainty for found in rule.judge(evidence)] == [certainty]


def router(attempt: Attempt) -> Fate:
    """Says S itself, routes NAME and OTHER, tells a bare ClientHello when it has no route."""
    if attempt.opening is DIRECT:
        return NO_ROUTE if attempt.server_name == UNKNOWN_NAME else SERVED
    if attempt.server_name in (UNKNOWN_NAME, None) and attempt.opening is Opening.SSL_REQUEST:
        return S_THEN_CLOSED
    return server(attempt)


def test_a_router_by_name_passes_and_is_seen_to_answer_for_the_server() -> None:
    diagnosis = ask(router)
    path = diagnosis.first.path
    assert diagnosis.first.verdict.status == "passes"
    assert (path.ssl_request_answered_by, path.routing) == ("proxy", "by-name")
    assert "sni-required" in names(diagnosis)


def test_no_route_and_a_dead_backend_are_told_apart_by_the_bare_client_hello() -> None:
    def no_route(attempt: Attempt) -> Fate:
        direct = attempt.opening is DIRECT
        return NO_ROUTE if direct else S_THEN_CLOSED

    def dead(attempt: Attempt) -> Fate:
        if attempt.opening is DIRECT:
            return NO_ROUTE if attempt.server_name == UNKNOWN_NAME else CLOSED
        return S_THEN_CLOSED

    assert {"name-not-routed"} == names(ask(no_route)) & LOOK_ALIKES
    assert {"backend-down-or-without-tls"} == names(ask(dead)) & LOOK_ALIKES


LOOK_ALIKES = {"name-not-routed", "backend-down-or-without-tls", "tls-handshake-failed"}


def test_s_then_closed_for_every_name_and_bare_alike_is_not_guessed_at() -> None:
    def closes(attempt: Attempt) -> Fate:
        return CLOSED if attempt.opening is DIRECT else S_THEN_CLOSED

    assert names(ask(closes)) & LOOK_ALIKES == {"tls-handshake-failed"}


def test_s_then_closed_where_a_bare_client_hello_gets_through_blames_no_route() -> None:
    def regression(attempt: Attempt) -> Fate:
        return SERVED if attempt.opening is DIRECT else S_THEN_CLOSED

    diagnosis = ask(regression, OTHER)
    assert names(diagnosis) & LOOK_ALIKES == {"tls-handshake-failed"}
    assert "gets through" in diagnosis.first.verdict.summary


def test_only_one_mechanism_over_tls_is_a_likely_terminator_and_never_a_proved_one() -> None:
    def terminator(attempt: Attempt) -> Fate:
        fate = server(attempt)
        return replace(fate, offer=ONLY_SCRAM) if fate.serves else fate

    diagnosis = ask(terminator)
    assert diagnosis.first.verdict.status == "degraded"
    terminated = next(f for f in diagnosis.findings if f.name == "tls-terminated")
    assert terminated.certainty == "likely"


def test_a_session_ticket_beside_alpn_speaks_for_a_proxy_and_does_not_decide() -> None:
    def signs(fate: Fate) -> list[tuple[str, bool]]:
        made = fate.transcript(CONTROL)
        path = diagnose(Question(name=NAME), {DOOR: [made]}).first.path
        return [(sign.end, sign.decides) for sign in path.signs if "ticket" in sign.proof.says]

    assert signs(SERVED) == []
    assert signs(replace(SERVED, tickets=True)) == [("proxy", False)]
    assert signs(replace(SERVED, tickets=True, offer=b"")) == [("proxy", False)]
    assert signs(replace(SERVED, tickets=True, alpn=None)) == []  # old servers gave some


def test_controls_that_end_differently_are_indeterminate() -> None:
    again = replace(CONTROL, name="control-again")
    made = [SERVED.transcript(CONTROL), S_THEN_CLOSED.transcript(again)]
    diagnosis = diagnose(Question(name=NAME), {DOOR: made})
    assert diagnosis.first.verdict.status == "indeterminate"


def test_a_peer_that_hangs_up_behind_finished_is_told_whether_or_not_startup_went_out() -> None:
    made = SERVED.transcript(CONTROL)
    kinds = [type(event.fact) for event in made.events]
    upto = made.events[: kinds.index(Established) + 1]
    reset = Event(1.0, Closed(Party.SERVER, Ending.RST))
    diagnosis = diagnose(Question(name=NAME), {DOOR: [made._replace(events=(*upto, reset))]})
    assert "startup-unanswered" in names(diagnosis)
    assert diagnosis.first.verdict.status == "broken"


def test_who_greets_before_he_is_asked_is_not_the_server() -> None:
    def greets(attempt: Attempt) -> Transcript:
        made = CLOSED.transcript(attempt)
        greeting = Event(0.0, Data(Party.SERVER, b"SSH-2.0-OpenSSH_9.6\r\n"))
        return made._replace(events=(*made.events[:2], greeting, *made.events[2:]))

    diagnosis = diagnose(Question(name=NAME), {DOOR: [*map(greets, standard(CONTROL))]})
    assert diagnosis.first.path.ssl_request_answered_by == "other"
    assert "not-postgresql" in names(diagnosis)


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.code)
def test_a_rule_has_a_manual_with_every_section_in_order(rule: object) -> None:
    manual = rule.manual  # type: ignore[attr-defined]
    places = [manual.find(f"\n{section}\n") for section in SECTIONS]
    assert -1 not in places
    assert places == sorted(places)
    assert max(map(len, manual.splitlines())) <= 96


def test_codes_and_names_are_unique_and_a_family_is_a_letter() -> None:
    rules = all_rules()
    assert len({rule.code for rule in rules}) == len({rule.name for rule in rules}) == len(rules)
    assert {rule.code[0] for rule in rules} == set("CNSTPW")
