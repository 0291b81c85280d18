"""Captures of whole handshakes, OpenSSL at both ends: what the reader's tests begin with."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path

from peers import BINDING_OFFER, NAME, server_context
from sessions import STARTUP, client_context

from fixtures.packets import ACK, SSL_REQUEST, Frame, Talk, pcap

Flight = tuple[str, bytes]


def flights(
    name: str | None = NAME,
    *,
    client: ssl.SSLContext | None = None,
    server: ssl.SSLContext | None = None,
) -> list[Flight]:
    """What passes from ClientHello to the authentication request, and who says it."""
    client, server = client or client_context(), server or server_context()
    pipes = {who: (ssl.MemoryBIO(), ssl.MemoryBIO()) for who in ("client", "server")}
    ends = {
        "client": client.wrap_bio(*pipes["client"], server_hostname=name),
        "server": server.wrap_bio(*pipes["server"], server_side=True),
    }
    passed: list[Flight] = []

    def move(who: str) -> None:
        data = pipes[who][1].read()
        if data:
            passed.append((who, data))
            pipes["server" if who == "client" else "client"][0].write(data)

    finished: set[str] = set()
    while len(finished) < 2:
        for who, end in ends.items():
            try:
                end.do_handshake()
                finished.add(who)
            except ssl.SSLWantReadError:
                pass
            move(who)
    ends["client"].write(STARTUP)
    move("client")
    assert ends["server"].read(len(STARTUP)) == STARTUP
    ends["server"].write(BINDING_OFFER)
    move("server")
    return passed


def asks(client: str = "192.0.2.1", port: int = 40_000, to: int = 5432, at: float = 0.0) -> Talk:
    """A connection with its SSLRequest and the S."""
    talk = Talk(client, port=port, to=to)
    talk.at += at
    return talk.open().say("client", SSL_REQUEST).say("server", b"S")


def say(talk: Talk, passed: Iterable[Flight]) -> Talk:
    """Each flight in a segment, and its acknowledgement."""
    for who, data in passed:
        talk.say(who, data).send("server" if who == "client" else "client", ACK)
    return talk


def served(
    name: str | None = NAME, client: str = "192.0.2.1", port: int = 40_000, at: float = 0.0
) -> Talk:
    """A connection that gets through, and is closed."""
    return say(asks(client, port, at=at), flights(name)).close()


def hangs(talk: Talk, seconds: float = 30.0) -> list[Frame]:
    """Its frames, and a capture that goes on for so long, at another server."""
    other = Talk("198.51.100.7", "192.0.2.77", at=talk.at + seconds)
    return [*talk.frames, *other.open().say("client", SSL_REQUEST).say("server", b"S").frames]


def write(place: Path, *talks: Talk | list[Frame], name: str = "some.pcap") -> str:
    """A capture file of these connections, in the order of time."""
    frames = [f for talk in talks for f in (talk.frames if isinstance(talk, Talk) else talk)]
    file = place / name
    file.write_bytes(pcap(sorted(frames, key=lambda frame: frame.at)))
    return str(file)
