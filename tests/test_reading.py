"""What only packets can tell: each rule that a live run cannot ask, firing and silent."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from conversations import asks, flights, hangs, say, served
from peers import NAME, asks_for_retry

from fixtures.packets import (
    ACK,
    EPOCH,
    FIN,
    PSH,
    RST,
    SSL_REQUEST,
    STARTUP,
    SYN,
    Frame,
    Talk,
    pcap,
    tls_flights,
)
from probe.captured import Captured
from probe.commands.read import judged
from probe.finding import Certainty, Severity
from probe.handshake import FACTS, Opening, Outcome
from probe.reading import Reading, read
from probe.sighting import Vantage
from probe.sources.capture import read_capture
from probe.transcript import Asked, Transcript

GSS_REQUEST = bytes.fromhex("00000008 04d21630")
OTHER = "db-2.example.com"


def reading(*talks: Talk | list[Frame]) -> Reading:
    frames = [f for talk in talks for f in (talk.frames if isinstance(talk, Talk) else talk)]
    frames.sort(key=lambda frame: frame.at)
    return judged([read_capture(io.BytesIO(pcap(frames)), name="some.pcap")])


def codes(*talks: Talk | list[Frame]) -> dict[str, str]:
    """The findings' codes and what they say."""
    return {finding.code: finding.message for finding in reading(*talks).findings}


def found(code: str, *talks: Talk | list[Frame]) -> tuple[str, Severity, Certainty] | None:
    for finding in reading(*talks).findings:
        if finding.code == code:
            return finding.message, finding.severity, finding.certainty
    return None


def test_a_handshake_that_gets_through_has_no_finding() -> None:
    told = reading(served(), served(port=40_001, at=2))
    assert told.findings == ()
    assert [row.digest.broken for row in told.connections] == [False, False]
    assert told.connections[0].handshake.server_name == NAME
    assert told.connections[0].digest.began == EPOCH
    assert told.connections[0].digest.ended > EPOCH


# --- C108: a reset by its TTL or its IP identification ----------------------------------------


def test_c108_reset_from_between_fires_by_its_ttl() -> None:
    talk = asks().say("client", flights()[0][1]).send("server", RST, ttl=251)
    assert found("C108", talk) == (
        "a reset did not come from the end that it names: TTL 251, where all its other packets "
        "have 64",
        Severity.ERROR,
        Certainty.LIKELY,
    )
    late = say(asks(), flights()).send("server", RST, ttl=251)
    told = found("C108", late)
    assert told is not None
    assert told[1] is Severity.WARNING


def test_c108_reset_from_between_fires_by_its_identification() -> None:
    talk = say(asks(), flights())
    for _ in range(4):
        talk.say("server", b"\x17\x03\x03\0\5hello")
    told = found("C108", talk.send("server", RST, ident=30_000))
    assert told is not None
    assert "IP identification 30000, where its other packets count up" in told[0]


def test_c108_is_silent_at_a_reset_of_the_stream_itself() -> None:
    talk = asks().say("client", flights()[0][1]).send("server", RST)
    assert "C108" not in codes(talk)


# --- C109: segments that never get through ----------------------------------------------------


def resends(who: str, data: bytes, times: int) -> Talk:
    talk = asks()
    if who == "server":
        talk.say("client", flights()[0][1]).send("server", ACK)
    begins = talk.next[who]
    talk.say(who, data)
    for turn in range(times):
        talk.at += 0.2 * 2**turn
        talk.say(who, data, seq=begins)
    return talk


def resent(who: str, data: bytes, times: int) -> list[Frame]:
    return hangs(resends(who, data, times))


HELLO = flights()[0][1]


def test_c109_segments_lost_fires_at_a_client_hello_that_is_said_again() -> None:
    told = found("C109", resent("client", HELLO, 3))
    assert told == (
        f"the ClientHello was sent again 3 times, in segments of up to {len(HELLO)} bytes, and "
        "never got through",
        Severity.ERROR,
        Certainty.POSSIBLE,
    )


def test_c109_suspects_the_mtu_where_the_segments_are_large() -> None:
    flight = b"".join(data for who, data in flights() if who == "server")[:1_400]
    told = found("C109", resent("server", flight, 4))
    assert told is not None
    assert told[0] == (
        f"the server's flight was sent again 4 times, in segments of up to {len(flight)} bytes, "
        "and never got through: the path's MTU is the first suspect"
    )
    assert told[2] is Certainty.LIKELY


