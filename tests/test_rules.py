"""Rules and verdicts on middleboxes in memory: each attempt meets a fate that the test chooses.

Real components are in ``test_topologies``. Here stand the rules that no real component makes
fire, the borders between look-alikes, and middleboxes that nobody would build: what is not
understood must never be called healthy.
"""

from __future__ import annotations

import ssl
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
    S_THEN_ALERT,
    S_THEN_CLOSED,
    SERVED,
    SILENT,
    Fate,
    ask,
    but,
    error,
    judged,
    names,
    server,
)
from peers import DOOR, NAME

from probe.attempt import UNKNOWN_NAME, Attempt, HelloShape, standard
from probe.diagnosis import Diagnosis, diagnose
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


# -- what is not there each time -------------------------------------------------------------------

NO_NAME = replace(CONTROL, name="no-name", server_name=None, asked=None)


def twice(attempt: Attempt, *fates: Fate) -> list[Transcript]:
    again = replace(attempt, name=f"{attempt.name}-again")
    return [fate.transcript(each) for each, fate in zip((attempt, again), fates, strict=True)]


def certainties(diagnosis: Diagnosis) -> dict[str, str]:
    return {finding.name: finding.certainty for finding in diagnosis.findings}


def test_controls_that_end_differently_are_indeterminate() -> None:
    diagnosis = judged(twice(CONTROL, SERVED, S_THEN_CLOSED))
    assert diagnosis.first.verdict.status == "indeterminate"
    assert names(diagnosis) == {"answers-vary"}


def test_where_controls_end_differently_comparisons_are_only_possible_and_clients_unknown() -> None:
    made = [*twice(CONTROL, SERVED, S_THEN_CLOSED), *twice(NO_NAME, S_THEN_CLOSED, S_THEN_CLOSED)]
    told = certainties(judged(made))
    assert told == {"sni-required": "possible", "answers-vary": "proved"}
    assert {row.gets_through for row in judged(made).first.clients} == {None}
    steady = [*twice(CONTROL, SERVED, SERVED), *made[2:]]
    assert certainties(judged(steady)) == {"sni-required": "proved"}


@pytest.mark.parametrize("fate", [CLOSED, RESET])
def test_what_got_through_when_it_was_made_again_is_no_fault(fate: Fate) -> None:
    made = [
        *twice(CONTROL, SERVED, SERVED),
        *twice(NO_NAME, fate.behind_s(), SERVED),
        *twice(replace(CONTROL, name="split", split_request=True), fate, SERVED),
    ]
    diagnosis = judged(made)
    assert diagnosis.first.verdict.status == "passes"
    assert names(diagnosis) == {"answers-vary"}


def test_a_control_that_was_lost_once_blames_no_router() -> None:
    direct = replace(CONTROL, name="direct", opening=DIRECT)
    diagnosis = judged([*twice(CONTROL, CLOSED, SERVED), SERVED.transcript(direct)])
    assert diagnosis.first.verdict.status == "indeterminate"
    assert "sni-router-without-starttls" not in names(diagnosis)


def test_fin_rst_and_alert_at_one_step_are_one_way_to_hang_up() -> None:
    for other in (RESET.behind_s(), S_THEN_ALERT):
        diagnosis = judged(twice(CONTROL, S_THEN_CLOSED, other))
        assert diagnosis.first.verdict.status == "broken"
        assert "answers-vary" not in names(diagnosis)


def test_one_node_that_ends_tls_beside_one_that_does_not_is_told_by_their_offers() -> None:
    diagnosis = judged(twice(CONTROL, SERVED, replace(SERVED, offer=ONLY_SCRAM)))
    assert diagnosis.first.verdict.status == "indeterminate"
    assert "with SCRAM-SHA-256-PLUS" in diagnosis.first.verdict.summary


# -- which place it is -----------------------------------------------------------------------------

ANOTHER = replace(SERVED, name=OTHER, salt=b"another cluster!")


def test_salts_that_are_made_up_for_each_connection_tell_no_clusters() -> None:
    salts = (bytes([n]) * 16 for n in range(100))
    diagnosis = ask(lambda attempt: replace(server(attempt), salt=next(salts)))
    assert diagnosis.first.path.cluster is None
    assert diagnosis.first.verdict.status == "passes"
    assert names(diagnosis) == names(ask(server))


def test_two_clusters_by_turns_are_told_as_their_salts_come_again() -> None:
    turns = (n % 2 for n in range(100))
    diagnosis = ask(lambda attempt: ANOTHER if next(turns) else SERVED)
    assert "clusters-differ" in names(diagnosis)


