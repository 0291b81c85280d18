"""A digest of a conversation that was known again is the one that reading it would have made."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import pytest
from conversations import asks, flights, say, served
from hypothesis import given
from hypothesis import strategies as st
from peers import asks_for_retry, server_context

from fixtures.packets import EPOCH, RST, STARTUP, Frame, Talk, pcap
from probe import digest
from probe.alike import MAX_EVENTS, SHORT
from probe.captured import Captured
from probe.digest import MAX_SPANS, Digest, Digester
from probe.handshake import Handshake
from probe.observer import observe
from probe.pcapng import Reader
from probe.sources.capture import read_capture
from probe.transcript import Data, Event, Party, Transcript
from probe.wire.hello import RETRY_RANDOM

FOLDER = Path(__file__).parents[1] / "captures"
NAMES = sorted(place.name for place in FOLDER.iterdir())


def read(frames: list[Frame]) -> list[Captured]:
    return list(read_capture(io.BytesIO(pcap(frames)), everything=True, name="some").connections)


def fresh(captured: Captured) -> Digest:
    """What reading it says, whatever was read before."""
    return Digester().digest(captured, observe(captured.transcript))


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The clients of the connections that were observed."""
    clients: list[str] = []

    def counted(transcript: Transcript) -> Handshake:
        seen = observe(transcript)
        clients.append(seen.client or "")
        return seen

    monkeypatch.setattr(digest, "observe", counted)
    return clients


def old() -> list[tuple[str, bytes]]:
    from ssl import TLSVersion

    context = server_context()
    context.maximum_version = TLSVersion.TLSv1_2
    return flights(server=context)


@cache
def conversations() -> tuple[Captured, ...]:
    """Of each shape one."""
    talks = [
        served(),
        served(None, port=40_001),
        say(Talk(port=40_002).open(), flights()).close(),
        say(asks(port=40_003), flights(server=asks_for_retry())).close(),
        say(asks(port=40_004), old()).close(),
        asks(port=40_005).say("client", flights()[0][1]).send("server", RST),
        asks(port=40_006).say("client", flights()[0][1]).say("server", b"\x15\3\3\0\2\2\x28"),
        asks(port=40_007).say("client", flights()[0][1]).say("server", flights()[0][1]),
        Talk(port=40_008).open().say("client", STARTUP).close(),
        Talk(port=40_009).open().say("server", b"SSH-2.0-OpenSSH\r\n").close(),
    ]
    return tuple(read([frame for talk in talks for frame in talk.frames]))


# -- known again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
def test_two_handshakes_of_the_same_ends_are_read_once(observed: list[str], direct: bool) -> None:
    """Their nonces, their keys and all that is encrypted differ."""
    digester, context = Digester(), server_context()
    for port in range(40_000, 40_040):
        talk = Talk(port=port).open() if direct else asks(port=port)
        (captured,) = read(say(talk, flights(server=context)).close().frames)
        told = digester(captured)
        assert told == fresh(captured)
        assert told.client == f"192.0.2.1:{port}"
    assert len(observed) < 12  # signatures differ in length


@pytest.mark.parametrize("name", NAMES)
def test_in_every_capture_it_makes_no_difference(name: str) -> None:
    with (FOLDER / name / "capture.pcapng").open("rb") as file:
        frames = [Frame(each.at, each.data) for each in Reader(file).read()]
    captured = read(frames)
    digester = Digester()
    assert [digester(each) for each in captured] == [fresh(each) for each in captured]


def test_a_note_of_our_own_is_never_known_again(observed: list[str]) -> None:
    with (FOLDER / "haproxy-sni-direct" / "capture.pcapng").open("rb") as file:
        captured = read_capture(file, name="some").connections
    digester = Digester()
    for each in captured:
        digester(each)
    assert len(observed) == len(captured)


def test_ways_in_which_one_outline_may_be_like_another_are_bounded() -> None:
    """Else each connection of a hostile capture would be compared a thousand times."""
    digester, original = Digester(), conversations()[0]
    said = [e.fact.data for e in original.transcript.events if isinstance(e.fact, Data)]
    number, flight = next((n, data) for n, data in enumerate(said) if b"\x17\3\3" in data[:200])
    at = flight.index(b"\x17\3\3") + 3
    for length in range(64):  # what is passed over ends elsewhere
        digester(changed(original, number, at, length.to_bytes(2, "big")))
    (ways,) = digester._spans.values()
    assert len(ways) == MAX_SPANS


# -- whatever differs ----------------------------------------------------------------------------


def changed(captured: Captured, number: int, at: int, new: bytes) -> Captured:
    """With other bytes somewhere in the segment of that number."""
    transcript = captured.transcript
    places = [n for n, event in enumerate(transcript.events) if isinstance(event.fact, Data)]
    place = places[number % len(places)]
    event = transcript.events[place]
    assert isinstance(event.fact, Data)
    data = bytearray(event.fact.data)
    at %= len(data)
    data[at : at + len(new)] = new[: len(data) - at]
    told = Event(event.at, event.fact._replace(data=bytes(data)))
    events = (*transcript.events[:place], told, *transcript.events[place + 1 :])
    return captured._replace(transcript=transcript._replace(events=events))