def test_c109_tells_of_what_was_lost_in_the_end() -> None:
    """A ClientHello that was said twice and then arrived is not what never got through."""
    talk, flight = asks(), b"".join(data for who, data in flights() if who == "server")[:500]
    begins = talk.next["client"]
    talk.say("client", HELLO)
    talk.at += 0.2
    talk.say("client", HELLO, seq=begins).send("server", ACK)
    begins = talk.next["server"]
    talk.say("server", flight)
    for turn in range(3):
        talk.at += 0.2 * 2**turn
        talk.say("server", flight, seq=begins)
    told = found("C109", hangs(talk))
    assert told is not None
    assert told[0].startswith(
        "the server's flight was sent again 3 times, in segments of up to 500"
    )


def test_c109_needs_no_packet_but_those_that_are_sent_again() -> None:
    assert "sent again 5 times" in codes(resends("client", HELLO, 5))["C109"]


def test_c109_is_silent_while_it_may_still_get_through() -> None:
    assert "C109" not in codes(resends("client", HELLO, 4))


@pytest.mark.parametrize("who", ["client", "server"])
def test_c109_is_told_behind_the_loss_by_what_its_receiver_asks_for(who: str) -> None:
    talk, other = asks(), {"client": "server", "server": "client"}[who]
    said_first = HELLO
    if who == "server":
        talk.say("client", HELLO).send("server", ACK)
        said_first = b"".join(data for sender, data in flights() if sender == "server")
    begins = talk.next[who]
    talk.say(who, said_first[:-100], dropped=True).say(who, said_first[-100:])
    told = found("C109", hangs(talk.send(other, ACK, ack=begins)))
    assert told is not None
    what = {"client": "the ClientHello", "server": "the server's flight"}[who]
    assert told[0].startswith(f"{len(said_first) - 100} bytes of {what} never came here, and")
    assert told[1] is Severity.ERROR


def test_c109_is_told_instead_of_what_is_seen_from_outside() -> None:
    flight = b"".join(data for who, data in flights() if who == "server")[:1_400]
    assert set(codes(resent("client", HELLO, 3))) == {"C109"}
    assert set(codes(resent("server", flight, 4))) == {"C109"}


def test_c109_is_silent_where_it_got_through_in_the_end() -> None:
    passed = flights()
    talk = asks()
    begins = talk.next["client"]
    talk.say("client", passed[0][1])
    for turn in range(3):
        talk.at += 0.2 * 2**turn
        talk.say("client", passed[0][1], seq=begins)
    assert "C109" not in codes(say(talk, passed[1:]).close())


def test_c109_is_silent_at_packets_captured_twice() -> None:
    talk = asks().say("client", HELLO)
    twice = [f for frame in talk.frames for f in (frame, frame, frame)]
    assert "C109" not in codes([*twice, *hangs(talk)[len(talk.frames) :]])


# --- N210, N211, N212: what the client begins with --------------------------------------------


def startup(port: int = 40_001, client: str = "192.0.2.1", at: float = 0.0) -> Talk:
    talk = Talk(client, port=port)
    talk.at += at
    return talk.open().say("client", STARTUP).say("server", b"R\0\0\0\x08\0\0\0\x03").close()


def test_n210_tls_not_asked_fires() -> None:
    told = found("N210", startup())
    assert told is not None
    assert told[0] == "the client never asked for TLS: it begins with StartupMessage, in clear"


def test_n210_is_silent_where_the_client_asked_elsewhere_or_was_refused() -> None:
    assert "N210" not in codes(served(), startup(at=2))
    refused = Talk().open().say("client", SSL_REQUEST).say("server", b"N").say("client", STARTUP)
    assert "N210" not in codes(refused.close())


def kerberos(answer: bytes = b"") -> Talk:
    talk = Talk(port=40_002).open().say("client", GSS_REQUEST)
    return talk.say("server", answer) if answer else talk


@pytest.mark.parametrize(
    "talk",
    [
        kerberos().send("server", FIN | ACK),
        kerberos().send("server", RST),
        hangs(kerberos()),
        kerberos(b"HTTP/1.1 400 Bad Request\r\n\r\n").send("server", FIN | ACK),
        kerberos(b"N").say("client", SSL_REQUEST).send("server", FIN | ACK),
    ],
)
def test_n211_stops_at_gssencrequest_fires(talk: Talk | list[Frame]) -> None:
    told = found("N211", talk)
    assert told is not None
    assert told[0].startswith("a client with a Kerberos ticket stops at GSSENCRequest, which is ")


