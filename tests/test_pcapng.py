"""Capture files: every byte order, resolution and block, whole, cut off and damaged."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import struct
import threading
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.packets import (
    ACK,
    EPOCH,
    FIN,
    RST,
    SYN,
    Frame,
    Talk,
    block,
    enhanced,
    ethernet,
    interface,
    ipv4,
    ipv6,
    options,
    pcap,
    pcapng,
    section,
    tcp,
)
from probe.ends import ends_between, mirrored
from probe.packet import Decoder
from probe.pcapng import (
    ETHERNET,
    IPV4,
    IPV6,
    LOOP,
    MAX_BLOCK,
    MAX_COMMENT,
    MAX_INTERFACES,
    MAX_SECRETS_BLOCKS,
    MAX_TIME,
    NULL,
    RAW,
    SLL,
    SLL2,
    NotACapture,
    Packet,
    Reader,
)
from probe.window import CHUNK

FRAMES = [Frame(EPOCH + n / 8, bytes([n]) * (60 + n), 100 + n) for n in range(5)]
COMMENT, TSRESOL, TSOFFSET = 1, 9, 14


def read(data: bytes, ignored: set[bytes] | None = None) -> tuple[list[Packet], list[str]]:
    reader = Reader(io.BytesIO(data))
    packets = list(reader.read(ignored))
    return packets, reader.problems


def frames(packets: list[Packet]) -> list[Frame]:
    return [Frame(round(packet.at, 6), packet.data, packet.length) for packet in packets]


# --- pcap -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("nano", [False, True])
def test_pcap_in_both_byte_orders_and_resolutions(order: str, nano: bool) -> None:
    packets, problems = read(pcap(FRAMES, order=order, nano=nano))
    assert frames(packets) == FRAMES
    assert [packet.number for packet in packets] == [1, 2, 3, 4, 5]
    assert {packet.link for packet in packets} == {ETHERNET}
    assert not problems


def test_nanoseconds_are_told_from_microseconds() -> None:
    record = struct.pack("<IIII", 10, 500, 1, 1) + b"x"
    micro, _ = read(pcap([]) + record)
    nano, _ = read(pcap([], nano=True) + record)
    assert (micro[0].at, nano[0].at) == (10.0005, 10.0000005)


def test_the_link_type_shares_its_word_with_the_frame_check_sequence() -> None:
    head = bytearray(pcap(FRAMES, link=SLL))
    head[20:24] = struct.pack("<I", 0x24000000 | SLL)
    packets, _ = read(bytes(head))
    assert {packet.link for packet in packets} == {SLL}


def test_a_length_on_the_wire_below_what_is_there_is_not_believed() -> None:
    (packet,), _ = read(pcap([Frame(EPOCH, b"abcd", 2)]))
    assert packet.length == 4


def test_a_pcap_file_without_packets_has_none() -> None:
    assert read(pcap([])) == ([], [])


# --- pcapng -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "<>")
def test_enhanced_packet_blocks_in_both_byte_orders(order: str) -> None:
    packets, problems = read(pcapng(FRAMES, order=order))
    assert frames(packets) == FRAMES
    assert not problems


@pytest.mark.parametrize("orders", ["<<", "<>", "><", ">>"])
def test_each_section_has_its_own_byte_order_and_interfaces(orders: str) -> None:
    data = pcapng(FRAMES, link=ETHERNET, order=orders[0])
    packets, problems = read(data + pcapng(FRAMES, link=RAW, order=orders[1]))
    assert frames(packets) == FRAMES * 2
    assert [packet.link for packet in packets] == [ETHERNET] * 5 + [RAW] * 5
    assert [packet.number for packet in packets] == list(range(1, 11))
    assert not problems


def test_packets_of_several_interfaces_have_their_link_types() -> None:
    data = section() + interface(ETHERNET) + interface(SLL2)
    data += b"".join(enhanced(frame, n % 2) for n, frame in enumerate(FRAMES))
    packets, _ = read(data)
    assert [packet.link for packet in packets] == [ETHERNET, SLL2, ETHERNET, SLL2, ETHERNET]


def test_an_interface_may_be_described_behind_packets() -> None:
    data = section() + interface() + enhanced(FRAMES[0])
    data += interface(RAW) + enhanced(FRAMES[1], 1)
    packets, problems = read(data)
    assert [packet.link for packet in packets] == [ETHERNET, RAW]
    assert not problems


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("resolution", "ticks"), [(6, 10**6), (9, 10**9), (3, 10**3), (0, 1), (0x8A, 2**10), (0x80, 1)]
)
def test_an_interface_says_how_long_a_tick_is(order: str, resolution: int, ticks: int) -> None:
    frame = Frame(float(int(EPOCH)), b"x" * 20)
    data = section(order) + interface(1, 0, (TSRESOL, bytes([resolution])), order=order)
    packets, _ = read(data + enhanced(frame, order=order, ticks=ticks))
    assert packets[0].at == frame.at


@pytest.mark.parametrize("offset", [3_600, -3_600])
def test_an_interface_may_have_an_offset_in_seconds(offset: int) -> None:
    pair = (TSOFFSET, struct.pack("<q", offset))
    data = section() + interface(1, 0, pair) + enhanced(FRAMES[0], offset=offset)
    assert read(data)[0][0].at == FRAMES[0].at


@pytest.mark.parametrize(
    ("pairs", "at"),
    [
        ([(TSOFFSET, struct.pack("<q", 2**62))], MAX_TIME),
        ([(TSOFFSET, struct.pack("<q", -(2**62)))], 0.0),
        ([(TSRESOL, b"\x7f")], 0.0),
        ([(TSRESOL, b"\xff")], 0.0),
        ([(TSRESOL, b"")], EPOCH),
        ([(TSOFFSET, b"short")], EPOCH),
    ],
)
def test_times_that_no_calendar_has_do_not_leave_it(
    pairs: list[tuple[int, bytes]], at: float
) -> None:
    packets, _ = read(section() + interface(1, 0, *pairs) + enhanced(Frame(EPOCH, b"x")))
    assert packets[0].at == pytest.approx(at, abs=1e-9)


def test_the_comment_of_a_packet_is_read_and_bounded() -> None:
    said = "gr\u00fc\u00df".encode()
    data = section() + interface()
    data += enhanced(FRAMES[0], 0, (2, b"\0\0\0\1"), (COMMENT, said))
    data += enhanced(FRAMES[1], 0, (COMMENT, b"x" * (MAX_COMMENT + 10)))
    data += enhanced(FRAMES[2], 0, (COMMENT, b"\xff"))
    packets, _ = read(data)
    assert packets[0].comment == "gr\u00fc\u00df"
    assert packets[1].comment == "x" * MAX_COMMENT
    assert packets[2].comment == "\ufffd"


def simple(frame: Frame, snaplen: int = 0, order: str = "<") -> bytes:
    length = len(frame.data) if frame.length is None else frame.length
    data = frame.data[:snaplen] if snaplen else frame.data
    return block(3, struct.pack(order + "I", length) + data + bytes(-len(data) % 4), order)


@pytest.mark.parametrize("order", "<>")
def test_simple_packet_blocks_have_no_time_of_their_own(order: str) -> None:
    timed = enhanced(Frame(EPOCH, b"timed"), order=order)
    data = section(order) + interface(order=order) + timed + simple(Frame(0, b"abcde"), order=order)
    packets, problems = read(data)
    assert [(p.at, p.data, p.length) for p in packets] == [
        (EPOCH, b"timed", 5),
        (EPOCH, b"abcde", 5),
    ]
    assert not problems


def test_simple_packet_blocks_are_cut_at_the_snapshot_length() -> None:
    data = section() + interface(1, 6) + simple(Frame(0, b"0123456789"), 6)
    (packet,), _ = read(data)
    assert (packet.data, packet.length) == (b"012345", 10)


@pytest.mark.parametrize("order", "<>")
def test_obsolete_packet_blocks_are_read(order: str) -> None:
    time = round(EPOCH * 10**6)
    head = struct.pack(order + "HHIIII", 1, 0, time >> 32, time & 0xFFFFFFFF, 5, 9)
    body = head + b"abcde\0\0\0" + options(order, (COMMENT, b"old"))
    data = section(order) + interface(order=order) + interface(RAW, order=order)
    (packet,), problems = read(data + block(2, body, order))
    assert packet == (1, EPOCH, RAW, b"abcde", 9, "old")
    assert not problems


@pytest.mark.parametrize("order", "<>")
def test_secrets_are_kept_and_other_kinds_of_them_are_not(order: str) -> None:
    log = b"CLIENT_RANDOM 00 11\n"

    def secrets(kind: int, text: bytes) -> bytes:
        head = struct.pack(order + "II", kind, len(text))
        return block(10, head + text + bytes(-len(text) % 4), order)

    data = section(order) + secrets(0x544C534B, log) + secrets(0x57474B4C, b"wireguard")
    reader = Reader(io.BytesIO(data + interface(order=order) + secrets(0x544C534B, b"#\n")))
    assert not list(reader.read())
    assert reader.secrets == [log, b"#\n"]
    assert not reader.problems


def test_secrets_without_end_are_not_kept() -> None:
    empty = block(10, struct.pack("<II", 0x544C534B, 0))
    reader = Reader(io.BytesIO(section() + empty * (MAX_SECRETS_BLOCKS + 10)))
    list(reader.read())
    assert len(reader.secrets) == MAX_SECRETS_BLOCKS
    assert reader.problems == ["more secrets than are taken from one file: the rest was left out"]


@pytest.mark.parametrize("kind", [4, 5, 0x0BAD, 0x40000BAD, 0x7FFFFFFF])
def test_blocks_of_other_kinds_are_stepped_over(kind: int) -> None:
    data = section() + interface() + enhanced(FRAMES[0]) + block(kind, b"whatever")
    packets, problems = read(data + enhanced(FRAMES[1]))
    assert frames(packets) == FRAMES[:2]
    assert not problems


# --- what is no capture, and what is cut off or damaged ---------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it is empty"),
        (b"\xd4\xc3\xb2\xa1", "ends within its header"),
        (pcap([])[:23], "ends within its header"),
        (b"\x0a\x0d\x0d\x0a", "has no byte order"),
        (block(0x0A0D0D0A, b"\1\2\3\4" + bytes(12)), "has no byte order"),
        (b"GET / HTTP/1.0", "it begins with 47 45 54 20"),
        (b"\xd4", "it begins with d4"),
        (b"\x1f\x8b", "the gzip file is cut off"),
        (b"\x1f\x8bnonsense and more of it", "the gzip file is damaged"),
        (gzip.compress(b""), "it is empty"),
        (gzip.compress(b"GET "), "it begins with 47 45 54 20"),
    ],
)
def test_what_is_no_capture_is_told_by_how_it_begins(data: bytes, says: str) -> None:
    with pytest.raises(NotACapture, match=says):
        Reader(io.BytesIO(data))


@pytest.mark.parametrize("make", [pcap, pcapng])
def test_every_truncation_gives_the_whole_packets_before_it(make: Callable[..., bytes]) -> None:
    whole = make(FRAMES)
    ends = [len(make(FRAMES[:count])) for count in range(6)]
    for cut in range(ends[0], len(whole)):
        packets, problems = read(whole[:cut])
        count = sum(end <= cut for end in ends) - 1
        assert frames(packets) == FRAMES[:count]
        at_a_border = cut in ends
        assert bool(problems) is not at_a_border
        if problems:
            assert problems == [
                f"the file ends within packet {count + 1}: it was cut off, or is still being "
                "written; everything before that packet was read"
            ]


def test_every_truncation_of_a_gzip_file_gives_a_beginning_of_it() -> None:
    whole = gzip.compress(pcap(FRAMES), 1)
    found = 0
    for cut in range(len(whole)):
        try:
            packets, problems = read(whole[:cut])
        except NotACapture:
            assert not found
            continue
        assert frames(packets) == FRAMES[: len(packets)]
        assert len(packets) >= found
        found = len(packets)
        assert any("gzip" in problem for problem in problems)
    assert found == len(FRAMES)


def test_gzip_holds_either_kind_and_may_have_several_members() -> None:
    for data in (pcap(FRAMES), pcapng(FRAMES)):
        parts = gzip.compress(data[:100]) + gzip.compress(data[100:])
        packets, problems = read(parts)
        assert frames(packets) == FRAMES
        assert not problems


def test_garbage_behind_a_gzip_member_is_told() -> None:
    packets, problems = read(gzip.compress(pcap(FRAMES)) + b"garbage")
    assert frames(packets) == FRAMES
    assert len(problems) == 1
    assert "the gzip file is damaged" in problems[0]


@pytest.mark.parametrize("captured", [MAX_BLOCK + 1, 2**31, 2**32 - 1])
def test_a_record_longer_than_any_packet_ends_the_reading(captured: int) -> None:
    data = pcap(FRAMES[:2]) + struct.pack("<IIII", 1, 1, captured, captured) + bytes(100)
    packets, problems = read(data)
    assert len(packets) == 2
    assert problems == [
        f"packet 3 has {captured} bytes, it says: the file is damaged there, and only what "
        "stands before it was read"
    ]


@pytest.mark.parametrize("total", [0, 8, 13, MAX_BLOCK + 4, 2**32 - 4, 2**32 - 1])
def test_a_block_of_no_possible_length_ends_the_reading(total: int) -> None:
    data = pcapng(FRAMES[:2]) + struct.pack("<III", 6, total, 0) + bytes(100)
    packets, problems = read(data)
    assert len(packets) == 2
    assert len(problems) == 1
    assert problems[0].startswith(f"packet 3 is in, or follows on, a block of {total} bytes")


@pytest.mark.parametrize(
    "bad",
    [
        block(6, b""),
        block(6, bytes(16)),
        block(6, struct.pack("<IIIII", 7, 0, 0, 0, 0)),  # an interface that nobody described
        block(6, struct.pack("<IIIII", 0, 0, 0, 4, 4)),  # more than there is
        block(6, struct.pack("<IIIII", 0, 0, 0, 2**32 - 1, 4)),
        block(2, bytes(4)),
        block(3, b""),
        block(1, b""),
        block(10, b""),
    ],
)
def test_a_block_shorter_than_its_contents_ends_the_reading(bad: bytes) -> None:
    packets, problems = read(pcapng(FRAMES[:2]) + bad + enhanced(FRAMES[2]))
    assert len(packets) == 2
    assert len(problems) == 1
    assert "a block shorter than its contents" in problems[0]


def test_a_simple_packet_without_any_interface_ends_the_reading() -> None:
    packets, problems = read(section() + simple(FRAMES[0]))
    assert not packets
    assert len(problems) == 1


def test_a_later_section_without_a_byte_order_ends_the_reading() -> None:
    packets, problems = read(pcapng(FRAMES) + block(0x0A0D0D0A, bytes(16)))
    assert len(packets) == 5
    assert "follows on a section without a byte order" in problems[0]


def test_interfaces_without_end_are_refused() -> None:
    packets, problems = read(section() + interface() * (MAX_INTERFACES + 1) + enhanced(FRAMES[0]))
    assert not packets
    assert "too many interfaces" in problems[0]


def test_a_length_makes_nobody_reserve_memory_for_it() -> None:
    data = pcap([]) + struct.pack("<IIII", 1, 1, MAX_BLOCK, MAX_BLOCK) + b"all there is"
    tracemalloc.start()
    packets, problems = read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not packets
    assert problems
    assert peak < 2.5 * MAX_BLOCK


BEGINNINGS = [pcap([]), pcap([], order=">"), section() + interface(), section(">"), b"\x1f\x8b\x08"]


@given(st.sampled_from(BEGINNINGS), st.binary(max_size=400))
def test_noise_behind_a_beginning_gives_no_more_than_it_holds(head: bytes, tail: bytes) -> None:
    try:
        packets, _ = read(head + tail)
    except NotACapture:
        return
    assert sum(len(packet.data) for packet in packets) <= len(tail)


@given(st.binary(max_size=64))
def test_random_bytes_are_no_capture_or_an_empty_one(data: bytes) -> None:
    try:
        assert not read(data)[0]
    except NotACapture:
        return


# --- a stream in pieces -----------------------------------------------------------------------


class Dribble(io.RawIOBase):
    """Gives a few bytes at a time, as a pipe does."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data, self.sizes = data, itertools.cycle(sizes)

    def readable(self) -> bool:
        return True

    def readinto(self, room: memoryview) -> int:  # type: ignore[override]
        count = min(len(room), len(self.data), next(self.sizes))
        room[:count], self.data = self.data[:count], self.data[count:]
        return count


