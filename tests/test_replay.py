"""replay: what of a recorded client is said again, and how the answers compare."""

from __future__ import annotations

import io
import json
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import peers
import pytest
from peers import SCRAM_OFFER, SSL_REQUEST, Backend, Peer, asks_for_retry, server_context

from fixtures.lab import Lab
from fixtures.lab.judge import arguments
from probe.attempt import Attempt
from probe.drivers import Pause, Receive, Send
from probe.drivers.recorded import Await, Kind, NotReplayableError, Script, play, script
from probe.observer import observe
from probe.recording import Take, record
from probe.replay import Point, Replay, Verdict, compare
from probe.sources.capture import read_capture
from probe.tls import TlsClient
from probe.transcript import (
    Closed,
    Connected,
    Connecting,
    Data,
    Ending,
    Event,
    Fact,
    GaveUp,
    NotCaptured,
    Party,
    Transcript,
)
from probe.wire.foreign import PROXY_HEADERS
from probe.wire.startup import GSSENC_REQUEST, PROTOCOL_3_0, cancel_request, startup_message

Run = Callable[..., "subprocess.CompletedProcess[str]"]

NAME = "db-1.example.test"
DOOR, CLIENT = "127.0.0.1:5432", "127.0.0.1:40000"
STARTUP = startup_message(PROTOCOL_3_0, {"user": "app", "database": "app"})
PASSWORD = b"p\0\0\0\x0es3cret-pw\0"
SCHEMA = json.loads((Path(__file__).parents[1] / "probe/reports/replay.schema.json").read_text())


def client_hello() -> bytes:
    client = TlsClient(Attempt("control", server_name=NAME))
    client.handshake()
    return client.drain()


HELLO = client_hello()
C, S = Party.CLIENT, Party.SERVER


def said(*talk: tuple[Party, bytes] | Fact) -> Transcript:
    """A connection with this talk, a millisecond apart."""
    facts: list[Fact] = [Connecting(DOOR), Connected(CLIENT, DOOR)]
    facts += [Data(*each) if type(each) is tuple else each for each in talk]  # type: ignore[misc]
    events = tuple(Event(n / 1000, fact) for n, fact in enumerate(facts))
    return Transcript("connection 1", DOOR, events, started=1_700_000_000.0)


def kinds(told: Script) -> list[Kind]:
    return [part.kind for part in told.parts]


# --- what is said again ---------------------------------------------------------------------


def test_starttls_ends_with_the_client_hello() -> None:
    told = script(said((C, SSL_REQUEST), (S, b"S"), (C, HELLO), (S, b"\x16"), (C, b"\x14 more")))
    assert kinds(told) == [Kind.SSL_REQUEST, Kind.CLIENT_HELLO]
    assert told.moves == (Send(SSL_REQUEST), Await(b"S"), Send(HELLO))


def test_segments_and_the_pauses_between_them_stay() -> None:
    told = script(said((C, SSL_REQUEST[:4]), (C, SSL_REQUEST[4:]), (S, b"S"), (C, HELLO)))
    (first, pause, second, *_) = told.moves
    assert (first, second) == (Send(SSL_REQUEST[:4]), Send(SSL_REQUEST[4:]))
    assert isinstance(pause, Pause)
    assert pause.seconds == pytest.approx(0.001)
    assert told.parts[0].segments == 2


def test_a_long_pause_is_cut_short() -> None:
    slow = said((C, SSL_REQUEST[:4]), (C, SSL_REQUEST[4:]))
    late = slow.events[-1]._replace(at=99.0)
    told = script(slow._replace(events=(*slow.events[:-1], late)))
    assert told.moves[1] == Pause(1.0)


def test_early_data_in_the_segment_of_the_client_hello_is_never_sent() -> None:
    told = script(said((C, HELLO + b"\x17\x03\x03\x00\x04DROP"), (C, b"more")))
    assert told.moves == (Send(HELLO),)