def test_n211_is_silent_where_the_client_goes_on_or_asks_elsewhere() -> None:
    through = say(kerberos(b"N").say("client", SSL_REQUEST).say("server", b"S"), flights())
    assert "N211" not in codes(through.close())
    assert "N211" not in codes(kerberos(b"G").close())
    closed = kerberos().send("server", FIN | ACK)
    assert "N211" not in codes(closed, served(at=5))
    assert "N211" not in codes(kerberos(b"N").close())  # gssencmode=require


def test_n207_gssencrequest_breaks_fires_where_only_direct_tls_gets_through() -> None:
    direct = say(Talk().open(), flights())
    closed = kerberos().send("server", FIN | ACK)
    told = found("N207", direct.close(), closed)
    assert told is not None
    assert told[0].startswith("GSSENCRequest is closed, where direct TLS gets through")
    assert "N211" not in codes(direct, closed)


def test_n207_is_silent_where_sslrequest_breaks_beside_direct_tls() -> None:
    direct, closed = say(Talk().open(), flights()).close(), kerberos().send("server", FIN | ACK)
    refused = Talk(port=40_003).open().say("client", SSL_REQUEST).send("server", FIN | ACK)
    assert "N207" not in codes(direct, closed, refused)


def test_what_follows_a_g_is_not_read_and_not_held_to_be_broken() -> None:
    token = b"\0\0\0\x04" + b"\x60" * 4
    used = kerberos(b"G").say("client", token).say("server", token).close()
    for talk in (used, kerberos(b"G").close()):
        (row,) = reading(talk).connections
        assert row.digest.broken is None
        assert row.findings == ()


def late(seconds: float, port: int = 40_000, at: float = 0.0) -> Talk:
    talk = Talk(port=port)
    talk.at += at
    talk.open().say("client", SSL_REQUEST)
    talk.at += seconds - 0.01
    return say(talk.say("server", b"S"), flights()).close()


def test_n212_late_ssl_answer_fires() -> None:
    assert found("N212", late(5.0)) == (
        "SSLRequest is answered only after 5 s: a router waits for a ClientHello first",
        Severity.WARNING,
        Certainty.LIKELY,
    )
    told = found("N212", late(3.05))
    assert told is not None
    assert told[2] is Certainty.POSSIBLE
    told = found("N212", late(3.0), late(3.02, port=40_001, at=10))
    assert told is not None
    assert told[2] is Certainty.LIKELY


@pytest.mark.parametrize("seconds", [0.01, 1.0, 4.6, 2.7])
def test_n212_is_silent_at_any_other_wait(seconds: float) -> None:
    assert "N212" not in codes(late(seconds))


# --- S310, S311: how the client asks for a name -----------------------------------------------


def test_s310_sni_not_sent_fires() -> None:
    told = found("S310", served(None))
    assert told is not None
    assert told[1] is Severity.INFO
    closed = say(asks(), flights(None)[:1]).send("server", FIN | ACK)
    told = found("S310", closed)
    assert told is not None
    assert told[0] == (
        "the client sends no server_name, so that nobody can route it by name: it is closed"
    )
    assert told[1] is Severity.WARNING


def test_s310_is_silent_where_the_client_sends_one_elsewhere() -> None:
    assert "S310" not in codes(served(None), served(port=40_001, at=2))
    assert "S310" not in codes(served())


def test_s310_is_silent_where_the_name_is_not_captured() -> None:
    hello = flights(NAME)[0][1]
    talk = asks().say("client", hello, captured=60).say("server", b"\x16\x03\x03")
    assert "S310" not in codes(talk.close())


def test_s311_sni_trailing_dot_fires() -> None:
    told = found("S311", served(NAME + "."))
    assert told is not None
    assert told[0] == f"the server_name '{NAME}.' ends in a dot, and gets through here"
    assert told[1] is Severity.WARNING
    closed = say(asks(), flights(NAME + ".")[:1]).send("server", FIN | ACK)
    told = found("S311", closed)
    assert told is not None
    assert told[0].endswith("ends in a dot, and is closed")
    assert told[1] is Severity.ERROR


