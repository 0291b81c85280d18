"""Packets to segments: every link layer, IP's options, headers and fragments, tunnels."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.packets import ACK, EPOCH, FIN, PSH, SYN, ethernet, ipv4, ipv6, tcp
from probe import packet
from probe.ends import ends_between
from probe.packet import (
    FRAGMENTS_WAIT,
    MAX_DATAGRAMS,
    MAX_LAYERS,
    MAX_PIECES,
    NO_SCAPY,
    Decoder,
    Segment,
)
from probe.pcapng import ETHERNET, IPV4, IPV6, LOOP, NULL, RAW, SLL, SLL2

HELLO = b"hello, server"
TCP = tcp(40_000, 5_432, 1_000, 2_000, PSH | ACK, HELLO)
OPTIONED = tcp(40_000, 5_432, 1_000, 2_000, PSH | ACK, HELLO, b"\x01\x01\x08\x0a" + bytes(8))
V4, V6 = ipv4("192.0.2.1", "192.0.2.2", TCP, ident=77), ipv6("2001:db8::1", "2001:db8::2", TCP)
EXPECTED4 = Segment(
    at=EPOCH,
    ends=ends_between("192.0.2.1:40000", "192.0.2.2:5432"),
    seq=1_000,
    ack=2_000,
    flags=PSH | ACK,
    payload=HELLO,
    ttl=64,
    ip_id=77,
    whole=True,
)
EXPECTED6 = EXPECTED4._replace(
    ends=ends_between("[2001:db8::1]:40000", "[2001:db8::2]:5432"), ip_id=None, whole=False
)


def decode(
    data: bytes, link: int = ETHERNET, *, length: int | None = None, decoder: Decoder | None = None
) -> Segment | None:
    size = len(data) if length is None else length
    return (decoder or Decoder()).segment(link, EPOCH, data, size)


def udp(port: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", 50_000, port, 8 + len(payload), 0) + payload


# --- link layers ------------------------------------------------------------------------------


def null(family: int, order: str = "<") -> bytes:
    return struct.pack(order + "I", family)


def sll(kind: int) -> bytes:
    return struct.pack("!HHH8sH", 0, 1, 6, bytes(8), kind)


def sll2(kind: int) -> bytes:
    return struct.pack("!HHIHBB8s", kind, 0, 2, 1, 0, 6, bytes(8))


@pytest.mark.parametrize(
    ("link", "head4", "head6"),
    [
        (ETHERNET, ethernet(b""), ethernet(b"", 0x86DD)),
        (ETHERNET, ethernet(b"", tags=[(0x8100, 5)]), ethernet(b"", 0x86DD, [(0x8100, 5)])),
        (
            ETHERNET,
            ethernet(b"", tags=[(0x88A8, 5), (0x8100, 6)]),
            ethernet(b"", 0x86DD, [(0x8100, 5), (0x8100, 6)]),
        ),
        (ETHERNET, ethernet(b"", tags=[(0x9100, 1)] * MAX_LAYERS), ethernet(b"", 0x86DD)),
        (SLL, sll(0x0800), sll(0x86DD)),
        (SLL, sll(0x8100) + b"\0\5\x08\0", sll(0x8100) + b"\0\5\x86\xdd"),
        (SLL2, sll2(0x0800), sll2(0x86DD)),
        (NULL, null(2), null(30)),
        (NULL, null(2, ">"), null(24, ">")),
        (NULL, null(2), null(28)),
        (NULL, null(2), null(10)),
        (LOOP, null(2, ">"), null(24, ">")),
        (RAW, b"", b""),
        (12, b"", b""),
        (14, b"", b""),
        (IPV4, b"", b""),
        (IPV6, b"", b""),
    ],
)
def test_every_link_layer(link: int, head4: bytes, head6: bytes) -> None:
    assert decode(head4 + V4, link) == EXPECTED4
    assert decode(head6 + V6, link) == EXPECTED6


@pytest.mark.parametrize(
    ("link", "data"),
    [
        (ETHERNET, ethernet(V4, 0x0806)),
        (ETHERNET, ethernet(V4, tags=[(0x8100, 1)] * (MAX_LAYERS + 1))),
        (SLL, sll(0x0806) + V4),
        (SLL2, sll2(0x0806) + V4),
        (NULL, null(7) + V4),
        (RAW, b"\x50" + V4[1:]),
        (ETHERNET, ethernet(ipv4("192.0.2.1", "192.0.2.2", udp(53, b"x"), protocol=17))),
        (ETHERNET, ethernet(ipv4("192.0.2.1", "192.0.2.2", bytes(8), protocol=1))),
    ],
)
def test_what_is_no_tcp_is_no_segment_and_no_problem(link: int, data: bytes) -> None:
    decoder = Decoder()
    assert decode(data, link, decoder=decoder) is None
    assert not decoder.notes


# --- IP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", range(1, 11))
def test_ipv4_options_are_stepped_over(words: int) -> None:
    data = ipv4("192.0.2.1", "192.0.2.2", TCP, ident=77, options=b"\x01" * 4 * words)
    assert decode(ethernet(data)) == EXPECTED4


def test_tcp_options_are_stepped_over() -> None:
    for datagram, expected in (
        (ethernet(ipv4("192.0.2.1", "192.0.2.2", OPTIONED, ident=77)), EXPECTED4),
        (ethernet(ipv6("2001:db8::1", "2001:db8::2", OPTIONED), 0x86DD), EXPECTED6),
    ):
        assert decode(datagram) == expected


def test_time_to_live_and_identification_are_told() -> None:
    seen = decode(ethernet(ipv4("192.0.2.1", "192.0.2.2", TCP, ttl=7, ident=9)))
    assert seen == EXPECTED4._replace(ttl=7, ip_id=9)
    assert decode(ethernet(ipv6("2001:db8::1", "2001:db8::2", TCP, hop_limit=3), 0x86DD)) == (
        EXPECTED6._replace(ttl=3)
    )


def test_padding_behind_the_datagram_is_not_payload() -> None:
    assert decode(ethernet(V4 + b"padding")) == EXPECTED4
    assert decode(ethernet(V6 + b"padding", 0x86DD)) == EXPECTED6


def test_a_datagram_too_large_to_say_its_length_ends_with_its_packet() -> None:
    large = ipv4("192.0.2.1", "192.0.2.2", TCP, ident=77, total=0)
    assert decode(ethernet(large)) == EXPECTED4
    jumbo = ipv6("2001:db8::1", "2001:db8::2", TCP, length=0)
    assert decode(ethernet(jumbo, 0x86DD)) == EXPECTED6


UNIT = bytes(6)


@pytest.mark.parametrize(
    "headers",
    [
        [(0, UNIT)],  # hop-by-hop options
        [(43, UNIT)],  # routing
        [(60, UNIT), (43, UNIT + bytes(8))],
        [(0, UNIT), (60, UNIT), (135, UNIT), (139, UNIT), (140, UNIT)],
        [(51, bytes(10))],  # authentication: its length is in other units
    ],
)
def test_ipv6_extension_headers_are_stepped_over(headers: list[tuple[int, bytes]]) -> None:
    payload, follows = TCP, 6
    for kind, body in reversed(headers):
        size = (len(body) + 2) // 4 - 2 if kind == 51 else (len(body) + 2) // 8 - 1
        payload, follows = bytes([follows, size]) + body + payload, kind
    data = ipv6("2001:db8::1", "2001:db8::2", payload, next_header=follows)
    assert decode(ethernet(data, 0x86DD)) == EXPECTED6


def test_extension_headers_without_end_are_given_up() -> None:
    payload = bytes([60, 0]) + UNIT
    data = ipv6("2001:db8::1", "2001:db8::2", payload * 400, next_header=60)
    assert decode(ethernet(data, 0x86DD)) is None


# --- truncated --------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp_bytes", [TCP, OPTIONED])
def test_what_the_snapshot_length_cut_is_counted_as_cut(tcp_bytes: bytes) -> None:
    for whole, kind, expected in (
        (ipv4("192.0.2.1", "192.0.2.2", tcp_bytes, ident=77), 0x0800, EXPECTED4),
        (ipv6("2001:db8::1", "2001:db8::2", tcp_bytes), 0x86DD, EXPECTED6),
    ):
        frame = ethernet(whole, kind)
        for left in range(len(HELLO) + 1):
            seen = decode(frame[: len(frame) - len(HELLO) + left], length=len(frame))
            assert seen == expected._replace(payload=HELLO[:left], cut=len(HELLO) - left)


def test_a_packet_cut_within_its_headers_is_counted() -> None:
    for frame in (ethernet(V4), ethernet(V6, 0x86DD), ethernet(V4, tags=[(0x8100, 1)])):
        for size in range(len(frame) - len(HELLO) - 7):
            decoder = Decoder()
            assert decode(frame[:size], length=len(frame), decoder=decoder) is None
            assert decoder.notes == {"too short for their headers": 1}


@pytest.mark.parametrize(
    "bad",
    [
        ipv4("192.0.2.1", "192.0.2.2", TCP[:12] + b"\x40" + TCP[13:]),  # 16 bytes of TCP header
        ipv4("192.0.2.1", "192.0.2.2", TCP[:12] + b"\xf0" + TCP[13:]),  # more than there is
        b"\x44" + V4[1:],  # 16 bytes of IP header
        ipv4("192.0.2.1", "192.0.2.2", TCP, total=30),
        ipv6("2001:db8::1", "2001:db8::2", TCP, length=10),
    ],
)
def test_headers_that_lie_about_their_length_are_counted(bad: bytes) -> None:
    decoder = Decoder()
    assert decode(bad, RAW, decoder=decoder) is None
    assert decoder.notes == {"too short for their headers": 1}


# --- fragments --------------------------------------------------------------------------------

FRAGMENTED = EXPECTED4._replace(whole=False)


def fragments4(payload: bytes, size: int, ident: int = 77) -> list[bytes]:
    pieces = [(at, payload[at : at + size]) for at in range(0, len(payload), size)]
    return [
        ipv4(
            "192.0.2.1",
            "192.0.2.2",
            piece,
            ident=ident,
            fragment=at // 8 | (0x2000 if at + size < len(payload) else 0),
        )
        for at, piece in pieces
    ]


def fragments6(payload: bytes, size: int, ident: int = 77) -> list[bytes]:
    made = []
    for at in range(0, len(payload), size):
        more = at + size < len(payload)
        head = struct.pack("!BxHI", 6, at | more, ident)
        part = head + payload[at : at + size]
        made.append(ipv6("2001:db8::1", "2001:db8::2", part, next_header=44))
    return made


def put_together(decoder: Decoder, datagrams: list[bytes], at: float = EPOCH) -> list[Any]:
    return [decoder.segment(RAW, at, data, len(data)) for data in datagrams]


@pytest.mark.parametrize("size", [8, 16, 24])
@pytest.mark.parametrize("turn", [list, lambda made: made[::-1], lambda made: made[1:] + made[:1]])
def test_fragments_are_put_together_in_any_order(
    size: int, turn: Callable[[list[bytes]], list[bytes]]
) -> None:
    for fragments, expected in ((fragments4, FRAGMENTED), (fragments6, EXPECTED6)):
        decoder = Decoder()
        seen = put_together(decoder, turn(fragments(TCP, size)))
        assert seen == [None] * (len(seen) - 1) + [expected]
        assert not decoder.notes


def test_an_atomic_fragment_is_whole_at_once() -> None:
    assert put_together(Decoder(), fragments6(TCP, 1_000)) == [EXPECTED6]


def test_a_fragment_captured_twice_does_no_harm() -> None:
    first, second, *rest = fragments4(TCP, 16)
    assert put_together(Decoder(), [first, second, second, *rest])[-1] == FRAGMENTED


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4])
def test_fragments_that_overlap_are_never_mixed(at: int) -> None:
    """Whose bytes count would be a guess, and stacks drop such datagrams."""
    pieces = fragments4(TCP, 8)
    forged = ipv4("192.0.2.1", "192.0.2.2", b"\xff" * 16, ident=77, fragment=0x2000 | at)
    for where in range(len(pieces)):
        decoder = Decoder()
        made = put_together(decoder, [*pieces[:where], forged, *pieces[where:]])
        assert [segment for segment in made if segment] in ([], [FRAGMENTED])
        assert where > at or not any(made)


def test_fragments_of_different_datagrams_are_not_mixed() -> None:
    one, two = fragments4(TCP, 24, ident=1), fragments4(TCP, 24, ident=2)
    mixed = [each for pair in zip(one, two, strict=True) for each in pair]
    seen = [segment for segment in put_together(Decoder(), mixed) if segment]
    assert [(s.ip_id, s.payload) for s in seen] == [(1, HELLO), (2, HELLO)]


def test_an_identification_that_is_used_again_later_is_another_datagram() -> None:
    decoder = Decoder()
    stale = ipv4("192.0.2.1", "192.0.2.2", b"\xff" * 16, ident=77, fragment=0x2000)
    put_together(decoder, [stale])
    later = put_together(decoder, fragments4(TCP, 16), EPOCH + FRAGMENTS_WAIT + 1)
    assert later[-1] == FRAGMENTED._replace(at=EPOCH + FRAGMENTS_WAIT + 1)
    assert decoder.notes == {"fragments that do not make a datagram": 1}


def test_fragments_that_are_cut_cannot_be_put_together() -> None:
    for fragment in (fragments4(TCP, 16)[0], fragments6(TCP, 16)[0]):
        decoder = Decoder()
        assert decode(fragment[:-4], RAW, length=len(fragment), decoder=decoder) is None
        assert decoder.notes == {"fragments that the snapshot length cut": 1}


def test_a_datagram_longer_than_any_is_refused() -> None:
    decoder = Decoder()
    data = ipv4("192.0.2.1", "192.0.2.2", bytes(100), fragment=0x1FFF)
    assert decode(data, RAW, decoder=decoder) is None
    assert decoder.notes == {"fragments of more than 65,535 bytes": 1}


def test_datagrams_that_never_become_whole_are_bounded() -> None:
    decoder = Decoder()
    for ident in range(MAX_DATAGRAMS + 10):
        put_together(decoder, fragments4(TCP, 16, ident)[:1])
    assert len(decoder._datagrams) == MAX_DATAGRAMS
    assert decoder.notes["fragments that do not make a datagram"] == 10


def test_overlapping_fragments_without_end_are_bounded() -> None:
    decoder = Decoder()
    for at in range(8_000):
        data = ipv4("192.0.2.1", "192.0.2.2", bytes(1_400), ident=1, fragment=0x2000 | at)
        decode(data, RAW, decoder=decoder)
        held = sum(each.held for each in decoder._datagrams.values())
        pieces = sum(len(each.pieces) for each in decoder._datagrams.values())
        assert held <= 65_535
        assert pieces <= MAX_PIECES
    assert decoder.notes["fragments that do not make a datagram"] > 80


# --- tunnels ----------------------------------------------------------------------------------

INNER4, INNER6 = ethernet(V4), ethernet(V6, 0x86DD)


def outer(payload: bytes, protocol: int = 17) -> bytes:
    return ethernet(ipv4("10.0.0.1", "10.0.0.2", payload, protocol=protocol))


@pytest.mark.parametrize(("inner", "expected"), [(V4, EXPECTED4), (V6, EXPECTED6)])
def test_ip_in_ip(inner: bytes, expected: Segment) -> None:
    protocol = 4 if inner is V4 else 41
    assert decode(outer(inner, protocol)) == expected
    six = ethernet(ipv6("2001:db8::a", "2001:db8::b", inner, next_header=protocol), 0x86DD)
    assert decode(six) == expected


def test_ip_in_ip_without_end_is_given_up() -> None:
    data = V4
    for _ in range(MAX_LAYERS + 2):
        data = ipv4("10.0.0.1", "10.0.0.2", data, protocol=4)
    assert decode(data, RAW) is None


def vxlan(inner: bytes) -> bytes:
    from scapy.layers.vxlan import VXLAN

    return bytes(VXLAN(vni=7, flags="Instance") / inner)


def geneve(inner: bytes, options: bytes = b"", proto: int = 0x6558) -> bytes:
    from scapy.contrib.geneve import GENEVE

    head = bytes(GENEVE(vni=7, proto=proto))
    return bytes([len(options) // 4]) + head[1:8] + options + inner


def gre(inner: bytes, proto: int, **fields: Any) -> bytes:
    from scapy.layers.l2 import GRE

    return bytes(GRE(proto=proto, **fields)) + inner


@pytest.mark.parametrize(("inner", "expected"), [(INNER4, EXPECTED4), (INNER6, EXPECTED6)])
@pytest.mark.parametrize("port", [4_789, 8_472])
def test_vxlan_as_scapy_builds_it(inner: bytes, expected: Segment, port: int) -> None:
    assert decode(outer(udp(port, vxlan(inner)))) == expected


@pytest.mark.parametrize("options", [b"", bytes(4), bytes(252)])
def test_geneve_as_scapy_builds_it(options: bytes) -> None:
    assert decode(outer(udp(6_081, geneve(INNER4, options)))) == EXPECTED4
    assert decode(outer(udp(6_081, geneve(INNER6, options)))) == EXPECTED6


def test_geneve_with_ip_inside() -> None:
    assert decode(outer(udp(6_081, geneve(V4, proto=0x0800)))) == EXPECTED4
    assert decode(outer(udp(6_081, geneve(V6, proto=0x86DD)))) == EXPECTED6
    assert decode(outer(udp(6_081, geneve(V6, proto=0x0806)))) is None


@pytest.mark.parametrize(
    "fields", [{}, {"key_present": 1, "key": 9}, {"seqnum_present": 1}, {"chksum_present": 1}]
)
def test_gre_as_scapy_builds_it(fields: dict[str, int]) -> None:
    assert decode(outer(gre(V4, 0x0800, **fields), 47)) == EXPECTED4
    assert decode(outer(gre(V6, 0x86DD, **fields), 47)) == EXPECTED6
    assert decode(outer(gre(INNER4, 0x6558, **fields), 47)) == EXPECTED4


def test_tunnels_in_tunnels() -> None:
    twice = outer(udp(4_789, vxlan(outer(gre(V4, 0x0800), 47))))
    assert decode(twice) == EXPECTED4


def test_tunnels_without_end_are_given_up() -> None:
    data = INNER4
    for _ in range(MAX_LAYERS + 2):
        data = outer(udp(4_789, vxlan(data)))
    assert decode(data) is None


def test_what_is_cut_inside_a_tunnel_is_counted_as_cut() -> None:
    whole = outer(udp(4_789, vxlan(INNER4)))
    seen = decode(whole[:-4], length=len(whole))
    assert seen == EXPECTED4._replace(payload=HELLO[:-4], cut=4)


@pytest.mark.parametrize("make", [lambda inner: outer(udp(4_789, inner)), lambda i: outer(i, 47)])
def test_every_truncation_of_a_tunnel_is_no_segment_and_no_crash(
    make: Callable[[bytes], bytes],
) -> None:
    whole = make(vxlan(INNER4) if make(b"")[23] == 17 else gre(V4, 0x0800))
    for size in range(len(whole)):
        seen = decode(whole[:size], length=len(whole))
        assert seen is None or seen.cut


def test_without_scapy_a_tunnel_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packet, "_scapy", lambda module, name: None)
    decoder = Decoder()
    frames = [outer(udp(4_789, b"x" * 8)), outer(udp(6_081, b"x" * 8)), outer(b"x" * 8, 47)]
    assert [decode(frame, decoder=decoder) for frame in frames] == [None] * 3
    assert decode(V4, 9, decoder=decoder) is None
    named = [f"what {tunnel} carries" for tunnel in ("VXLAN", "Geneve", "GRE")] + ["link type 9"]
    assert decoder.notes == {NO_SCAPY.format(what=what): 1 for what in named}
    assert all("pip install 'pgprobe[tunnels]'" in note for note in decoder.notes)


def test_a_link_type_that_only_scapy_knows() -> None:
    ppp = b"\xff\x03\x00\x21" + V4
    assert decode(ppp, 9) == EXPECTED4
    assert decode(ppp[:-3], 9, length=len(ppp)) == EXPECTED4._replace(payload=HELLO[:-3], cut=3)


def test_a_link_type_that_nobody_knows_is_counted() -> None:
    decoder = Decoder()
    assert decode(V4, 65_000, decoder=decoder) is None
    assert decoder.notes == {"of link type 65000, which nobody here knows": 1}


# --- whatever comes ---------------------------------------------------------------------------

LINKS = [ETHERNET, SLL, SLL2, NULL, LOOP, RAW, IPV4, IPV6, 9, 105, 127, 65_000]


@given(st.sampled_from(LINKS), st.binary(max_size=120), st.integers(0, 200))
def test_random_bytes_never_crash(link: int, data: bytes, more: int) -> None:
    seen = decode(data, link, length=len(data) + more)
    assert seen is None or len(seen.payload) <= len(data)


WHOLE = [
    ethernet(V4),
    ethernet(V6, 0x86DD),
    outer(V4, 4),
    ethernet(fragments4(TCP, 16)[0]),
    ethernet(fragments6(TCP, 16)[0], 0x86DD),
]


@given(st.sampled_from(WHOLE), st.integers(0, 200), st.integers(0, 255), st.integers(0, 200))
def test_one_wrong_byte_never_crashes(whole: bytes, where: int, value: int, size: int) -> None:
    data = bytearray(whole)
    data[where % len(data)] = value
    decode(bytes(data[: size or None]), length=len(data))


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, FIN | ACK, ACK])
def test_quick_and_slow_agree_about_a_plain_packet(flags: int) -> None:
    plain = ethernet(ipv4("192.0.2.1", "192.0.2.2", tcp(1, 2, 3, 4, flags, b"abc"), ident=5))
    assert decode(plain) == decode(plain[14:], RAW)