def test_what_was_sent_without_waiting_is_sent_so_again() -> None:
    told = script(said((C, SSL_REQUEST + HELLO), (S, b"S")))
    assert told.moves == (Send(SSL_REQUEST + HELLO),)
    assert told.owed == b"S"


def test_kerberos_first_and_a_proxy_header_before_everything() -> None:
    header = PROXY_HEADERS["v1"]
    told = script(
        said((C, header + GSSENC_REQUEST), (S, b"N"), (C, SSL_REQUEST), (S, b"S"), (C, HELLO))
    )
    assert kinds(told) == [
        *(Kind.PROXY_HEADER, Kind.GSSENC_REQUEST, Kind.SSL_REQUEST, Kind.CLIENT_HELLO)
    ]
    assert told.moves == (
        *(Send(header + GSSENC_REQUEST), Await(b"N"), Send(SSL_REQUEST), Await(b"S"), Send(HELLO)),
    )


def sent(told: Script) -> bytes:
    moves = (*told.moves, *told.second)
    return b"".join(move.data for move in moves if isinstance(move, Send))


def test_no_password_in_clear_is_ever_sent() -> None:
    for talk in (
        [(C, STARTUP), (S, b"R\0\0\0\x08\0\0\0\x03"), (C, PASSWORD)],
        [(C, STARTUP + PASSWORD)],
        [(C, SSL_REQUEST), (S, b"N"), (C, STARTUP), (S, b"R\0\0\0\x08\0\0\0\x03"), (C, PASSWORD)],
        [(C, SSL_REQUEST), (S, b"S"), (C, STARTUP + PASSWORD)],
    ):
        told = script(said(*talk), past_hello=True)
        assert told.last is Kind.STARTUP
        assert sent(told).endswith(STARTUP)


@pytest.mark.parametrize(
    ("talk", "why"),
    [
        ([(C, cancel_request(7, b"key!"))], "CancelRequest"),
        ([(C, SSL_REQUEST), (S, b"N"), (C, cancel_request(7, b"key!"))], "CancelRequest"),
        ([], "said nothing"),
        ([(C, PROXY_HEADERS["v2"])], "nothing else"),
        ([(C, b"GET / HTTP/1.1\r\nAuthorization: Basic czNjcmV0\r\n\r\n")], "another protocol"),
        ([(C, SSL_REQUEST[:5])], "not whole"),
        ([(C, SSL_REQUEST), (S, b"S"), (C, HELLO[:100])], "not whole"),
        ([(C, SSL_REQUEST), NotCaptured(C, 500), (S, b"S")], "not whole"),
        ([NotCaptured(C, None), (C, HELLO)], "not whole"),
        ([(C, b"\x16\x03\x01\x00\x04\x02\0\0\0")], "is none"),
    ],
)
def test_what_is_not_said_again(talk: Sequence[Any], why: str) -> None:
    with pytest.raises(NotReplayableError, match=why):
        script(said(*talk))


def test_an_answer_that_is_not_captured_is_told_by_what_follows() -> None:
    told = script(said((C, SSL_REQUEST), NotCaptured(S, 1), (C, HELLO)))
    assert told.moves == (Send(SSL_REQUEST), Await(b"S"), Send(HELLO))


def test_nothing_follows_a_gss_context() -> None:
    told = script(said((C, GSSENC_REQUEST), (S, b"G"), (C, b"\0\0\0\x04toke")))
    assert kinds(told) == [Kind.GSSENC_REQUEST]


# --- how it is said -------------------------------------------------------------------------


def spoken(told: Script, hear: Callable[[bytes], bytes]) -> list[bytes]:
    """What the player says to a peer in memory."""
    player, out, pending = play(told), [], b""
    reply: bytes | None = None
    try:
        while True:
            command = player.send(reply)
            reply = None
            match command:
                case Send(data):
                    out.append(data)
                    pending += hear(data)
                case Receive():
                    pending, reply = b"", pending or None
    except StopIteration:
        return out


FULL = said((C, SSL_REQUEST), (S, b"S"), (C, HELLO))