def test_one_cluster_with_several_certificates_is_one_place() -> None:
    other = replace(SERVED, name=OTHER)
    by_name = ask(but(lambda a: a.server_name != NAME, other))
    assert by_name.first.path.routing == "ignores-name"
    assert names(by_name) == names(ask(server))
    replicas = (n % 2 for n in range(100))
    by_turns = ask(lambda attempt: other if next(replicas) else server(attempt))
    places = {"wrong-backend", "name-ignored", "catch-all-route", "sni-case-sensitive"}
    assert not names(by_turns) & places


def test_a_shape_that_is_led_elsewhere_is_no_second_cluster_of_the_name() -> None:
    diagnosis = ask(but(lambda a: a.shape is HelloShape.RECORDS, ANOTHER))
    assert names(diagnosis) & {"split-client-hello-breaks", "clusters-differ"} == {
        "split-client-hello-breaks"
    }


def test_a_name_that_is_cut_where_others_are_taken_in_is_no_proved_catch_all() -> None:
    diagnosis = ask(but(lambda a: a.server_name == NAME, S_THEN_CLOSED))
    assert certainties(diagnosis)["catch-all-route"] == "possible"
    assert "known names lead elsewhere" not in str(diagnosis.findings)


def test_a_proxy_that_finds_its_server_by_name_in_postgresqls_own_protocol_routes_by_name() -> None:
    refusal = replace(SERVED, offer=error("08P01", "Endpoint ID is not specified"))
    diagnosis = ask(but(lambda a: a.server_name != NAME and a.opening is not DIRECT, refusal))
    assert diagnosis.first.path.routing == "by-name"
    assert certainties(diagnosis)["sni-required"] == "proved"
    told = {row.client: row.gets_through for row in diagnosis.first.clients}
    assert told["libpq-13"] is False
    assert told["libpq-17"] is True


def test_an_n_where_a_bare_client_hello_reaches_the_server_is_somebody_elses() -> None:
    says_n = replace(CLOSED, answers=(b"N",))
    diagnosis = ask(but(lambda a: a.opening is Opening.SSL_REQUEST, says_n))
    (refused,) = (f for f in diagnosis.findings if f.name == "tls-refused")
    assert "stands in front" in refused.message
    assert "ssl = on" not in str(refused.fix)


# -- who is let in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_peer_that_demands_a_client_certificate_is_named(newest: ssl.TLSVersion) -> None:
    diagnosis = ask(lambda attempt: replace(SERVED, newest=newest, demands=True))
    assert diagnosis.first.verdict.status == "broken"
    sure = newest is ssl.TLSVersion.TLSv1_3
    assert certainties(diagnosis)["client-certificate-asked"] == ("proved" if sure else "likely")
    assert not names(diagnosis) & {"startup-unanswered", "tls-handshake-failed"}
    told = {row.client: row.gets_through for row in diagnosis.first.clients}
    assert told["libpq-17"] is None


def test_a_rule_for_certificates_is_answered_with_a_certificate_and_not_with_a_wider_rule() -> None:
    words = error("28000", "connection requires a valid client certificate", R="ClientAuth")
    diagnosis = ask(lambda attempt: replace(SERVED, offer=words))
    (refused,) = (f for f in diagnosis.findings if f.name == "startup-refused")
    assert "sslcert" in refused.fix[0].change
    assert "pg_hba" not in str(refused.fix)


def test_where_only_the_made_up_user_is_refused_it_is_not_known_who_gets_in() -> None:
    words = error("28000", "no pg_hba.conf entry for host, SSL encryption", R="ClientAuth")
    diagnosis = ask(lambda attempt: replace(SERVED, offer=words))
    assert diagnosis.first.verdict.status == "indeterminate"
    (refused,) = (f for f in diagnosis.findings if f.name == "startup-refused")
    assert "--user" in refused.fix[0].change


def test_what_a_server_says_of_whoever_comes_decides_no_client() -> None:
    starting = error("57P03", "the database system is starting up", R="ProcessStartupPacket")
    diagnosis = ask(but(lambda a: a.name == "no-alpn", replace(SERVED, offer=starting)))
    told = {row.client: row.gets_through for row in diagnosis.first.clients}
    assert told["libpq-16"] is None
    assert told["libpq-17"] is True


def late(made: Transcript) -> Transcript:
    """The first answer comes after five seconds."""
    events = tuple(e._replace(at=e.at + 5.0) if n > 2 else e for n, e in enumerate(made.events))
    return made._replace(events=events)


def test_a_round_wait_for_the_s_is_told_where_a_bare_client_hello_is_answered_at_once() -> None:
    control = late(SERVED.transcript(CONTROL))
    direct = SERVED.transcript(replace(CONTROL, name="direct", opening=DIRECT))
    assert "late-ssl-answer" in names(judged([control, direct]))
    assert "late-ssl-answer" not in names(judged([control, late(direct)]))
    assert "late-ssl-answer" not in names(judged([control]))


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
