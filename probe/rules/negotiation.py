"""N: SSLRequest and its one-byte answer."""

from __future__ import annotations

from collections.abc import Iterator

from probe.evidence import Evidence, Variation, asking, breaks_on_request, foreign_answer, host_of
from probe.fate import broke_off, in_words, placeholder, said_nothing_in_tls, selects_alpn
from probe.finding import Certainty, Fix, Proof, Severity
from probe.handshake import Handshake, Opening, Outcome, Stage
from probe.path import dead_backend
from probe.refusal import reaches_server, refuses_alpn
from probe.rules import Found, rule
from probe.signs import TlsEnd, decide, signs_of
from probe.transcript import Asked

USE_STARTTLS_ROUTER = Fix(
    "gateway",
    "use a router that answers SSLRequest itself and then reads the name: Traefik 3 (HostSNI with "
    "tls.passthrough)",
)
USE_DIRECT = Fix(
    "client", "sslnegotiation=direct with libpq 17 or later, and a server of version 17 or later"
)
USE_TCP = Fix("gateway", "give the database a port or address of its own (TCPRoute, plain TCP)")


def direct_peer(evidence: Evidence) -> tuple[Handshake, TlsEnd, Certainty] | None:
    """Who finishes TLS on a bare ClientHello, and how sure that is; None: nobody does."""
    finished = [
        seen
        for asked in (Asked.TARGET, Asked.OTHER)
        for alpn in (True, False)
        for seen in evidence.all(Opening.DIRECT_TLS, asked, alpn=alpn)
        if seen.established and not placeholder(seen)
    ]
    if not finished:
        return None
    best = finished[0]
    signs = tuple(signs_of(evidence, Opening.DIRECT_TLS))
    end = decide(signs)
    if end is not TlsEnd.UNKNOWN:
        # a proxy that re-encrypts shows itself only where no ALPN is offered
        closer = evidence.one(Opening.DIRECT_TLS, alpn=False) is not None
        sure = closer if end is TlsEnd.SERVER else any(s.decides for s in signs)
        return best, end, Certainty.PROVED if sure else Certainty.LIKELY
    if selects_alpn(best) and reaches_server(best):
        return best, TlsEnd.SERVER, Certainty.LIKELY
    if best.lacks_alpn:
        return best, TlsEnd.PROXY, Certainty.LIKELY
    offering = evidence.direct
    if offering and refuses_alpn(offering):
        return best, TlsEnd.PROXY, Certainty.LIKELY
    return best, TlsEnd.UNKNOWN, Certainty.POSSIBLE


def no_route_but_tls(evidence: Evidence) -> bool:
    """A bare ClientHello gets a placeholder: that TLS peer is for names without a route."""
    bare = evidence.one(Opening.DIRECT_TLS, alpn=False)
    return bare is not None and placeholder(bare) is not None


@rule("N201", "sni-router-without-starttls", Severity.ERROR, starttls=True)
def sni_router_without_starttls(evidence: Evidence) -> Iterator[Found]:
    """The router takes a bare ClientHello by name to the server, and breaks on SSLRequest.

    What it says
        The listener expects TLS from the first byte. A bare ClientHello with the asked name
        passes to a PostgreSQL server, and SSLRequest, which every client sends first by
        default, is closed, left without an answer, or answered with a raw TLS alert.

    Why it matters
        Default clients of every version fail; only direct TLS gets in (libpq 17+ and drivers
        with that mode). psql prints "server closed the connection unexpectedly", or waits. A
        test with a plain TLS client succeeds, as does the conformance test for TLSRoute, so the
        gateway looks healthy (envoyproxy/gateway#4594, istio/istio#58121).

    On the wire
        Attempt ssl-request: 00 00 00 08 04 d2 16 2f out; FIN or RST at once, silence, or an
        alert such as 15 03 01 00 02 02 46 back. Attempt direct: 16 03 01 ... with SNI and ALPN
        out, ServerHello and the server's certificate back, then an authentication request.
        Attempt direct-unknown-name shows whether the name decides.

    How it is told from its look-alikes
        N202 (tls-terminator-without-starttls): the TLS peer is not the server. Separated by
        direct and direct-no-alpn: -PLUS and ALPN selected speak for the server, authentication
        without ALPN or alert 120 for a proxy. C105, C106 (accepts-then-closes, -silent): direct
        gets no byte; a server of 16 or older behind such a router gives that, and cannot be
        told from a dead backend. S302 (name-ignored): the router has a default route and
        SSLRequest is answered. T411: TLS is heard, no handshake completes. Where pg_hba offers
        no SASL, likely.

    What to change
        A router that answers SSLRequest itself. Traefik v3 (v2 cannot), IngressRouteTCP:
            entryPoints: [postgres]
            routes:
            - match: HostSNI(`db-1.example.com`)
              services: [ { name: db-1, port: 5432 } ]
            tls: { passthrough: true }
        A TLSRoute served by Traefik v3 does the same. Client, with both ends at 17 or later (and
        gssencmode=disable where it may hold a Kerberos ticket):
            host=db-1.example.com sslmode=require sslnegotiation=direct
        Otherwise give each database a port or address: a TCP listener with a TCPRoute, HAProxy
        mode tcp with default_backend alone, nginx stream with proxy_pass and without
        ssl_preread. Envoy's SNI filter chains cannot choose by name in the two-step flow
        (envoyproxy/envoy#40194).
    """
    broken, peer = breaks_on_request(evidence), direct_peer(evidence)
    if broken is None or peer is None or foreign_answer(evidence):
        return
    seen, end, certainty = peer
    # a conversation that offered ALPN and went on, captured without its keys
    sealed = "authentication" in seen.not_captured and seen.alpn_offered
    if end is TlsEnd.UNKNOWN and sealed:
        end, certainty = TlsEnd.SERVER, Certainty.LIKELY
    if end is not TlsEnd.SERVER:
        return
    lost = evidence.one(Opening.DIRECT_TLS, Asked.UNKNOWN)
    proofs = [evidence.proof(broken), evidence.proof(seen)]
    by_name = lost is not None and evidence.same_place(seen, lost) is not True
    if lost and by_name:
        proofs.append(evidence.proof(lost))
    beside = ""
    if seen.asked is Asked.OTHER and evidence.direct:
        beside = f"; the asked name itself is {in_words(evidence.direct)} there"
        proofs.append(evidence.proof(evidence.direct))
    what = "routes a bare ClientHello by name" if by_name else "passes a bare ClientHello on"
    if sealed:
        beside += "; who ends TLS there is not to be seen without its keys"
    yield Found(
        f"the listener {what} to the server, and SSLRequest is {in_words(broken)}: it expects "
        f"TLS first, and a PostgreSQL client asks for TLS first{beside}",
        tuple(proofs),
        certainty,
        fix=(USE_STARTTLS_ROUTER, USE_DIRECT, USE_TCP),
    )