@pytest.mark.parametrize(
    "answer", [b"N", b"", b"E\0\0\0\x10SFATAL\0x\0\0\0", b"SR", b"HTTP/1.1 400"]
)
def test_behind_another_answer_nothing_more_is_said(answer: bytes) -> None:
    assert spoken(script(FULL), lambda _: answer) == [SSL_REQUEST]


def test_the_client_hello_follows_the_same_answer_and_nothing_follows_that() -> None:
    assert spoken(script(FULL), Backend().hear) == [SSL_REQUEST, HELLO]
    together = script(said((C, SSL_REQUEST + HELLO), (S, b"S")))
    assert spoken(together, Backend().hear) == [SSL_REQUEST + HELLO]


def retried() -> Transcript:
    """A connection on which the server asked for another key share, and what the client said."""
    backend, client = Backend(asks_for_retry()), TlsClient(Attempt("control", server_name=NAME))
    client.handshake()
    first = client.drain()
    assert backend.hear(SSL_REQUEST) == b"S"
    asked = backend.hear(first)
    client.feed(asked)
    client.handshake()
    second = client.drain()
    answer = backend.hear(second)
    talk = [(C, SSL_REQUEST), (S, b"S"), (C, first), (S, asked), (C, second), (S, answer)]
    return said(*talk, (C, b"\x17\x03\x03\x00\x01x"))


def test_past_the_hello_goes_only_the_second_one_and_only_where_it_is_asked_for_again() -> None:
    plain, further = script(retried()), script(retried(), past_hello=True)
    assert Kind.SECOND_HELLO not in kinds(plain)
    assert len(spoken(plain, Backend(asks_for_retry()).hear)) == 2
    said_now = spoken(further, Backend(asks_for_retry()).hear)
    assert len(said_now) == 3
    assert said_now[-1].startswith(b"\x14\x03\x03\x00\x01\x01\x16\x03\x03")
    assert not said_now[-1].endswith(b"\x17\x03\x03\x00\x01x")
    assert len(spoken(further, Backend(server_context()).hear)) == 2


# --- how answers compare --------------------------------------------------------------------


def compared(then: Transcript, now: Transcript, *points: Point) -> Replay:
    old, new = observe(then), observe(now)
    return Replay(1, (), old, new, compare(old, new, [Point.CONNECT, *points]))


ALERT = (S, b"\x15\x03\x03\x00\x02\x02\x70")
ASKED = (C, SSL_REQUEST)


@pytest.mark.parametrize(
    ("then", "now", "verdict"),
    [
        ([ASKED, (S, b"S")], [ASKED, (S, b"S")], Verdict.SAME),
        ([ASKED, (S, b"S")], [ASKED, (S, b"N")], Verdict.DIFFERS),
        ([ASKED, Closed(S, Ending.RST)], [ASKED, (S, b"S")], Verdict.DIFFERS),
        ([ASKED, Closed(S, Ending.RST)], [ASKED, Closed(S, Ending.FIN)], Verdict.DIFFERS),
        ([ASKED, Closed(S, Ending.RST)], [ASKED, Closed(S, Ending.RST)], Verdict.SAME),
        ([ASKED, GaveUp(5.0)], [ASKED, GaveUp(7.0)], Verdict.SAME),
        ([ASKED, GaveUp(5.0)], [ASKED, (S, b"S")], Verdict.DIFFERS),
        ([ASKED, (S, b"SSH-2.0-x\r\n")], [ASKED, (S, b"HTTP/1.1 400 Bad\r\n")], Verdict.DIFFERS),
        ([ASKED, ALERT], [ASKED, ALERT], Verdict.SAME),
        ([ASKED, NotCaptured(S, 1)], [ASKED, (S, b"S")], Verdict.UNKNOWN),
        ([ASKED], [ASKED, (S, b"S")], Verdict.UNKNOWN),  # the capture ends there
    ],
)
def test_answers_to_ssl_request(then: Sequence[Any], now: Sequence[Any], verdict: Verdict) -> None:
    assert compared(said(*then), said(*now), Point.SSL_REQUEST).verdict is verdict


