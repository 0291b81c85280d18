"""One connection in several captures: what is known again, by what, and what is left open."""

from __future__ import annotations

import io
import json
import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

import jsonschema
import pytest

from fixtures.lab import ABSENT, TOPOLOGIES, Lab
from fixtures.lab.declaration import Topology
from fixtures.lab.expectations import PASSES
from fixtures.lab.listener import Listener
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
from fixtures.sniffer import NoSnifferError, Sniffer
from probe.attempt import Attempt
from probe.commands.read import choose, exit_status, judged
from probe.finding import Certainty
from probe.handshake import Opening
from probe.hop import SEVERAL, Passage
from probe.reading import Reading
from probe.reports import Captures, render
from probe.sources.capture import read_capture
from probe.sources.live import probe_door
from probe.vantage import Paths, Way

SCHEMA = json.loads((Path(__file__).parents[1] / "probe/reports/read.schema.json").read_text())
SASL = b"R" + struct.pack("!II", 23, 10) + b"SCRAM-SHA-256\0\0"
HOURS = 7_200.0
RANDOM = slice(11, 43)  # behind a record's header, a handshake header and the version
RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
NAME = "db-1.example.test"


# -- conversations -------------------------------------------------------------------------------


def shown(report: Captures, format_name: str) -> str:
    return "".join(render(report, format_name))


@cache
def flights(alpn: str = "postgresql") -> tuple[bytes, ...]:
    return tuple(tls_flights(NAME, alpn))


def hello(number: int, alpn: str = "postgresql") -> bytes:
    """A ClientHello; one with another number has another random."""
    said = bytearray(flights(alpn)[0])
    said[RANDOM] = bytes([number]) * 32
    return bytes(said)


def server_hello(random: bytes) -> bytes:
    """The record of a ServerHello alone."""
    said = flights()[1]
    size = int.from_bytes(said[3:5], "big")
    record = bytearray(said[: 5 + size])
    record[RANDOM] = random
    return bytes(record)


def talk(at: float, step: float, port: int, to: int = 5432, server: str = "192.0.2.2") -> Talk:
    return Talk(server=server, port=port, to=to, at=EPOCH + at, step=step)


def outer(at: float, number: int = 1) -> Talk:
    """As a client's capture has it: 10 ms from one packet to the next."""
    return talk(at, 0.01, 40_000 + number)


def inner(at: float, number: int = 1) -> Talk:
    """The other side of a hop; its ClientHello is 5 ms later than the client's."""
    return talk(at + 0.05, 0.001, 50_000 + number, server="198.51.100.7")


def asks(said: Talk, number: int, *, first: bytes = b"", closes: bool = True) -> Talk:
    """SSLRequest, and TLS behind it."""
    said.open().say("client", first + SSL_REQUEST).say("server", b"S")
    said.say("client", hello(number))
    for sender, data in zip(("server", "client", "server"), flights()[1:], strict=False):
        said.say(sender, data)
    return said.close() if closes else said


def directly(said: Talk, number: int) -> Talk:
    """TLS without an SSLRequest."""
    said.open().say("client", hello(number))
    for sender, data in zip(("server", "client", "server"), flights()[1:], strict=False):
        said.say(sender, data)
    return said.close()


def logs_in(said: Talk) -> Talk:
    """In clear text."""
    return said.open().say("client", STARTUP).say("server", SASL).close()


def is_reset(said: Talk) -> Talk:
    """SSLRequest, and an RST."""
    return said.open().say("client", SSL_REQUEST).send("server", RST | ACK)


def is_refused(said: Talk) -> Talk:
    """SSLRequest, and N."""
    return said.open().say("client", SSL_REQUEST).say("server", b"N").close()


def noise(at: float) -> Talk:
    """A packet of something else: the capture goes on."""
    return talk(at, 0.01, 60_000, to=80).send("client", SYN)