@rule("N202", "tls-terminator-without-starttls", Severity.ERROR, starttls=True)
def tls_terminator_without_starttls(evidence: Evidence) -> Iterator[Found]:
    """TLS is ended on the port by somebody who is not the server, and SSLRequest breaks.

    What it says
        The listener finishes TLS itself, and only for a client that starts with a ClientHello.
        SSLRequest is closed, left unanswered, or met with a raw TLS alert. The TLS peer is not
        PostgreSQL, so passthrough is not what is configured here.

    Why it matters
        Default clients do not get in; psql prints "server closed the connection unexpectedly",
        or "received invalid response to SSL negotiation" followed by an odd byte for an alert.
        Direct TLS is no way out as a rule: without ALPN libpq stops at "direct SSL connection
        was established without ALPN protocol negotiation extension".

    On the wire
        Attempt ssl-request: 00 00 00 08 04 d2 16 2f out; FIN, RST, or a record such as 15 03 01
        00 02 02 46 (alert 70, protocol_version) back. Attempts direct and direct-no-alpn:
        ClientHello out, the edge's certificate back for any name. StartupMessage inside is then
        answered with SCRAM-SHA-256 alone where the leg behind is clear text.

    How it is told from its look-alikes
        N201 (sni-router-without-starttls): the peer of direct is the server. direct-no-alpn
        decides best: PostgreSQL never authenticates over direct TLS without ALPN, a proxy does,
        even one that re-encrypts and lets -PLUS through. N204 (not-postgresql) wins where HTTP
        is heard. Alert 120 beside a handshake that finishes without ALPN counts as proof; a
        weaker sign gives likely. An SNI router that shows a placeholder certificate, since it
        has no route for the asked name, is left to T411 (tls-handshake-failed). Not separable:
        one that says so with alert 120 alone. Try a name that is surely routed.

    What to change
        Let TLS pass, through a router that knows StartTLS. Gateway API, served by Traefik v3:
            listeners:
            - { name: pg, port: 5432, protocol: TLS, tls: { mode: Passthrough } }
        AWS NLB: a TCP listener instead of a TLS listener. HAProxy and nginx, plain TCP:
            bind :5432                              # without ssl crt ...
            listen 5432;                            # without ssl
        If TLS has to end at the edge, use a proxy that answers SSLRequest: Traefik v3 with a
        TLSOption alpnProtocols: [postgresql], PgBouncer, Caddy layer4 postgres_tls, or Envoy
        postgres_proxy. nginx and HAProxy can end direct TLS only; nginx then needs
            ssl_alpn postgresql;
        and a plain upstream, or channel binding fails.
    """
    broken, peer = breaks_on_request(evidence), direct_peer(evidence)
    if broken is None or foreign_answer(evidence):
        return
    offering = evidence.direct
    if peer and peer[1] is TlsEnd.PROXY:
        seen, _, certainty = peer
    elif peer is None and offering and refuses_alpn(offering) and not no_route_but_tls(evidence):
        seen, certainty = offering, Certainty.LIKELY
    else:
        return
    signs = [s.proof for s in signs_of(evidence, Opening.DIRECT_TLS) if s.end is TlsEnd.PROXY]
    yield Found(
        f"the listener ends TLS itself, for a bare ClientHello only; SSLRequest is "
        f"{in_words(broken)}",
        (evidence.proof(broken), *(signs or [evidence.proof(seen)])),
        certainty,
        fix=(
            Fix("gateway", "let TLS pass (TLSRoute Passthrough, or plain TCP) to the server"),
            USE_STARTTLS_ROUTER,
            USE_TCP,
        ),
    )


