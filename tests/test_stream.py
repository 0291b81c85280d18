"""TCP segments to connections: whatever order they come in, and what is missing of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    tls_flights,
)
from probe import flow, stream
from probe.ends import named
from probe.flow import Conversation
from probe.packet import Decoder
from probe.pcapng import ETHERNET
from probe.stream import Streams
from probe.transcript import (
    Closed,
    Connected,
    ConnectFailure,
    Connecting,
    Data,
    Ending,
    Fact,
    Missed,
    NotCaptured,
    NotConnected,
    Party,
    Resent,
    StrangeReset,
)

C, S = Party.CLIENT, Party.SERVER
CLIENT, SERVER = "192.0.2.1:40000", "192.0.2.2:5432"
OPENED = [Connecting(SERVER), Connected(CLIENT, SERVER)]
CANCEL = bytes.fromhex("00000010 04d2162e 00000001 00000002")
GSS_REQUEST = bytes.fromhex("00000008 04d21630")
FLIGHTS = tls_flights()
HELLO = FLIGHTS[0]


def follow(frames: Sequence[Frame], **options: Any) -> tuple[list[Conversation], Streams]:
    told: list[Conversation] = []
    streams = Streams(told.append, **options)
    decoder = Decoder()
    for number, frame in enumerate(frames, 1):
        length = len(frame.data) if frame.length is None else frame.length
        segment = decoder.segment(ETHERNET, frame.at, frame.data, length)
        if segment is not None:
            streams.take(segment, number)
    streams.finish()
    return sorted(told, key=lambda each: each.first_packet), streams


def one(frames: Sequence[Frame], **options: Any) -> Conversation:
    (conversation,), _ = follow(frames, **options)
    return conversation


def facts(frames: Sequence[Frame], **options: Any) -> list[Fact]:
    return [event.fact for event in one(frames, **options).events]


def said(told: Sequence[Fact], party: Party) -> bytes:
    return b"".join(f.data for f in told if isinstance(f, Data) and f.sender is party)


def asked() -> Talk:
    """SSLRequest and its S."""
    return Talk().open().say("client", SSL_REQUEST).say("server", b"S")


def shuffled(talk: Talk, *order: int) -> list[Frame]:
    """Its last frames in another order; times go on."""
    head, tail = talk.frames[: -len(order)], talk.frames[-len(order) :]
    times = [frame.at for frame in tail]
    return head + [tail[n]._replace(at=at) for n, at in zip(order, times, strict=True)]


# --- a plain connection -----------------------------------------------------------------------


def test_a_connection_is_told_as_a_live_one_is() -> None:
    conversation = one(asked().close().frames)
    assert [event.fact for event in conversation.events] == [
        *OPENED,
        Data(C, SSL_REQUEST),
        Data(S, b"S"),
        Closed(C, Ending.FIN),
        Closed(S, Ending.FIN),
    ]
    assert named(conversation.ends) == (CLIENT, SERVER)
    assert conversation.started == EPOCH
    assert (conversation.first_packet, conversation.packets) == (1, 8)
    at = [event.at for event in conversation.events]
    assert at == pytest.approx([0, 0.01, 0.03, 0.04, 0.05, 0.06])


def test_ipv6_ends_are_in_brackets() -> None:
    talk = Talk("2001:db8::1", "2001:db8::2").open().say("client", SSL_REQUEST)
    conversation = one(talk.frames)
    assert named(conversation.ends) == (
        "[2001:db8::1]:40000",
        "[2001:db8::2]:5432",
    )


def test_sequence_numbers_pass_their_end() -> None:
    talk = Talk(isn=(2**32 - 3, 2**32 - 1)).open().say("client", SSL_REQUEST).say("server", b"S")
    told = facts(talk.close().frames)
    assert (said(told, C), said(told, S)) == (SSL_REQUEST, b"S")
    assert told[-1] == Closed(S, Ending.FIN)


def test_a_fin_with_data_closes_behind_it() -> None:
    talk = asked().send("server", FIN | PSH | ACK, b"bye")
    assert facts(talk.frames)[-2:] == [Data(S, b"bye"), Closed(S, Ending.FIN)]


# --- order, repetition, overlap ---------------------------------------------------------------


def test_segments_out_of_order_are_put_in_order() -> None:
    for order in itertools.permutations(range(4)):
        talk = asked()
        for part in (HELLO[:100], HELLO[100:300], HELLO[300:301], HELLO[301:]):
            talk.say("client", part)
        assert said(facts(shuffled(talk, *order)), C) == SSL_REQUEST + HELLO


def test_a_fin_that_overtakes_its_data_closes_behind_it() -> None:
    talk = asked().say("server", b"last").send("server", FIN | ACK)
    assert facts(shuffled(talk, 1, 0))[-2:] == [Data(S, b"last"), Closed(S, Ending.FIN)]


def test_an_answer_that_overtakes_its_question_waits_for_it() -> None:
    """Captures of several queues are not in order."""
    talk = Talk(step=0.001).open().say("client", SSL_REQUEST).say("server", b"S")
    assert facts(shuffled(talk, 1, 0)) == [*OPENED, Data(C, SSL_REQUEST), Data(S, b"S")]


def test_a_syn_ack_that_overtakes_its_syn() -> None:
    talk = Talk().open().say("client", SSL_REQUEST)
    first, second, *rest = talk.frames
    told = facts([second._replace(at=first.at), first._replace(at=second.at), *rest])
    assert told.count(Connected(CLIENT, SERVER)) == 1
    assert said(told, C) == SSL_REQUEST


def test_what_is_said_again_before_it_was_acknowledged_was_lost() -> None:
    talk = asked().say("client", HELLO)
    again = talk.next["client"] - len(HELLO)
    for wait in (0.2, 0.4):
        talk.at += wait
        talk.say("client", HELLO, seq=again)
    told = facts(talk.frames)
    assert told[-2:] == [Resent(C, 8, len(HELLO))] * 2
    assert said(told, C) == SSL_REQUEST + HELLO


def test_what_is_said_again_although_it_was_acknowledged_was_not_lost() -> None:
    talk = asked().say("client", HELLO).send("server", ACK)
    talk.at += 0.3
    talk.say("client", HELLO, seq=talk.next["client"] - len(HELLO))
    assert not any(isinstance(fact, Resent) for fact in facts(talk.frames))


def hole() -> tuple[Talk, int]:
    """The first 100 bytes of a server's flight do not come, those behind them do."""
    talk = asked().say("client", HELLO)
    begins = talk.next["server"]
    talk.say("server", FLIGHTS[1][:100], dropped=True).say("server", FLIGHTS[1][100:])
    return talk, begins