class Files:
    """Captures by name, outermost first; each with a clock of its own."""

    def __init__(self) -> None:
        self.frames: dict[str, list[Frame]] = {}

    def file(self, name: str, *talks: Talk, ahead: float = 0.0) -> Files:
        frames = [frame for each in talks for frame in each.frames]
        moved = (frame._replace(at=frame.at + ahead) for frame in frames)
        self.frames[name] = sorted(moved, key=lambda frame: frame.at)
        return self

    def read(self, *, everything: bool = False, ports: tuple[int, ...] = ()) -> Reading:
        captures = [
            read_capture(
                io.BytesIO(pcap(frames)), name=name, everything=everything, ports=ports or None
            )
            for name, frames in self.frames.items()
        ]
        return judged(captures, everything=everything, narrowed=bool(ports))


def two(
    client: Iterable[Talk], pod: Iterable[Talk], *, ahead: float = 0.0, covers: bool = True
) -> Reading:
    around = (noise(-60.0), noise(60.0)) if covers else ()
    return Files().file("client.pcap", *client).file("pod.pcap", *pod, *around, ahead=ahead).read()


def way(reading: Reading, connection: int = 0) -> Way:
    """The way of the connection with this number."""
    (found,) = [each for each in reading.paths.ways if connection in each.connections]
    return found


# -- passthrough ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0.0, HOURS, -HOURS])
def test_the_same_clienthello_proves_passthrough_whatever_addresses_and_clocks(
    ahead: float,
) -> None:
    reading = two([asks(outer(0), 1)], [asks(inner(0), 1)], ahead=ahead)
    (found,) = reading.paths.ways
    assert found.connections == (0, 1)
    assert found.files == ("client.pcap", "pod.pcap")
    assert (found.passage, found.certainty, found.between) == ("passthrough", "proved", None)
    assert found.why == "the same ClientHello, byte for byte, is in client.pcap and pod.pcap"
    (clock,) = reading.paths.clocks
    assert (clock.file, clock.against, clock.connections) == ("pod.pcap", "client.pcap", 1)
    assert abs(clock.ahead - ahead) <= clock.within < 0.01


def test_a_client_that_tries_again_says_another_clienthello() -> None:
    reading = two(
        [asks(outer(0), 1), asks(outer(1, 2), 2)], [asks(inner(1), 2), asks(inner(0, 2), 1)]
    )
    ways = {each.connections: each.passage for each in reading.paths.ways}
    assert ways == {(0, 2): "passthrough", (1, 3): "passthrough"}
    assert reading.paths.clocks[0].connections == 2


def test_a_proxy_header_before_the_inner_leg_changes_nothing() -> None:
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 40001 5432\r\n"
    reading = two([asks(outer(0), 1)], [asks(inner(0), 1, first=header)])
    assert way(reading).passage == "passthrough"


def retried(said: Talk, *, first_dropped: bool = False) -> Talk:
    """A HelloRetryRequest, and the ClientHello again with the same random and other bytes."""
    said.open().say("client", SSL_REQUEST).say("server", b"S")
    said.say("client", hello(1), dropped=first_dropped)
    again = hello(1)[:-1] + b"\xee"
    said.say("server", server_hello(RETRY)).say("client", again)
    return said.say("server", server_hello(bytes(32))).close()


def test_a_retried_clienthello_is_known_by_its_first() -> None:
    reading = two([retried(outer(0))], [retried(inner(0))])
    assert way(reading).connections == (0, 1)
    assert way(reading).passage == "passthrough"


def test_a_retry_whose_first_clienthello_was_not_captured_is_no_rewriting() -> None:
    reading = two([retried(outer(0))], [retried(inner(0), first_dropped=True)])
    assert way(reading).connections == (0, 1)
    assert way(reading).passage == "unmatched"
    assert "HelloRetryRequest" in way(reading).why


def test_the_same_random_with_other_bytes_is_a_hop_that_rewrites() -> None:
    rewritten = inner(0).open().say("client", SSL_REQUEST).say("server", b"S")
    rewritten.say("client", hello(1)[:-1] + b"\xee").say("server", flights()[1]).close()
    reading = two([asks(outer(0), 1)], [rewritten])
    assert (way(reading).passage, way(reading).certainty) == ("terminated", "likely")
    assert "rewrites" in way(reading).why