@rule("N203", "tls-refused", Severity.ERROR, starttls=True)
def tls_refused(evidence: Evidence) -> Iterator[Found]:
    """SSLRequest is answered with N: whoever answers speaks PostgreSQL and offers no TLS.

    What it says
        The answer is the single byte N. That is a well-formed refusal of TLS by the server, a
        pooler or a proxy, and not a broken route: somebody understood the question.

    Why it matters
        With sslmode=require or stronger the client stops and reports that the server does not
        support SSL. With prefer, which is libpq's default, it goes on in clear text and says
        nothing. A router by SNI is never reached by a name, because no ClientHello follows.

    On the wire
        00 00 00 08 04 d2 16 2f out, 4e back in the first attempt that sends SSLRequest. The
        connection stays open; a StartupMessage in clear would be legal on it. Attempt startup
        tries clear text on a connection of its own. Attempts that need an S are not made.

    How it is told from its look-alikes
        P506 (plaintext-fallback) says that clear text is then let in; attempt startup shows it.
        N206 (error-before-tls): an ErrorResponse instead of N. N204 (not-postgresql): the N
        begins some other protocol's words. C105 and N201 (accepts-then-closes,
        sni-router-without-starttls): a close is no answer, N is one. S309
        (backend-down-or-without-tls): a router says S in front of such a server and then
        closes. Where a bare ClientHello reaches a server, the N is somebody's in front of it, and
        the message says so. Else not separable: an N of the server, which a plain forwarder
        relays, and an N of a pooler or proxy in front of a server that has TLS.

    What to change
        postgresql.conf, on a server that is built with SSL:
            ssl = on
            ssl_cert_file = 'server.crt'
            ssl_key_file = 'server.key'
        PgBouncer, for its clients:
            client_tls_sslmode = require
            client_tls_cert_file = /etc/pgbouncer/tls.crt
            client_tls_key_file = /etc/pgbouncer/tls.key
        Then refuse clear text in pg_hba.conf with hostssl instead of host, and set
        sslmode=require or stronger in the clients. If TLS is wanted only at the edge, the edge
        has to answer SSLRequest itself, as Traefik v3 does; a plain TCP proxy relays the N.
    """
    seen, direct = asking(evidence), evidence.direct
    if seen and seen.ssl_answer == "N" and not seen.foreign:
        says_n = Proof(seen.door, seen.attempt, Stage.SSL_REQUEST.value, "N: no TLS here")
        if direct and reaches_server(direct):
            yield Found(
                "SSLRequest is answered with N, and a bare ClientHello reaches a server: who says "
                "N stands in front of it",
                (says_n, evidence.proof(direct)),
                fix=(Fix("gateway", "relay SSLRequest to the server, or answer it with S"),),
            )
            return
        yield Found(
            "SSLRequest is answered with N: no TLS here",
            (says_n,),
            fix=(
                Fix("server", "ssl = on, with ssl_cert_file and ssl_key_file"),
                Fix("pooler", "PgBouncer: client_tls_sslmode = require, with key and certificate"),
            ),
        )


