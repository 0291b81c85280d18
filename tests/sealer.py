"""Says something more in a finished TLS 1.2 session: what the libraries would not say."""

from __future__ import annotations

import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sessions import Session

from probe.cipher import find_suite, prf
from probe.secrets import MASTER
from probe.transcript import Data, Party
from probe.wire.hello import parse_client_hello, parse_server_hello
from probe.wire.records import decode_record


class Sealer:
    """Says something more in a TLS 1.2 session with AES-GCM, after its Finished messages."""

    def __init__(self, session: Session) -> None:
        said = dict.fromkeys(Party, b"")
        for fact in session.facts[2:]:
            assert isinstance(fact, Data)
            said[fact.sender] += fact.data
        client = first_fragment(said[Party.CLIENT])
        server = first_fragment(said[Party.SERVER])
        client_random = parse_client_hello(client[4:]).random
        master = session.secrets.of(client_random)[MASTER]
        length = int.from_bytes(server[1:4], "big")
        chosen = parse_server_hello(server[4 : 4 + length])
        suite = find_suite(chosen.cipher)
        assert suite is not None
        assert suite.mode == "gcm"
        seed = chosen.random + client_random
        block = prf(master, b"key expansion", seed, 2 * suite.key + 8, suite.hash)
        key, salt = suite.key, 2 * suite.key
        self.keys = {
            Party.CLIENT: (block[:key], block[salt : salt + 4]),
            Party.SERVER: (block[key : 2 * key], block[salt + 4 : salt + 8]),
        }
        self.sequence = dict.fromkeys(Party, 1)  # behind Finished

    def seal(self, sender: Party, kind: int, data: bytes) -> bytes:
        key, salt = self.keys[sender]
        sequence = self.sequence[sender]
        self.sequence[sender] += 1
        explicit = struct.pack("!Q", sequence)
        said = explicit + struct.pack("!BHH", kind, 0x0303, len(data))
        sealed = explicit + AESGCM(key).encrypt(salt + explicit, data, said)
        return struct.pack("!BHH", kind, 0x0303, len(sealed)) + sealed


def first_fragment(data: bytes) -> bytes:
    decoded = decode_record(data)
    assert decoded
    return decoded[0].fragment
