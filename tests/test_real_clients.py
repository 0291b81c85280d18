"""Real drivers through real proxies, captured by tcpdump: their habits, and what is found then."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.judges.judge import Absent, Door, Judge
from fixtures.judges.libpq import JUDGES
from fixtures.lab import Lab
from fixtures.sniffer import NoSnifferError, Sniffer
from probe.commands.read import judged
from probe.finding import Severity
from probe.reading import Reading
from probe.sources.capture import read_capture

NAME = "db-1.example.test"
PSQL = next(judge for judge in JUDGES if judge.name == "psql-17")


@pytest.fixture(scope="module")
def doors() -> Iterator[Lab]:
    with Lab(["traefik-passthrough", "haproxy-tcp"]) as lab:
        yield lab


def connects(lab: Lab, topology: str, name: str, home: Path, driver: Judge = PSQL) -> Reading:
    """What a capture holds of a driver that asks there for this name."""
    at = lab[topology]
    try:
        driver.version()
        with Sniffer(at.port) as sniffer:
            driver.attempt(Door(name, at.host, at.port, home))
    except (Absent, NoSnifferError) as error:
        pytest.skip(str(error))
    return judged([read_capture(io.BytesIO(sniffer.pcap), name="client.pcap")])


def severities(reading: Reading, code: str) -> list[Severity]:
    return [finding.severity for finding in reading.findings if finding.code == code]


def test_a_dot_at_the_end_of_psql_s_host_is_no_route_for_a_router_that_compares_names(
    doors: Lab, tmp_path: Path
) -> None:
    reading = connects(doors, "traefik-passthrough", f"{NAME}.", tmp_path)
    assert {row.handshake.server_name for row in reading.connections} == {f"{NAME}."}
    assert severities(reading, "S311") == [Severity.ERROR]
    assert severities(reading, "T411") == []  # which would blame the gateway


def test_a_dot_that_is_no_matter_on_this_way_is_a_warning(doors: Lab, tmp_path: Path) -> None:
    assert severities(connects(doors, "haproxy-tcp", f"{NAME}.", tmp_path), "S311") == [
        Severity.WARNING
    ]


@pytest.mark.parametrize("topology", ["traefik-passthrough", "haproxy-tcp"])
def test_a_host_without_the_dot_is_no_finding(doors: Lab, tmp_path: Path, topology: str) -> None:
    reading = connects(doors, topology, NAME, tmp_path)
    assert reading.connections
    assert severities(reading, "S311") == []


@pytest.mark.parametrize(
    ("topology", "setting", "code", "severity"),
    [
        ("haproxy-tcp", "sslmode=disable", "N210", Severity.WARNING),
        ("haproxy-tcp", "sslsni=0", "S310", Severity.INFO),
        ("traefik-passthrough", "sslsni=0", "S310", Severity.WARNING),
    ],
)
def test_what_psql_does_not_ask_for_is_found(
    doors: Lab, tmp_path: Path, topology: str, setting: str, code: str, severity: Severity
) -> None:
    driver = replace(PSQL, settings=(setting,))
    reading = connects(doors, topology, NAME, tmp_path, driver)
    assert severities(reading, code) == [severity]
    assert severities(connects(doors, topology, NAME, tmp_path), code) == []