def test_what_its_receiver_goes_on_to_ask_for_never_came() -> None:
    talk, begins = hole()
    told = facts(talk.send("client", ACK, ack=begins).frames)
    assert told[-1] == Missed(S, 100)
    assert said(told, S) == b"S"


def test_what_its_receiver_acknowledges_in_the_end_was_only_not_captured() -> None:
    talk, begins = hole()
    told = facts(talk.send("client", ACK, ack=begins).send("client", ACK).frames)
    assert NotCaptured(S, 100) in told
    assert said(told, S) == b"S" + FLIGHTS[1][100:]


def test_what_its_receiver_says_nothing_of_was_not_captured() -> None:
    talk, _ = hole()
    told = facts(talk.frames)
    assert NotCaptured(S, 100) in told
    assert said(told, S) == b"S" + FLIGHTS[1][100:]


def test_what_comes_after_it_was_asked_for_again_is_told_whole() -> None:
    talk, begins = hole()
    talk.send("client", ACK, ack=begins).say("server", FLIGHTS[1][:100], seq=begins)
    assert said(facts(talk.frames), S) == b"S" + FLIGHTS[1]


@pytest.mark.parametrize("wait", [0.0, 0.001])
def test_the_same_packet_captured_twice_is_no_retransmission(wait: float) -> None:
    talk = Talk(step=0.05).open().say("client", SSL_REQUEST).say("server", b"S")
    talk.say("client", HELLO)
    for flight in FLIGHTS[1:2]:
        talk.say("server", flight)
    twice = [f for frame in talk.frames for f in (frame, frame._replace(at=frame.at + wait))]
    assert facts(twice) == facts(talk.frames)


def test_the_same_packet_seen_late_is_known_by_its_identification() -> None:
    """A mirror port far away: it has the packet's own IP identification."""
    talk = asked().say("client", HELLO)
    late = talk.frames[-1]._replace(at=talk.frames[-1].at + 0.3)
    assert not any(isinstance(fact, Resent) for fact in facts([*talk.frames, late]))


def test_of_bytes_that_overlap_the_first_that_came_count() -> None:
    talk = asked()
    begins = talk.next["client"]
    talk.say("client", b"ABCDEF", seq=begins)
    talk.say("client", b"xxxxxxGHI", seq=begins)  # new bytes behind known ones
    talk.say("client", b"yyyJKL", seq=begins + 6)
    talk.say("client", b"zz", seq=begins + 1)
    assert said(facts(talk.frames), C) == SSL_REQUEST + b"ABCDEFGHIJKL"


def test_of_bytes_that_wait_the_first_that_came_count() -> None:
    talk = asked()
    begins = talk.next["client"]
    talk.say("client", b"DEF", seq=begins + 3)
    talk.say("client", b"xxx", seq=begins + 3)
    talk.say("client", b"ABC", seq=begins)
    assert said(facts(talk.frames), C) == SSL_REQUEST + b"ABCDEF"


