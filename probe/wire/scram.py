"""The client's part of SCRAM-SHA-256: from nonces, salts and a password to messages.

Nothing is random here and nothing is remembered: the caller brings the nonce, and keeps what was
said. A password is a ``str``; no result but the client's proof is made of it.

Source: RFC 5802 (SCRAM), RFC 7677 (SHA-256), RFC 5929 section 4 (tls-server-end-point), RFC 4013
(SASLprep); PostgreSQL documentation, "SASL Authentication": the user name stays empty, since the
StartupMessage has it.
"""

import hashlib
import hmac
import stringprep
import unicodedata
from base64 import b64decode, b64encode
from typing import NamedTuple

from probe.wire import Malformed

MECHANISM, MECHANISM_PLUS = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"

NOT_BOUND = "n"  # GS2 flags: the client does not bind
NOT_OFFERED = "y"  # it could bind, and takes it that the server cannot
END_POINT = "p=tls-server-end-point"

MAX_ITERATIONS = 1_000_000  # PostgreSQL's default is 4096; each costs the client an HMAC


class ClientFinal(NamedTuple):
    """The client-final-message, and the signature that a server which knows the password gives."""

    message: bytes
    server_signature: bytes


def client_first(flag: str, nonce: str) -> bytes:
    """The client-first-message with an empty user name."""
    return f"{flag},,n=,r={nonce}".encode("ascii")


def client_final(
    password: str,
    *,
    flag: str,
    binding: bytes,
    client_nonce: str,
    server_first: bytes,
    nonce: str,
    salt: bytes,
    iterations: int,
) -> ClientFinal:
    """The answer to a server-first-message.

    ``server_first`` is that message as it came; ``nonce``, ``salt`` and ``iterations`` are what
    it says. ``binding`` is the channel binding data, empty unless the flag binds. Raises
    :class:`Malformed` for a nonce that is not ours, or iterations that no server needs.
    """
    if not nonce.startswith(client_nonce) or nonce == client_nonce:
        raise Malformed("a server nonce that does not begin with the client's")
    if not 1 <= iterations <= MAX_ITERATIONS:
        raise Malformed(f"{iterations} iterations")
    bound = b64encode(f"{flag},,".encode("ascii") + binding)
    without_proof = b"c=" + bound + b",r=" + nonce.encode("ascii")
    first_bare = f"n=,r={client_nonce}".encode("ascii")
    said = b",".join((first_bare, server_first, without_proof))
    salted = hashlib.pbkdf2_hmac("sha256", prepared(password), salt, iterations)
    client_key = _hmac(salted, b"Client Key")
    signature = _hmac(hashlib.sha256(client_key).digest(), said)
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    server_signature = _hmac(_hmac(salted, b"Server Key"), said)
    return ClientFinal(without_proof + b",p=" + b64encode(proof), server_signature)


def is_signed(server_final: bytes, signature: bytes) -> bool:
    """Whether the server-final-message carries this signature."""
    verifier = server_final.partition(b",")[0]
    try:
        shown = b64decode(verifier.removeprefix(b"v="), validate=True)
    except ValueError:
        return False
    return verifier.startswith(b"v=") and hmac.compare_digest(shown, signature)


def md5_response(user: str, password: str, salt: bytes) -> bytes:
    """The answer to AuthenticationMD5Password, its zero byte included."""
    inner = hashlib.md5(password.encode() + user.encode(), usedforsecurity=False).hexdigest()
    outer = hashlib.md5(inner.encode() + salt, usedforsecurity=False).hexdigest()
    return b"md5" + outer.encode() + b"\0"


def prepared(password: str) -> bytes:
    """The password as SASLprep makes it; as it is, where SASLprep forbids it (as in PostgreSQL)."""
    mapped = "".join(
        " " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c)
    )
    text = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    return (password if not text or _forbidden(text) else text).encode()


def _forbidden(text: str) -> bool:
    prohibited = (
        *(stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3),
        *(stringprep.in_table_c4, stringprep.in_table_c5, stringprep.in_table_c6),
        *(stringprep.in_table_c7, stringprep.in_table_c8, stringprep.in_table_c9),
        stringprep.in_table_a1,
    )
    if any(table(c) for c in text for table in prohibited):
        return True
    right_to_left = [stringprep.in_table_d1(c) for c in text]
    if not any(right_to_left):
        return False
    both_ends = right_to_left[0] and right_to_left[-1]
    return not both_ends or any(stringprep.in_table_d2(c) for c in text)


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")
