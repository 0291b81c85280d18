"""Transcripts made into a capture file: every byte of it, and what reading it gives back."""

from __future__ import annotations

import io
import ipaddress
import logging
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import SSL_REQUEST

from probe import __version__
from probe.captured import Captured
from probe.datagram import MAX_PAYLOAD, ip_packet, unspecified
from probe.ends import ends_between
from probe.note import Note, Run, read_note, write_note
from probe.packet import ACK, PSH, SYN, Decoder, Segment
from probe.pcapng import RAW, Reader
from probe.recording import SYNTHESISED, Take, record
from probe.sources.capture import read_capture
from probe.transcript import (
    Asked,
    Closed,
    Connected,
    ConnectFailure,
    Connecting,
    Data,
    Ending,
    Event,
    Fact,
    GaveUp,
    Layer,
    NotConnected,
    Party,
    Resolved,
    TlsFailed,
    Transcript,
    Verified,
)

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import IP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402

CLIENT, SERVER = "127.0.0.1:40000", "127.0.0.1:5432"
STARTED = 1_700_000_000.0
KEY_LOG = b"CLIENT_RANDOM " + b"00" * 32 + b" " + b"11" * 48 + b"\n"
MICROSECOND = 1e-6


def made(*facts: Fact, attempt: str = "control", login: bool = False) -> Transcript:
    """These facts, a millisecond apart, the first at once."""
    events = tuple(Event(n / 1000, fact) for n, fact in enumerate(facts))
    return Transcript(attempt, SERVER, events, Asked.TARGET, STARTED, login)


def read_back(data: bytes) -> list[Captured]:
    capture = read_capture(io.BytesIO(data), name="run.pcapng")
    assert capture.problems == ()
    return list(capture.connections)


# --- bytes ----------------------------------------------------------------------------------


def option(code: int, text: str) -> str:
    data = text.encode()
    return struct.pack("<HH", code, len(data)).hex() + data.hex() + "00" * (-len(data) % 4)


def block(kind: str, body: str) -> str:
    size = struct.pack("<I", len(bytes.fromhex(body)) + 12).hex()
    return kind + size + body + size


def packet(microseconds: int, data: str, options: str = "") -> str:
    """An Enhanced Packet Block, so many microseconds after the transcript began."""
    stamp = int(STARTED) * 1_000_000_000 + microseconds * 1000
    size = len(bytes.fromhex(data))
    return block(
        "06000000",  # Enhanced Packet
        "00000000"  # interface
        + struct.pack("<II", stamp >> 32, stamp & 0xFFFFFFFF).hex()
        + struct.pack("<II", size, size).hex()
        + data
        + "00" * (-size % 4)
        + options,
    )


END = "00000000"  # of options