def test_a_clienthello_that_is_said_again_later_tells_nothing() -> None:
    reading = two([asks(outer(0), 1), asks(outer(9, 2), 1)], [asks(inner(0), 1)])
    assert [each.passage for each in reading.paths.ways] == ["unmatched"] * 3
    assert "said by several connections" in way(reading).why


def test_both_sides_of_a_hop_may_stand_in_one_file() -> None:
    files = Files().file("client.pcap", asks(outer(0), 1))
    between = talk(0.049, 0.002, 45_000)
    files.file("node.pcap", asks(inner(0), 1), asks(between, 1)).file("pod.pcap")
    (found,) = files.read().paths.ways
    assert found.files == ("client.pcap", "node.pcap", "node.pcap")
    assert [hop.passage for hop in found.hops] == ["passthrough", "passthrough", "unmatched"]
    assert found.connections[0] == 0


# -- terminated ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goes_on", "what"),
    [
        (lambda: asks(inner(0), 9), "another ClientHello"),
        (lambda: logs_in(inner(0)), "a clear-text StartupMessage"),
        (lambda: is_refused(inner(0)), "an SSLRequest"),
    ],
)
def test_what_goes_on_instead_tells_that_tls_ends_between(
    goes_on: Callable[[], Talk], what: str
) -> None:
    reading = two([asks(outer(0), 1)], [goes_on()])
    (found,) = reading.paths.ways
    assert found.connections == (0, 1)
    assert (found.passage, found.certainty) == ("terminated", "likely")
    assert found.between == ("client.pcap", "pod.pcap")
    assert f"{what} is at that time instead: the hop between ends TLS" in found.why
    assert "if the clocks agree" in found.why


def test_clocks_that_are_known_from_others_tell_which_connection_goes_on() -> None:
    reading = two(
        [asks(outer(0), 1), asks(outer(5, 2), 2)],
        [asks(inner(0), 1), logs_in(inner(5, 2))],
        ahead=HOURS,
    )
    assert way(reading, 1).connections == (1, 3)
    assert way(reading, 1).passage == "terminated"
    assert "if the clocks agree" not in way(reading, 1).why


def test_without_anything_in_common_clocks_that_differ_tell_nothing() -> None:
    reading = two([asks(outer(0), 1)], [asks(inner(0), 9)], ahead=10.0)
    assert [each.passage for each in reading.paths.ways] == ["unmatched", "unmatched"]
    assert "their clocks cannot be compared" in way(reading).why
    assert not reading.paths.clocks[0].known


def test_two_at_the_same_time_are_not_told_apart() -> None:
    reading = two(
        [asks(outer(0), 1), asks(outer(0.001, 2), 2)], [asks(inner(0), 8), asks(inner(0, 2), 9)]
    )
    assert [each.passage for each in reading.paths.ways] == ["unmatched"] * 4
    assert "several connections fit" in way(reading).why


def test_a_second_one_while_the_first_is_open_is_told_if_the_first_has_its_own() -> None:
    reading = two(
        [asks(outer(0), 1, closes=False), asks(outer(5, 2), 2)],
        [asks(inner(0), 8, closes=False), asks(inner(5, 2), 9)],
    )
    ways = {each.connections: each.passage for each in reading.paths.ways}
    assert ways == {(0, 2): "terminated", (1, 3): "terminated"}


def test_what_was_answered_and_is_nowhere_may_have_gone_elsewhere() -> None:
    reading = two([asks(outer(0), 1)], [])
    assert way(reading).passage == "unmatched"
    assert "answers by itself, or leads elsewhere" in way(reading).why


# -- stopped -------------------------------------------------------------------------------------


def test_a_request_that_is_nowhere_behind_the_hop_stopped_there() -> None:
    reading = two([asks(outer(0), 1), is_reset(outer(5, 2))], [asks(inner(0), 1)], ahead=HOURS)
    found = way(reading, 1)
    assert found.connections == (1,)
    assert (found.passage, found.certainty) == ("stopped", "likely")
    assert found.between == ("client.pcap", "pod.pcap")
    assert found.why == (
        "nothing of it is in pod.pcap, which has packets before and after: the hop between did not "
        "pass its SSLRequest on, and reset the connection (if it leads nowhere else as well)"
    )