@given(
    st.sampled_from([pcap, pcapng, lambda f: gzip.compress(pcap(f), 1)]),
    st.lists(st.integers(1, 70), min_size=1, max_size=4),
)
def test_it_does_not_matter_how_a_stream_is_cut_into_pieces(
    make: Callable[..., bytes], sizes: list[int]
) -> None:
    reader = Reader(Dribble(make(FRAMES), sizes))  # type: ignore[arg-type]
    assert frames(list(reader.read())) == FRAMES
    assert not reader.problems


@pytest.mark.parametrize("make", [pcap, pcapng])
def test_a_packet_is_given_as_soon_as_it_is_written(make: Callable[..., bytes]) -> None:
    """``tcpdump -w - | pgprobe read -``: nothing waits for a whole chunk."""
    whole, part = make(FRAMES), len(make(FRAMES[:2]))
    came_out, coming_in = os.pipe()
    first = threading.Event()

    def write() -> None:
        with os.fdopen(coming_in, "wb", buffering=0) as pipe:
            pipe.write(whole[:part])
            assert first.wait(20)
            pipe.write(whole[part:])

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(came_out, "rb", buffering=0) as pipe:
        packets = Reader(pipe).read()
        got = [next(packets), next(packets)]
        first.set()
        got += list(packets)
    writer.join()
    assert frames(got) == FRAMES