@given(st.data())
def test_any_cutting_repetition_and_short_disorder_gives_the_same_bytes(
    data: st.DataObject,
) -> None:
    text = bytes(range(64)) * 2
    talk = Talk(step=0.001).open()
    begins = talk.next["client"]
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    borders = [0, *cuts, len(text)]
    pieces = [(a, text[a:b]) for a, b in itertools.pairwise(borders) if a < b]
    overlaps = data.draw(
        st.lists(st.tuples(st.integers(0, len(text)), st.integers(0, 40)), max_size=5)
    )
    pieces += [(at, text[at : at + size]) for at, size in overlaps if text[at : at + size]]
    for at, piece in data.draw(st.permutations(pieces)):
        talk.say("client", piece, seq=begins + at)
    assert said(facts(talk.frames, everything=True), C) == text


# --- keep-alives, resets, ends ----------------------------------------------------------------


@pytest.mark.parametrize("probe", [b"", b"\0"])
def test_keep_alives_are_not_said(probe: bytes) -> None:
    talk = asked().send("client", ACK)
    plain = facts(talk.frames)
    for _ in range(3):
        talk.at += 10
        talk.send("client", ACK, probe, seq=talk.next["client"] - 1).send("server", ACK)
        talk.send("server", ACK, probe, seq=talk.next["server"] - 1).send("client", ACK)
    assert facts(talk.frames) == plain


def test_a_reset_in_answer_to_the_syn_is_a_refusal() -> None:
    talk = Talk().send("client", SYN).send("server", RST | ACK)
    assert facts(talk.frames) == [
        Connecting(SERVER),
        NotConnected(ConnectFailure.REFUSED, "a RST answered the SYN"),
    ]


def test_a_client_that_resets_an_old_syn_ack_goes_on() -> None:
    talk = Talk().send("client", SYN)
    talk.send("server", SYN | ACK, seq=777, ack=5)  # of an older connection
    talk.send("client", RST, seq=5)
    talk.send("client", SYN, seq=1_000)
    talk.send("server", SYN | ACK, seq=9_000).send("client", ACK, seq=1_001, ack=9_001)
    talk.send("client", PSH | ACK, SSL_REQUEST, seq=1_001, ack=9_001)
    told = facts(talk.frames)
    assert said(told, C) == SSL_REQUEST
    assert not any(isinstance(fact, StrangeReset) for fact in told)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_ends_its_side_once(who: str) -> None:
    talk = asked().send(who, RST | ACK).send(who, RST).send(who, RST)
    assert facts(talk.frames)[-1:] == [Closed(Party(who), Ending.RST)]
    assert len(facts(talk.frames)) == 5


def test_a_reset_with_the_ttl_of_its_stream_is_the_peers() -> None:
    talk = asked()
    talk.ttl["server"] = 57
    talk.frames.clear()
    talk = Talk()
    talk.ttl["server"] = 57
    talk.open().say("client", SSL_REQUEST).say("server", b"S").send("server", RST)
    assert not any(isinstance(fact, StrangeReset) for fact in facts(talk.frames))


def test_a_reset_with_another_ttl_came_from_in_between() -> None:
    told = facts(asked().send("server", RST, ttl=251).frames)
    says = "TTL 251, where all its other packets have 64"
    assert told[-2:] == [StrangeReset(S, says), Closed(S, Ending.RST)]


def test_where_the_ttl_of_a_stream_differs_anyway_nothing_is_concluded_from_it() -> None:
    talk = Talk().open().say("client", SSL_REQUEST).send("server", PSH | ACK, b"S", ttl=63)
    told = facts(talk.send("server", RST, ttl=251).frames)
    assert not any(isinstance(fact, StrangeReset) for fact in told)


def test_a_reset_is_compared_with_the_syn_ack_where_nothing_else_came() -> None:
    talk = Talk().open().say("client", SSL_REQUEST)
    told = facts(talk.send("server", RST, ttl=251).frames)
    says = "TTL 251, where its only other packet has 64"
    assert told[-2:] == [StrangeReset(S, says), Closed(S, Ending.RST)]


def test_a_reset_alone_has_no_ttl_to_be_compared_with() -> None:
    talk = Talk().say("client", SSL_REQUEST).send("server", RST, ttl=251)
    told = facts(talk.frames)
    assert not any(isinstance(fact, StrangeReset) for fact in told)
    assert told[-1] == Closed(S, Ending.RST)


def counting(idents: Sequence[int]) -> Talk:
    """A server that sends its packets with these IP identifications."""
    talk = Talk().open().say("client", SSL_REQUEST)
    for ident in idents:
        talk.say("server", b"x", ident=ident).send("client", ACK)
    return talk


COUNTER = [65_533, 65_534, 65_535, 2, 5]


def test_a_reset_whose_identification_is_far_from_the_counter_came_from_in_between() -> None:
    told = facts(counting(COUNTER).send("server", RST, ident=30_000).frames)
    says = "IP identification 30000, where its other packets count up and were at 5"
    assert told[-2:] == [StrangeReset(S, says), Closed(S, Ending.RST)]


