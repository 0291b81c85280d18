"""Real drivers as judges: which row each stands for, how its words are read, and three tries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fixtures.judges import JUDGES, UNJUDGED, Absent, Cell, Door, Judge, Outcome, page
from fixtures.judges.comparison import Standing, cell
from fixtures.judges.explained import EXPLANATIONS, Explanation
from fixtures.judges.judge import first_line
from fixtures.judges.outcome import LONGEST, read
from fixtures.lab import ABSENT, TOPOLOGIES, Lab
from probe.clients import CLIENTS

BY_NAME = {judge.name: judge for judge in JUDGES}
PSQL = BY_NAME["psql-17"]


@dataclass(frozen=True)
class Shell(Judge):
    """Made up for a test."""

    script: str

    def version(self) -> str:
        raise Absent("it is made up")

    def command(self, door: Door) -> Sequence[str | Path]:
        return ["sh", "-c", self.script]


def door(tmp_path: Path) -> Door:
    return Door("db-1.example.test", "127.0.0.1", 1, tmp_path)


def a_cell(predicted: bool | None, *, through: bool) -> Cell:
    return Cell("a-topology", PSQL, predicted, "a reason", Outcome(through, "some words"))


def test_every_row_of_the_clients_table_has_a_judge_or_a_reason_why_not() -> None:
    rows = {client.name for client in CLIENTS}
    assert {judge.row for judge in JUDGES} | UNJUDGED.keys() == rows
    assert not {judge.row for judge in JUDGES} & UNJUDGED.keys()


def test_judges_have_names_of_their_own() -> None:
    assert len(BY_NAME) == len(JUDGES)


def test_direct_rows_and_direct_judges_belong_together() -> None:
    direct = {client.name for client in CLIENTS if client.direct}
    assert {judge.name for judge in JUDGES if judge.row in direct} == {
        name for name in BY_NAME if name.endswith("-direct")
    }


@pytest.mark.parametrize(
    "words",
    [
        'psql: error: connection to server at "127.0.0.1", port 1 failed: FATAL:  password '
        'authentication failed for user "app"',
        'FATAL: role "app" does not exist',
        'InvalidCatalogNameError: database "app" does not exist',
        "DatabaseError: {'S': 'FATAL', 'C': '3D000', 'M': 'database \"app\" does not exist'}",
        'FATAL: permission denied for database "app"',
        "FATAL: no such user",
        'FATAL: no such database: "app"',
    ],
)
def test_whom_the_server_does_not_know_reached_it(words: str) -> None:
    assert read(2, words.encode()).through


@pytest.mark.parametrize(
    "words",
    [
        "server closed the connection unexpectedly",
        "server does not support SSL, but SSL was required",
        "SSL error: tlsv1 alert no application protocol",
        "received invalid response to SSL negotiation: H",
        "FATAL: SCRAM channel binding check failed",
        'FATAL: no pg_hba.conf entry for host "127.0.0.1", user "app", database "app", SSL on',
        'FATAL: pg_hba.conf rejects connection for host "127.0.0.1", user "app"',
        "FATAL: connection requires a valid client certificate",
        "FATAL: sorry, too many clients already",
        "nothing within 5 s",
        "",
    ],
)
def test_everything_else_did_not(words: str) -> None:
    assert not read(1, words.encode()).through


def test_a_login_needs_no_words() -> None:
    assert read(0, b"a warning") == Outcome(True, "logged in")


def test_words_are_bounded_and_printable() -> None:
    said = read(1, b"\x1b[31m\xff\n " + b"x" * 1000).said
    assert len(said) == LONGEST
    assert said.isprintable()


def test_the_deciding_words_may_stand_behind_the_bound() -> None:
    assert read(1, b"x" * LONGEST + b' role "app" does not exist').through


def test_who_says_nothing_is_quoted_with_his_status() -> None:
    assert read(3, b"").said == "ended with status 3"


def test_a_judge_sees_no_settings_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGSSLMODE", "disable")
    judge = Shell("shell", "libpq-17", 'echo "${PGSSLMODE-none} $HOME" >&2; exit 1')
    assert judge.attempt(door(tmp_path)).said == f"none {tmp_path}"


@pytest.mark.parametrize(
    ("predicted", "through", "standing"),
    [
        (True, True, Standing.AGREES),
        (False, False, Standing.AGREES),
        (True, False, Standing.DISAGREES),
        (False, True, Standing.DISAGREES),
        (None, True, Standing.UNDECIDED),
        (None, False, Standing.UNDECIDED),
    ],
)
def test_a_prediction_is_right_wrong_or_none(
    predicted: bool | None, through: bool, standing: Standing
) -> None:
    assert a_cell(predicted, through=through).standing is standing


def test_a_judge_is_held_against_the_row_it_stands_for() -> None:
    rows = [
        {"client": "pgx", "gets_through": True, "why": "not this"},
        {"client": PSQL.row, "gets_through": False, "why": "this"},
    ]
    made = cell("a-topology", PSQL, {"clients": rows}, Outcome(False, ""))
    assert (made.predicted, made.why) == (False, "this")


def test_a_disagreement_is_unexplained_until_somebody_explains_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = a_cell(True, through=False)
    assert wrong.unexplained
    known = Explanation(("a-*",), ("psql-*",), "because")
    monkeypatch.setattr("fixtures.judges.explained.EXPLANATIONS", (known,))
    assert not wrong.unexplained
    assert wrong.explanation == "because"
    assert replace(wrong, topology="b-topology").unexplained


def test_explanations_are_about_topologies_and_judges_that_there_are() -> None:
    declared = {*TOPOLOGIES, *ABSENT}
    for each in EXPLANATIONS:
        assert any(each.covers(name, judge) for name in declared for judge in BY_NAME), each


def test_the_page_tells_totals_versions_and_who_is_absent() -> None:
    cells = [a_cell(True, through=True), a_cell(True, through=False), a_cell(None, through=True)]
    absent = Shell("shell", "libpq-17", "")
    text = page.page(cells, {PSQL: "psql 17 of the test"}, {absent: "it is made up"})
    assert "1 of 2 decided ones agree (50.0%), 1 disagree (1 of them unexplained)" in text
    assert "1 undecided (33.3%)" in text
    assert "| psql-17 | libpq-17 | psql 17 of the test |" in text
    assert "| shell | libpq-17 | *absent:* it is made up |" in text
    assert "**unexplained:** predicted from a reason; it said: some words" in text


@pytest.mark.parametrize(
    ("topology", "judge", "through"),
    [
        ("postgres-17", "psql-17", True),
        ("envoy-sni", "psql-17", False),
        ("envoy-sni", "psql-17-direct", True),
    ],
)
def test_psql_meets_what_is_known_of_the_lab(
    lab: Lab, tmp_path: Path, topology: str, judge: str, through: bool
) -> None:
    endpoint = lab[topology]
    at = Door(endpoint.topology.sni, endpoint.host, endpoint.port, tmp_path)
    assert BY_NAME[judge].attempt(at).through is through


def test_psql_17_is_what_it_says() -> None:
    assert PSQL.version().startswith("psql (PostgreSQL) 17.")
    assert first_line(["echo", "a\nb"]) == "a"
