"""The client's part of SCRAM-SHA-256: from nonces, salts and a password to messages.

Nothing is random here and nothing is remembered: the caller brings the nonce, and keeps what was
said. A password is as SASLprep makes it (:mod:`probe.wire.saslprep`); no result but the client's
proof is made of it.

Source: RFC 5802 (SCRAM), RFC 7677 (SHA-256), RFC 5929 section 4 (tls-server-end-point); PostgreSQL
documentation, "SASL Authentication": the user name stays empty, since the StartupMessage has it.
"""

import hashlib
import hmac
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
    password: bytes,
    *,
    flag: str,
    binding: bytes,
    client_nonce: str,
    server_first: bytes,
    nonce: str,
    salt: bytes,
    iterations: int,
) -> ClientFinal:
    """The answer to a server-first-message; ``password`` as SASLprep makes it.

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
    salted = hashlib.pbkdf2_hmac("sha256", password, salt, iterations)
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


def md5_response(user: str, password: bytes, salt: bytes) -> bytes:
    """The answer to AuthenticationMD5Password, its zero byte included."""
    inner = hashlib.md5(password + user.encode(), usedforsecurity=False).hexdigest()
    outer = hashlib.md5(inner.encode() + salt, usedforsecurity=False).hexdigest()
    return b"md5" + outer.encode() + b"\0"


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")
