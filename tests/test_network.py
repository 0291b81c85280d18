"""What only captures tell, told of real packets: kernels that route, lose and reset them."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from peers import (
    NAME,
    SSL_REQUEST,
    Behaviour,
    Peer,
    authority,
    resets,
    serves,
    serves_with,
)

from fixtures.lab.components import POSTGRES_17, MissingComponent
from fixtures.network import ADDRESS, CLIENT, INTERFACE, NEAR, SERVER, Network, NoNetworkError
from fixtures.sniffer import NoSnifferError, Sniffer
from probe.commands.read import judged
from probe.finding import Certainty, Finding, Severity
from probe.handshake import Outcome
from probe.reading import Reading
from probe.sources.capture import read_capture

PORT = 5432
TUNNEL = 1_400
PATIENCE = 7.0  # seconds; a capture must go on for five to tell that nobody answers
STARTUP = bytes.fromhex("00000011 00030000") + b"user\0x\0\0\0"
Captures = dict[str, bytes]  # by the station at which they were made


@contextlib.contextmanager
def skipped_where_impossible() -> Iterator[None]:
    try:
        yield
    except (NoNetworkError, NoSnifferError, MissingComponent) as error:
        pytest.skip(str(error))


def seen(
    network: Network,
    behave: Behaviour,
    *happens: Callable[[Network], None],
    before: Callable[[Network], None] = lambda _: None,
) -> Captures:
    """What real captures at both ends hold of this, all at one time, with such a server."""
    with skipped_where_impossible(), network, ExitStack() as stack:
        before(network)
        stack.enter_context(Peer(behave, listener=network.listen(SERVER, PORT)))
        sniffers = {
            station: stack.enter_context(
                Sniffer(PORT, interface=interface, within=network.within(station))
            )
            for station, interface in INTERFACE.items()
        }
        with ThreadPoolExecutor() as pool:
            for job in [pool.submit(each, network) for each in happens]:
                job.result()
    return {station: sniffer.pcap for station, sniffer in sniffers.items()}


def read(captures: Captures, *stations: str) -> Reading:
    return judged(
        read_capture(io.BytesIO(captures[station]), name=f"{station}.pcap") for station in stations
    )


def findings(captures: Captures, station: str) -> dict[str, Finding]:
    return {finding.code: finding for finding in read(captures, station).findings}


# --- who speaks -----------------------------------------------------------------------------


def psql(network: Network) -> None:
    """A client of today: post-quantum key shares make its ClientHello longer than a segment."""
    program = str(POSTGRES_17.executable.with_name("psql"))
    asks = f"host={NAME} hostaddr={ADDRESS[SERVER]} port={PORT} sslmode=require user=x password=x"
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [*network.within(CLIENT), program, asks],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )


def says_little(network: Network) -> None:
    """A client of yesterday, with a small ClientHello; it leaves when it is offered a login."""
    with network.connect(CLIENT, SERVER, PORT) as connection:
        connection.settimeout(PATIENCE / 4)
        with contextlib.suppress(TimeoutError), session(connection) as offered:
            assert offered.recv(1) == b"R"


def says_little_later(network: Network) -> None:
    time.sleep(PATIENCE - 1)
    says_little(network)


def session(connection: socket.socket) -> ssl.SSLSocket:
    """TLS behind SSLRequest, in which a StartupMessage was said."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ecdh_curve("prime256v1")
    connection.sendall(SSL_REQUEST)
    assert connection.recv(1) == b"S"
    opened = context.wrap_socket(connection, server_hostname=NAME)
    opened.sendall(STARTUP)
    return opened


def large_flight() -> Behaviour:
    """A whole server, whose certificate alone fills a segment."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    names = (f"db-{number}.example.com" for number in range(80))
    authority().issue_cert(*names).configure_cert(context)
    context.set_alpn_protocols(["postgresql"])
    return serves_with(context)


# --- a network in which nothing is wrong ------------------------------------------------------


def test_a_healthy_network_has_no_finding_at_either_end() -> None:
    captures = seen(Network(), large_flight(), psql, says_little)
    for station in (CLIENT, SERVER):
        reading = read(captures, station)
        assert reading.findings == ()
        assert [row.digest.through for row in reading.connections] == [True, True]
    ways = read(captures, CLIENT, SERVER).paths.ways
    assert [(way.passage, way.certainty) for way in ways] == [("passthrough", "proved")] * 2


def test_a_tunnel_whose_errors_arrive_has_no_finding_at_either_end() -> None:
    captures = seen(Network(TUNNEL), large_flight(), psql)
    for station in (CLIENT, SERVER):
        reading = read(captures, station)
        assert reading.findings == ()
        assert [row.digest.through for row in reading.connections] == [True]


# --- C109: a path that takes less than a whole packet, and nobody is told ----------------------


@pytest.fixture(scope="module")
def hello_swallowed() -> Captures:
    """The server's end is seen to go on by a second client, which gets through."""
    return seen(Network(TUNNEL, errors_arrive=False), serves, psql, says_little_later)