@rule("N204", "not-postgresql", Severity.ERROR, starttls=True)
def not_postgresql(evidence: Evidence) -> Iterator[Found]:
    """Another protocol answers: HTTP, SSH, MySQL, an echo, or one that nobody knows.

    What it says
        The bytes that came are not PostgreSQL. They came in clear instead of S or N, unasked as
        a greeting, or inside TLS in answer to StartupMessage. The message names the protocol
        where its first words are known and quotes them.

    Why it matters
        No client gets in. psql prints "received invalid response to SSL negotiation: H" for
        HTTP, or another letter. Applications turn that into advice to enable SSL on the server,
        which is wrong (PostHog/posthog#64612). An SSH banner begins with S, so a client takes
        it for a yes.

    On the wire
        Attempt ssl-request: 00 00 00 08 04 d2 16 2f out; back come 48 54 54 50 2f 31 (HTTP/1),
        53 53 48 2d (SSH-), a MySQL packet whose first byte is its length, or our own bytes.
        Attempt silent: a greeting without a question. Attempts with TLS: a text inside TLS
        where an authentication request should be, as an HTTPS server gives it.

    How it is told from its look-alikes
        N205 (bytes-after-ssl-answer): an S with unknown bytes behind it; a protocol that begins
        with S and is not known here is told as N205. N203 (tls-refused): an N alone. N206
        (error-before-tls): a well-formed ErrorResponse. N202 (tls-terminator-without-starttls):
        a raw TLS alert is that finding's sign, not this one's; where the peer speaks HTTP
        inside TLS, this one wins. Once S and TLS lead to StartupMessage without foreign words,
        a greeting on attempt silent is not held against the listener. Unknown protocols are
        likely, not proved.

    What to change
        First check host and port. Gateway API: a listener of its own for the database, with a
        TLSRoute (Passthrough) or TCPRoute; an HTTPRoute cannot carry it:
            listeners:
            - { name: pg, port: 5432, protocol: TLS, tls: { mode: Passthrough } }
        Traefik v3: an entry point apart from web and websecure, with an IngressRouteTCP:
            entryPoints: [postgres]
        ingress-nginx: a line in the tcp-services map, which forwards a whole port:
            "5432": "default/db-1:5432"
        Some implementations merge HTTP and TLS listeners into one (cilium/cilium#39929). AWS: a
        TCP listener on an NLB, not an HTTP load balancer. ShardingSphere proxy: set its
        protocol to PostgreSQL (apache/shardingsphere#18578). PROXY text towards the client:
        switch it off.
    """
    seen = foreign_answer(evidence)
    if seen is None or seen.foreign is None:
        return
    where = " inside TLS" if seen.foreign_in_tls else ""
    how = "unasked" if seen.opening is Opening.NOTHING else "where PostgreSQL should"
    known = not seen.foreign.protocol.startswith("an unknown")
    yield Found(
        f"{seen.foreign.protocol} answers{where} {how}: '{seen.foreign.says}'",
        (evidence.proof(seen),),
        Certainty.PROVED if known else Certainty.LIKELY,
        fix=(
            Fix("client", "check host and port: this is another service"),
            Fix("gateway", "route the port as TCP or TLS passthrough, not as HTTP"),
        ),
    )


@rule("N205", "bytes-after-ssl-answer", Severity.ERROR, from_documents=True, starttls=True)
def bytes_after_ssl_answer(evidence: Evidence) -> Iterator[Found]:
    """Clear bytes stand behind the S, before any ClientHello was sent.

    What it says
        SSLRequest was answered with S and with more. The surplus arrived in clear text before
        the client had said anything further, so it cannot be part of a TLS handshake. No server
        and no proxy that was measured does this.

    Why it matters
        An S and what follows it are not authenticated. Surplus bytes look like a man in the
        middle who wants his text taken for the server's (CVE-2021-23222). libpq prints
        "received unencrypted data after SSL response" and leaves; Npgsql and PgBouncer refuse
        as well.

    On the wire
        The first attempt with SSLRequest: 00 00 00 08 04 d2 16 2f out, 53 and at least one more
        byte back, in the same segment or a later one, before a ClientHello is sent. What
        follows is not read as TLS. The attempt pipelined-hello does not count: there a
        ServerHello may rightly share the segment of the S.

    How it is told from its look-alikes
        N204 (not-postgresql): a banner known by its first words, such as SSH-, is named as that
        protocol. Attempt silent helps with the rest: a greeting that comes unasked is another
        service. An unknown protocol whose first letter is S cannot be separated from glued
        bytes. N206 (error-before-tls) begins with E. The mirror image, a client whose own bytes
        stand behind SSLRequest, ends in "received unencrypted data after SSL request" and is
        the checker's fault (prometheus/blackbox_exporter#1657). Told from documents: at most
        likely.

    What to change
        Nothing may stand between the S and the ServerHello. Compare with the server asked
        directly, then go hop by hop with --door until the surplus appears. A proxy must not put
        banners, PROXY headers or a second S in front of TLS. A proxy that answers S itself has
        to read the server's own S and drop it, as Traefik v3 does. HAProxy and nginx: no PROXY
        header towards clients, only towards servers that expect it. Where no hop explains it,
        treat the network as hostile. Clients are to insist on TLS and on the certificate:
            sslmode=verify-full sslrootcert=/etc/ssl/db-ca.crt
    """
    seen = evidence.with_opening(Opening.SSL_REQUEST)
    if seen and seen.glued and not foreign_answer(evidence):
        yield Found(
            f"{len(seen.glued)} clear bytes stand behind the S: clients take that for an attack "
            "(CVE-2021-23222) and leave",
            (evidence.proof(seen),),
            fix=(Fix("gateway", "nothing may be sent between the S and the ServerHello"),),
        )


