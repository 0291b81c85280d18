"""What a witness tells: the form, version 1, in which it stands in an ErrorResponse.

A witness (``pgprobe witness``) is a stand-in that is deployed where a PostgreSQL server would
be. It answers StartupMessage with an ErrorResponse whose fields say what reached it:

* ``C`` is ``WT001``. Classes that begin with W belong to nobody in PostgreSQL or in SQL.
* ``M`` and ``H`` are sentences for the one who reads them in psql.
* ``D`` is the testimony: one line of JSON in ASCII, at most ``MAX_TESTIMONY`` bytes.
* There is no ``F``, ``L`` or ``R``: no PostgreSQL wrote it.

``docs/witness.md`` describes the form for others. A reader takes the version that it knows, and
passes over keys that it does not know; a later version that changes what a key means gets
another number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from probe.wire import Malformed, printable

FORM = 1
SQLSTATE = "WT001"
MAX_TESTIMONY = 8_192  # bytes of D; nothing longer is read, and nothing longer is ever written
MAX_TEXT = 255  # characters of any text in it; a DNS name has no more
MAX_PROTOCOLS = 12  # of the ClientHello's ALPN list
MAX_PROTOCOL = 64  # characters of each of them
MAX_NUMBER = 1_048_576  # of any count in it

HINT = (
    "This is no database: nobody can log in here. Point the route back to the server when the "
    "question is answered."
)

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ProxyFacts(NamedTuple):
    """The PROXY header that arrived: version 1 or 2; addresses as "addr:port", None: not told."""

    version: int
    source: str | None = None
    destination: str | None = None


class HelloFacts(NamedTuple):
    """The ClientHello that arrived first.

    ``sha256`` is of the handshake message, its 4-byte header included and the headers of the
    TLS records not. ``size`` is its length in bytes; ``records`` and ``reads`` are in how many
    TLS records it came, and in how many reads from the socket.
    """

    sha256: str
    size: int
    records: int = 1
    reads: int = 1
    server_name: str | None = None
    alpn: tuple[str, ...] = ()


class StartupFacts(NamedTuple):
    """The StartupMessage that arrived: SHA-256 and length in bytes, protocol as "3.0"."""

    sha256: str
    size: int
    protocol: str


class Arrival(NamedTuple):
    """What reached a witness on one connection.

    ``peer`` and ``local`` are its TCP connection's ends ("addr:port"). ``proxy_expected`` tells
    whether it stands in the place of somebody who wants a PROXY header. ``early``: bytes stood
    behind an SSLRequest that had not been answered yet. ``hello`` None: no TLS came; ``tls`` is
    the version that was agreed on ("1.3"), ``alpn`` the protocol that was selected.
    """

    peer: str
    local: str
    startup: StartupFacts
    proxy_expected: bool = False
    proxy: ProxyFacts | None = None
    ssl_request: bool = False
    gssenc_request: bool = False
    early: bool = False
    hello: HelloFacts | None = None
    tls: str | None = None
    alpn: str | None = None

    @property
    def refused(self) -> str | None:
        """Why a PostgreSQL server (17 or later) in the witness's place would hang up, or None.

        It closes on a PROXY header, on bytes behind an SSLRequest that it has not answered, and
        on direct TLS that did not agree on ALPN ``postgresql``.
        """
        if self.proxy and not self.proxy_expected:
            return "a PROXY header arrived, which PostgreSQL takes for a broken StartupMessage"
        if self.proxy_expected and not self.proxy:
            return "no PROXY header arrived, where one is expected"
        if self.early:
            return "the ClientHello arrived before SSLRequest was answered"
        if self.hello and not self.ssl_request and self.alpn != "postgresql":
            return "TLS arrived without SSLRequest and without ALPN postgresql"
        return None


def encode_testimony(told: Arrival) -> str:
    """Field D."""
    import json  # here, for few runs meet a witness

    document: dict[str, Any] = {
        "witness": FORM,
        "peer": _cut(told.peer),
        "local": _cut(told.local),
        "proxy_expected": told.proxy_expected,
        "proxy": _members(told.proxy),
        "ssl_request": told.ssl_request,
        "gssenc_request": told.gssenc_request,
        "early": told.early,
        "hello": _members(told.hello),
        "tls": _cut(told.tls),
        "alpn": _cut(told.alpn),
        "startup": _members(told.startup),
    }
    if told.hello:
        document["hello"]["alpn"] = [
            printable(_ascii(name), MAX_PROTOCOL - 3) for name in told.hello.alpn[:MAX_PROTOCOLS]
        ]
    return json.dumps(document, separators=(",", ":"))


def decode_testimony(text: str) -> Arrival:
    """Field D, read. Raises :class:`Malformed` when it is not a testimony of this version."""
    import json  # likewise

    if len(text) > MAX_TESTIMONY:
        raise Malformed(f"a testimony of {len(text)} characters")
    try:
        read = _Object(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise Malformed("a testimony that is no JSON") from error
    if read.number("witness") != FORM:
        raise Malformed("a testimony of another version")
    startup = read.part("startup")
    if startup is None:
        raise Malformed("a testimony without a StartupMessage")
    return Arrival(
        peer=read.text("peer"),
        local=read.text("local"),
        startup=StartupFacts(
            startup.digest("sha256"), startup.number("size"), startup.text("protocol")
        ),
        proxy_expected=read.flag("proxy_expected"),
        proxy=_proxy(read.part("proxy")),
        ssl_request=read.flag("ssl_request"),
        gssenc_request=read.flag("gssenc_request"),
        early=read.flag("early"),
        hello=_hello(read.part("hello")),
        tls=read.maybe("tls"),
        alpn=read.maybe("alpn"),
    )


def _proxy(read: _Object | None) -> ProxyFacts | None:
    if read is None:
        return None
    return ProxyFacts(read.number("version"), read.maybe("source"), read.maybe("destination"))


def _hello(read: _Object | None) -> HelloFacts | None:
    if read is None:
        return None
    return HelloFacts(
        sha256=read.digest("sha256"),
        size=read.number("size"),
        records=read.number("records"),
        reads=read.number("reads"),
        server_name=read.maybe("server_name"),
        alpn=read.texts("alpn"),
    )


def error_fields(told: Arrival) -> tuple[tuple[str, str], ...]:
    """The fields of the ErrorResponse that carries a testimony, in the order sent."""
    return (
        ("S", "FATAL"),
        ("V", "FATAL"),
        ("C", SQLSTATE),
        ("M", sentence(told)),
        ("D", encode_testimony(told)),
        ("H", HINT),
    )


def find_testimony(fields: Iterable[tuple[str, str]]) -> Arrival | None:
    """The testimony in an ErrorResponse's fields; None: no witness wrote it. Raises nothing."""
    by_letter = dict(fields)
    if by_letter.get("C") != SQLSTATE or by_letter.keys() & set("FLR"):
        return None
    try:
        return decode_testimony(by_letter.get("D", ""))
    except Malformed:
        return None