@pytest.mark.parametrize("count", [SEVERAL - 1, SEVERAL])
def test_it_is_proved_where_several_begin_so_and_none_goes_on(count: int) -> None:
    stopped = [is_reset(outer(5 + n, 2 + n)) for n in range(count)]
    reading = two([directly(outer(0), 1), *stopped], [directly(inner(0), 1)], ahead=HOURS)
    told = {(way(reading, n).passage, way(reading, n).certainty) for n in range(1, 1 + count)}
    assert told == {("stopped", "proved" if count == SEVERAL else "likely")}


def test_where_others_that_begin_so_go_on_a_balancer_may_have_led_it_elsewhere() -> None:
    elsewhere = [is_reset(outer(5 + n, 2 + n)) for n in range(2 * SEVERAL)]
    reading = two([asks(outer(0), 1), *elsewhere], [asks(inner(0), 1)], ahead=HOURS)
    assert {way(reading, n).certainty for n in range(1, 2 * SEVERAL)} == {"likely"}


def test_it_is_proved_only_where_the_same_door_is_seen_to_lead_there() -> None:
    elsewhere = talk(5, 0.01, 40_002, server="192.0.2.99")
    reading = two([asks(outer(0), 1), is_reset(elsewhere)], [asks(inner(0), 1)])
    assert (way(reading, 1).passage, way(reading, 1).certainty) == ("stopped", "likely")
    assert "if that is where it leads" in way(reading, 1).why


def test_it_did_not_stop_where_the_inner_file_does_not_cover_the_time() -> None:
    reading = two(
        [asks(outer(0), 1), is_reset(outer(5, 2))], [asks(inner(0), 1)], ahead=HOURS, covers=False
    )
    assert way(reading, 1).passage == "unmatched"
    assert "does not cover the time" in way(reading, 1).why


def test_a_file_without_packets_covers_nothing_and_is_named() -> None:
    reading = two([is_reset(outer(0))], [], covers=False)
    assert reading.files == reading.paths.files == ("client.pcap", "pod.pcap")
    assert "pod.pcap does not cover the time" in way(reading).why


def test_a_connection_that_failed_behind_the_hop_is_mentioned() -> None:
    refused = inner(4.98).send("client", SYN).send("server", RST | ACK)
    reading = two([asks(outer(0), 1), is_reset(outer(5, 2))], [asks(inner(0), 1), refused])
    assert way(reading, 1).passage == "stopped"
    assert "a connection in pod.pcap did not come about" in way(reading, 1).why


def test_a_health_check_that_says_nothing_is_not_its_other_half() -> None:
    check = inner(4.98).open().close()
    reading = two([asks(outer(0), 1), is_reset(outer(5, 2))], [asks(inner(0), 1), check])
    assert way(reading, 1).passage == "stopped"
    assert way(reading, 1).connections == (1,)


def test_a_router_that_asked_for_tls_in_vain_stopped_the_clienthello() -> None:
    asked = outer(0).open().say("client", SSL_REQUEST).say("server", b"S")
    asked.say("client", hello(1)).send("server", RST | ACK)
    (found,) = two([asked], [is_refused(inner(0))]).paths.ways
    assert found.connections == (0, 1)
    assert (found.passage, found.certainty) == ("stopped", "likely")
    assert "an SSLRequest has the outcome 'refused'" in found.why


def test_a_client_that_leaves_with_its_answer_was_not_stopped() -> None:
    asked = outer(5, 2).open().say("client", SSL_REQUEST).say("server", b"S").close()
    reading = two([asks(outer(0), 1), asked], [asks(inner(0), 1)])
    assert way(reading, 1).passage == "unmatched"
    assert "the client left" in way(reading, 1).why


