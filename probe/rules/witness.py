"""W: what a witness in the server's place says has arrived there."""

from __future__ import annotations

from collections.abc import Iterator

from probe.evidence import Evidence
from probe.finding import Certainty, Fix, Proof, Severity
from probe.rules import Found, rule
from probe.signs import witnessed
from probe.witness import Comparison, Part


def _proof(evidence: Evidence, told: Comparison, says: str) -> Proof:
    seen = next(h for h in evidence.handshakes if h.attempt == told.attempt)
    return evidence.proof(seen, says)


@rule("W601", "passthrough-proved", Severity.INFO)
def passthrough_proved(evidence: Evidence) -> Iterator[Found]:
    """The ClientHello arrived byte for byte at a witness, which finished TLS with it.

    What it says
        Where the server should be stands a witness (pgprobe witness). The SHA-256 of the
        ClientHello that reached it is that of the one that left here, and its answer came back
        inside the TLS session that this ClientHello began. Nobody on the way ended TLS.

    Why it matters
        It is the one thing that cannot be concluded from a server's answers alone: with a real
        server a proxy that ends TLS and starts it again looks much like the server. With the
        server back in place of the witness, channel binding, client certificates and
        sslmode=verify-full work through this route.

    On the wire
        Control: S, ServerHello, Finished, StartupMessage, and an ErrorResponse with SQLSTATE
        WT001 inside TLS. Its field D is a line of JSON; hello.sha256 in it is compared with the
        digest of the handshake message (01, three bytes of length, the body) that was sent.

    How it is told from its look-alikes
        T401 (tls-terminated) is proved where the digests differ or clear text arrived. W602
        (changed-on-the-way) tells what else differs: a PROXY header, an SSLRequest that somebody
        on the way answered, other segments. A hop that writes a testimony of its own on purpose
        is not seen; give the witness a certificate that you trust (--cert) and probe with
        sslmode=verify-full, and it cannot.

    What to change
        Nothing on the way. Put the server back in the place of the witness:
            kubectl delete pod pgprobe-witness
        and let the Service select the server's pods again.
    """
    told = witnessed(evidence)
    if told and told.end_to_end:
        hello = told.testimony.hello
        assert hello is not None
        yield Found(
            f"TLS passes through: the ClientHello ({hello.size} bytes) arrived byte for byte at a "
            "witness in the server's place",
            (_proof(evidence, told, f"SHA-256 {hello.sha256}, sent and arrived"),),
        )


@rule("W602", "changed-on-the-way", Severity.INFO)
def changed_on_the_way(evidence: Evidence) -> Iterator[Found]:
    """What a witness received differs from what was sent: the parts are named.

    What it says
        The message lists what was changed between here and the place of the server: another
        ClientHello, another name or ALPN in it, clear text instead of TLS, a PROXY header, an
        SSLRequest that did not arrive or that somebody else sent, other TLS records or segments,
        another StartupMessage. The evidence has what was sent and what arrived, part by part.

    Why it matters
        A part that is changed is a hop that understands it, and one that can break it. Most
        changes are meant: a PROXY header carries the client's address, a terminator is there to
        end TLS. It is a warning where TLS passes and SSLRequest does not: then servers of
        version 16 and older hang up, since they know no TLS that comes first.

    On the wire
        Field D of the witness's ErrorResponse (SQLSTATE WT001) against what this side sent:
        proxy, ssl_request, hello.sha256, hello.server_name, hello.alpn, hello.records,
        hello.reads, startup.sha256.

    How it is told from its look-alikes
        T401 (tls-terminated) says that TLS ends on the way, W601 (passthrough-proved) that it
        does not; this one says what was done. W603 (server-would-refuse): the change would make
        a PostgreSQL server hang up. Segments are counted by reads from a socket: two that arrive
        close together are read as one, so that a difference of segments alone may be nobody's
        doing, and is not reported unless the ClientHello was sent whole and arrived in pieces.
        The address of the TCP connection changes at every proxy and is no change here.

    What to change
        What is not meant. SSLRequest that does not arrive: the router should ask the server
        itself, as Traefik 3 does, or the server be of version 17 or later. A name that is lost
        where TLS starts again, HAProxy and nginx:
            server db-1 10.0.0.7:5432 ssl sni str(db-1.example.com) alpn postgresql
            proxy_ssl_server_name on;
        PROXY header: take send-proxy, proxy_protocol or the annotation of the load balancer
        away.
    """
    told = witnessed(evidence)
    if told is None:
        return
    changed = [part for part in told.changed if not (part is Part.SEGMENTS and _merged(told))]
    if not changed:
        return
    swallowed = told.end_to_end and Part.SSL_REQUEST in changed
    said = tuple(_proof(evidence, told, told.says(part)) for part in changed)
    yield Found(
        f"changed between here and the server's place: {', '.join(map(str, changed))}",
        said,
        severity=Severity.WARNING if swallowed else None,
    )


def _merged(told: Comparison) -> bool:
    """The pieces of a ClientHello were read together, or it was sent in pieces, too."""
    row = next(row for row in told.rows if row.part is Part.SEGMENTS)
    return int(row.sent) > 1 or int(row.arrived) <= 1


@rule("W603", "server-would-refuse", Severity.ERROR)
def server_would_refuse(evidence: Evidence) -> Iterator[Found]:
    """A witness was reached in a way in which a PostgreSQL server would hang up.

    What it says
        The connection reached the place of the server, and what arrived there is nothing that
        PostgreSQL takes: a PROXY header, no PROXY header where the witness was told to expect
        one, TLS without SSLRequest and without ALPN postgresql, or a ClientHello that did not
        wait for the S. The witness answers all the same, to say so.

    Why it matters
        With the server in its place every client fails here, and psql prints "server closed the
        connection unexpectedly". The server's log has "invalid length of startup packet" (a
        PROXY header), "received direct SSL connection request without ALPN protocol negotiation
        extension", or "received unencrypted data after SSL request".

    On the wire
        Field D of the witness's ErrorResponse (SQLSTATE WT001): proxy is set and proxy_expected
        is false, or the other way round; or ssl_request is false, hello is set and alpn is not
        postgresql; or early is true.

    How it is told from its look-alikes
        C107 (proxy-protocol-expected) and P507 (startup-unanswered) are what the same faults
        look like with a server or proxy in place that hangs up. W602 (changed-on-the-way) lists
        changes that a server bears. Started with --proxy-protocol, the witness stands for
        somebody who expects the header, and then it is its absence that is wrong. What other
        users, databases and passwords would meet is not said by a witness.

    What to change
        PROXY header: PostgreSQL has no option to read it. Take it away on the last hop:
            server db-1 10.0.0.7:5432               # HAProxy, without send-proxy
            proxy_protocol off;                     # nginx stream
        TLS without SSLRequest: let the last hop dial as a client does, or let TLS pass; with
        servers of 17 and later direct TLS needs ALPN:
            server db-1 10.0.0.7:5432 ssl verify required ca-file ca.crt alpn postgresql
    """
    told = witnessed(evidence)
    reason = told.testimony.refused if told else None
    if told and reason:
        yield Found(
            f"it reaches the server's place, and a PostgreSQL server there would hang up: {reason}",
            (_proof(evidence, told, f"the witness was reached from {told.testimony.peer}"),),
            Certainty.PROVED,
            fix=(Fix("gateway", "change what the last hop sends: see pgprobe explain W603"),),
        )