def test_every_byte_of_a_recording() -> None:
    transcript = made(
        Connecting(SERVER), Connected(CLIENT, SERVER), Data(Party.CLIENT, SSL_REQUEST)
    )
    expected = "".join(
        [
            block(
                "0a0d0d0a",  # Section Header
                "4d3c2b1a"  # byte order
                "0100 0000"  # version 1.0
                "ffffffffffffffff"  # length not said
                + option(1, f"{SYNTHESISED}; the client's side of each connection is pgprobe's own")
                + option(4, f"pgprobe {__version__}")
                + END,
            ),
            block(
                "01000000",  # Interface Description
                "6500 0000"  # raw IP
                "00000000"  # packets are whole
                + option(2, "pgprobe")
                + option(3, SYNTHESISED)
                + "0900 0100 09000000"  # nanoseconds
                + END,
            ),
            block(
                "0a000000",  # Decryption Secrets
                "4b534c54"  # TLS key log
                + struct.pack("<I", len(KEY_LOG)).hex()
                + KEY_LOG.hex()
                + "00" * (-len(KEY_LOG) % 4),
            ),
            packet(
                0,
                "45 00 002c 0000 4000 40 06 3cca 7f000001 7f000001"  # IPv4
                "9c40 1538 00200000 00000000 60 02 ffff ee67 0000"  # SYN
                "02 04 ffd7",  # MSS
                option(1, "pgprobe attempt control asked=target") + END,
            ),
            packet(
                1000,
                "45 00 002c 0000 4000 40 06 3cca 7f000001 7f000001"
                "1538 9c40 00300000 00200001 60 12 ffff ee26 0000"  # SYN, ACK
                "02 04 ffd7",
            ),
            packet(
                1000,
                "45 00 0028 0000 4000 40 06 3cce 7f000001 7f000001"
                "9c40 1538 00200001 00300001 50 10 ffff 0008 0000",  # ACK
            ),
            packet(
                2000,
                "45 00 0030 0000 4000 40 06 3cc6 7f000001 7f000001"
                "9c40 1538 00200001 00300001 50 18 ffff e4ee 0000"  # PSH, ACK
                "00000008 04d2162f",
            ),
            packet(
                2000,
                "45 00 0028 0000 4000 40 06 3cce 7f000001 7f000001"
                "1538 9c40 00300001 00200009 50 10 ffff 0000 0000",  # ACK
            ),
        ]
    )
    assert record([Take(transcript)], KEY_LOG) == bytes.fromhex(expected)


addresses = st.sampled_from(["10.0.0.1:1", "192.0.2.255:65535", "[2001:db8::1]:443", "[::1]:9"])


@given(
    source=addresses,
    seq=st.integers(0, 2**32 - 1),
    ack=st.integers(0, 2**32 - 1),
    flags=st.sampled_from([SYN, SYN | ACK, PSH | ACK, ACK]),
    payload=st.binary(max_size=100),
)
def test_a_segment_is_written_as_it_is_read_and_as_scapy_would(
    source: str, seq: int, ack: int, flags: int, payload: bytes
) -> None:
    ip_id = 0 if "[" not in source else None
    ends = ends_between(source, unspecified(source, 5432))
    segment = Segment(0.0, ends, seq, ack, flags, payload, ip_id=ip_id, whole=ip_id is not None)
    data = ip_packet(segment)
    assert Decoder().segment(RAW, 0.0, data, len(data)) == segment
    layer = IP if ip_id == 0 else IPv6
    again = layer(data)
    if layer is IP:
        del again.chksum
    del again.payload.chksum
    assert bytes(again) == data


def test_the_largest_segment_fits_and_what_is_longer_is_cut() -> None:
    data = bytes(range(256)) * 300
    (got,) = read_back(
        record(
            [
                Take(
                    made(
                        Connecting(SERVER),
                        Connected(CLIENT, SERVER),
                        Data(Party.CLIENT, SSL_REQUEST),
                        Data(Party.SERVER, data),
                    )
                )
            ]
        )
    )
    said = [event.fact for event in got.transcript.events if isinstance(event.fact, Data)]
    assert said[1] == Data(Party.SERVER, data[:MAX_PAYLOAD])


# --- what reading gives back ----------------------------------------------------------------

FACTS: Sequence[Sequence[Fact]] = (
    (Connecting(SERVER), NotConnected(ConnectFailure.REFUSED, "Connection refused")),
    (Connecting(SERVER), NotConnected(ConnectFailure.TIMED_OUT, "no answer in 7.0 s")),
    (Connecting(SERVER), NotConnected(ConnectFailure.RESET, "Connection reset by peer")),
    (Connecting("[::1]:5432"), NotConnected(ConnectFailure.UNREACHABLE, "No route to host")),
    (Connecting(SERVER), Connected(CLIENT, SERVER), GaveUp(7.25)),
    (
        *(Resolved(("127.0.0.1", "::1")), Connecting(SERVER), Connected(CLIENT, SERVER)),
        *(Data(Party.CLIENT, SSL_REQUEST), Closed(Party.SERVER, Ending.RST)),
    ),
    (
        *(Connecting(SERVER), Connected(CLIENT, SERVER), Data(Party.SERVER, b"SSH-2.0-x\r\n")),
        *(Closed(Party.SERVER, Ending.FIN),),
    ),
    (
        *(Connecting(SERVER), Connected(CLIENT, SERVER), Data(Party.CLIENT, SSL_REQUEST)),
        *(Data(Party.SERVER, b"S"), TlsFailed("wrong version number")),
        *(Verified("unable to get local issuer certificate"), Closed(Party.CLIENT, Ending.FIN)),
    ),
)


