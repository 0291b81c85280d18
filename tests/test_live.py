"""Live probing of misbehaving peers on loopback: what is sent, what is told, and that it ends."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import closing

import pytest
from peers import (
    NAME,
    SSL_REQUEST,
    Behaviour,
    Peer,
    answers_late,
    byte_by_byte,
    closes,
    closes_on_bytes,
    deaf,
    floods,
    full,
    resets,
    says_n,
    says_s_then_leaves,
    says_s_then_nothing,
    serves,
)

from probe.attempt import Attempt, Needs, standard
from probe.handshake import Handshake, Opening, Outcome, Stage
from probe.observer import observe
from probe.sources.live import (
    MAX_TRANSCRIPT,
    READ_SIZE,
    Resolution,
    not_resolved,
    probe_door,
    resolve,
)
from probe.transcript import (
    Closed,
    Connected,
    ConnectFailure,
    Connecting,
    Data,
    Ending,
    GaveUp,
    Layer,
    NotConnected,
    Party,
    Resolved,
    Transcript,
)
from probe.wire import endpoint

CONTROL = Attempt("control", server_name=NAME)
DIRECT = Attempt("direct", Opening.DIRECT_TLS, server_name=NAME)
SILENT = Attempt("silent", Opening.NOTHING)
CANCEL = Attempt("cancel", Opening.CANCEL)  # listens for as long as it may


def told(
    peer: Peer, *attempts: Attempt, timeout: float = 0.4, deadline: float = 5.0
) -> tuple[dict[str, Transcript], list[tuple[str, str]]]:
    """The transcripts by attempt, and what was not made."""
    transcripts, not_made = probe_door(
        peer.address, peer.port, attempts or (CONTROL,), timeout=timeout, deadline=deadline
    )
    return {transcript.attempt: transcript for transcript in transcripts}, not_made


def control(peer: Peer, timeout: float = 0.4) -> Transcript:
    return told(peer, timeout=timeout)[0]["control"]


def said_by(transcript: Transcript, sender: Party) -> bytes:
    return b"".join(
        event.fact.data
        for event in transcript.events
        if isinstance(event.fact, Data) and (event.fact.sender, event.fact.layer) == (sender, "tcp")
    )


def last(transcript: Transcript) -> object:
    return transcript.events[-1].fact


# --- peers that misbehave -----------------------------------------------------------------------


def test_a_port_where_nobody_listens_is_refused() -> None:
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        address, port = bound.getsockname()
        (transcript,), not_made = probe_door(
            address, port, [CONTROL, DIRECT], timeout=0.4, deadline=1.0
        )
    connecting, failed = (event.fact for event in transcript.events)
    assert connecting == Connecting(f"127.0.0.1:{port}")
    assert failed == NotConnected(ConnectFailure.REFUSED, "Connection refused")
    assert not transcript.connected
    assert [name for name, _ in not_made] == ["direct"]


@pytest.mark.parametrize(
    ("behave", "outcome"),
    [
        (resets, Outcome.RESET),
        (closes, Outcome.CLOSED),
        (closes_on_bytes, Outcome.CLOSED),
        (deaf, Outcome.SILENT),
        (says_s_then_nothing, Outcome.SILENT),
        (says_s_then_leaves, Outcome.ALERT),
        (says_n, Outcome.REFUSED),
    ],
)
def test_each_way_to_fail_is_told_from_the_others(behave: Behaviour, outcome: Outcome) -> None:
    with Peer(behave) as peer:
        assert observe(control(peer)).outcome is outcome


@pytest.mark.parametrize("behave", [deaf, says_s_then_nothing])
def test_silence_costs_one_time_out_and_is_told_with_the_time_waited(behave: Behaviour) -> None:
    with Peer(behave) as peer:
        transcript = control(peer, timeout=0.3)
    gave_up = last(transcript)
    assert isinstance(gave_up, GaveUp)
    assert 0.3 <= gave_up.waited < 0.6
    assert transcript.events[-1].at < 0.8


def test_a_close_is_told_with_who_and_how() -> None:
    with Peer(closes_on_bytes) as peer:
        assert last(control(peer)) == Closed(Party.SERVER, Ending.FIN)


@pytest.mark.parametrize(
    "behave",
    [deaf, closes_on_bytes, pytest.param(answers_late(0.3), id="answers-late")],
)
def test_the_eight_bytes_are_all_that_a_peer_hears_before_it_answers(behave: Behaviour) -> None:
    with Peer(behave) as peer:
        transcript = control(peer, timeout=0.2)
        peer.join()
    assert peer.heard == [bytearray(SSL_REQUEST)]
    assert said_by(transcript, Party.CLIENT) == SSL_REQUEST


def test_after_n_nothing_more_is_sent() -> None:
    with Peer(says_n) as peer:
        transcript = control(peer)
        peer.join()
    assert peer.heard == [bytearray(SSL_REQUEST)]
    assert last(transcript) == Closed(Party.CLIENT, Ending.FIN)


def test_a_slow_yes_is_waited_for_and_its_time_is_told() -> None:
    with Peer(answers_late(0.3)) as peer:
        handshake = observe(control(peer, timeout=2.0))
    assert handshake.outcome is Outcome.AUTHENTICATION
    (answer,) = (step for step in handshake.steps if step.stage is Stage.SSL_REQUEST)
    assert 0.3 <= answer.took < 0.6


@pytest.mark.parametrize("behave", [serves, byte_by_byte])
def test_a_whole_server_is_read_to_the_salt_in_whatever_segments(behave: Behaviour) -> None:
    with Peer(behave) as peer:
        transcript = control(peer, timeout=2.0)
        peer.join()
    handshake = observe(transcript)
    assert said_by(transcript, Party.CLIENT) == bytes(peer.heard[0])
    assert handshake.salt is not None
    assert (handshake.alpn_selected, handshake.server_name) == ("postgresql", NAME)
    assert transcript.door == f"127.0.0.1:{peer.port}"


def test_what_was_said_inside_tls_is_told_in_its_own_layer() -> None:
    with Peer(serves) as peer:
        transcript = control(peer, timeout=2.0)
    layers = {event.fact.layer for event in transcript.events if isinstance(event.fact, Data)}
    assert layers == set(Layer)


@pytest.mark.parametrize("attempt", [CANCEL, SILENT, CONTROL, DIRECT], ids=lambda a: a.name)
def test_a_flood_of_garbage_is_bounded_and_ends(attempt: Attempt) -> None:
    with Peer(floods) as peer:
        transcripts, _ = told(peer, attempt)
        peer.join()
    assert 0 < len(said_by(transcripts[attempt.name], Party.SERVER)) <= MAX_TRANSCRIPT + READ_SIZE


@pytest.mark.parametrize("attempt", [SILENT, CONTROL, DIRECT], ids=lambda a: a.name)
def test_a_flood_of_garbage_is_foreign(attempt: Attempt) -> None:
    with Peer(floods) as peer:
        transcripts, _ = told(peer, attempt)
    assert observe(transcripts[attempt.name]).outcome is Outcome.FOREIGN


def test_a_peer_on_ipv6_is_probed_and_its_address_is_in_brackets() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback: {error}")
    with Peer(serves, "::1") as peer:
        transcript = control(peer, timeout=2.0)
    assert transcript.door == f"[::1]:{peer.port}"
    (connected,) = (e.fact for e in transcript.events if isinstance(e.fact, Connected))
    assert connected.server == f"[::1]:{peer.port}"
    assert connected.client.startswith("[::1]:")
    assert observe(transcript).outcome is Outcome.AUTHENTICATION


# --- a whole run --------------------------------------------------------------------------------


def through(handshakes: Sequence[Handshake]) -> set[str]:
    return {h.attempt for h in handshakes if h.outcome is Outcome.AUTHENTICATION}


def test_the_standard_attempts_at_a_whole_server_all_tell_something() -> None:
    began = time.monotonic()
    with Peer(serves) as peer:
        transcripts, not_made = told(peer, *standard(CONTROL), timeout=0.4, deadline=6.0)
    assert time.monotonic() - began < 4.0
    assert not_made == []
    assert next(iter(transcripts)) == "control"
    assert list(transcripts)[-1] == "control-again"
    handshakes = [observe(transcript) for transcript in transcripts.values()]
    assert through(handshakes) >= {"control", "direct", "unknown-name", "no-name", "tls-1.2"}
    assert through(handshakes) >= {"hello-in-two-segments", "hello-in-two-records", "large-hello"}


def test_no_more_than_four_connections_are_open_at_once() -> None:
    opened: list[str] = []
    with Peer(deaf) as peer:
        where, attempts = (peer.address, peer.port), standard(CONTROL)
        probe_door(*where, attempts, timeout=0.5, deadline=0.45, watch=opened.append)
    assert opened == [a.name for a in attempts if a.needs is Needs.NOTHING][:4]


def test_a_server_that_is_full_is_not_asked_again() -> None:
    with Peer(full) as peer:
        transcripts, not_made = told(peer, *standard(CONTROL), timeout=2.0)
    assert set(transcripts) == {"control"}
    error = observe(transcripts["control"]).error
    assert error is not None
    assert error.sqlstate == "53300"
    assert len(peer.heard) == 1
    assert {why for _, why in not_made} == {"the server has no connection left (53300)"}


def test_a_deaf_endpoint_costs_about_one_time_out() -> None:
    began = time.monotonic()
    with Peer(deaf) as peer:
        transcripts, not_made = told(peer, CONTROL, DIRECT, SILENT, timeout=0.4)
    assert time.monotonic() - began < 1.0
    assert {observe(t).outcome for t in transcripts.values()} == {Outcome.SILENT}
    assert set(transcripts) == {"control", "direct", "silent"}
    assert not_made == []


def test_the_deadline_ends_a_run_whatever_the_time_out() -> None:
    began = time.monotonic()
    with Peer(deaf) as peer:
        transcripts, not_made = told(peer, *standard(CONTROL), timeout=7.0, deadline=0.4)
        peer.join()
    assert time.monotonic() - began < 1.0
    assert "control" in transcripts
    assert peer.ended == len(peer.heard)
    names = {attempt.name for attempt in standard(CONTROL)}
    assert names <= {*transcripts, *(name for name, _ in not_made)} | {"proxy-header"}


@pytest.mark.parametrize(("interrupted", "opened"), [("control", 0), ("direct", 1), ("silent", 2)])
def test_an_interrupt_closes_every_socket(interrupted: str, opened: int) -> None:
    def watch(name: str) -> None:
        if name == interrupted:
            raise KeyboardInterrupt

    attempts = [CONTROL, DIRECT, SILENT]
    with Peer(deaf) as peer:
        with pytest.raises(KeyboardInterrupt):
            probe_door(peer.address, peer.port, attempts, timeout=5.0, deadline=5.0, watch=watch)
        peer.join(opened)
        assert peer.ended == opened


# --- names --------------------------------------------------------------------------------------


def test_a_name_that_does_not_resolve_is_an_answer() -> None:
    resolution = resolve("no-such-host.invalid", 5432, socket.AF_UNSPEC, 2.0)
    assert resolution.addresses == ()
    assert resolution.failure is not None
    assert resolution.failure.failure is ConnectFailure.NOT_RESOLVED
    transcript = not_resolved(CONTROL, "no-such-host.invalid:5432", resolution)
    handshake = observe(transcript)
    assert (handshake.outcome, handshake.awaited) == (Outcome.REFUSED, Stage.RESOLVE)


@pytest.mark.parametrize("host", ["a" * 64 + ".example.com", "a..b", ""])
def test_a_name_that_cannot_be_asked_for_is_an_answer_too(host: str) -> None:
    resolution = resolve(host, 5432, socket.AF_INET6, 2.0)
    assert (resolution.failure is None) == bool(resolution.addresses)


def test_a_stuck_name_service_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(*_: object) -> list[object]:
        time.sleep(0.5)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    resolution = resolve("db.example.com", 5432, socket.AF_UNSPEC, 0.05)
    assert resolution.took < 0.4
    assert resolution.failure is not None
    assert resolution.failure.says == "no answer from the name service in 0.05 s"


def test_an_address_resolves_to_itself_and_once() -> None:
    resolution = resolve("127.0.0.1", 5432, socket.AF_UNSPEC, 2.0)
    assert (resolution.addresses, resolution.failure) == (("127.0.0.1",), None)


def test_the_resolution_is_the_controls_first_event_and_its_time_counts() -> None:
    with Peer(says_n) as peer:
        (transcript,), _ = probe_door(
            peer.address,
            peer.port,
            [CONTROL],
            timeout=0.4,
            deadline=1.0,
            resolution=Resolution(("127.0.0.1",), 0.2),
        )
    assert transcript.events[0].fact == Resolved(("127.0.0.1",))
    assert all(event.at >= 0.2 for event in transcript.events)


@pytest.mark.parametrize(
    ("address", "shown"),
    [("192.0.2.1", "192.0.2.1:5432"), ("2001:db8::1", "[2001:db8::1]:5432")],
)
def test_an_endpoint_is_written_with_its_port(address: str, shown: str) -> None:
    assert endpoint(address, 5432) == shown


def test_times_never_go_backwards() -> None:
    with Peer(serves) as peer:
        transcripts, _ = told(peer, CONTROL, DIRECT, timeout=1.0)
    for transcript in transcripts.values():
        times = [event.at for event in transcript.events]
        assert times == sorted(times)
        assert times[0] >= 0