def test_s311_is_silent_at_a_name_without_a_dot_at_its_end() -> None:
    assert "S311" not in codes(served())


# --- one handshake, told as what it is --------------------------------------------------------


def test_a_hello_retry_request_is_one_handshake() -> None:
    passed = flights(server=asks_for_retry())
    assert [who for who, _ in passed[:4]] == ["client", "server", "client", "server"]
    (row,) = reading(say(asks(), passed).close()).connections
    seen = row.handshake
    assert seen.retried
    assert seen.established is not None
    assert seen.server_name == NAME
    hellos = [step for step in seen.steps if "HelloRetryRequest" in step.says]
    assert len(hellos) == 1


def test_a_cancel_request_is_not_a_broken_handshake() -> None:
    cancel = bytes.fromhex("00000010 04d2162e 00000001 00000002")
    (row,) = reading(Talk().open().say("client", cancel).close()).connections
    assert row.handshake.opening is Opening.CANCEL
    assert row.digest.broken is None
    assert row.findings == ()


def test_a_port_that_refuses_is_broken() -> None:
    told = reading(Talk().send("client", SYN).send("server", RST | ACK))
    assert [row.digest.broken for row in told.connections] == [True]
    assert "C102" in {finding.code for finding in told.findings}


def test_a_syn_that_nobody_answers_is_broken() -> None:
    talk = Talk()
    for wait in (1, 2, 4):
        talk.send("client", SYN, seq=1_000)
        talk.at += wait
    told = reading(hangs(talk))
    assert told.connections[0].digest.broken is True
    assert "C103" in {finding.code for finding in told.findings}


# --- what is not captured is not absent -------------------------------------------------------


@pytest.mark.parametrize("dropped", range(3, 8))
def test_no_rule_hears_of_a_connection_whose_deciding_packets_are_missing(dropped: int) -> None:
    """Each packet of the handshake in turn: nothing is found that is not there."""
    talk = served()
    del talk.frames[dropped]
    told = reading(talk)
    assert told.findings == ()
    assert all(row.digest.broken is not True for row in told.connections)


@pytest.mark.parametrize("kept", range(1, len(served().frames)))
def test_a_capture_that_ends_early_finds_nothing(kept: int) -> None:
    talk = served()
    del talk.frames[kept:]
    assert reading(talk).findings == ()


@pytest.mark.parametrize("first", range(1, len(served().frames) - 3))
def test_a_capture_that_begins_late_finds_nothing(first: int) -> None:
    talk = served()
    del talk.frames[:first]
    told = reading(talk)
    assert told.findings == ()
    assert all(set(row.handshake.not_captured) <= set(FACTS) for row in told.connections)


@pytest.mark.parametrize("size", [60, 80, 100, 200])
def test_a_snapshot_length_finds_nothing(size: int) -> None:
    frames = [Frame(f.at, f.data[:size], len(f.data)) for f in served().frames]
    told = reading(frames)
    assert told.findings == ()
    assert told.connections[0].handshake.server_name is None
    assert "sni" in told.connections[0].handshake.not_captured


def test_a_capture_that_ends_before_the_answer_does_not_call_it_silence() -> None:
    (row,) = reading(Talk().open().say("client", SSL_REQUEST)).connections
    assert row.handshake.outcome is Outcome.NOT_CAPTURED
    assert row.digest.broken is None


def test_a_capture_that_goes_on_without_an_answer_calls_it_silence() -> None:
    told = reading(hangs(Talk().open().say("client", SSL_REQUEST), 6))
    assert told.connections[0].handshake.outcome is Outcome.SILENT
    assert told.connections[0].digest.broken is True


# --- grouping ---------------------------------------------------------------------------------


def test_a_name_that_is_not_routed_is_found_beside_one_that_is() -> None:
    good = served(OTHER)
    bad = say(asks(port=40_001, at=2), flights()[:1]).send("server", FIN | ACK)
    unknown = say(asks(port=40_002, at=4), flights("nobody.invalid")[:1]).send("server", FIN | ACK)
    told = reading(good, bad, unknown)
    assert any(f.code.startswith("S30") and NAME in f.message for f in told.findings)
    broken = [row.digest.broken for row in told.connections]
    assert broken == [False, True, True]
    assert told.connections[0].findings == ()