def the_same(read: Transcript, meant: Transcript) -> None:
    assert read._replace(events=(), started=0.0) == meant._replace(events=(), started=0.0)
    assert [event.fact for event in read.events] == [event.fact for event in meant.events]
    assert abs(read.started - meant.started) < 2 * MICROSECOND
    for event, other in zip(read.events, meant.events, strict=True):
        assert abs(event.at - other.at) < 2 * MICROSECOND


@pytest.mark.parametrize("facts", FACTS, ids=lambda facts: type(facts[-1]).__name__)
@pytest.mark.parametrize("port", ["5432", "15432"])
def test_a_transcript_reads_back_as_it_was_on_whatever_port(
    facts: Sequence[Fact], port: str
) -> None:
    def moved(fact: Fact) -> Fact:
        if isinstance(fact, Connecting | Connected):
            return fact._replace(server=fact.server.replace("5432", port))
        return fact

    meant = made(*map(moved, facts))
    server = next(e.fact.server for e in meant.events if isinstance(e.fact, Connecting))
    (got,) = read_back(record([Take(meant)]))
    the_same(got.transcript, meant._replace(door=server))


said = st.tuples(
    st.sampled_from(list(Party)),
    st.binary(min_size=1, max_size=40).map(lambda data: b"\0" + data),  # no session's queries
)
endings = st.sampled_from(
    [Closed(Party.SERVER, Ending.FIN), Closed(Party.SERVER, Ending.RST), GaveUp(1.5)]
)
pauses = st.lists(st.floats(0, 20), min_size=30, max_size=30)


@given(talks=st.lists(st.tuples(st.lists(said, max_size=20), endings, pauses), max_size=4))
def test_whatever_passed_reads_back(
    talks: list[tuple[list[tuple[Party, bytes]], Fact, list[float]]],
) -> None:
    meant = []
    for number, (talk, ending, waits) in enumerate(talks):
        facts: list[Fact] = [Connecting(SERVER), Connected(f"127.0.0.1:{4000 + number}", SERVER)]
        facts += [Data(party, data) for party, data in talk]
        at, events = 0.0, []
        for fact, wait in zip([*facts, ending], waits, strict=False):
            at += wait
            events.append(Event(at, fact))
        meant.append(Transcript(f"attempt-{number}", SERVER, tuple(events), None, STARTED))
    got = {each.transcript.attempt: each.transcript for each in read_back(record_all(meant))}
    assert got.keys() == {each.attempt for each in meant}
    for each in meant:
        the_same(got[each.attempt], each)


def record_all(transcripts: Sequence[Transcript]) -> bytes:
    return record([Take(each) for each in transcripts])


def test_a_port_that_is_used_again_is_another_connection() -> None:
    facts = (Connecting(SERVER), Connected(CLIENT, SERVER), Data(Party.CLIENT, SSL_REQUEST))
    first = made(*facts, attempt="first")
    again = made(*facts, attempt="again")._replace(started=STARTED + 1)
    names = [each.transcript.attempt for each in read_back(record_all([first, again]))]
    assert names == ["first", "again"]


def test_a_name_without_an_address_is_told_by_the_section_alone() -> None:
    unresolved = made(NotConnected(ConnectFailure.NOT_RESOLVED, "Name or service not known"))
    data = record_all([unresolved])
    assert b"no connection, not-resolved: Name or service not known" in data
    assert read_back(data) == []
    assert list(Reader(io.BytesIO(data)).read()) == []