SHAPES = range(len(conversations()))
HEADERS = [bytes([kind, 3, 3, 0, size]) for kind in (20, 21, 22, 23) for size in (0, 2, 9, 40)]
NEW = st.one_of(st.binary(min_size=1, max_size=40), st.sampled_from([*HEADERS, RETRY_RANDOM]))
CHANGES = st.tuples(
    st.integers(0, 20), st.one_of(st.sampled_from([5, 11, 43]), st.integers(0, 2_000)), NEW
)


@pytest.mark.parametrize("shape", SHAPES)
@given(changes=st.lists(CHANGES, min_size=1, max_size=3))
def test_bytes_that_make_a_difference_are_not_passed_over(
    shape: int, changes: list[tuple[int, int, bytes]]
) -> None:
    original = conversations()[shape]
    other = original
    for each in changes:
        other = changed(other, *each)
    digester = Digester()
    assert digester(original) == fresh(original)
    assert digester(other) == fresh(other)
    assert digester(original) == fresh(original)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_byte_of_every_shape_may_be_another(shape: int) -> None:
    original = conversations()[shape]
    digester = Digester()
    digester(original)
    said = [e.fact.data for e in original.transcript.events if isinstance(e.fact, Data)]
    for number, data in enumerate(said):
        for at in range(min(len(data), 700)):
            other = changed(original, number, at, bytes([data[at] ^ 0x41]))
            assert digester(other) == fresh(other), (number, at)


HELLO = flights()[0][1]


def server_hello(random: bytes) -> bytes:
    """A ServerHello that has this random, in its record."""
    return bytes.fromhex("16030300 2a 02000026 0303") + random + bytes.fromhex("00 1301 00")


def test_a_hello_retry_request_is_known_by_its_random() -> None:
    digester = Digester()
    for port, random in enumerate((b"r" * 32, RETRY_RANDOM, b"s" * 32), 40_000):
        talk = asks(port=port).say("client", HELLO).say("server", server_hello(random))
        talk.say("server", b"\x17\3\3\0\x20" + bytes(32))
        (captured,) = read(talk.close().frames)
        assert digester(captured) == fresh(captured)


@pytest.mark.parametrize("direct", [False, True])
def test_what_seems_to_be_sealed_before_any_server_hello_is_looked_at(direct: bool) -> None:
    """A greeting of MySQL's may look like a record of TLS."""
    digester = Digester()
    for port, says in ((40_000, b"8.0.36\0\1\2\3"), (40_001, bytes(10))):
        talk = Talk(port=port).open() if direct else asks(port=port)
        talk.say("client", HELLO).say("server", b"\x17\3\3\0\n" + says)
        (captured,) = read(talk.close().frames)
        assert digester(captured) == fresh(captured)


def test_a_record_in_several_segments_is_compared_as_it_is() -> None:
    """What looks like a record in its middle may hide the next one's beginning."""
    digester = Digester()
    for port, alert in ((40_000, 40), (40_001, 42)):
        looks_like_one = b"\x17\3\3\0" + bytes([45 + 7])
        sealed = b"\x17\3\3\0\x64" + bytes(50) + looks_like_one + bytes(45)
        said = server_hello(b"r" * 32) + sealed + b"\x15\3\3\0\2\2" + bytes([alert])
        talk = asks(port=port).say("client", HELLO)
        talk.say("server", said[:-57]).say("server", said[-57:])
        (captured,) = read(talk.close().frames)
        assert digester(captured) == fresh(captured)
        assert observe(captured.transcript).alert == (2, alert)


def test_a_slow_conversation_is_like_no_other(observed: list[str]) -> None:
    digester = Digester()
    for port in (40_000, 40_001):
        talk = asks(port=port).say("client", flights()[0][1])
        talk.at += 1.5
        (captured,) = read(talk.close().frames)
        digester(captured)
    assert len(observed) == 2


def test_a_long_conversation_is_like_no_other(observed: list[str]) -> None:
    """What is remembered of those that are compared is bounded."""
    digester = Digester()
    for port in (40_000, 40_001):
        talk = say(asks(port=port), [("client", b"\x15\3\3\0\2\1\0")] * MAX_EVENTS)
        talk.frames[:] = [f._replace(at=EPOCH + n / 1e4) for n, f in enumerate(talk.frames)]
        (captured,) = read(talk.frames)
        assert len(captured.transcript.events) > MAX_EVENTS
        assert captured.transcript.events[-1].at < SHORT
        digester(captured)
    assert len(observed) == 2


def test_who_speaks_makes_a_difference() -> None:
    digester = Digester()
    for shape in conversations():
        events = tuple(
            event._replace(
                fact=event.fact._replace(
                    sender=Party.SERVER if event.fact.sender is Party.CLIENT else Party.CLIENT
                )
            )
            if isinstance(event.fact, Data)
            else event
            for event in shape.transcript.events
        )
        other = shape._replace(transcript=shape.transcript._replace(events=events))
        for each in (shape, other):
            assert digester(each) == fresh(each)