def test_in_a_row_of_three_the_hop_that_did_not_pass_it_on_is_named() -> None:
    around = noise(-60), noise(60)
    files = Files().file("client.pcap", asks(outer(0), 1), is_reset(outer(5, 2)), *around)
    gateway = [asks(talk(0.045, 0.002, 41_001), 1), is_reset(talk(5.031, 0.002, 41_002))]
    files.file("gateway.pcap", *gateway, *around, ahead=-HOURS)
    reading = files.file("pod.pcap", asks(inner(0), 1), *around, ahead=HOURS).read()
    ways = {each.connections: each for each in reading.paths.ways}
    assert ways.keys() == {(0, 2, 4), (1, 3)}
    assert ways[0, 2, 4].passage == "passthrough"
    assert ways[1, 3].passage == "stopped"
    assert ways[1, 3].between == ("gateway.pcap", "pod.pcap")
    assert [hop.passage for hop in ways[1, 3].hops] == ["passthrough", "stopped"]
    assert [round(clock.ahead) for clock in reading.paths.clocks] == [-HOURS, 2 * HOURS]


def test_what_comes_to_the_innermost_file_and_no_farther_blames_no_hop() -> None:
    reading = two(
        [asks(outer(0), 1), is_refused(outer(5, 2))],
        [asks(inner(0), 1), is_refused(inner(4.98, 2))],
    )
    found = way(reading, 1)
    assert found.connections == (1, 3)
    assert (found.passage, found.certainty, found.between) == ("stopped", "likely", None)
    assert "came to pod.pcap unchanged, and no farther" in found.why


def test_clear_text_is_followed_by_the_times_and_never_called_passthrough() -> None:
    reading = two(
        [asks(outer(0), 1), logs_in(outer(5, 2))], [asks(inner(0), 1), logs_in(inner(4.98, 2))]
    )
    assert way(reading, 1).connections == (1, 3)
    assert way(reading, 1).passage == "unmatched"


def test_a_cancel_request_that_came_through_was_not_stopped() -> None:
    request = struct.pack("!IIII", 16, 80877102, 4711, 815)

    def cancels(said: Talk) -> Talk:
        return (
            said.open().say("client", request).send("server", FIN | ACK).send("client", FIN | ACK)
        )

    client = [asks(outer(0), 1), cancels(outer(5, 2))]
    reading = two(client, [asks(inner(0), 1), cancels(inner(4.98, 2))])
    assert way(reading, 1).connections == (1, 3)
    assert (way(reading, 1).passage, way(reading, 1).severity) == ("unmatched", None)
    stopped = way(two(client, [asks(inner(0), 1)]), 1)
    assert (stopped.passage, stopped.severity) == ("stopped", "warning")


# -- what is not there is not absent -------------------------------------------------------------


def test_a_clienthello_that_the_inner_file_does_not_hold_leaves_it_open() -> None:
    cut = inner(5).open().say("client", SSL_REQUEST).say("server", b"S")
    cut.say("client", hello(2), captured=60).say("server", flights()[1]).close()
    reading = two([asks(outer(0), 1), asks(outer(5, 2), 2)], [asks(inner(0), 1), cut])
    assert way(reading, 1).passage == "unmatched"
    assert "not all in pod.pcap" in way(reading, 1).why


def test_a_clienthello_that_the_outer_file_does_not_hold_leaves_it_open() -> None:
    middle = outer(5, 2)
    middle.send("client", PSH | ACK, hello(2)[200:]).say("server", flights()[1])
    reading = two([asks(outer(0), 1), middle], [asks(inner(0), 1)])
    assert way(reading, 1).passage == "unmatched"
    assert "not all in client.pcap" in way(reading, 1).why


def unanswered(said: Talk) -> Talk:
    """A ClientHello, and an RST."""
    said.open().say("client", SSL_REQUEST).say("server", b"S")
    return said.say("client", hello(2)).send("server", RST | ACK)


@pytest.mark.parametrize(
    ("client", "pod", "why"),
    [
        (is_refused, is_reset, "an SSLRequest is in pod.pcap at that time, with another answer"),
        (unanswered, logs_in, "was not answered, and a clear-text StartupMessage in pod.pcap"),
        (lambda said: said.open().close(), None, "nothing that it could be known by"),
        (
            lambda said: said.open().say("client", SSL_REQUEST),
            None,
            "how it ended is not in client",
        ),
    ],
)
def test_what_proves_nothing_is_left_open(
    client: Callable[[Talk], Talk], pod: Callable[[Talk], Talk] | None, why: str
) -> None:
    behind = [pod(inner(4.98, 2))] if pod else []
    reading = two([asks(outer(0), 1), client(outer(5, 2))], [asks(inner(0), 1), *behind])
    assert (way(reading, 1).passage, way(reading, 1).between) == (
        "unmatched",
        ("client.pcap", "pod.pcap"),
    )
    assert why in way(reading, 1).why


