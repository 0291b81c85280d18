"""Rules and verdicts on middleboxes in memory: each attempt meets a fate that the test chooses.

Real components are in ``test_topologies``. Here stand the rules that no real component makes
fire, the borders between look-alikes, and middleboxes that nobody would build: what is not
understood must never be called healthy.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import (
    DOOR,
    NAME,
    SERVER_FIRST,
    SSL_REQUEST,
    Backend,
    converse,
    scram,
    server_context,
    transcript,
)

from probe.attempt import UNKNOWN_NAME, Attempt, HelloShape, TlsVersions, standard
from probe.diagnosis import Diagnosis, diagnose
from probe.evidence import Evidence, Question
from probe.finding import Certainty, Severity
from probe.handshake import Opening
from probe.reports import Report
from probe.reports.json import document
from probe.rules import SECTIONS, Found, Rule, all_rules
from probe.target import parse_target
from probe.transcript import (
    Closed,
    Connected,
    Connecting,
    Data,
    Ending,
    Established,
    Event,
    GaveUp,
    Party,
    Transcript,
)

CONTROL = Attempt("control", server_name=NAME)
OTHER = "db-2.example.com"
SCHEMA = json.loads((Path(__file__).parents[1] / "probe/reports/schema.json").read_text())

ONLY_SCRAM = bytes.fromhex("52 00000017 0000000a 534352414d2d5348412d32353600 00")


@dataclass(frozen=True)
class Fate:
    """What happens to a connection: how far it is served, what is said, how it ends."""

    ends: Ending | None = None  # None: silence
    serves: bool = False  # a whole server, until the client leaves
    answers: tuple[bytes, ...] = ()  # to what is said, in turn, where it does not serve
    name: str = NAME  # of the certificate
    offers_binding: bool = True
    alpn: str | None = "postgresql"

    def transcript(self, attempt: Attempt) -> Transcript:
        """The attempt meets this fate."""
        hear = self._backend(attempt).hear if self.serves else self._answer()
        _, facts = converse(attempt, hear)
        end = Closed(Party.SERVER, self.ends) if self.ends else GaveUp(4.0)
        last = Closed(Party.CLIENT, Ending.FIN) if self.serves else end
        made = transcript(
            Connecting(DOOR), Connected("127.0.0.1:40000", DOOR), *facts, last, attempt=attempt.name
        )
        return replace_asked(made, attempt)

    def _backend(self, attempt: Attempt) -> Backend:
        messages = scram if self.offers_binding else _only_scram
        return Backend(context(self.name, self.alpn), messages, attempt.opening is DIRECT)

    def _answer(self) -> Callable[[bytes], bytes]:
        left = list(self.answers)
        return lambda _: left.pop(0) if left else b""


DIRECT = Opening.DIRECT_TLS


def replace_asked(made: Transcript, attempt: Attempt) -> Transcript:
    return made._replace(asked=attempt.asked)


def _only_scram(said: bytes) -> bytes:
    return {b"\0": ONLY_SCRAM, b"p": SERVER_FIRST}.get(said[:1], b"")


@cache
def context(name: str, alpn: str | None) -> ssl.SSLContext:
    return server_context(name, alpn)


CLOSED, RESET, SILENT = Fate(Ending.FIN), Fate(Ending.RST), Fate()
SERVED = Fate(serves=True)
S_THEN_CLOSED = Fate(Ending.FIN, answers=(b"S",))
ALERT = Fate(Ending.FIN, answers=(bytes.fromhex("15 0303 0002 02 28"),))
S_THEN_ALERT = replace(ALERT, answers=(b"S", *ALERT.answers))
NO_ROUTE = Fate(Ending.FIN, answers=(bytes.fromhex("15 0303 0002 02 78"),))

# What a server does that is spoken to in clear.
IN_CLEAR = {
    Opening.STARTUP: CLOSED,
    Opening.CANCEL: CLOSED,
    Opening.NOTHING: SILENT,
    Opening.GSSENC_REQUEST: Fate(Ending.FIN, answers=(b"G",)),
}

Middlebox = Callable[[Attempt], Fate]


def ask(middlebox: Middlebox, *others: str) -> Diagnosis:
    """The standard attempts at a middlebox; what the schedule would leave out is left out."""
    made = []
    for attempt in standard(CONTROL, others):
        fate = middlebox(attempt)
        if fate.serves:
            fate = IN_CLEAR.get(attempt.opening, fate)
        made.append(fate.transcript(attempt))
    return diagnose(Question(name=NAME, identity=NAME), {DOOR: made})


def names(diagnosis: Diagnosis) -> set[str]:
    return {finding.name for finding in diagnosis.findings}


def server(attempt: Attempt) -> Fate:
    return S_THEN_ALERT if attempt.versions is TlsVersions.OBSOLETE else SERVED


def but(condition: Callable[[Attempt], bool], fate: Fate) -> Middlebox:
    """A server, except where the condition holds."""
    return lambda attempt: fate if condition(attempt) else server(attempt)


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
        return replace(fate, offers_binding=False) if fate.serves else fate

    diagnosis = ask(terminator)
    assert diagnosis.first.verdict.status == "degraded"
    terminated = next(f for f in diagnosis.findings if f.name == "tls-terminated")
    assert terminated.certainty == "likely"


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


FATES = st.sampled_from(
    [
        CLOSED,
        RESET,
        SILENT,
        SERVED,
        S_THEN_CLOSED,
        Fate(answers=(b"S",)),
        Fate(Ending.RST, answers=(b"S",)),
        Fate(answers=(b"N",)),
        Fate(Ending.FIN, answers=(b"N",)),
        Fate(Ending.FIN, answers=(b"G",)),
        Fate(Ending.FIN, answers=(b"Sjunk",)),
        Fate(Ending.FIN, answers=(b"\x00" * 9,)),
        Fate(Ending.FIN, answers=(b"HTTP/1.1 400 Bad Request\r\n\r\n",)),
        Fate(Ending.FIN, answers=(b"E\0\0\0\x0fSFATAL\0Mx\0\0",)),
        Fate(Ending.FIN, answers=(SSL_REQUEST,)),
        ALERT,
        S_THEN_ALERT,
        NO_ROUTE,
        replace(SERVED, name=OTHER),
        replace(SERVED, alpn=None),
        replace(SERVED, offers_binding=False),
        replace(SERVED, offers_binding=False, alpn=None, name=OTHER),
    ]
)
WITH_OTHER = standard(CONTROL, [OTHER])


@settings(max_examples=150)
@given(st.lists(FATES, min_size=len(WITH_OTHER), max_size=len(WITH_OTHER)))
def test_a_middlebox_that_nobody_declared_is_never_called_healthy(fates: list[Fate]) -> None:
    chosen = dict(zip((a.name for a in WITH_OTHER), fates, strict=True))
    diagnosis = ask(lambda attempt: chosen[attempt.name], OTHER)
    verdict = diagnosis.first.verdict
    errors = [f for f in diagnosis.findings if f.severity == "error"]
    main = diagnosis.first.evidence.main
    assert main is not None
    if verdict.status in ("passes", "degraded"):
        assert main.authenticates
        assert not errors
    if verdict.status in ("broken", "unreachable"):
        assert errors
    if verdict.status == "passes":
        assert main.leaf is not None
        assert diagnosis.first.path.tls_ends_at != "proxy"
    for experience in diagnosis.first.clients:
        if experience.client == "libpq-17" and experience.gets_through:
            assert main.authenticates
    jsonschema.validate(document(Report(parse_target(NAME, {}), diagnosis)), SCHEMA)


@settings(max_examples=100)
@given(st.data())
def test_a_server_with_a_few_odd_answers_still_gives_a_verdict_that_the_control_bears_out(
    data: st.DataObject,
) -> None:
    odd = data.draw(
        st.dictionaries(st.sampled_from([a.name for a in WITH_OTHER]), FATES, max_size=4)
    )
    diagnosis = ask(lambda attempt: odd.get(attempt.name, server(attempt)), OTHER)
    main = diagnosis.first.evidence.main
    assert main is not None
    through = diagnosis.first.verdict.status in ("passes", "degraded")
    assert not through or main.authenticates


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