def test_silence_that_was_not_long_enough_says_nothing() -> None:
    now = said(ASKED, (S, b"S"))
    late = now._replace(events=(*now.events[:-1], now.events[-1]._replace(at=6.0)))
    assert compared(said(ASKED, GaveUp(5.0)), late, Point.SSL_REQUEST).verdict is Verdict.UNKNOWN


def test_hellos_are_compared_by_what_they_choose_and_not_by_their_bytes() -> None:
    def answered(backend: Backend) -> Transcript:
        backend.hear(SSL_REQUEST)
        return said(ASKED, (S, b"S"), (C, HELLO), (S, backend.hear(HELLO)))

    points = (Point.SSL_REQUEST, Point.SERVER_HELLO)
    one, other = answered(Backend()), answered(Backend())
    assert one != other
    assert compared(one, other, *points).verdict is Verdict.SAME
    older = compared(one, answered(Backend(peers.only_tls12())), *points)
    assert older.decided[:3] == (Point.TLS_VERSION, "1.3", "1.2")
    refused = said(ASKED, (S, b"S"), (C, HELLO), ALERT)
    assert compared(one, refused, *points).decided[:3] == (
        *(Point.SERVER_HELLO, "ServerHello", "TLS alert 112 unrecognized_name"),
    )
    assert compared(one, answered(Backend(asks_for_retry())), *points).decided.now == (
        "HelloRetryRequest"
    )


def test_a_startup_message_in_clear_is_compared_by_what_it_is_asked_for() -> None:
    then = said((C, STARTUP), (S, SCRAM_OFFER))
    error = b"SFATAL\0VFATAL\0C28000\0Mno\0\0"
    now = said((C, STARTUP), (S, b"E" + struct.pack("!I", len(error) + 4) + error))
    row = compared(then, now, Point.STARTUP).decided
    assert (row.then, row.now) == ("asks for sasl: SCRAM-SHA-256", "ErrorResponse 28000")


# --- the command ----------------------------------------------------------------------------


def capture(tmp_path: Path, *transcripts: Transcript) -> str:
    """A capture file with these connections."""
    file = tmp_path / "then.pcapng"
    ports = [
        each._replace(
            events=tuple(
                e._replace(fact=Connected(f"127.0.0.1:{40000 + n}", DOOR))
                if isinstance(e.fact, Connected)
                else e
                for e in each.events
            )
        )
        for n, each in enumerate(transcripts)
    ]
    file.write_bytes(record([Take(each) for each in ports]))
    return str(file)


RESET = said(ASKED, Closed(S, Ending.RST))


def resets_on_bytes(connection: socket.socket, heard: bytearray) -> None:
    heard += connection.recv(100)
    peers.resets(connection, heard)


@pytest.mark.parametrize(
    ("behave", "status", "words"),
    [
        (peers.serves, 1, "ssl-request: S now, was reset"),
        (peers.says_n, 1, "ssl-request: N now, was reset"),
        (peers.byte_by_byte, 1, "ssl-request: S now, was reset"),
        (peers.closes_on_bytes, 1, "ssl-request: closed now, was reset"),
        (peers.deaf, 1, "ssl-request: no answer now, was reset"),
        (resets_on_bytes, 0, "the same up to ssl-request: reset"),
        (peers.floods, 1, "now, was reset"),
    ],
)
def test_a_peer_that_answers_so(
    pgprobe: Run, tmp_path: Path, behave: peers.Behaviour, status: int, words: str
) -> None:
    with Peer(behave) as peer:
        to = f"127.0.0.1:{peer.port}"
        done = pgprobe("replay", capture(tmp_path, RESET), "--to", to, "--timeout", "1")
        assert done.returncode == status
        assert words in done.stdout
        peer.join()
    assert [bytes(heard) for heard in peer.heard if heard] in ([], [SSL_REQUEST])