@pytest.mark.parametrize(
    ("idents", "ident", "wait"),
    [
        (COUNTER, 6, 0.0),  # the next
        (COUNTER, 2_000, 0.0),  # of a machine that talks to others, too
        (COUNTER, 65_000, 0.0),  # it was overtaken
        (COUNTER, 0, 0.0),  # of a stack that knows the connection no more
        (COUNTER, 30_000, 1.5),  # a machine's counter may have got there
        ([1, 2, 3], 30_000, 0.0),  # too few to call it a counter
        ([4, 9_000, 77, 31_000, 5], 30_000, 0.0),  # random ones
        ([0, 0, 0, 0, 0], 30_000, 0.0),
        ([9, 8, 7, 6, 5], 30_000, 0.0),
    ],
)
def test_from_other_identifications_nothing_is_concluded(
    idents: list[int], ident: int, wait: float
) -> None:
    talk = counting(idents)
    talk.at += wait
    told = facts(talk.send("server", RST, ident=ident).frames)
    assert not any(isinstance(fact, StrangeReset) for fact in told)


def test_where_fragments_are_allowed_nothing_is_concluded_from_identifications() -> None:
    talk = counting(COUNTER).send("server", RST, ident=30_000)
    data = bytearray(talk.frames[-1].data)
    data[20:22] = b"\0\0"
    talk.frames[-1] = talk.frames[-1]._replace(data=bytes(data))
    assert not any(isinstance(fact, StrangeReset) for fact in facts(talk.frames))


@pytest.mark.parametrize(("syns", "seconds"), [(1, 3), (3, 7)])
def test_a_syn_that_is_never_answered_timed_out(syns: int, seconds: int) -> None:
    talk = Talk()
    for _ in range(syns):
        talk.send("client", SYN, seq=1_000)
        talk.at += 1
    other = Talk(port=40_001, at=EPOCH + seconds).open().say("client", SSL_REQUEST)
    conversations, _ = follow([*talk.frames, *other.frames])
    silent = conversations[0]
    says = f"{syns} SYN and no answer in {seconds:.1f} s"
    assert silent.events[-1].fact == NotConnected(ConnectFailure.TIMED_OUT, says)


def test_a_syn_at_the_captures_end_is_not_said_to_be_unanswered() -> None:
    assert facts(Talk().send("client", SYN).frames) == [Connecting(SERVER)]


# --- opening: fast open, changing answers, ports used again -----------------------------------


def test_data_in_the_syn_is_said() -> None:
    talk = Talk().send("client", SYN, SSL_REQUEST).send("server", SYN | ACK)
    talk.send("client", ACK).say("server", b"S")
    told = facts(talk.frames)
    assert (said(told, C), said(told, S)) == (SSL_REQUEST, b"S")


def test_data_in_a_syn_that_the_server_does_not_take_is_said_once() -> None:
    talk = Talk().send("client", SYN, SSL_REQUEST)
    talk.send("server", SYN | ACK, ack=1_001).send("client", ACK, seq=1_001)
    talk.send("client", PSH | ACK, SSL_REQUEST, seq=1_001).say("server", b"S")
    told = facts(talk.frames)
    assert (said(told, C), said(told, S)) == (SSL_REQUEST, b"S")


@pytest.mark.parametrize("taken", [9_000, 500_000])
def test_of_syn_acks_that_differ_the_one_that_the_client_took_counts(taken: int) -> None:
    """Two balancers answer for one address; or SYN cookies made anew."""
    talk = Talk().send("client", SYN)
    talk.send("server", SYN | ACK, seq=9_000).send("server", SYN | ACK, seq=500_000)
    talk.next["server"] = taken + 1
    talk.send("client", ACK).say("client", SSL_REQUEST).say("server", b"S")
    told = facts(talk.frames)
    assert (said(told, C), said(told, S)) == (SSL_REQUEST, b"S")
    assert not any(isinstance(fact, NotCaptured) for fact in told)


@pytest.mark.parametrize("closing", [[FIN | ACK], [RST], []])
def test_a_port_used_again_is_another_connection(closing: list[int]) -> None:
    first = asked()
    for flags in closing:
        first.send("server", flags)
    again = Talk(isn=(70_000, 80_000), at=first.at).open().say("client", STARTUP).close()
    one, two = follow([*first.frames, *again.frames])[0]
    assert said([e.fact for e in one.events], C) == SSL_REQUEST
    assert said([e.fact for e in two.events], C) == STARTUP
    assert two.first_packet == len(first.frames) + 1


