"""What was sent against what a witness says has arrived.

Takes a Handshake that a witness answered; gives a Comparison, row by row. A testimony is the
word of whoever wrote it: it shows what configured hops do, and not what a hop hides that lies
on purpose (``docs/witness.md``, "Limits").
"""

from __future__ import annotations

from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

from probe.handshake import Handshake, Opening
from probe.wire import printable
from probe.wire.startup import startup_message
from probe.wire.witness import MAX_PROTOCOLS, Arrival

SHOWN_DIGEST = 12  # hexadecimal digits
SHOWN_PROTOCOL = 40  # characters of each protocol that ALPN offers


class Part(StrEnum):
    """What is compared; where it changed on the way, the change has this name."""

    CONNECTION = "connection"  # TCP: another one wherever a proxy stands
    PROXY_HEADER = "proxy-header"
    SSL_REQUEST = "ssl-request"
    TLS = "tls"  # sent, and clear text arrived
    CLIENT_HELLO = "client-hello"
    SERVER_NAME = "server-name"
    ALPN = "alpn"
    RECORDS = "records"
    SEGMENTS = "segments"
    STARTUP = "startup"


class Row(NamedTuple):
    """One part: what was sent and what arrived, for people, and whether that is a change."""

    part: Part
    sent: str
    arrived: str
    changed: bool


class Comparison(NamedTuple):
    """What became of one connection on the way to the witness.

    ``end_to_end``: the ClientHello arrived byte for byte, and TLS was finished with it: nobody
    on the way ended TLS. ``again``: TLS was ended, and TLS of somebody else's arrived.
    """

    attempt: str
    testimony: Arrival
    rows: tuple[Row, ...]
    end_to_end: bool
    again: bool

    @property
    def changed(self) -> tuple[Part, ...]:
        """What was changed on the way, in the order in which it is said."""
        return tuple(row.part for row in self.rows if row.changed)

    def says(self, part: Part) -> str:
        """A changed part in words."""
        row = next(row for row in self.rows if row.part is part)
        return f"{_LABELS[part]}: sent {row.sent}, arrived {row.arrived}"


_LABELS = {
    Part.CONNECTION: "TCP connection from",
    Part.PROXY_HEADER: "PROXY header",
    Part.SSL_REQUEST: "SSLRequest",
    Part.TLS: "TLS",
    Part.CLIENT_HELLO: "ClientHello",
    Part.SERVER_NAME: "server_name",
    Part.ALPN: "ALPN",
    Part.RECORDS: "TLS records",
    Part.SEGMENTS: "segments",
    Part.STARTUP: "StartupMessage",
}


def label(part: Part) -> str:
    """The part's name for people."""
    return _LABELS[part]


def compare(seen: Handshake) -> Comparison | None:
    """What became of a connection on its way; None where no witness answered, or nothing is known
    of what was sent.
    """
    told = seen.witness
    if told is None or seen.startup is None:
        return None
    sent, arrived = seen.client_hello, told.hello
    if sent is None and seen.startup_in_tls:
        return None  # a capture that lacks what was sent
    same = bool(sent and arrived and sent.sha256 == arrived.sha256)
    rows = [
        _row(Part.CONNECTION, seen.client or "?", printable(told.peer), changed=False),
        _proxy_header(seen, told),
        _row(
            Part.SSL_REQUEST,
            _yes(seen.opening is Opening.SSL_REQUEST),
            _yes(told.ssl_request) + (", with bytes behind it" if told.early else ""),
        ),
    ]
    if bool(sent) is not bool(arrived):
        rows.append(_row(Part.TLS, _yes(sent is not None), _yes(arrived is not None)))
    if sent and arrived:
        rows.append(
            _row(
                Part.CLIENT_HELLO,
                _hello(sent.size, sent.sha256),
                _hello(arrived.size, arrived.sha256),
                changed=not same,
            )
        )
        rows.append(
            _row(Part.SERVER_NAME, _name(sent.server_name), _name(arrived.server_name), same=same)
        )
        rows.append(_row(Part.ALPN, _protocols(sent.alpn), _protocols(arrived.alpn), same=same))
    if sent and arrived and same:
        rows.append(_row(Part.RECORDS, _count(seen.hello_records), _count(arrived.records)))
        rows.append(_row(Part.SEGMENTS, _count(seen.hello_segments), _count(arrived.reads)))
    rows.append(_startup(seen, told))
    return Comparison(
        attempt=seen.attempt,
        testimony=told,
        rows=tuple(rows),
        end_to_end=same and seen.startup_in_tls,
        again=arrived is not None and not same,
    )


def _row(
    part: Part, sent: str, arrived: str, *, changed: bool | None = None, same: bool = False
) -> Row:
    """A row; what is the ``same`` as a whole cannot have changed in a part."""
    differs = sent != arrived if changed is None else changed
    return Row(part, sent, arrived, differs and not same)


def _proxy_header(seen: Handshake, told: Arrival) -> Row:
    if told.proxy is None:
        arrived = "none"
    else:
        ends = f", from {told.proxy.source}" if told.proxy.source else ", without addresses"
        arrived = printable(f"version {told.proxy.version}{ends}")
    sent = "one without addresses" if seen.proxy_header else "none"
    ours = seen.proxy_header and told.proxy is not None and told.proxy.source is None
    return _row(Part.PROXY_HEADER, sent, arrived, changed=sent != arrived and not ours)


def _startup(seen: Handshake, told: Arrival) -> Row:
    assert seen.startup is not None
    message = startup_message(seen.startup.version, dict(seen.startup.parameters))
    return _row(
        Part.STARTUP,
        _hello(len(message), sha256(message).hexdigest()),
        _hello(told.startup.size, told.startup.sha256),
    )


def _hello(size: int, digest: str) -> str:
    return f"{size} bytes, SHA-256 {digest[:SHOWN_DIGEST]}…"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _name(name: str | None) -> str:
    return printable(name, 120) if name else "none"


def _protocols(names: tuple[str, ...]) -> str:
    """Each cut as a testimony cuts it, or shorter: what is equal stays equal."""
    shown = [printable(name, SHOWN_PROTOCOL) for name in names[:MAX_PROTOCOLS]]
    return printable(", ".join(shown), 120) if shown else "none"


def _count(number: int) -> str:
    return str(number)