def test_where_only_some_ports_were_read_nothing_is_said_to_have_stopped() -> None:
    files = Files().file("client.pcap", asks(outer(0), 1), is_reset(outer(5, 2)))
    files.file("pod.pcap", asks(inner(0), 1), noise(-60), noise(60))
    assert way(files.read(), 1).passage == "stopped"
    narrowed = files.file(
        "pod.pcap", asks(inner(0), 1), talk(-60, 0.01, 1).open(), talk(60, 0.01, 2).open()
    )
    assert "--port" in way(narrowed.read(ports=(5432,)), 1).why


def test_tls_without_alpn_may_be_on_a_port_that_was_not_read() -> None:
    direct = outer(5, 2).open().say("client", hello(2, "h2")).send("server", RST | ACK)
    files = Files().file("client.pcap", asks(outer(0), 1), direct)
    files.file("pod.pcap", asks(inner(0), 1), noise(-60), noise(60))
    assert "--all" in way(files.read(), 1).why
    assert way(files.read(everything=True), 1).passage == "stopped"


# -- order ---------------------------------------------------------------------------------------


def test_files_given_the_other_way_round_are_put_in_order() -> None:
    around = noise(-60), noise(60)
    files = Files().file("pod.pcap", asks(inner(0), 1), *around, ahead=HOURS)
    reading = files.file("client.pcap", asks(outer(0), 1), is_reset(outer(5, 2)), *around).read()
    assert reading.files == ("pod.pcap", "client.pcap")
    assert reading.paths.files == ("client.pcap", "pod.pcap")
    assert not reading.paths.as_given
    ways = {each.connections: each.passage for each in reading.paths.ways}
    assert ways == {(1, 0): "passthrough", (2,): "stopped"}
    assert "not as given" in shown(Captures(reading), "text")


def test_a_file_twice_keeps_the_order_given() -> None:
    files = Files().file("a.pcap", asks(outer(0), 1)).file("b.pcap", asks(outer(0), 1))
    assert files.read().paths.files == ("a.pcap", "b.pcap")


def test_one_file_has_no_paths() -> None:
    reading = Files().file("client.pcap", asks(outer(0), 1)).read()
    assert reading.paths == Paths()
    document = json.loads(shown(Captures(reading), "json"))
    assert (document["paths"], document["vantage"]) == ([], None)


# -- reports -------------------------------------------------------------------------------------


@pytest.fixture
def stopped() -> Reading:
    """Two that pass, and one between them that does not."""
    client = [asks(outer(0), 1), is_reset(outer(5, 2)), asks(outer(9, 3), 3)]
    return two(client, [asks(inner(0), 1), asks(inner(9, 3), 3)], ahead=HOURS)


def test_text_says_in_one_sentence_where_it_broke_and_how_that_is_known(stopped: Reading) -> None:
    text = " ".join(shown(Captures(stopped), "text").split())
    assert (
        "From file to file, the outermost first: client.pcap, pod.pcap "
        "STOPPED between client.pcap and pod.pcap (likely): nothing of it is in pod.pcap, which "
        "has packets before and after: the hop between did not pass its SSLRequest on, and reset "
        "the connection (if it leads nowhere else as well) connection 2 "
        "PASSTHROUGH (proved): the same ClientHello, byte for byte, is in client.pcap and pod.pcap "
        "connections 1 → 4, 3 → 5 the clock of pod.pcap is "
    ) in text
    clock = r"is (7199|7200)\.\d{3} s ahead of that of client.pcap, give or take \d\.\d ms, by 2 "
    assert re.search(clock + "ClientHellos in both", text)


def test_a_table_has_a_row_for_each_path(stopped: Reading) -> None:
    text = shown(Captures(stopped), "table")
    assert [line.split()[:3] for line in text.splitlines() if " → " in line] == [
        ["1", "→", "4"],
        ["3", "→", "5"],
    ]