def test_a_syn_that_is_said_again_opens_nothing_new() -> None:
    talk = Talk().send("client", SYN)
    talk.at += 1
    talk.send("client", SYN, seq=1_000).send("server", SYN | ACK).send("client", ACK)
    told = facts(talk.say("client", SSL_REQUEST).frames)
    assert told == [*OPENED, Data(C, SSL_REQUEST)]


def test_stragglers_of_a_closed_connection_are_not_another_one() -> None:
    talk = asked().close()
    talk.at += 30
    talk.say("server", b"late", seq=9_001).send("client", RST)
    other = Talk(port=40_001, at=talk.at).open().say("client", SSL_REQUEST)
    assert len(follow([*talk.frames, *other.frames])[0]) == 2


def test_who_speaks_to_itself_is_followed() -> None:
    talks = [
        Talk("192.0.2.1", "192.0.2.1", 5_432, 5_432, at=EPOCH + n, isn=(9 * n, 7)).open()
        for n in range(3)
    ]
    frames = [frame for talk in talks for frame in talk.say("client", SSL_REQUEST).close().frames]
    conversations, _ = follow(frames)
    assert {named(each.ends) for each in conversations} == {("192.0.2.1:5432",) * 2}


def test_connections_are_told_apart_by_both_ends() -> None:
    talks = [
        Talk(client, server, port, to).open().say("client", SSL_REQUEST).say("server", b"S")
        for client, server, port, to in itertools.product(
            ["192.0.2.1", "192.0.2.7"], ["192.0.2.2", "192.0.2.3"], [1, 2], [5432, 6432]
        )
    ]
    mixed = [frame for row in zip(*(talk.frames for talk in talks), strict=True) for frame in row]
    conversations, _ = follow(mixed)
    assert len({named(each.ends) for each in conversations}) == 16
    for each in conversations:
        told = [event.fact for event in each.events]
        assert (said(told, C), said(told, S)) == (SSL_REQUEST, b"S")


# --- what is not captured ---------------------------------------------------------------------


def test_a_segment_that_is_missing_and_acknowledged_is_not_captured() -> None:
    talk = asked().say("client", HELLO, dropped=True).say("server", FLIGHTS[1])
    assert facts(talk.frames)[-2:] == [NotCaptured(C, len(HELLO)), Data(S, FLIGHTS[1])]


def test_a_segment_that_is_missing_in_the_middle_is_not_captured() -> None:
    talk = asked().say("client", HELLO[:100]).say("client", HELLO[100:200], dropped=True)
    talk.say("client", HELLO[200:]).send("server", ACK)
    assert facts(talk.frames)[-3:] == [
        Data(C, HELLO[:100]),
        NotCaptured(C, 100),
        Data(C, HELLO[200:]),
    ]


def test_a_segment_that_is_missing_at_the_captures_end_is_not_captured() -> None:
    talk = asked().say("client", HELLO[:100], dropped=True).say("client", HELLO[100:])
    assert facts(talk.frames)[-2:] == [NotCaptured(C, 100), Data(C, HELLO[100:])]


def test_what_the_snapshot_length_cut_is_not_captured() -> None:
    talk = asked().say("client", HELLO, captured=40).say("server", FLIGHTS[1])
    assert facts(talk.frames)[-3:] == [
        Data(C, HELLO[:40]),
        NotCaptured(C, len(HELLO) - 40),
        Data(S, FLIGHTS[1]),
    ]


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_an_opening_that_is_captured_in_part_is_still_one(missing: int) -> None:
    frames = asked().frames
    told = facts(frames[: missing - 1] + frames[missing:])
    assert (said(told, C), said(told, S)) == (SSL_REQUEST, b"S")
    assert Connected(CLIENT, SERVER) in told
    assert not any(isinstance(fact, NotCaptured) for fact in told)


def test_a_start_in_mid_stream_is_said_to_be_one() -> None:
    told = facts(asked().say("client", HELLO).frames[4:])
    assert told[:3] == [NotCaptured(C, None), NotCaptured(S, None), Connected(CLIENT, SERVER)]
    assert (said(told, C), said(told, S)) == (HELLO, b"S")


@pytest.mark.parametrize("said_first", [SSL_REQUEST, GSS_REQUEST, CANCEL, STARTUP, HELLO])
def test_in_mid_stream_the_client_is_known_by_what_it_says(said_first: bytes) -> None:
    talk = Talk(port=1_000, to=6_432).open().say("client", said_first)
    conversation = one(talk.frames[3:])
    assert named(conversation.ends) == ("192.0.2.1:1000", "192.0.2.2:6432")


@pytest.mark.parametrize("bulk", [b"\x17\x03\x03\0\5hello", b"\x15\x03\x03\0\2\1\0", b"D\0\0\0\5x"])
@pytest.mark.parametrize("who", ["client", "server"])
def test_in_mid_stream_the_server_is_known_by_its_port(who: str, bulk: bytes) -> None:
    talk = Talk(port=1_000).open().say(who, bulk)
    (conversation,), _ = follow(talk.frames[3:], everything=True)
    assert named(conversation.ends) == ("192.0.2.1:1000", SERVER)


