"""The sniffer sees a conversation on loopback whole, and nobody else's."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from fixtures.sniffer import NoSnifferError, Packet, Sniffer, program, version

HEADERS = 14 + 20  # Ethernet and IPv4, whose options nobody sets here


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


another = server  # a second one, at a port of its own


def seen(port: int, happens: Callable[[], None]) -> list[Packet]:
    """What passes at the port meanwhile; where the right to sniff is missing, that is said."""
    try:
        with Sniffer(port) as sniffer:
            happens()
    except NoSnifferError as error:
        pytest.skip(str(error))
    return list(sniffer.packets)


def say(server: socket.socket, words: bytes) -> None:
    with socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(words)
            assert accepted.recv(100) == words


def flags(frame: bytes) -> int:
    return frame[HEADERS + 13]


def payload(frame: bytes) -> bytes:
    return frame[HEADERS + (frame[HEADERS + 12] >> 4) * 4 :]


def test_a_conversation_is_seen_whole_and_once(
    server: socket.socket, another: socket.socket
) -> None:
    def happens() -> None:
        say(another, b"not this")
        say(server, b"exactly this")

    packets = seen(server.getsockname()[1], happens)
    frames = [packet.frame for packet in packets]
    assert [payload(frame) for frame in frames if payload(frame)] == [b"exactly this"]
    syn, fin = 0x02, 0x01
    assert [flags(frame) & syn for frame in frames[:3]] == [syn, syn, 0]
    assert sum(flags(frame) & fin for frame in frames) == 2
    times = [packet.at for packet in packets]
    assert times == sorted(times)


def test_where_there_is_no_tcpdump_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(NoSnifferError, match="make lab-system"):
        program()


def test_its_version_is_told() -> None:
    try:
        program()
    except NoSnifferError as error:
        pytest.skip(str(error))
    assert version().startswith("tcpdump ")
