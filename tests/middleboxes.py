"""Middleboxes in memory: a function says what becomes of each attempt, and what was said is judged.

A :class:`Fate` is the end of one connection. ``ask`` makes the standard attempts at a middlebox.
"""

from __future__ import annotations

import ssl
import struct
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from peers import (
    BINDING_OFFER,
    DOOR,
    NAME,
    SALT,
    SERVER_FIRST,
    Backend,
    authority,
    converse,
    transcript,
)

from probe.attempt import Attempt, TlsVersions, standard
from probe.diagnosis import Diagnosis, diagnose
from probe.evidence import Question
from probe.handshake import Opening
from probe.transcript import Closed, Connected, Connecting, Ending, GaveUp, Party, Transcript

CONTROL = Attempt("control", server_name=NAME)
OTHER = "db-2.example.com"
DIRECT = Opening.DIRECT_TLS

ONLY_SCRAM = bytes.fromhex("52 00000017 0000000a 534352414d2d5348412d32353600 00")


@dataclass(frozen=True)
class Fate:
    """What happens to a connection: how far it is served, what is said, how it ends."""

    ends: Ending | None = None  # None: silence
    serves: bool = False  # a whole server, until the client leaves
    answers: tuple[bytes, ...] = ()  # to what is said, in turn, where it does not serve
    name: str = NAME  # of the certificate
    offer: bytes = BINDING_OFFER  # the answer to StartupMessage inside TLS
    alpn: str | None = "postgresql"
    tickets: bool = False  # to resume the session with, which PostgreSQL does not give
    salt: bytes = SALT  # for the user whom pgprobe made up
    newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED
    demands: bool = False  # a client certificate, in the handshake

    def transcript(self, attempt: Attempt) -> Transcript:
        """The attempt meets this fate."""
        hear = self._backend(attempt).hear if self.serves else self._answer()
        _, facts = converse(attempt, hear)
        end = Closed(Party.SERVER, self.ends) if self.ends else GaveUp(4.0)
        served = self.serves and bool(self.offer)
        last = Closed(Party.CLIENT, Ending.FIN) if served else end
        made = transcript(
            Connecting(DOOR), Connected("127.0.0.1:40000", DOOR), *facts, last, attempt=attempt.name
        )
        return made._replace(asked=attempt.asked)

    def _backend(self, attempt: Attempt) -> Backend:
        def messages(said: bytes) -> bytes:
            first = SERVER_FIRST.replace(b64encode(SALT), b64encode(self.salt))
            return {b"\0": self.offer, b"p": first}.get(said[:1], b"")

        made = context(self.name, self.alpn, self.tickets, self.newest, self.demands)
        return Backend(made, messages, attempt.opening is DIRECT)

    def _answer(self) -> Callable[[bytes], bytes]:
        left = list(self.answers)
        return lambda _: left.pop(0) if left else b""

    def behind_s(self) -> Fate:
        """The same, for a ClientHello behind an S."""
        return self if self.serves else replace(self, answers=(b"S", *self.answers))


@cache
def context(
    name: str, alpn: str | None, tickets: bool, newest: ssl.TLSVersion, demands: bool
) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    host = name if " " not in name else "placeholder.invalid"  # a placeholder's is no host's name
    authority().issue_cert(host, common_name=name).configure_cert(made)
    made.num_tickets = int(tickets)
    made.maximum_version = newest
    if demands:
        made.verify_mode = ssl.CERT_REQUIRED
        authority().configure_trust(made)
    if alpn:
        made.set_alpn_protocols([alpn])
    return made


def error(sqlstate: str, message: str, **more: str) -> bytes:
    """An ErrorResponse; ``R`` is the routine, which none but a server names."""
    fields = {"S": "FATAL", "C": sqlstate, "M": message, **more}
    body = b"".join(f"{letter}{text}\0".encode() for letter, text in fields.items()) + b"\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body


def alert(description: int) -> Fate:
    """A fatal TLS alert in answer to a ClientHello."""
    return Fate(Ending.FIN, answers=(bytes((0x15, 3, 3, 0, 2, 2, description)),))


CLOSED, RESET, SILENT = Fate(Ending.FIN), Fate(Ending.RST), Fate()
SERVED = Fate(serves=True)
S_THEN_CLOSED = CLOSED.behind_s()
ALERT, NO_ROUTE = alert(40), alert(120)
S_THEN_ALERT = ALERT.behind_s()

# What a server does that is spoken to in clear.
IN_CLEAR = {
    Opening.STARTUP: CLOSED,
    Opening.CANCEL: CLOSED,
    Opening.NOTHING: SILENT,
    Opening.GSSENC_REQUEST: Fate(Ending.FIN, answers=(b"G",)),
}

Middlebox = Callable[[Attempt], Fate]


def ask(middlebox: Middlebox, *others: str) -> Diagnosis:
    """The standard attempts at a middlebox."""
    made = []
    for attempt in standard(CONTROL, others):
        fate = middlebox(attempt)
        if fate.serves:
            fate = IN_CLEAR.get(attempt.opening, fate)
        made.append(fate.transcript(attempt))
    return judged(made)


def judged(made: Sequence[Transcript]) -> Diagnosis:
    """What was said at one door, judged."""
    return diagnose(Question(name=NAME, identity=NAME), {DOOR: made})


def names(diagnosis: Diagnosis) -> set[str]:
    """The findings' names."""
    return {finding.name for finding in diagnosis.findings}


def server(attempt: Attempt) -> Fate:
    """A PostgreSQL server, asked directly."""
    return S_THEN_ALERT if attempt.versions is TlsVersions.OBSOLETE else SERVED


def but(condition: Callable[[Attempt], bool], fate: Fate) -> Middlebox:
    """A server, except where the condition holds."""
    return lambda attempt: fate if condition(attempt) else server(attempt)