def test_in_mid_stream_a_server_is_known_by_its_hello_on_any_port() -> None:
    talk = Talk(port=1_000, to=6_432).open().say("client", HELLO).say("server", FLIGHTS[1])
    conversation = one(talk.frames[4:], everything=True)
    assert named(conversation.ends) == ("192.0.2.1:1000", "192.0.2.2:6432")


def test_in_mid_stream_the_higher_port_is_the_clients_where_nothing_else_tells() -> None:
    talk = Talk(to=8_080).open().say("server", b"noise").say("client", b"more noise")
    conversation = one(talk.frames[3:], everything=True)
    assert named(conversation.ends) == (CLIENT, "192.0.2.2:8080")


def test_a_hole_larger_than_any_window_is_not_believed() -> None:
    talk = asked().say("client", b"far", seq=1_009 + 2**30 + 5).say("client", HELLO)
    assert said(facts(talk.frames), C) == SSL_REQUEST + HELLO


def test_acknowledging_what_cannot_have_been_said_is_not_believed() -> None:
    talk = asked().send("server", ACK, ack=1_009 + 2**30 + 5).say("client", HELLO)
    told = facts(talk.frames)
    assert said(told, C) == SSL_REQUEST + HELLO
    assert not any(isinstance(fact, NotCaptured) for fact in told)


@given(st.data())
def test_what_is_missing_is_always_told_and_nothing_else(data: st.DataObject) -> None:
    """Whatever is dropped or cut: bytes said and bytes not captured add up, each in its place."""
    text = random.Random(7).randbytes(400)
    talk = Talk().open()
    for at in range(0, len(text), 40):
        part = text[at : at + 40]
        lost, left = data.draw(st.sampled_from([(False, None), (True, None), (False, 7)]))
        talk.send("client", PSH | ACK, part, dropped=lost, captured=left).send("server", ACK)
    told = facts(talk.frames, everything=True)
    rebuilt = b""
    for fact in told:
        if isinstance(fact, Data):
            assert text[len(rebuilt) : len(rebuilt) + len(fact.data)] == fact.data
            rebuilt += fact.data
        elif isinstance(fact, NotCaptured):
            assert fact.size
            rebuilt += bytes(fact.size)
    assert len(rebuilt) == len(text)


# --- which connections are kept ---------------------------------------------------------------

PROXY_V1 = b"PROXY TCP4 203.0.113.9 192.0.2.2 40000 5432\r\n"
PROXY_V2 = bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 000c") + bytes(12)
HTTP = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("port", [5_432, 6_432, 443])
@pytest.mark.parametrize("first", [SSL_REQUEST, GSS_REQUEST, CANCEL, STARTUP, HELLO])
@pytest.mark.parametrize("before", [b"", PROXY_V1, PROXY_V2])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_postgresql_is_recognised_by_what_is_said_on_any_port(
    port: int, first: bytes, before: bytes, size: int
) -> None:
    talk = Talk(to=port).open()
    text = before + first
    for at in range(0, len(text), size):
        talk.say("client", text[at : at + size])
    assert said(facts(talk.frames), C) == text


@pytest.mark.parametrize("first", [HTTP, b"SSH-2.0-x\r\n", tls_flights(alpn="h2")[0], b"PROXY x"])
def test_what_is_said_in_other_protocols_is_left_out_on_other_ports(first: bytes) -> None:
    talk = Talk(to=8_443).open().say("client", first).say("server", b"answer").close()
    assert follow(talk.frames)[0] == []
    assert len(follow(talk.frames, everything=True)[0]) == 1


def test_any_tls_to_a_postgresql_port_is_kept_and_no_http() -> None:
    hello = tls_flights(alpn="h2")[0]
    assert len(follow(Talk().open().say("client", hello).close().frames)[0]) == 1
    assert follow(Talk().open().say("client", HTTP).close().frames)[0] == []


def test_a_client_that_says_nothing_is_kept_on_a_postgresql_port_alone() -> None:
    assert len(follow(Talk().open().close().frames)[0]) == 1
    assert follow(Talk(to=8_080).open().close().frames)[0] == []


def test_ports_narrow_and_make_their_connections_postgresqls() -> None:
    hello = tls_flights(alpn="h2")[0]
    talks = [
        Talk(port=port, to=port - 30_000).open().say("client", hello)
        for port in range(40_000, 40_003)
    ]
    mixed = [frame for talk in talks for frame in talk.frames]
    (only,), _ = follow(mixed, ports=[10_001])
    assert named(only.ends)[1] == "192.0.2.2:10001"
    assert follow(mixed)[0] == []


def test_ports_narrow_in_mid_stream_too() -> None:
    talk = asked().say("client", HELLO)
    assert len(follow(talk.frames[4:], ports=[5_432])[0]) == 1
    assert follow(talk.frames[4:], ports=[5_433])[0] == []


