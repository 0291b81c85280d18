"""SCRAM by its formulas, and what a hostile server may send.

That real servers take it is in ``test_prove``.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.wire import Malformed
from probe.wire.messages import parse_scram_server_first
from probe.wire.scram import (
    END_POINT,
    MAX_ITERATIONS,
    NOT_BOUND,
    ClientFinal,
    client_final,
    client_first,
    is_signed,
    md5_response,
)

# Nonces, salt and password of RFC 7677, section 3; the user name is empty, as PostgreSQL has it.
NONCE = "rOprNGfwEbeRWgbNEkqO"
SERVER_NONCE = NONCE + "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
SERVER_FIRST = f"r={SERVER_NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096".encode()


def final(
    password: str = "pencil",
    *,
    flag: str = NOT_BOUND,
    binding: bytes = b"",
    server_first: bytes = SERVER_FIRST,
) -> ClientFinal:
    said = parse_scram_server_first(server_first)
    assert said is not None
    return client_final(
        password.encode(),
        flag=flag,
        binding=binding,
        client_nonce=NONCE,
        server_first=server_first,
        nonce=said.nonce,
        salt=said.salt,
        iterations=said.iterations,
    )


def test_the_first_message_has_the_flag_no_user_and_the_nonce() -> None:
    assert client_first("y", "abc") == b"y,,n=,r=abc"


def test_the_proof_is_what_an_independent_computation_gives() -> None:
    def mac(key: bytes, text: bytes) -> bytes:
        return hmac.new(key, text, hashlib.sha256).digest()

    salted = hashlib.pbkdf2_hmac("sha256", b"pencil", b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    said = f"n=,r={NONCE},".encode() + SERVER_FIRST + f",c=biws,r={SERVER_NONCE}".encode()
    stored = hashlib.sha256(mac(salted, b"Client Key")).digest()
    made = final()
    bare, _, proof = made.message.rpartition(b",p=")
    assert bare == f"c=biws,r={SERVER_NONCE}".encode()
    key = bytes(a ^ b for a, b in zip(b64decode(proof), mac(stored, said), strict=True))
    assert hashlib.sha256(key).digest() == stored
    assert made.server_signature == mac(mac(salted, b"Server Key"), said)


def test_the_binding_stands_behind_its_header() -> None:
    message = final(flag=END_POINT, binding=b"\x01\x02").message
    bound = b64decode(message.partition(b",")[0].removeprefix(b"c="))
    assert bound == b"p=tls-server-end-point,,\x01\x02"


@pytest.mark.parametrize(
    "server_first",
    [
        b"r=somebody-elses,s=AAAA,i=4096",
        f"r={NONCE},s=AAAA,i=4096".encode(),  # the server added nothing
        f"r={SERVER_NONCE},s=AAAA,i=0".encode(),
        f"r={SERVER_NONCE},s=AAAA,i=-1".encode(),
        f"r={SERVER_NONCE},s=AAAA,i={MAX_ITERATIONS + 1}".encode(),
    ],
)
def test_a_challenge_that_no_server_gives_is_malformed(server_first: bytes) -> None:
    with pytest.raises(Malformed):
        final(server_first=server_first)


def test_only_the_servers_own_signature_is_taken() -> None:
    assert is_signed(b"v=AQID", b"\1\2\3")
    assert is_signed(b"v=AQID,extension", b"\1\2\3")
    for wrong in (b"v=AQIE", b"e=other-error", b"AQID", b"v=", b"v=!", b"", b"v=\xff"):
        assert not is_signed(wrong, b"\1\2\3")


@given(st.binary(max_size=60))
def test_no_server_final_message_raises(data: bytes) -> None:
    assert not is_signed(data, b"a signature of its own")


def test_md5_is_postgresqls() -> None:
    # md5sum's, of secretapp, and of that and salt
    assert md5_response("app", b"secret", b"salt") == b"md57f097e06031b34893c20e25a0e68242c\0"
