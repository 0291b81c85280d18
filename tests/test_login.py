"""The client's part behind StartupMessage, message by message; and what a transcript keeps."""

from __future__ import annotations

import hashlib
import ssl
import struct
from dataclasses import replace

import pytest
from peers import (
    BINDING_OFFER,
    NAME,
    SCRAM_OFFER,
    SERVER_FIRST,
    Backend,
    authority,
    converse,
    transcript,
)

from probe.attempt import Attempt
from probe.certificate import Certificate
from probe.handshake import Outcome
from probe.login import LEAVE, PARTING, QUERY, Exchange, hidden
from probe.observer import observe
from probe.password import Password
from probe.transcript import Data, Layer, LoggedIn, Party, ServerView
from probe.wire.messages import Message, parse_sasl_initial_response
from probe.wire.scram import md5_response
from probe.wire.x509 import parse_x509

SECRET = "open sesame"
VISITOR = Attempt("control", server_name=NAME)
PROVER = replace(VISITOR, name="prove", proves=True)
GUEST = replace(VISITOR, name="login", user="app", database="app", password=Password(SECRET))

OFFER = Message("R", BINDING_OFFER[5:])
ONLY_SCRAM = Message("R", SCRAM_OFFER[5:])
OK = Message("R", bytes(4))


def leaf() -> bytes:
    return ssl.PEM_cert_to_DER_cert(
        authority().issue_cert(NAME).cert_chain_pems[0].bytes().decode()
    )


def asks(code: int, data: bytes = b"") -> Message:
    return Message("R", struct.pack("!I", code) + data)


def chosen(exchange: Exchange, offer: Message) -> tuple[str, str]:
    reply = exchange.answer(offer)
    assert reply is not None
    decoded = parse_sasl_initial_response(reply.data)
    assert decoded is not None
    return decoded[0]


@pytest.mark.parametrize(
    ("attempt", "offer", "expected"),
    [
        (VISITOR, OFFER, ("SCRAM-SHA-256", "n")),
        (VISITOR, ONLY_SCRAM, ("SCRAM-SHA-256", "n")),
        (PROVER, OFFER, ("SCRAM-SHA-256-PLUS", "p=tls-server-end-point")),
        (GUEST, OFFER, ("SCRAM-SHA-256-PLUS", "p=tls-server-end-point")),
        (GUEST, ONLY_SCRAM, ("SCRAM-SHA-256", "y")),
    ],
)
def test_the_mechanism_is_the_one_that_the_kind_of_client_takes(
    attempt: Attempt, offer: Message, expected: tuple[str, str]
) -> None:
    assert chosen(Exchange(attempt, leaf()), offer) == expected


def test_a_certificate_without_a_hash_is_bound_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Certificate, "binding_hash", None)
    assert chosen(Exchange(PROVER, leaf()), OFFER) == ("SCRAM-SHA-256", "y")
    assert chosen(Exchange(GUEST, leaf()), OFFER) == ("SCRAM-SHA-256", "n")


@pytest.mark.parametrize("hash_name", [("md5", "sha256"), ("sha1", "sha256"), ("sha384", "sha384")])
def test_the_hash_is_the_signatures_and_sha_256_for_weak_ones(
    monkeypatch: pytest.MonkeyPatch, hash_name: tuple[str, str]
) -> None:
    named, used = hash_name
    der = leaf()
    certificate = Certificate(der)
    parsed = parse_x509(der)._replace(signature_hash=named)
    monkeypatch.setattr(Certificate, "_parsed", parsed)
    assert certificate.binding_data == hashlib.new(used, der).digest()


def test_a_prover_leaves_where_nothing_can_be_bound() -> None:
    assert Exchange(PROVER, leaf()).answer(ONLY_SCRAM) == LEAVE
    assert Exchange(PROVER, None).answer(OFFER) == LEAVE


@pytest.mark.parametrize("attempt", [VISITOR, PROVER])
@pytest.mark.parametrize("code", [3, 5, 7, 9])
def test_only_a_guest_answers_a_request_for_a_password(attempt: Attempt, code: int) -> None:
    assert Exchange(attempt, leaf()).answer(asks(code, b"salt")) == LEAVE


@pytest.mark.parametrize("code", [3, 5, 10])
def test_a_guest_says_no_secret_in_clear(code: int) -> None:
    reply = Exchange(GUEST, None).answer(OFFER if code == 10 else asks(code, b"salt"))
    assert reply is not None
    assert not reply.secret
    assert SECRET.encode() not in reply.data


def test_a_guest_who_is_let_in_asks_once_and_leaves() -> None:
    exchange = Exchange(GUEST, leaf())
    assert exchange.answer(asks(3)).secret  # type: ignore[union-attr]
    let_in = exchange.answer(OK)
    assert let_in is not None
    assert let_in.fact == LoggedIn("cleartext-password", None)
    assert exchange.answer(Message("S", b"a\0b\0")) is None
    query = exchange.answer(Message("Z", b"I"))
    assert query is not None
    assert QUERY.encode() in query.data
    columns = (b"t", b"TLSv1.3", b"AES", b"10.0.0.7", b"5432", b"17.1")
    row = struct.pack("!H", 6) + b"".join(struct.pack("!I", len(c)) + c for c in columns)
    told = exchange.answer(Message("D", row))
    assert told is not None
    assert told.fact == ServerView(True, "TLSv1.3", "AES", "10.0.0.7", "5432", "17.1")
    assert exchange.answer(Message("C", b"SELECT 1\0")) is None
    assert exchange.answer(Message("Z", b"I")) == PARTING