def test_connections_that_fare_alike_share_their_findings() -> None:
    talks = [startup(port=41_000 + n, client=f"192.0.2.{n}", at=n) for n in range(1, 5)]
    told = reading(*talks)
    assert [finding.code for finding in told.findings].count("N210") == 1
    assert all("N210" in {f.code for f in row.findings} for row in told.connections)


def test_doors_are_judged_apart() -> None:
    other = Talk(server="192.0.2.9", port=40_005).open().say("client", STARTUP).close()
    told = reading(served(), other)
    assert {finding.door for finding in told.findings} == {"192.0.2.9:5432"}


def test_a_recorded_run_of_our_own_is_judged_as_it_was() -> None:
    (row,) = read_capture(io.BytesIO(pcap(served(OTHER).frames)), name="x").connections
    own = row.transcript._replace(attempt="control", asked=Asked.TARGET)
    told = read([Captured(own, "x", 1, 9)], [Vantage("x", EPOCH, EPOCH + 1)])
    assert told.connections[0].handshake.asked is Asked.TARGET
    assert not any(finding.code in ("S310", "N210") for finding in told.findings)


def test_labels_name_their_file_where_there_are_several() -> None:
    (row,) = read_capture(io.BytesIO(pcap(served().frames)), name="x").connections
    places = [Vantage(name, EPOCH, EPOCH + 1) for name in ("a.pcap", "b.pcap")]
    told = read([Captured(row.transcript, each.file) for each in places], places)
    assert [each.captured.transcript.attempt for each in told.connections] == [
        "connection 1 of a.pcap",
        "connection 1 of b.pcap",
    ]
    assert told.files == ("a.pcap", "b.pcap")


def test_a_connection_without_any_event_is_a_row() -> None:
    empty = Transcript("connection 1", "192.0.2.2:5432", ())
    told = read([Captured(empty, "x")], [Vantage("x", EPOCH, EPOCH)])
    assert len(told.connections) == 1
    assert told.findings == ()


@pytest.mark.parametrize("alpn", ["postgresql", "h2"])
def test_direct_tls_is_told_by_its_first_packet(alpn: str) -> None:
    passed = tls_flights(alpn=alpn)
    talk = Talk().open()
    for turn, flight in enumerate(passed):
        talk.say("server" if turn % 2 else "client", flight)
    (row,) = reading(talk).connections
    assert row.handshake.opening is Opening.DIRECT_TLS
    assert row.handshake.client_hello is not None
    assert row.handshake.client_hello.alpn == (alpn,)


Make = Callable[[], Talk]
SCENES: dict[str, Make] = {
    "served": served,
    "closed": lambda: say(asks(), flights()[:1]).send("server", FIN | ACK),
    "reset": lambda: say(asks(), flights()[:1]).send("server", RST),
    "refused": lambda: Talk().open().say("client", SSL_REQUEST).say("server", b"N").close(),
    "kerberos": lambda: kerberos().send("server", FIN | ACK),
    "clear": startup,
    "late": lambda: late(5.0),
    "http": lambda: asks().send("server", PSH | ACK, b"HTTP/1.1 400 Bad Request\r\n\r\n").close(),
}


@pytest.mark.parametrize("scene", SCENES)
def test_capturing_every_packet_twice_changes_no_finding(scene: str) -> None:
    talk = SCENES[scene]()
    twice = [f for frame in talk.frames for f in (frame, frame._replace(at=frame.at + 0.0005))]
    assert codes(twice) == codes(talk)


@pytest.mark.parametrize("scene", SCENES)
def test_every_segment_cut_in_two_changes_no_outcome(scene: str) -> None:
    whole = SCENES[scene]()
    halves: list[Frame] = []
    for frame in whole.frames:
        data, size = frame.data, len(frame.data) - 54
        for begins, ends in ((0, size // 2), (size // 2, size)):
            part = bytearray(data[:54] + data[54 + begins : 54 + ends])
            part[16:18] = (len(part) - 14).to_bytes(2, "big")  # of the datagram
            seq = int.from_bytes(data[38:42], "big")
            part[38:42] = (seq + begins).to_bytes(4, "big")
            if ends > begins or not size:
                halves.append(Frame(frame.at + begins / 1e7, bytes(part)))
    (one,), (two,) = reading(whole).connections, reading(halves).connections
    assert (one.handshake.outcome, one.handshake.reached, one.digest.broken) == (
        two.handshake.outcome,
        two.handshake.reached,
        two.digest.broken,
    )