@rule("N206", "error-before-tls", Severity.ERROR, starttls=True)
def error_before_tls(evidence: Evidence) -> Iterator[Found]:
    """SSLRequest is answered with an ErrorResponse in clear.

    What it says
        Instead of S or N an ErrorResponse came, before any TLS. The protocol allows it: a
        server that cannot begin a session says so at once, whatever it is asked; a very old one
        does not know SSLRequest; and a proxy may put its own trouble into this form.

    Why it matters
        No client that insists on TLS gets in. A client must not show the text, because nobody
        is authenticated yet (CVE-2024-10977), so its user sees a general failure. pgjdbc
        connects again without TLS after an E, unless TLS is required.

    On the wire
        00 00 00 08 04 d2 16 2f out; 45, a length of four bytes and fields such as severity,
        code and message back, then usually FIN. The evidence quotes code and text, which are to
        be read as hearsay. A field R (routine) would point to a real PostgreSQL; poolers and
        stunnel leave it out. Measured: a PostgreSQL that may start no more processes says 45, a
        text and a zero byte, in the form of protocol 2: no length and no code. It does not wait
        for the request, so in a capture the answer may stand before it.

    How it is told from its look-alikes
        N203 (tls-refused): N is a refusal of TLS, not an error. P503 (startup-refused): the
        error comes inside TLS, in answer to StartupMessage. N204 (not-postgresql): bytes that
        begin with E and do not decode as an ErrorResponse. N207 (gssencrequest-breaks): an E to
        GSSENCRequest belongs to that attempt and is not counted here. From the byte alone it
        cannot be told whether server, pooler or proxy speaks; ask the server directly with
        --door. Overload passes, so repeat before changing anything.

    What to change
        Read the server's log for the time of the run. Where the error says 53300, free or add
        connections, in postgresql.conf:
            max_connections = 200
            superuser_reserved_connections = 3
        or put a pooler in front. "could not fork" without a code: the server's host or pod has
        no process left; raise what limits them (ulimit -u, TasksMax= of systemd, podPidsLimit of
        the kubelet). Where the server's log has no trace, the proxy speaks: check
        its upstream and its limits, for PgBouncer
            max_client_conn = 1000
        A server that does not know SSLRequest at all is to be upgraded. Client: sslmode=require
        or stronger, so that an E is never followed by clear text.
    """
    seen = evidence.with_opening(Opening.SSL_REQUEST)
    if seen and seen.ssl_answer == "E":
        yield Found(
            f"SSLRequest is answered with an error instead of S or N: {in_words(seen)}",
            (evidence.proof(seen),),
            fix=(
                Fix("server", "look into its log: it could not even begin the session"),
                Fix("gateway", "a proxy in front may be the one that says it: check its upstream"),
            ),
        )


@rule("N207", "gssencrequest-breaks", Severity.WARNING)
def gssencrequest_breaks(evidence: Evidence) -> Iterator[Found]:
    """GSSENCRequest gets no answer where others get one: clients with Kerberos tickets fail.

    What it says
        The listener answers SSLRequest and does not cope with GSSENCRequest: it closes, stays
        silent, sends something that is no answer, or says N and then leaves the SSLRequest on
        the same connection unanswered. In a capture in which nobody says SSLRequest, a client
        that gets through with direct TLS stands for it.

    Why it matters
        libpq built with GSSAPI opens with GSSENCRequest when a ticket is cached, with
        sslnegotiation=direct as well; Npgsql does so from version 10 when Kerberos gives a
        token. psql prints "server closed the connection unexpectedly" or hangs, on these
        machines only. The fault follows the workstation, which hides it
        (gravitational/teleport#6284, postgresml/pgcat#792).

    On the wire
        Control: 00 00 00 08 04 d2 16 2f out, S or N back. Attempt gssenc-request: 00 00 00 08
        04 d2 16 30 out, which differs in the last byte alone; then a close, a reset or silence
        where G or N should come. After an N the attempt sends SSLRequest on the same connection
        and waits for its answer. Traefik's TLS entry points let GSSENCRequest hang.

    How it is told from its look-alikes
        N201 (sni-router-without-starttls) and C105 (accepts-then-closes) break on SSLRequest
        too; this finding requires that it is answered, or not said. P501 (cancel-not-routable)
        is the like fault for CancelRequest, often beside it. G, N with a working SSLRequest, and
        an ErrorResponse are not counted: G is what distribution servers say even without a
        keytab. Whether GSSAPI works after the G is not tested. Silence gives likely, since a
        full pooler or a slow server is silent as well; a close or a wrong byte gives proved. A
        single drop looks alike: repeat.

    What to change
        Client, until the proxy learns it; the first in the connection string, the second in the
        environment, the third in pgjdbc's URL:
            gssencmode=disable
            PGGSSENCMODE=disable
            gssEncMode=disable
        Proxy: answer the 8 bytes with N and read on, for the client goes on with SSLRequest on
        the same connection. Plain TCP forwarding (TCPRoute, HAProxy mode tcp, nginx stream)
        passes GSSENCRequest on to the server and needs nothing. Traefik has no option for it. A
        client that wants direct TLS after a refused GSS request has to connect again.
    """
    beside, seen = _let_in(evidence), evidence.one(Opening.GSSENC_REQUEST)
    if beside is None or seen is None:
        return
    control, how = beside
    unanswered = seen.ssl_answer is None and broke_off(seen)
    dead_end = seen.gss_answer == "N" and (unanswered or seen.ssl_answer == "other")
    left_unanswered = seen.gss_answer is None and broke_off(seen)
    if left_unanswered or dead_end or seen.gss_answer == "other":
        behind = " (the SSLRequest behind its N)" if dead_end else ""
        yield Found(
            f"GSSENCRequest{behind} is {in_words(seen)}, where {how}: clients with a Kerberos "
            "ticket (libpq, Npgsql 10) begin with it",
            (evidence.proof(control), evidence.proof(seen)),
            Certainty.LIKELY if seen.outcome is Outcome.SILENT else Certainty.PROVED,
            fix=(
                Fix("client", "gssencmode=disable (PGGSSENCMODE), where tickets are not for this"),
                Fix("gateway", "answer GSSENCRequest with N"),
            ),
        )