def sentence(told: Arrival) -> str:
    """Field M: what psql shows first."""
    if told.hello is None:
        came = "your StartupMessage arrived in clear text, without TLS"
    else:
        name = told.hello.server_name
        asked = f"for '{printable(name, 100)}'" if name else "for no name"
        how = "behind SSLRequest" if told.ssl_request else "directly"
        came = (
            f"TLS arrived {how}, with a ClientHello {asked} of {told.hello.size} bytes "
            f"(SHA-256 {told.hello.sha256[:16]}...)"
        )
    header = f", behind a PROXY header of version {told.proxy.version}" if told.proxy else ""
    return f"pgprobe witness: {came}, from {told.peer}{header}"


def _cut(text: str | None) -> str | None:
    return None if text is None else printable(_ascii(text), MAX_TEXT)


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def _members(part: NamedTuple | None) -> dict[str, Any] | None:
    if part is None:
        return None
    return {k: _cut(v) if isinstance(v, str) else v for k, v in part._asdict().items()}


class _Object:
    """A JSON object from a stranger: each member is what it should be, or all is Malformed."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise Malformed("a testimony whose part is no object")
        self._members = value

    def maybe(self, name: str) -> str | None:
        value = self._members.get(name)
        return None if value is None else self.text(name)

    def text(self, name: str) -> str:
        value = self._members.get(name)
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise Malformed(f"a testimony whose {name} is no text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        values = self._members.get(name)
        if not isinstance(values, list) or len(values) > MAX_PROTOCOLS:
            raise Malformed(f"a testimony whose {name} is no list")
        if not all(isinstance(value, str) and len(value) <= MAX_TEXT for value in values):
            raise Malformed(f"a testimony whose {name} holds more than texts")
        return tuple(values)

    def digest(self, name: str) -> str:
        value = self.text(name)
        if not _DIGEST.fullmatch(value):
            raise Malformed(f"a testimony whose {name} is no digest")
        return value

    def number(self, name: str) -> int:
        value = self._members.get(name)
        if type(value) is not int or not 0 <= value <= MAX_NUMBER:  # a bool is an int, too
            raise Malformed(f"a testimony whose {name} is no count")
        return value

    def flag(self, name: str) -> bool:
        value = self._members.get(name)
        if not isinstance(value, bool):
            raise Malformed(f"a testimony whose {name} is neither true nor false")
        return value

    def part(self, name: str) -> _Object | None:
        value = self._members.get(name)
        return None if value is None else _Object(value)