@pytest.fixture(scope="module")
def flight_swallowed() -> Captures:
    return seen(Network(TUNNEL, errors_arrive=False), large_flight(), says_little)


SIDES = pytest.mark.parametrize("station", [CLIENT, SERVER])


@SIDES
def test_c109_fires_on_a_client_hello_that_a_real_black_hole_swallows(
    hello_swallowed: Captures, station: str
) -> None:
    found = findings(hello_swallowed, station)["C109"]
    assert (found.severity, found.certainty) == (Severity.ERROR, Certainty.LIKELY)
    told = {CLIENT: "the ClientHello was sent again", SERVER: "bytes of the ClientHello never came"}
    assert told[station] in found.message
    assert "the path's MTU is the first suspect" in found.message


@SIDES
def test_c109_fires_on_a_flight_that_a_real_black_hole_swallows(
    flight_swallowed: Captures, station: str
) -> None:
    found = findings(flight_swallowed, station)["C109"]
    assert (found.severity, found.certainty) == (Severity.ERROR, Certainty.LIKELY)
    told = {CLIENT: "bytes of the server's flight never", SERVER: "the server's flight was sent"}
    assert told[station] in found.message
    assert "the path's MTU is the first suspect" in found.message


def test_what_is_small_passes_a_real_black_hole_without_a_finding() -> None:
    captures = seen(Network(TUNNEL, errors_arrive=False), serves, says_little)
    for station in (CLIENT, SERVER):
        reading = read(captures, station)
        assert reading.findings == ()
        assert [row.digest.through for row in reading.connections] == [True]


# --- C108: who resets ---------------------------------------------------------------------------


@pytest.mark.parametrize("words", [SSL_REQUEST, NAME.encode()], ids=["ssl-request", "hello"])
def test_c108_fires_on_a_real_firewall_that_rejects(words: bytes) -> None:
    def refuse(network: Network) -> None:
        network.reset_by_firewall(NEAR, words)

    captures = seen(Network(), serves, psql, before=refuse)
    every = findings(captures, CLIENT)
    found = every["C108"]
    assert (found.severity, found.certainty) == (Severity.ERROR, Certainty.LIKELY)
    assert "T411" not in every  # which would send the reader to the gateway
    assert "TTL 64" in found.message  # the router's, and it is the first
    assert "62" in found.message  # the server's, which passed two
    assert not findings(captures, SERVER)


def test_c108_fires_on_a_router_that_takes_the_servers_address_over() -> None:
    def pool(network: Network) -> None:
        with network.connect(CLIENT, SERVER, PORT) as connection, session(connection) as idle:
            assert idle.recv(100).startswith(b"R")
            network.take_over(NEAR, ADDRESS[SERVER])
            with contextlib.suppress(OSError):  # the reset, as OpenSSL puts it
                idle.sendall(b"p")
                assert idle.recv(100) == b""

    captures = seen(Network(), serves, pool)
    found = findings(captures, CLIENT)["C108"]
    assert (found.severity, found.certainty) == (Severity.WARNING, Certainty.LIKELY)
    assert "TTL 64, where all its other packets have 62" in found.message


def test_c108_is_silent_where_the_server_itself_resets() -> None:
    captures = seen(Network(), resets, psql)
    for station in (CLIENT, SERVER):
        reading = read(captures, station)
        assert [row.handshake.outcome for row in reading.connections] == [Outcome.RESET]
        assert "C108" not in findings(captures, station)


# --- the network itself -------------------------------------------------------------------------


def test_nothing_of_it_outlives_it() -> None:
    with skipped_where_impossible(), Network() as network:
        command = [*network.within(CLIENT), "sleep", "0"]
        subprocess.run(command, check=True)
    assert subprocess.run(command, capture_output=True, check=False).returncode


def test_where_there_is_no_unshare_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(NoNetworkError, match="takes unshare and ip"), Network():
        pass


def test_where_namespaces_are_not_allowed_it_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unshare = tmp_path / "unshare"
    unshare.write_text("#!/bin/sh\necho 'unshare: unshare failed: not permitted' >&2\nexit 1\n")
    unshare.chmod(0o700)
    monkeypatch.setattr("shutil.which", lambda *_, **__: str(unshare))
    with pytest.raises(NoNetworkError, match="unshare failed: not permitted"), Network():
        pass