def _let_in(evidence: Evidence) -> tuple[Handshake, str] | None:
    """Who fares better than GSSENCRequest may, and how; what SSLRequest gets counts first."""
    asking, direct = map(evidence.with_opening, (Opening.SSL_REQUEST, Opening.DIRECT_TLS))
    if asking:
        return (asking, "SSLRequest is answered") if asking.ssl_answer in ("S", "N") else None
    if direct and direct.established:
        return direct, "direct TLS gets through"
    return None


@rule("N208", "split-ssl-request-breaks", Severity.WARNING)
def split_ssl_request_breaks(evidence: Evidence) -> Iterator[Found]:
    """SSLRequest is answered only when its eight bytes arrive in one segment.

    What it says
        The same 8 bytes were sent once in one piece and once in two pieces of 4 bytes. The
        first were answered, the second were not, or otherwise. The peer decides on what its
        first read returns instead of collecting the whole message.

    Why it matters
        TCP promises the order of bytes, not their grouping. Today's clients write SSLRequest at
        once, so the fault shows only now and then: through tunnels, sidecars and middleboxes
        that cut segments. The user sees a lost connection that nobody can repeat.

    On the wire
        Control: 00 00 00 08 04 d2 16 2f out in one segment, S or N back. Attempt split-request:
        00 00 00 08, a pause of 30 ms, 04 d2 16 2f; then a close, a reset, silence or another
        byte comes back. Only the cut differs. A PostgreSQL server waits for the whole packet
        and answers both alike.

    How it is told from its look-alikes
        S305 (split-client-hello-breaks) is the same mistake one message later; there SSLRequest
        passes and the ClientHello is cut. N201 and N205 (sni-router-without-starttls,
        bytes-after-ssl-answer) concern the uncut SSLRequest. An answer such as E to the cut one
        is not counted, nor is a peer whose control got neither S nor N. Not separable from a
        single run: a peer that drops a connection now and then, or one with a very short limit
        for its first read. So the finding is never more than likely; repeat it before you
        report it.

    What to change
        It is a defect of the program that reads SSLRequest; the server and the routes are in
        order. Find the hop with --door, outermost first, then: Proxy: read until 8 bytes have
        come, or until the length in the first 4 is complete, and decide only then. Report it to
        the project with both attempts, as --record writes them:
            pgprobe db-1.example.com --attempts all --record split.pcapng
        Until then route around it: plain TCP (TCPRoute, HAProxy mode tcp, nginx stream) carries
        the pieces to the server unread. Direct TLS has no SSLRequest to cut, for clients and
        servers of 17 or later:
            sslmode=require sslnegotiation=direct
    """
    control = evidence.control
    seen = evidence.one(variation=Variation.SPLIT_REQUEST)
    if control is None or seen is None or control.ssl_answer not in ("S", "N"):
        return
    if seen.ssl_answer != control.ssl_answer and (broke_off(seen) or seen.ssl_answer == "other"):
        yield Found(
            f"SSLRequest in two segments is {in_words(seen)}, in one it is answered with "
            f"{control.ssl_answer}",
            (evidence.proof(control), evidence.proof(seen)),
            Certainty.LIKELY,
            fix=(Fix("gateway", "read on until eight bytes have come before deciding"),),
        )