def test_a_version_2_startup_is_known_by_its_length() -> None:
    old = (296).to_bytes(4, "big") + bytes.fromhex("00020000") + bytes(288)
    other = (300).to_bytes(4, "big") + bytes.fromhex("00020000") + bytes(292)
    for packet, kept in ((old, 1), (other, 0)):
        talk = Talk(to=9_999).open().say("client", packet).close()
        assert len(follow(talk.frames)[0]) == kept


# --- where the reading of a connection ends ---------------------------------------------------


def wanted(talk: Talk) -> list[bool]:
    streams, decoder = Streams(lambda conversation: None), Decoder()
    return [
        streams.take(segment, number)
        for number, frame in enumerate(talk.frames, 1)
        if (segment := decoder.segment(ETHERNET, frame.at, frame.data, len(frame.data)))
    ]


def test_no_more_is_wanted_of_a_session_and_its_end_is_told() -> None:
    for chatter in (b"\x17\x03\x03\0\5hello", b"Q\0\0\0\5x"):
        talk = asked()
        for _ in range(flow.SESSION_RECORDS + 1):
            talk.say("client", chatter).say("server", b"D" * 20)
        assert wanted(talk)[-1] is False
        assert wanted(talk)[:5] == [True] * 5
        told = facts(talk.close().frames)
        assert told[-2:] == [Closed(C, Ending.FIN), Closed(S, Ending.FIN)]
        assert len(said(told, C)) < len(chatter) * (flow.SESSION_RECORDS + 1)


def test_bulk_that_is_not_wanted_and_comes_all_the_same_changes_nothing() -> None:
    talk = asked()
    for _ in range(flow.SESSION_RECORDS + 1):
        talk.say("client", b"\x17\x03\x03\0\5hello")
    before = one(talk.frames)
    for _ in range(50):
        talk.send("server", PSH | ACK, b"bulk", ttl=9)
    assert one(talk.frames) == before


def test_tiny_segments_are_not_taken_for_a_sessions_messages() -> None:
    talk = asked()
    for byte in b"QPBX" * 20:
        talk.say("client", bytes([byte]))
    assert said(facts(talk.frames), C) == SSL_REQUEST + b"QPBX" * 20


def test_no_more_is_wanted_of_what_is_left_out() -> None:
    talk = Talk(to=8_080).open().say("client", HTTP).say("server", b"x" * 100)
    assert wanted(talk) == [True, True, True, False, False]


@pytest.mark.parametrize("size", [1, 50, 1_400])
def test_what_is_kept_of_a_side_is_bounded(size: int) -> None:
    talk = asked()
    for _ in range(2 * flow.MAX_SAID // size if size > 1 else 2 * flow.MAX_DELIVERIES):
        talk.say("server", b"x" * size)
    conversation = one(talk.frames)
    assert len(said([e.fact for e in conversation.events], S)) <= flow.MAX_SAID + size
    assert len(conversation.events) <= flow.MAX_DELIVERIES + 10


# --- hostile ----------------------------------------------------------------------------------


def half_open(count: int, flags: Sequence[int] = (SYN,)) -> list[Frame]:
    frames = []
    for number in range(count):
        talk = Talk(f"10.{number >> 14 & 255}.{number >> 6 & 255}.{number & 63}", isn=(number, 1))
        for flag in flags:
            talk.send("client" if not flag & ACK else "server", flag)
        frames += talk.frames
    return frames


def test_half_open_connections_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_FLOWS", 50)
    conversations, streams = follow(half_open(130))
    assert len(conversations) == 50
    assert streams.notes == {"half-open connections were forgotten to make room for others": 80}


def test_connections_that_say_something_are_told_when_they_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "MAX_FLOWS", 50)
    conversations, streams = follow(half_open(130, (SYN, SYN | ACK)))
    assert len(conversations) == 130
    assert streams.notes == {
        "connections at the same time: the oldest were not read to their end": 80
    }