def test_bytes_are_shown_before_they_are_sent_and_sent_as_they_were(
    pgprobe: Run, tmp_path: Path
) -> None:
    with Peer(peers.serves) as peer:
        to = f"127.0.0.1:{peer.port}"
        done = pgprobe("replay", capture(tmp_path, FULL), "--to", to)
        peer.join()
    assert peer.heard == [bytearray(SSL_REQUEST + HELLO)]
    first, second = done.stderr.splitlines()
    assert first == "connection 1: SSLRequest, 8 bytes: 00 00 00 08 04 d2 16 2f"
    begins = HELLO[:16].hex(" ")
    assert second == f"connection 1: ClientHello for {NAME}, {len(HELLO)} bytes: {begins} …"
    assert done.returncode == 3  # what the recording does not show cannot be compared


def test_the_documents_keep_to_the_schema_and_the_door_is_the_one_given(
    pgprobe: Run, tmp_path: Path
) -> None:
    file = capture(tmp_path, RESET, FULL, said((C, cancel_request(1, b"key!"))), RESET)
    with Peer(peers.serves) as peer, socket.create_server(("127.0.0.1", 0)) as other:
        elsewhere = {"PGHOST": "127.0.0.1", "PGPORT": str(other.getsockname()[1])}
        to = f"127.0.0.1:{peer.port}"
        done = pgprobe("replay", file, "--to", to, "--format", "json", env=elsewhere)
        peer.join(3)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()
    document = json.loads(done.stdout)
    jsonschema.validate(document, SCHEMA)
    assert document["verdict"]["status"] == "differs"
    assert [c["connection"] for c in document["connections"]] == [1, 2, 4]
    assert [c["verdict"] for c in document["connections"]] == ["differs", "unknown", "differs"]
    (left,) = document["left_out"]
    assert left["connection"] == 3
    assert "CancelRequest" in left["why"]
    assert not any(heard.startswith(cancel_request(1, b"key!")) for heard in peer.heard)


@pytest.mark.parametrize("format_name", ["text", "table", "json"])
def test_one_connection_is_chosen_in_every_format(
    pgprobe: Run, tmp_path: Path, format_name: str
) -> None:
    file = capture(tmp_path, FULL, RESET)
    with Peer(peers.serves) as peer:
        to = f"127.0.0.1:{peer.port}"
        words = ("--connection", "2", "--format", format_name, "--output", str(tmp_path / "out"))
        done = pgprobe("replay", file, "--to", to, *words)
        peer.join()
    assert done.returncode == 1
    assert done.stdout == ""
    assert "S now, was reset" in (tmp_path / "out").read_text()
    assert peer.heard == [bytearray(SSL_REQUEST)]


def test_fail_on_never_only_tells(pgprobe: Run, tmp_path: Path) -> None:
    with Peer(peers.serves) as peer:
        to = f"127.0.0.1:{peer.port}"
        done = pgprobe("replay", capture(tmp_path, RESET), "--to", to, "--fail-on", "never")
    assert done.returncode == 0


def test_a_refused_door_and_a_name_without_an_address_are_differences(
    pgprobe: Run, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    file = capture(tmp_path, RESET)
    done = pgprobe("replay", file, "--to", f"127.0.0.1:{port}")
    assert (done.returncode, "connect: refused now, was connected" in done.stdout) == (1, True)
    done = pgprobe("replay", file, "--to", "nowhere.invalid")
    assert (done.returncode, "connect: not-resolved now" in done.stdout) == (1, True)


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("--to", "127.0.0.1:0"), 2, "port"),
        (("--to", "host=a,b"), 2, "list"),
        (("--to", "127.0.0.1", "--connection", "9"), 2, "the capture has 1"),
        (("--to", "127.0.0.1", "--connection", "0"), 2, "connection"),
        (("--to", "127.0.0.1", "-4", "-6"), 2, "-4 and -6"),
        ((), 2, "--to"),
        (("--to", "127.0.0.1", "--output", "/nowhere/x"), 3, "cannot write"),
        (("--to", "127.0.0.1", "--record", "/dev/null"), 3, "cannot write"),
    ],
)
def test_a_wrong_call_is_one_clear_sentence(
    pgprobe: Run, tmp_path: Path, words: Sequence[str], status: int, says: str
) -> None:
    done = pgprobe("replay", capture(tmp_path, RESET), *words)
    assert done.returncode == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [None, b"", b"no capture", record([])])
