"""Real TLS sessions in memory, OpenSSL at both ends, as a capture would hold them."""

from __future__ import annotations

import contextlib
import ssl
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import trustme
from peers import BINDING_OFFER, NAME, SERVER_FIRST, authority, server_context

from probe.secrets import Secrets, parse_key_log
from probe.transcript import Data, Fact, Party
from probe.wire.startup import PROTOCOL_3_0, SSL_REQUEST, startup_message

PASSWORD, PROOF, SIGNATURE, ROW = b"s3cret-pw", b"s3cret-proof", b"s3cret-sig", b"s3cret-row"
SECRET_WORDS = (PASSWORD, PROOF, SIGNATURE, ROW)


def message(kind: str, body: bytes) -> bytes:
    return kind.encode() + struct.pack("!I", len(body) + 4) + body


STARTUP = startup_message(PROTOCOL_3_0, {"user": "app", "database": "app"})
SASL_FINAL = message("R", struct.pack("!I", 12) + b"v=" + SIGNATURE)
AUTHENTICATION_OK = message("R", struct.pack("!I", 0))

Talk = Sequence[tuple[Party, bytes]]

LOGIN: Talk = (
    (Party.CLIENT, STARTUP),
    (Party.SERVER, BINDING_OFFER),
    (Party.CLIENT, message("p", b"SCRAM-SHA-256\0" + PASSWORD)),
    (Party.SERVER, SERVER_FIRST),
    (Party.CLIENT, message("p", b"c=biws,r=nonce,p=" + PROOF)),
    (Party.SERVER, SASL_FINAL + AUTHENTICATION_OK + message("S", ROW)),
    (Party.CLIENT, message("Q", ROW)),
    (Party.SERVER, message("D", ROW)),
)


class Session(NamedTuple):
    """What passed on the wire, and the key log of the client."""

    facts: tuple[Fact, ...]
    key_log: str
    client: ssl.SSLObject

    @property
    def secrets(self) -> Secrets:
        return parse_key_log(self.key_log)


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["postgresql"])
    return context


def session(
    key_log: Path,
    client: ssl.SSLContext | None = None,
    server: ssl.SSLContext | None = None,
    talk: Talk = LOGIN,
    *,
    resume: ssl.SSLSession | None = None,
    leave: bool = False,
) -> Session:
    """SSLRequest, TLS, and this talk inside it."""
    client, server = client or client_context(), server or server_context()
    key_log.write_text("")
    client.keylog_filename = str(key_log)
    pipes = {party: (ssl.MemoryBIO(), ssl.MemoryBIO()) for party in Party}
    ends = {
        Party.CLIENT: client.wrap_bio(*pipes[Party.CLIENT], server_hostname=NAME, session=resume),
        Party.SERVER: server.wrap_bio(*pipes[Party.SERVER], server_side=True),
    }
    facts: list[Fact] = [Data(Party.CLIENT, SSL_REQUEST), Data(Party.SERVER, b"S")]

    def move(sender: Party) -> None:
        said = pipes[sender][1].read()
        if said:
            facts.append(Data(sender, said))
            receiver = Party.SERVER if sender is Party.CLIENT else Party.CLIENT
            pipes[receiver][0].write(said)

    finished: set[Party] = set()
    while len(finished) < 2:
        for party in Party:
            try:
                ends[party].do_handshake()
                finished.add(party)
            except ssl.SSLWantReadError:
                pass
            move(party)
    for sender, said in talk:
        ends[sender].write(said)
        move(sender)
        receiver = Party.SERVER if sender is Party.CLIENT else Party.CLIENT
        heard = b""
        while len(heard) < len(said):
            heard += ends[receiver].read(65_536)
        assert heard == said
    if leave:
        for party in (Party.SERVER, Party.CLIENT):
            with contextlib.suppress(ssl.SSLError):
                ends[party].unwrap()
            move(party)
    return Session(tuple(facts), key_log.read_text(), ends[Party.CLIENT])


def rsa_context() -> ssl.SSLContext:
    """A server with an RSA certificate, for the suites that need one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(NAME, key_type=trustme.KeyType.RSA).configure_cert(context)
    context.set_alpn_protocols(["postgresql"])
    return context
