"""What a key log says: the secrets of TLS sessions, by the client's random.

Takes the text of an NSS key log (``SSLKEYLOGFILE``), from a file or from the Decryption Secrets
Blocks of a capture; gives :class:`Secrets`. A line that is none (a comment, an unknown form) is
passed over, as every reader of the format does. Raises nothing.

Source: the IETF draft "The SSLKEYLOGFILE Format for TLS" (draft-ietf-tls-keylogfile): a line is
``LABEL client_random secret``, the two in hexadecimal.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

MASTER = "CLIENT_RANDOM"  # the master secret of TLS 1.2 and older
CLIENT_HANDSHAKE = "CLIENT_HANDSHAKE_TRAFFIC_SECRET"
SERVER_HANDSHAKE = "SERVER_HANDSHAKE_TRAFFIC_SECRET"
CLIENT_TRAFFIC = "CLIENT_TRAFFIC_SECRET_0"
SERVER_TRAFFIC = "SERVER_TRAFFIC_SECRET_0"

LABELS = (MASTER, CLIENT_HANDSHAKE, SERVER_HANDSHAKE, CLIENT_TRAFFIC, SERVER_TRAFFIC)

MAX_SESSIONS = 1_000_000  # that a key log is read for; the newest count

_HEX = "(?:[0-9a-fA-F]{2})"
_LINE = re.compile(
    rf"^({'|'.join(LABELS)}) ({_HEX}{{32}}) ({_HEX}{{16,64}})\s*$".encode(), re.MULTILINE
)


class Secrets:
    """Sessions by client random: label -> secret. Never shown: its ``repr`` counts them."""

    def __init__(self, sessions: Mapping[bytes, Mapping[str, bytes]]) -> None:
        self._sessions = sessions

    def __repr__(self) -> str:
        return f"<Secrets of {len(self)} sessions>"

    def __len__(self) -> int:
        return len(self._sessions)

    def of(self, client_random: bytes) -> Mapping[str, bytes]:
        """The secrets of the session that this ClientHello began; empty: none is known."""
        return self._sessions.get(client_random, {})


def parse_key_log(*texts: str | bytes) -> Secrets:
    """The secrets of one key log, or of several together."""
    sessions: dict[bytes, dict[str, bytes]] = {}
    for label, random, secret in _lines(texts):
        session = sessions.pop(random, {})  # and to the end: the newest are kept
        session[label] = secret
        sessions[random] = session
        if len(sessions) > MAX_SESSIONS:
            del sessions[next(iter(sessions))]
    return Secrets(sessions)


def _lines(texts: Iterable[str | bytes]) -> Iterator[tuple[str, bytes, bytes]]:
    for text in texts:
        data = text.encode("utf-8", "replace") if isinstance(text, str) else text
        for label, random, secret in _LINE.findall(data):
            yield label.decode(), bytes.fromhex(random.decode()), bytes.fromhex(secret.decode())