def test_a_file_that_tells_nothing_is_one_clear_sentence(
    pgprobe: Run, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "x.pcapng"
    if content is not None:
        file.write_bytes(content)
    done = pgprobe("replay", str(file), "--to", "127.0.0.1")
    assert done.returncode == 3
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr


# --- against real ones ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def some() -> Iterator[Lab]:
    with Lab(["postgres-17", "envoy-sni", "traefik-passthrough", "postgres-no-tls"]) as lab:
        yield lab


@pytest.fixture(scope="module")
def recorded(some: Lab, pgprobe: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A recorded run at each."""
    place = tmp_path_factory.mktemp("recorded")
    files = {name: str(place / f"{name}.pcapng") for name in some}
    for name, file in files.items():
        pgprobe("probe", *arguments(some[name]), "--record", file, "--timeout", "2")
    return files


def replayed(pgprobe: Run, file: str, to: str, *words: str) -> dict[str, Any]:
    done = pgprobe("replay", file, "--to", to, *words, "--format", "json", "--timeout", "2")
    document: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(document, SCHEMA)
    assert done.returncode == {"same": 0, "differs": 1, "unknown": 3}[document["verdict"]["status"]]
    return document


@pytest.mark.parametrize("name", ["postgres-17", "envoy-sni", "traefik-passthrough"])
def test_the_same_peer_answers_alike(
    some: Lab, recorded: dict[str, str], pgprobe: Run, name: str
) -> None:
    document = replayed(pgprobe, recorded[name], some[name].address, "--past-hello")
    assert document["verdict"]["status"] == "same"
    assert len(document["connections"]) > 8


@pytest.mark.parametrize(
    ("then", "now", "summary"),
    [
        ("envoy-sni", "postgres-17", "ssl-request: S now, was reset"),
        ("postgres-17", "envoy-sni", "ssl-request: reset now, was S"),
        ("postgres-17", "postgres-no-tls", "ssl-request: N now, was S"),
    ],
)
def test_another_peer_is_told_by_the_step_at_which_it_differs(
    some: Lab, recorded: dict[str, str], pgprobe: Run, then: str, now: str, summary: str
) -> None:
    document = replayed(pgprobe, recorded[then], some[now].address, "--connection", "1")
    (connection,) = document["connections"]
    assert (connection["verdict"], connection["step"]) == ("differs", "ssl-request")
    assert connection["summary"] == summary
    assert [each["what"] for each in connection["sent"]] == ["SSLRequest"]


def test_a_router_closes_on_the_name_that_the_server_took(
    some: Lab, recorded: dict[str, str], pgprobe: Run
) -> None:
    document = replayed(pgprobe, recorded["postgres-17"], some["traefik-passthrough"].address)
    asking = [c for c in document["connections"] if c["opening"] == "ssl-request"]
    differing = [c for c in asking if c["verdict"] == "differs"]
    assert {c["step"] for c in differing} == {"server-hello"}
    assert all(c["then"]["sni"] != NAME for c in differing)


def test_a_replay_can_be_kept_and_replayed(
    some: Lab, recorded: dict[str, str], pgprobe: Run, tmp_path: Path
) -> None:
    file = str(tmp_path / "now.pcapng")
    to = some["postgres-17"].address
    replayed(pgprobe, recorded["envoy-sni"], to, "--record", file)
    capture = read_capture(io.BytesIO(Path(file).read_bytes()), name="now")
    assert {each.server for each in capture.connections} == {to}
    assert Path(file).stat().st_mode & 0o777 == 0o600
    again = replayed(pgprobe, file, to)
    assert again["verdict"]["status"] == "same"
    assert pgprobe("read", file, "--fail-on", "never").returncode == 0