def test_a_server_that_lets_in_without_its_signature_is_left_and_told() -> None:
    for ending in (asks(12, b"v=AAAA"), OK):
        exchange = Exchange(GUEST, leaf())
        _, flag = chosen(exchange, ONLY_SCRAM)
        assert flag == "y"
        challenge = f"r={exchange._nonce}more,s=AAAA,i=1".encode()
        final = exchange.answer(asks(11, challenge))
        assert final is not None
        assert final.secret
        told = exchange.answer(ending)
        assert told is not None
        assert told.leaves
        assert told.fact == LoggedIn("SCRAM-SHA-256", False)


def test_a_password_that_is_no_utf_8_is_said_as_the_bytes_that_it_is() -> None:
    guest = replace(GUEST, password=Password("p\udce4ss"))  # as the system gives a byte E4
    clear = Exchange(guest, leaf()).answer(asks(3))
    assert clear is not None
    assert clear.data[5:] == b"p\xe4ss\0"
    digest = Exchange(guest, leaf()).answer(asks(5, b"salt"))
    assert digest is not None
    assert digest.data[5:] == md5_response("app", b"p\xe4ss", b"salt")
    exchange = Exchange(guest, leaf())
    chosen(exchange, ONLY_SCRAM)
    final = exchange.answer(asks(11, f"r={exchange._nonce}more,s=AAAA,i=1".encode()))
    assert final is not None
    assert final.secret


def test_a_hidden_message_keeps_type_and_length_alone() -> None:
    assert hidden(b"p\0\0\0\x09hello") == b"p\0\0\0\x09*****"


def password_asked(said: bytes) -> bytes:
    """A server that asks for the password in clear, and refuses it."""
    error = b"SFATAL\0C28P01\0Mpassword authentication failed\0Rauth_failed\0\0"
    return {
        b"\0": b"R" + struct.pack("!II", 8, 3),
        b"p": b"E" + struct.pack("!I", len(error) + 4) + error,
    }.get(said[:1], b"")


def test_the_password_reaches_the_server_and_not_the_transcript() -> None:
    backend = Backend(messages=password_asked)
    _, facts = converse(GUEST, backend.hear)
    assert SECRET.encode() in backend.said[1]
    inside = b"".join(f.data for f in facts if isinstance(f, Data) and f.layer is Layer.TLS)
    assert SECRET.encode() not in inside
    seen = observe(transcript(*facts)._replace(login=True))
    assert (seen.login, seen.outcome) == (True, Outcome.AUTHENTICATION)
    assert seen.login_error is not None
    assert seen.login_error.sqlstate == "28P01"
    assert seen.error is None


def binds(said: bytes) -> bytes:
    """A server that offers -PLUS, and says that the binding is wrong."""
    error = b"SFATAL\0C28000\0MSCRAM channel binding check failed\0"
    error += b"Rread_client_final_message\0\0"
    if said[:1] == b"p" and b"c=" in said:
        return b"E" + struct.pack("!I", len(error) + 4) + error
    if said[:1] == b"p":
        nonce = said.rpartition(b"r=")[2]
        first = b"r=" + nonce + b"more,s=AAECAwQFBgcICQoLDA0ODw==,i=4096"
        return b"R" + struct.pack("!II", 8 + len(first), 11) + first
    return BINDING_OFFER if said[:1] == b"\0" else b""


def test_the_observer_reads_choice_and_refusal_of_a_prover() -> None:
    backend = Backend(messages=binds)
    _, facts = converse(PROVER, backend.hear)
    seen = observe(transcript(*facts))
    assert seen.sasl == ("SCRAM-SHA-256-PLUS", "p=tls-server-end-point")
    assert seen.salt == bytes(range(16))
    assert seen.login_error is not None
    assert seen.login_error.routine == "read_client_final_message"
    assert not seen.let_in
    assert backend.left


def test_what_a_session_says_behind_its_login_is_not_read() -> None:
    def lets_in(said: bytes) -> bytes:
        greeting = b"R" + struct.pack("!II", 8, 0) + b"Z\0\0\0\x05I"
        row = b"T\0\0\0\x06\0\0" + b"D\0\0\0\x0e\0\1\0\0\0\4data"
        return {b"\0": greeting, b"Q": row}.get(said[:1], b"")

    facts = (
        *converse(VISITOR, Backend(messages=lets_in).hear)[1],
        Data(Party.SERVER, lets_in(b"Q"), Layer.TLS),
    )
    seen = observe(transcript(*facts))
    assert (seen.let_in, seen.foreign, seen.outcome) == (True, None, Outcome.AUTHENTICATION)


def test_server_first_without_a_nonce_of_ours_ends_the_prover_quietly() -> None:
    def replayed(said: bytes) -> bytes:
        return {b"\0": BINDING_OFFER, b"p": SERVER_FIRST}.get(said[:1], b"")

    backend = Backend(messages=replayed)
    converse(PROVER, backend.hear)
    assert len(backend.said) == 2