def test_json_keeps_to_the_schema(stopped: Reading) -> None:
    document = json.loads(shown(Captures(stopped), "json"))
    jsonschema.validate(document, SCHEMA)
    (path,) = [each for each in document["paths"] if each["verdict"] == "stopped"]
    assert path["connections"] == [1]
    assert path["files"] == ["client.pcap"]
    assert path["between"] == ["client.pcap", "pod.pcap"]
    (clock,) = document["vantage"]["clocks"]
    assert abs(clock["ahead"] - HOURS) <= clock["within"]


def test_hostile_file_names_are_escaped() -> None:
    files = Files().file("a\x1b[31m.pcap", asks(outer(0), 1)).file("b\n.pcap", asks(inner(0), 1))
    for name in ("text", "table", "json"):
        text = shown(Captures(files.read()), name)
        assert "\x1b" not in text
        assert "b\n" not in text


def test_a_filter_takes_the_whole_path_and_renumbers_it(stopped: Reading) -> None:
    chosen = choose(stopped, client="192.0.2.1:40003")
    assert [row.digest.file for row in chosen.connections] == ["client.pcap", "pod.pcap"]
    (found,) = chosen.paths.ways
    assert found.connections == (0, 1)
    broken = choose(stopped, broken=True)
    assert [each.connections for each in broken.paths.ways] == [(0,)]


def test_a_path_that_breaks_counts_for_the_exit_status() -> None:
    terminated = two([asks(outer(0), 1)], [asks(inner(0), 9)])._replace(findings=())
    assert exit_status(terminated, "error") == 0
    assert exit_status(terminated, "warning") == 1
    broken = two([is_reset(outer(0))], [])._replace(findings=())
    assert way(broken).passage == "stopped"
    assert exit_status(broken, "error") == 1


# -- real proxies --------------------------------------------------------------------------------

FORWARDERS = "haproxy-tcp nginx-tcp envoy-tcp traefik-tcp traefik-passthrough".split()
ROUTERS = "envoy-sni haproxy-sni nginx-sni sniproxy-sni sslh-sni".split()
DIRECT_TERMINATORS = """
    haproxy-terminate nginx-terminate envoy-terminate haproxy-terminate-alpn nginx-terminate-alpn
    envoy-terminate-alpn haproxy-reencrypt nginx-reencrypt envoy-reencrypt
""".split()
TERMINATORS = "traefik-terminate-alpn stunnel-terminate stunnel-reencrypt".split()
CHAINS = "haproxy-tcp-traefik-passthrough envoy-tcp-haproxy-sni".split()
PAUSE = 0.3  # seconds between connections, more than clocks that are not known may differ

STARTTLS = Attempt("starttls", server_name=NAME)
DIRECT = Attempt("direct", opening=Opening.DIRECT_TLS, server_name=NAME)


def listeners(name: str) -> list[Listener]:
    """The topology's own, and behind each the first of those behind it."""
    found = [TOPOLOGIES[name].listener]
    while found[-1].upstreams:
        found.append(found[-1].upstreams[0])
    return found


@pytest.fixture(scope="module")
def places() -> Iterator[Lab]:
    """The proxies, and by NAME/1, NAME/2, … what stands behind them."""
    names = [*FORWARDERS, *ROUTERS, *DIRECT_TERMINATORS, *TERMINATORS, *CHAINS]
    here = [name for name in names if name not in ABSENT]
    behind = [
        Topology(f"{name}/{n}", "a vantage point", listener, PASSES)
        for name in here
        for n, listener in enumerate(listeners(name))
        if n
    ]
    with Lab(here, behind) as lab:
        yield lab


def seen(lab: Lab, name: str, *attempts: Attempt, key_log: Path | None = None) -> Reading:
    """These attempts one after the other, and what real captures before and behind hold of them."""
    if name in ABSENT:
        pytest.skip(str(ABSENT[name]))
    front = lab[name]
    ports = [front.port, *(lab[f"{name}/{n}"].port for n in range(1, len(listeners(name))))]
    try:
        with ExitStack() as stack:
            sniffers = [stack.enter_context(Sniffer(port)) for port in ports]
            for attempt in attempts:
                probe_door(front.host, front.port, [attempt], timeout=5, deadline=10)
                time.sleep(PAUSE)
    except NoSnifferError as error:
        pytest.skip(str(error))
    captures = (
        read_capture(io.BytesIO(sniffer.pcap), name=f"{n}.pcap")
        for n, sniffer in enumerate(sniffers)
    )
    return judged(captures, key_log.read_bytes() if key_log else b"")