@rule("N209", "silent-after-ssl-answer", Severity.ERROR, starttls=True, unless=("C109",))
def silent_after_ssl_answer(evidence: Evidence) -> Iterator[Found]:
    """S is answered, and then nothing, whatever name is asked for.

    What it says
        SSLRequest is answered with S. The ClientHello behind it stays without any byte until
        the time-out, for the asked name and for all other names that were tried. A bare
        ClientHello does not finish TLS either, or was not tried.

    Why it matters
        Every client that asks for TLS hangs. psql waits without a word; with sslmode=prefer
        there is not even a reason to fall back, because nothing has failed. A health check that
        is content with the S stays green.

    On the wire
        Attempt ssl-request: 00 00 00 08 04 d2 16 2f out, 53 back, 16 03 01 ... out, then
        silence. Attempts unknown-name and other-name: the same. Attempt direct: no finished
        handshake. The S takes one byte; a ClientHello has some hundred, and a server's flight
        some thousand.

    How it is told from its look-alikes
        S309 (backend-down-or-without-tls): the asked name is silent and an unknown one is
        closed, so there is a route. S301 (name-not-routed): S and then a close. C106
        (accepts-then-silent): not even the S. T411 (tls-handshake-failed): a ServerHello, an
        alert or a close came. P507 (startup-unanswered): TLS finishes. Not separable: a proxy
        that waits for its upstream, a path that swallows larger packets, and a proxy that lost
        the ClientHello (Traefik 3.6.11 when it terminates). With no other name tried: possible.

    What to change
        Check the upstream from the proxy's side, and give the proxy a limit for it. HAProxy:
            timeout connect 3s
        Path MTU: allow ICMP "fragmentation needed", or clamp the MSS on the tunnel's router:
            nft add rule inet filter forward tcp flags syn tcp option maxseg size set rt mtu
        Traefik: leave 3.6.11 for 3.6.12 (traefik/traefik#12842, #12866). Poolers that fork in
        advance: raise the number of children, since silence also comes from a full house.
        Client: connect_timeout, so that the hang ends.
    """
    control = evidence.control
    if control is None or not said_nothing_in_tls(control):
        return
    if control.outcome is not Outcome.SILENT:
        return
    named = [seen for seen in (evidence.unknown, *evidence.others) if seen]
    if any(seen.outcome is not Outcome.SILENT for seen in named):
        return
    direct = evidence.direct
    if (direct and direct.established) or dead_backend(evidence):
        return
    yield Found(
        "SSLRequest is answered with S, and the ClientHello behind it with nothing"
        + (", whatever the name" if named else ""),
        tuple(evidence.proof(seen) for seen in (control, *named)),
        Certainty.PROVED if named else Certainty.POSSIBLE,
        fix=(
            Fix("gateway", "check the upstream: whoever says S may be waiting for it"),
            Fix("network", "check the path MTU: small packets pass, a ClientHello may not"),
        ),
    )


@rule("N210", "tls-not-asked", Severity.WARNING)
def tls_not_asked(evidence: Evidence) -> Iterator[Found]:
    """A client begins with StartupMessage in clear, and never asks for TLS.

    What it says
        The client was not refused TLS: it did not ask for it. Its first packet is a
        StartupMessage, in clear, and no other connection of the same client at this server asks
        for TLS either.

    Why it matters
        User, database, queries and results pass in clear, and with some methods the password
        does. A router that chooses by server_name never sees a name, and sends such a client to
        its default backend or nowhere. The server's settings cannot be blamed: with ssl = on it
        still takes clients that do not ask, unless pg_hba.conf says otherwise.

    On the wire
        SYN, SYN-ACK, then at once 00 00 00 xx 00 03 00 00 and the parameters; no SSLRequest
        (00 00 00 08 04 d2 16 2f) and no ClientHello before it.

    How it is told from its look-alikes
        N203 (tls-refused) has an SSLRequest and an N before the StartupMessage: there the server
        said no. P506 (plaintext-fallback) is a client that asked, did not get through, and came
        again in clear; such a client does not fire this, as it asked. It is told of captures
        alone: a live run sends a StartupMessage in clear on purpose. Not separable: sslmode
        disable, a driver without TLS, and sslmode=allow, which asks only after a refusal.

    What to change
        Client: ask for TLS, and insist on it:
            psql "host=db-1.example.com sslmode=require"
            jdbc:postgresql://db-1.example.com/app?sslmode=require
        pg_hba.conf, so that nobody gets in without:
            hostssl   all  all  all  scram-sha-256
            hostnossl all  all  all  reject
    """
    if not evidence.question.strangers:
        return
    for seen in evidence.handshakes:
        if seen.opening is Opening.STARTUP and host_of(seen.client) not in evidence.ask_for_tls:
            yield Found(
                "the client never asked for TLS: it begins with StartupMessage, in clear",
                (evidence.proof(seen, "StartupMessage is the first packet; no SSLRequest"),),
                fix=(
                    Fix("client", "sslmode=require or stronger"),
                    Fix("server", "pg_hba.conf: hostssl instead of host"),
                ),
            )
            return