# --- secrets --------------------------------------------------------------------------------


def test_the_key_log_is_embedded_unless_somebody_logged_in() -> None:
    facts = (Connecting(SERVER), Connected(CLIENT, SERVER), Data(Party.CLIENT, SSL_REQUEST))
    visitor, guest = made(*facts), made(*facts, attempt="login", login=True)
    open_ = Reader(io.BytesIO(record([Take(visitor)], KEY_LOG)))
    list(open_.read())
    assert open_.secrets == [KEY_LOG]
    closed = record([Take(visitor), Take(guest)], KEY_LOG)
    assert KEY_LOG.split()[2] not in closed
    assert b"a login was made: no TLS secrets are embedded" in closed


def test_what_was_said_inside_tls_is_not_written_in_clear() -> None:
    inside = Data(Party.CLIENT, b"inside words", Layer.TLS)
    transcript = made(Connecting(SERVER), Connected(CLIENT, SERVER), inside)
    assert b"inside words" not in record_all([transcript])


# --- notes ----------------------------------------------------------------------------------

RUN = Run("db-1.example.com:5432", "verify-full", "db-1.example.com", proves=True)


def test_a_note_in_words() -> None:
    transcript = made(
        Resolved(("192.0.2.1", "2001:db8::1")),
        Connecting(SERVER),
        Verified(None),
        TlsFailed("wrong version number"),
        GaveUp(7.001),
    )
    assert write_note(transcript, RUN).split("\n") == [
        "pgprobe attempt control asked=target",
        "door db-1.example.com:5432 sslmode=verify-full identity=db-1.example.com proves",
        "began 0.001000 s before",
        "0.000000 s: resolved to 192.0.2.1, 2001:db8::1",
        "0.002000 s: chain trusted",
        "0.003000 s: TLS failed: wrong version number",
        "0.004000 s: gave up after 7.001000 s",
    ]


def test_a_note_says_what_was_written_into_it() -> None:
    note = read_note(write_note(made(Connecting(SERVER), Verified("expired")), RUN))
    facts = (Event(0.001, Verified("expired")),)
    assert note == Note("control", Asked.TARGET, RUN, 0.0, facts)


@pytest.mark.parametrize(
    ("comment", "note"),
    [
        ("", None),
        ("a colleague's remark", None),
        ("pgprobe attempt ", None),
        ("pgprobe attempt direct", Note("direct")),
        ("pgprobe attempt direct asked=nonsense", Note("direct")),
        ("pgprobe attempt connection 3 of a b.pcap", Note("connection 3 of a b.pcap")),
        ("pgprobe attempt x\nbegan soon before\nnonsense\n1.0 s: nonsense", Note("x")),
        ("pgprobe attempt x\n1.0 s: no connection, nonsense: x", Note("x")),
    ],
)
def test_a_line_that_is_unknown_is_passed_over(comment: str, note: Note | None) -> None:
    assert read_note(comment) == note


@given(st.text(), st.lists(st.text()))
def test_a_strangers_note_is_made_safe_to_show(title: str, lines: list[str]) -> None:
    told = [f"1.000000 s: TLS failed: {line}" for line in lines]
    note = read_note("\n".join([f"pgprobe attempt {title}", *told]))
    shown = [note.attempt] if note else []
    shown += [e.fact.says for e in note.facts if isinstance(e.fact, TlsFailed)] if note else []
    assert all(text.isprintable() and len(text) <= 200 for text in shown)


def test_the_unknown_clients_end_is_of_the_servers_family() -> None:
    for server in ("127.0.0.1:1", "[::1]:1", "[fe80::1%lo]:1"):
        host = unspecified(server, 7).rpartition(":")[0].strip("[]")
        assert ipaddress.ip_address(host).is_unspecified
        assert (":" in host) is ("[" in server)