def test_closed_connections_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the clock stands still."""
    monkeypatch.setattr(stream, "MAX_CLOSING", 10)
    told: list[Conversation] = []
    streams, decoder = Streams(told.append), Decoder()
    for port in range(1_000, 1_200):
        talk = Talk(port=port, step=0.0).open().say("client", SSL_REQUEST).close()
        for frame in talk.frames:
            segment = decoder.segment(ETHERNET, frame.at, frame.data, len(frame.data))
            assert segment
            streams.take(segment, 1)
        assert len(streams._flows) <= 11
        assert len(streams._closing) <= 11
    streams.finish()
    assert len(told) == 200


def test_connections_that_are_remembered_as_not_wanted_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "MAX_LEFT_OUT", 20)
    frames = [
        f
        for port in range(100)
        for f in Talk(port=port + 1, to=80).open().say("client", HTTP).frames
    ]
    _, streams = follow(frames)
    assert len(streams._left_out) == 20


def test_the_memory_of_connections_is_bounded_and_well_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "MAX_HELD", 400_000)
    chance = random.Random(3)
    talks = [Talk(port=1_000 + n).open().say("client", SSL_REQUEST) for n in range(60)]
    frames = [frame for talk in talks for frame in talk.frames]
    for talk in talks:
        talk.frames.clear()
        for _ in range(40):
            begins = talk.next["client"] + chance.randrange(20_000)
            talk.say("client", b"x" * chance.randrange(1, 1_400), seq=begins)
        frames += talk.frames
    told: list[Conversation] = []
    streams, decoder = Streams(told.append), Decoder()
    for frame in frames:
        segment = decoder.segment(ETHERNET, frame.at, frame.data, len(frame.data))
        assert segment
        streams.take(segment, 1)
        assert streams.held == sum(flow.size for flow in streams._flows.values())
        assert streams.held <= 400_000
    streams.finish()
    assert streams.held == 0
    assert streams.notes


@pytest.mark.parametrize("step", [-1, 1])
def test_a_stream_of_overlapping_segments_is_bounded(step: int) -> None:
    talk = asked()
    begins = talk.next["client"]
    for number in range(20_000)[::step]:
        talk.say("client", b"x" * 1_000, seq=begins + 2 + number)
    told: list[Conversation] = []
    streams, decoder = Streams(told.append), Decoder()
    for frame in talk.frames:
        segment = decoder.segment(ETHERNET, frame.at, frame.data, len(frame.data))
        assert segment
        streams.take(segment, 1)
        assert streams.held < 9_000_000
    streams.finish()
    assert len(told[0].events) <= flow.MAX_EVENTS


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["client", "server"]),
            st.integers(0, 63),
            st.binary(max_size=12),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**32 - 1),
            st.floats(-5, 5),
        ),
        max_size=30,
    )
)
def test_any_segments_at_all_give_events_in_order(moves: list[tuple[Any, ...]]) -> None:
    talk = Talk(to=5_432)
    for who, flags, payload, seq, ack, wait in moves:
        near = seq % 50 + talk.next[who] - 25 if seq % 3 else seq
        reply = ack % 50 + 1_000 if ack % 3 else ack
        talk.send(who, flags, payload, seq=near % 2**32, ack=reply)
        talk.at += wait
    conversations, streams = follow(talk.frames, everything=True)
    for each in conversations:
        times = [event.at for event in each.events]
        assert times == sorted(times)
    assert streams.held == 0
    assert not streams._flows


# --- what belongs to an older connection between the same ends ------------------------------------


def healthy(talk: Talk) -> list[Frame]:
    return talk.say("client", SSL_REQUEST).say("server", b"S").say("client", HELLO).close().frames


def told_as(frames: Sequence[Frame]) -> list[Fact]:
    return facts(sorted(frames, key=lambda frame: frame.at))


@pytest.mark.parametrize("flags", [RST, RST | ACK, ACK])
def test_what_does_not_acknowledge_the_syn_is_no_answer_to_it(flags: int) -> None:
    whole = healthy(Talk(at=EPOCH).open())
    stray = Talk(at=EPOCH + 0.000_01, step=0).send("server", flags, seq=77, ack=99_999_999)
    assert told_as([*whole, *stray.frames]) == facts(whole)


def test_an_rst_that_acknowledges_the_syn_refuses() -> None:
    talk = Talk().send("client", SYN).send("server", RST | ACK)
    assert [type(fact) for fact in facts(talk.frames)] == [Connecting, NotConnected]


@pytest.mark.parametrize("seq", [805_306_377, 500])
@pytest.mark.parametrize("sender", ["client", "server"])
def test_an_rst_out_of_the_window_ends_nothing(sender: str, seq: int) -> None:
    talk = Talk(at=EPOCH).open().say("client", SSL_REQUEST)
    stray = Talk(at=talk.at, step=0).send(sender, RST, seq=seq)
    whole = healthy(Talk(at=EPOCH).open())
    assert told_as([*whole, *stray.frames]) == facts(whole)


def test_a_syn_that_was_captured_twice_is_one_syn() -> None:
    talk = Talk(at=EPOCH).send("client", SYN)
    (syn,) = talk.frames
    assert facts([syn, syn._replace(at=syn.at + 0.000_03)]) == [Connecting(SERVER)]


def test_what_waited_for_a_lost_packet_up_to_the_end_is_judged_as_well() -> None:
    lost = Talk(to=9_999, step=0.000_5).open().say("client", b"PROXY UNKNOWN\r\n")
    frames = lost.say("client", SSL_REQUEST).say("server", b"S").close().frames
    assert len(follow([*frames[:3], *frames[4:]])[0]) == 1