def outcomes(reading: Reading) -> list[tuple[str, Passage, Certainty | None, object]]:
    """What became of each connection that the outermost file holds, in their order."""
    return [
        (each.handshake.opening, found.passage, found.certainty, found.between)
        for number, each in enumerate(reading.connections)
        if each.digest.file == "0.pcap"
        for found in [way(reading, number)]
    ]


PASSED = ("passthrough", "proved", None)
ENDED = ("terminated", "likely", ("0.pcap", "1.pcap"))


@pytest.mark.parametrize("name", FORWARDERS)
def test_a_real_forwarder_is_proved_to_pass_tls_through(places: Lab, name: str) -> None:
    reading = seen(places, name, STARTTLS, DIRECT)
    assert outcomes(reading) == [("ssl-request", *PASSED), ("direct-tls", *PASSED)]
    clock = reading.paths.clocks[0]
    assert clock.known
    assert abs(clock.ahead) <= clock.within


@pytest.mark.parametrize("name", ROUTERS)
def test_a_real_sni_router_passes_direct_tls_through_and_stops_ssl_request(
    places: Lab, name: str
) -> None:
    stopped = ("stopped", "proved", ("0.pcap", "1.pcap"))
    reading = seen(places, name, DIRECT, *[STARTTLS] * SEVERAL, DIRECT)
    assert outcomes(reading) == [
        ("direct-tls", *PASSED),
        *[("ssl-request", *stopped)] * SEVERAL,
        ("direct-tls", *PASSED),
    ]


@pytest.mark.parametrize("name", DIRECT_TERMINATORS)
def test_tls_is_seen_to_end_at_a_real_terminator(places: Lab, name: str) -> None:
    stopped = ("stopped", "likely", ("0.pcap", "1.pcap"))
    assert outcomes(seen(places, name, DIRECT, STARTTLS, DIRECT)) == [
        ("direct-tls", *ENDED),
        ("ssl-request", *stopped),
        ("direct-tls", *ENDED),
    ]


@pytest.mark.parametrize("name", TERMINATORS)
def test_tls_is_seen_to_end_where_ssl_request_is_answered(places: Lab, name: str) -> None:
    assert outcomes(seen(places, name, STARTTLS)) == [("ssl-request", *ENDED)]


@pytest.mark.parametrize(
    ("name", "attempt"), [("traefik-terminate-alpn", STARTTLS), ("nginx-terminate-alpn", DIRECT)]
)
def test_with_the_keys_the_login_is_known_again_and_proves_that_tls_ended(
    places: Lab, tmp_path: Path, name: str, attempt: Attempt
) -> None:
    key_log = tmp_path / "keys"
    asked = replace(attempt, key_log=str(key_log))
    reading = seen(places, name, asked, asked, key_log=key_log)
    proved = ("terminated", "proved", ("0.pcap", "1.pcap"))
    assert outcomes(reading) == [(attempt.opening, *proved)] * 2
    assert "the same login" in way(reading).why


def test_two_real_hops_that_pass_tls_through_are_one_path_of_three(places: Lab) -> None:
    reading = seen(places, "haproxy-tcp-traefik-passthrough", STARTTLS)
    assert outcomes(reading) == [("ssl-request", *PASSED)]
    assert way(reading).files == ("0.pcap", "1.pcap", "2.pcap")


def test_of_two_real_hops_the_one_that_stops_ssl_request_is_named(places: Lab) -> None:
    reading = seen(places, "envoy-tcp-haproxy-sni", DIRECT, *[STARTTLS] * SEVERAL, DIRECT)
    assert outcomes(reading)[1] == ("ssl-request", "stopped", "proved", ("1.pcap", "2.pcap"))
