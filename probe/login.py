"""The client's part behind StartupMessage: what to say to each message, as far as an attempt goes.

Takes an attempt, the certificate that the TLS peer showed, and the server's messages one by one;
gives what to send. There are three kinds of client:

* a *visitor* reads the challenge of a user that does not exist, and leaves;
* a *prover* answers it with a random password and channel binding: what the server says about the
  binding, before it says that the password is wrong, tells whose certificate it holds;
* a *guest* logs in, and asks the server what it sees of the connection.

No secret is said outside TLS, and none is kept: a message that proves a password is shown to the
transcript with every byte of its body hidden.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from probe.attempt import Attempt
from probe.certificate import Certificate
from probe.transcript import Fact, LoggedIn, ServerView
from probe.wire import Malformed, scram
from probe.wire.messages import (
    TERMINATE,
    Authentication,
    Message,
    parse_authentication,
    parse_data_row,
    parse_scram_server_first,
    password_message,
    query_message,
    sasl_initial_response,
)

QUERY = (
    "SELECT s.ssl, s.version, s.cipher, inet_server_addr(), inet_server_port(), "
    "current_setting('server_version') FROM pg_stat_ssl s WHERE s.pid = pg_backend_pid()"
)


class Reply(NamedTuple):
    """What to do about a message: send ``data``, and then leave or not.

    ``secret``: what is sent must not be shown. ``fact``: something to be told first.
    """

    data: bytes = b""
    leaves: bool = False
    secret: bool = False
    fact: Fact | None = None


LEAVE = Reply(leaves=True)
PARTING = Reply(TERMINATE, leaves=True)


class Exchange:
    """One client's part. ``leaf`` is the DER of the TLS peer's certificate; None: in clear."""

    def __init__(self, attempt: Attempt, leaf: bytes | None) -> None:
        self._attempt, self._leaf = attempt, leaf
        self._password = attempt.password.reveal() if attempt.password and leaf else None
        if attempt.proves:
            self._password = os.urandom(18).hex().encode()
        self._nonce = os.urandom(18).hex()
        self._flag, self._binding = scram.NOT_BOUND, b""
        self._signature: bytes | None = None
        self._signed: bool | None = None
        self._method = ""
        self._asked = False
        self.logged_in = False

    def answer(self, message: Message) -> Reply | None:
        """What to do about a message; None: wait for the next. Raises :class:`Malformed`."""
        match message.type:
            case "E":
                return PARTING if self.logged_in else LEAVE
            case "R":
                return self._authenticate(parse_authentication(message.body))
            case "D" if self._asked:
                return Reply(fact=_view(message.body))
            case "Z" if self._asked:
                return PARTING
            case "Z":
                self._asked = True
                return Reply(query_message(QUERY))
        return None

    def _authenticate(self, asked: Authentication) -> Reply:
        match asked.method:
            case "ok":
                return self._let_in()
            case "cleartext-password" if self._guest is not None:
                self._method = asked.method
                return Reply(password_message(self._guest + b"\0"), secret=True)
            case "md5-password" if self._guest is not None:
                self._method = asked.method
                response = scram.md5_response(self._attempt.user, self._guest, asked.data[:4])
                return Reply(password_message(response), secret=True)
            case "sasl":
                return self._choose(asked.mechanisms)
            case "sasl-continue" if self._password is not None:
                return self._prove(asked.data)
            case "sasl-final" if self._signature is not None:
                self._signed = scram.is_signed(asked.data, self._signature)
                return Reply() if self._signed else Reply(leaves=True, fact=self._fact)
        return LEAVE

    @property
    def _guest(self) -> bytes | None:
        """The password, where this is a real login."""
        return None if self._attempt.proves else self._password

    @property
    def _fact(self) -> LoggedIn:
        return LoggedIn(self._method or "trust", self._signed)

    def _let_in(self) -> Reply:
        if self._guest is None:
            return PARTING
        if self._signature is not None and self._signed is None:
            self._signed = False  # let in without the proof that the server owes
            return Reply(TERMINATE, leaves=True, fact=self._fact)
        self.logged_in = True
        return Reply(fact=self._fact)

    def _choose(self, mechanisms: tuple[str, ...]) -> Reply:
        if self._leaf is not None and self._password is not None:
            self._bind(scram.MECHANISM_PLUS in mechanisms)
        bound = self._flag == scram.END_POINT
        self._method = scram.MECHANISM_PLUS if bound else scram.MECHANISM
        if self._method not in mechanisms or (self._attempt.proves and self._flag == "n"):
            return LEAVE
        first = scram.client_first(self._flag, self._nonce)
        return Reply(sasl_initial_response(self._method, first))

    def _bind(self, offered: bool) -> None:
        """How to bind, as libpq would; where the certificate has no hash, not at all.

        A prover then claims that nothing was offered: a server that did offer it refuses that.
        """
        data = Certificate(self._leaf or b"").binding_data
        if offered and data is not None:
            self._flag, self._binding = scram.END_POINT, data
        elif offered == self._attempt.proves:
            self._flag = scram.NOT_OFFERED

    def _prove(self, challenge: bytes) -> Reply:
        said = parse_scram_server_first(challenge)
        if said is None or self._password is None:
            return LEAVE
        from probe.wire.saslprep import prepared  # whose tables nobody else needs

        final = scram.client_final(
            prepared(self._password),
            flag=self._flag,
            binding=self._binding,
            client_nonce=self._nonce,
            server_first=challenge,
            nonce=said.nonce,
            salt=said.salt,
            iterations=said.iterations,
        )
        self._signature = final.server_signature
        return Reply(password_message(final.message), secret=True)


def _view(body: bytes) -> ServerView:
    columns = parse_data_row(body)
    if len(columns) != 6:
        raise Malformed(f"{len(columns)} columns where 6 were asked for")
    tls, *texts = columns
    return ServerView(tls == "t", *texts)


def hidden(message: bytes) -> bytes:
    """A message as it may be shown: its type and length, and nothing of what it says."""
    return message[:5] + b"*" * (len(message) - 5)