def test_packets_that_cross_the_border_of_a_chunk_are_whole() -> None:
    many = [Frame(EPOCH, bytes([n % 251]) * 1_400) for n in range(3 * CHUNK // 1_400)]
    for make in (pcap, pcapng):
        packets, problems = read(make(many))
        assert [packet.data for packet in packets] == [frame.data for frame in many]
        assert not problems


def test_a_packet_larger_than_a_chunk_is_whole() -> None:
    large = Frame(EPOCH, os.urandom(2 * CHUNK), 2 * CHUNK)
    packets, _ = read(pcap([FRAMES[0], large, FRAMES[1]]))
    assert frames(packets) == [FRAMES[0], large, FRAMES[1]]


# --- packets of connections that nobody wants to hear more of ---------------------------------

SEGMENT = tcp(40_000, 5_432, 7, 8, ACK, b"bulk" * 10)
V4, V6 = ipv4("192.0.2.1", "192.0.2.2", SEGMENT), ipv6("2001:db8::1", "2001:db8::2", SEGMENT)
KNOWN = {
    ends_between("192.0.2.1:40000", "192.0.2.2:5432"),
    ends_between("[2001:db8::1]:40000", "[2001:db8::2]:5432"),
}

LINKS: dict[int, Callable[[bytes, int], bytes]] = {
    ETHERNET: lambda ip, kind: ethernet(ip, kind),
    SLL: lambda ip, kind: bytes(14) + struct.pack("!H", kind) + ip,
    SLL2: lambda ip, kind: struct.pack("!H", kind) + bytes(18) + ip,
    NULL: lambda ip, kind: struct.pack("<I", 2 if kind == 0x0800 else 30) + ip,
    LOOP: lambda ip, kind: struct.pack(">I", 2 if kind == 0x0800 else 24) + ip,
    RAW: lambda ip, kind: ip,
    IPV4: lambda ip, kind: ip,
    IPV6: lambda ip, kind: ip,
}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize(("ip", "kind"), [(V4, 0x0800), (V6, 0x86DD)])
@pytest.mark.parametrize("make", [pcap, pcapng])
@pytest.mark.parametrize("order", "<>")
def test_an_ignored_direction_is_left_out_and_counted(
    link: int, ip: bytes, kind: int, make: Callable[..., bytes], order: str
) -> None:
    data = LINKS[link](ip, kind)
    file = make([Frame(EPOCH, data)] * 40, link=link, order=order)
    ignored: set[bytes] = set()
    reader = Reader(io.BytesIO(file))
    packets = reader.read(ignored)
    next(packets)
    ignored |= KNOWN
    assert len(list(packets)) <= 2  # the last ones may be too near to the end for a quick look
    assert reader.packets == 40


@pytest.mark.parametrize("flag", [SYN, FIN, RST])
@pytest.mark.parametrize("make", [pcap, pcapng])
def test_what_opens_or_closes_is_never_left_out(flag: int, make: Callable[..., bytes]) -> None:
    for wrap, kind in ((V4, 0x0800), (V6, 0x86DD)):
        head = len(wrap) - len(SEGMENT)
        closes = wrap[:head] + tcp(40_000, 5_432, 7, 8, flag | ACK)
        file = make([Frame(EPOCH, ethernet(closes + bytes(60), kind))] * 10)
        assert len(read(file, set(KNOWN))[0]) == 10


@pytest.mark.parametrize(
    "other",
    [
        ethernet(ipv4("192.0.2.1", "192.0.2.2", SEGMENT, fragment=0x2000)),
        ethernet(ipv4("192.0.2.1", "192.0.2.2", SEGMENT, fragment=0x0001)),
        ethernet(ipv4("192.0.2.1", "192.0.2.2", SEGMENT, protocol=17)),
        ethernet(ipv4("192.0.2.1", "192.0.2.2", SEGMENT, options=b"\x01" * 4)),
        ethernet(V4, tags=[(0x8100, 5)]),
        ethernet(V4, 0x88CC),
        ethernet(ipv6("2001:db8::1", "2001:db8::2", SEGMENT, next_header=17), 0x86DD),
        ethernet(ipv6("2001:db8::1", "2001:db8::2", SEGMENT, next_header=44), 0x86DD),
        ethernet(ipv6("2001:db8::1", "2001:db8::2", SEGMENT), 0x0800),
    ],
)
@pytest.mark.parametrize("make", [pcap, pcapng])
@pytest.mark.parametrize("order", "<>")
def test_a_packet_of_any_other_shape_is_never_left_out(
    other: bytes, make: Callable[..., bytes], order: str
) -> None:
    packets, _ = read(make([Frame(EPOCH, other)] * 10, order=order), set(KNOWN))
    assert len(packets) == 10


@pytest.mark.parametrize("make", [pcap, pcapng])
def test_what_is_cut_before_its_flags_is_never_left_out(make: Callable[..., bytes]) -> None:
    for whole, least in ((ethernet(V4), 48), (ethernet(V6, 0x86DD), 68)):
        for cut in range(least):
            packets, _ = read(make([Frame(EPOCH, whole[:cut])] * 20), set(KNOWN))
            assert len(packets) == 20


@pytest.mark.parametrize("make", [pcap, pcapng])
def test_nothing_is_left_out_of_a_link_type_that_is_not_known(make: Callable[..., bytes]) -> None:
    packets, _ = read(make([Frame(EPOCH, ethernet(V4))] * 10, link=999), set(KNOWN))
    assert len(packets) == 10


@pytest.mark.parametrize("make", [pcap, pcapng])
def test_ignoring_never_changes_what_else_is_read(make: Callable[..., bytes]) -> None:
    talk = Talk().open()
    for _ in range(50):
        talk.say("server", b"x" * 100).send("client", ACK)
    talk.close()
    other = Talk(port=40_001).open().say("client", b"hello" * 20).close()
    mixed = [f for n, f in enumerate(talk.frames) for f in (f, other.frames[n % len(other.frames)])]
    every, _ = read(make(mixed))
    ignored = KNOWN | set(map(mirrored, KNOWN))
    some, _ = read(make(mixed), set(ignored))

    def theirs(packets: list[Packet]) -> list[Packet]:
        segments = [Decoder().segment(p.link, p.at, p.data, p.length) for p in packets]
        told = zip(packets, segments, strict=True)
        return [packet for packet, segment in told if segment and segment.ends not in ignored]

    assert theirs(some) == theirs(every) != []
    assert len(some) < len(every)
    numbers = {packet.number: packet for packet in every}
    assert all(numbers[packet.number] == packet for packet in some)