@rule("N211", "stops-at-gssencrequest", Severity.ERROR, unless=("N207",))
def stops_at_gssencrequest(evidence: Evidence) -> Iterator[Found]:
    """A client asks for GSSAPI encryption, gets no answer, and never gets to ask for TLS.

    What it says
        The client holds a Kerberos ticket, so it began with GSSENCRequest. The answer should be
        one byte, G or N; it was a close, silence, or something else, and the same client tried
        nothing else at this server.

    Why it matters
        To its user it is a database that hangs or hangs up, on this machine only: a colleague
        without a ticket gets in. It depends on kinit having run, not on any database setting, and
        seems to come and go. libpq 14 to 18 ends there, whatever sslmode and sslnegotiation say;
        it comes again without GSSAPI only after an ErrorResponse, or a G that it cannot use. An
        expired ticket counts as well. psycopg's binary packages ask only when told to.

    On the wire
        00 00 00 08 04 d2 16 30, the last byte being the only difference from SSLRequest, and
        then FIN, RST, a TLS alert or nothing. Or N, the client's SSLRequest on the same
        connection, and nothing to that.

    How it is told from its look-alikes
        N207 (gssencrequest-breaks) knows more, namely that others are answered here, and is told
        instead where other connections show that. N201 and C105 are about listeners that break
        on SSLRequest as well; whether this one does, nobody asked. It is told of captures alone,
        since a live run asks in every way. Not separable: a server that is down behind a proxy
        that accepts, from one that does not know GSSENCRequest.

    What to change
        Client, at once; kdestroy helps as well, and direct TLS alone does not:
            PGGSSENCMODE=disable psql "host=db-1.example.com sslmode=require"
        Gateway: use one that answers GSSENCRequest with N (PgBouncer does, Traefik 3 lets it
        hang), or pass the port on as plain TCP: PostgreSQL answers it in any build.
    """
    if not evidence.question.strangers:
        return
    for seen in evidence.handshakes:
        if seen.opening is not Opening.GSSENC_REQUEST or seen.ssl_answer in ("S", "N", "E"):
            continue
        unanswered = seen.gss_answer in (None, "N") and broke_off(seen)
        elsewhere = host_of(seen.client) in evidence.ask_for_tls
        if (unanswered or seen.gss_answer == "other") and not elsewhere:
            yield Found(
                f"a client with a Kerberos ticket stops at GSSENCRequest, which is "
                f"{in_words(seen)}, and never gets to ask for TLS",
                (evidence.proof(seen),),
                Certainty.LIKELY,
                fix=(
                    Fix("client", "gssencmode=disable (PGGSSENCMODE)"),
                    Fix("gateway", "answer GSSENCRequest with N"),
                ),
            )
            return


LEAST_DELAY = 1.9  # seconds that no server needs to say S
ROUND_WITHIN = 0.1  # seconds from a whole number that a timer and a path may add
CUSTOMARY_DELAY = 5  # seconds, of HAProxy's and others' examples


@rule("N212", "late-ssl-answer", Severity.WARNING)
def late_ssl_answer(evidence: Evidence) -> Iterator[Found]:
    """SSLRequest is answered only after a round number of seconds: somebody waits for TLS first.

    What it says
        The answer comes, and comes late, and the wait is a whole number of seconds. Nobody
        computes for so long: a timer ran out. A router waits for a ClientHello to read the name
        from, which a PostgreSQL client does not send before it has its S, and then goes on with
        its default route.

    Why it matters
        Each new connection costs that wait. Pools that open many at once time out, and clients
        with a short connect_timeout never get in. When the timer ends no name has been seen: all
        databases lead to the default backend.

    On the wire
        00 00 00 08 04 d2 16 2f, nothing for 5.0 s (HAProxy: inspect-delay, nginx:
        preread_timeout, Envoy: listener_filters_timeout), then S and an ordinary handshake.

    How it is told from its look-alikes
        N201 (sni-router-without-starttls) ends in a close, here the answer comes. A server that
        is overloaded or far away is late by no round number. It is likely where several waits
        are the same or it is the customary 5 s, else possible. A live run says it only where a
        bare ClientHello is answered at once. Not separable in a capture: a name service in the
        server's way that times out (log_hostname, ident).

    What to change
        HAProxy: go on at once when the first byte is not that of a TLS record, 22:
            tcp-request inspect-delay 5s
            tcp-request content accept if { req.payload(0,1) -m bin 00 }
            tcp-request content accept if { req.ssl_hello_type 1 }
        The name is still not seen so; to route by it use a router that speaks PostgreSQL's
        StartTLS (Traefik 3), or clients with sslnegotiation=direct.
    """
    late = [(seen, wait) for seen in evidence.handshakes if (wait := _round_wait(seen))]
    if not late or not (evidence.question.strangers or _prompt_to_tls(evidence)):
        return
    alike = [seen for seen, wait in late if wait == late[0][1]]
    sure = len(alike) > 1 or late[0][1] == CUSTOMARY_DELAY
    yield Found(
        f"SSLRequest is answered only after {late[0][1]} s: a router waits for a ClientHello first",
        tuple(
            evidence.proof(
                seen, f"answered {seen.ssl_answer} after {seen.took(Stage.SSL_REQUEST):.2f} s"
            )
            for seen in alike[:3]
        ),
        Certainty.LIKELY if sure else Certainty.POSSIBLE,
        fix=(
            Fix("gateway", "let what does not begin with a TLS record pass at once"),
            USE_STARTTLS_ROUTER,
        ),
    )


def _prompt_to_tls(evidence: Evidence) -> bool:
    """A bare ClientHello is answered at once: it is not everything that is slow."""
    bare = (seen for seen in evidence.handshakes if seen.opening is Opening.DIRECT_TLS)
    limit = LEAST_DELAY / 2
    return any(seen.server_hello and seen.took(Stage.SERVER_HELLO) < limit for seen in bare)


def _round_wait(seen: Handshake) -> int | None:
    """The whole seconds after which SSLRequest was answered, or None."""
    wait = seen.took(Stage.SSL_REQUEST)
    asked = seen.opening is Opening.SSL_REQUEST and seen.ssl_answer in ("S", "N")
    near = abs(wait - round(wait)) <= ROUND_WITHIN
    return round(wait) if asked and near and wait >= LEAST_DELAY else None
