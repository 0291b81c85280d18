"""P: PostgreSQL's own protocol, inside TLS and in clear."""

from __future__ import annotations

from collections.abc import Iterator

from probe.attempt import MADE_UP_USER
from probe.binding import Binding, binding_test
from probe.certificate import Certificate
from probe.evidence import Evidence, asking
from probe.fate import broke_off, hung_up, in_words, server_is_full
from probe.finding import Certainty, Fix, Proof, Severity
from probe.handshake import Handshake, Opening, Outcome
from probe.path import Answerer, Routing, trace
from probe.refusal import CLASS_AUTHORIZATION, insists_on_certificate, refused_made_up_user, through
from probe.rules import Found, rule
from probe.signs import TlsEnd, pooler_sign
from probe.wire import printable
from probe.wire.messages import TOO_MANY_CONNECTIONS


@rule("P501", "cancel-not-routable", Severity.WARNING)
def cancel_not_routable(evidence: Evidence) -> Iterator[Found]:
    """A clear-text CancelRequest cannot reach the right backend: it carries no name.

    What it says
        Cancelling opens a second connection. Many clients send it without TLS, so there is no
        server_name to route by. This listener routes by name or lets such a connection hang, so
        the request does not arrive at the server of the session.

    Why it matters
        Ctrl-C in psql (still in 17.6), cancel() in pgjdbc, query time-outs in Postgrex: the
        client sees no error and the query keeps running (traefik/traefik#10280,
        gravitational/teleport#22173). Logins are not touched, so this is a warning. Drivers
        that cancel over TLS are safe.

    On the wire
        Attempt cancel: 00 00 00 10 04 d2 16 2e, then a random process id and key that belong to
        nobody. A server closes without a byte, whatever the key. Traefik's TLS entry points
        leave the connection open and say nothing until the time-out.

    How it is told from its look-alikes
        The rule wants a control that finished TLS behind SSLRequest. Silence is proof where the
        name decides (unknown-name differs), else likely. A close is also what a healthy server
        does, so it counts, as likely, only where names decide and the proxy itself says S.
        Where TLS ends at a proxy (T401) a close is not reported: the proxy may know its
        sessions. N207 (gssencrequest-breaks) hangs in the same routers, for another first
        packet. Where SSLRequest breaks (N201) nothing is said, though a clear cancel cannot be
        routed there.

    What to change
        Only the cancelling of a real query proves the cure. Clients that cancel inside TLS: the
        cancel functions of libpq 17 (PQcancelStart), psycopg 3.2 with cancel_safe(), pgx
        5.10.0, Npgsql, lib/pq. From another session:
            SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE ...;
        Limit on the server what cannot be cancelled:
            statement_timeout = '15min'
        Or give the database an address or port of its own, so that a clear connection has one
        place to go. Gateway API:
            kind: TCPRoute
            spec: { rules: [ { backendRefs: [ { name: db-1, port: 5432 } ] } ] }
    """
    control, seen = evidence.control, evidence.one(Opening.CANCEL)
    if control is None or seen is None or not control.established or seen.not_connected:
        return
    path = trace(evidence)
    by_name = path.routing in (Routing.BY_NAME, Routing.CATCH_ALL)
    by_proxy = path.ssl_request_answered_by is Answerer.PROXY
    hangs = seen.outcome is Outcome.SILENT
    if path.tls_ends_at is TlsEnd.PROXY and not hangs:
        return  # who ends TLS may know its sessions; a close tells nothing
    if not hangs and not (by_name and by_proxy):
        return
    startup = evidence.one(Opening.STARTUP)
    if not hangs and startup and evidence.same_place(startup, control):
        return  # clear text comes to this very server
    yield Found(
        f"a clear-text CancelRequest is {in_words(seen)}: it carries no name to be routed by, so "
        "Ctrl-C in psql and cancel() of pgjdbc do nothing",
        (evidence.proof(control), evidence.proof(seen)),
        Certainty.PROVED if hangs and by_name else Certainty.LIKELY,
        fix=(
            Fix(
                "client",
                "a driver that cancels over TLS: libpq 17's PQcancelStart, psycopg 3.2, "
                "pgx 5.10, Npgsql",
            ),
            Fix("operator", "pg_cancel_backend() from another session"),
        ),
    )


@rule("P502", "channel-binding-impossible", Severity.INFO)
def channel_binding_impossible(evidence: Evidence) -> Iterator[Found]:
    """SCRAM-SHA-256-PLUS is not offered over TLS: channel_binding=require cannot work.

    What it says
        Inside TLS the server's list of mechanisms lacks SCRAM-SHA-256-PLUS. PostgreSQL adds it
        whenever its own connection is TLS. This is the consequence of the termination or the
        pooler that another finding names.

    Why it matters
        A client with channel_binding=require refuses to log in. The default, prefer, goes on
        without binding and says nothing, so the protection against a man in the middle is
        missing unseen. For all others nothing fails, hence information.

    On the wire
        Control, or no-alpn where the control does not finish TLS: behind StartupMessage comes R
        with code 00 00 00 0a, followed by SCRAM-SHA-256 00 00 alone. A server that is itself
        the TLS peer sends SCRAM-SHA-256-PLUS 00 in front of it.

    How it is told from its look-alikes
        T401 (tls-terminated) and P504 (pooler-answers) are the causes; attempt protocol-3.1002
        separates them. P508 (binding-impossible-for-leaf): -PLUS is offered and cannot be
        computed. A re-encrypting proxy is the opposite picture: -PLUS is offered, this rule is
        silent, and the login fails with FATAL "SCRAM channel binding check failed". Methods
        without SASL (md5, cert, trust) show no list, and nothing is said. A fork with -PLUS
        switched off cannot be told from termination here.

    What to change
        Let TLS pass to the server, where binding is wanted. Traefik v3, IngressRouteTCP:
            tls: { passthrough: true }
        Behind a pooler binding cannot reach the server: protect the leg to the pooler by
        verifying its certificate, and the pooler's leg to the server likewise. Client:
            sslmode=verify-full sslrootcert=ca.crt channel_binding=prefer
        PgBouncer:
            server_tls_sslmode = verify-full
            server_tls_ca_file = /etc/pgbouncer/ca.crt
    """
    seen = through(evidence)
    if seen is None or seen.offers_binding:
        return
    asked = seen.authentication
    if asked is None or not asked.mechanisms:
        return
    if trace(evidence).tls_ends_at is not TlsEnd.PROXY:
        return
    yield Found(
        f"only {asked.offer} is offered over TLS: channel_binding=require cannot work here",
        (evidence.proof(seen),),
        fix=(Fix("gateway", "let TLS pass to the server, where binding is wanted"),),
    )


@rule("P503", "startup-refused", Severity.ERROR)
def startup_refused(evidence: Evidence) -> Iterator[Found]:
    """StartupMessage is answered with an ErrorResponse: says which, and why.

    What it says
        TLS works, and the first PostgreSQL message inside it was refused. SQLSTATE and text are
        quoted. An error without a routine field was not written by a PostgreSQL server but by a
        pooler or proxy.

    Why it matters
        Users with the same name, database and address are refused before any password is asked
        for; psql shows the same text. Where only the made-up user of pgprobe is refused, the
        message says that the way is open; it stays an error, and the verdict indeterminate, until
        --user settles it. 53300
        (too many connections) on a later attempt only is a warning.

    On the wire
        Inside TLS: StartupMessage with version 00 03 00 00, user, database and application_name
        pgprobe out; E back, with the fields S, C (SQLSTATE), M (text), and from a server also
        F, L and R (file, line, routine). After that the peer closes. 28000 from pg_hba names
        the client's address as the server sees it, and says "SSL encryption" or "no
        encryption".

    How it is told from its look-alikes
        N206 (error-before-tls): the error comes in clear, instead of S or N. P507
        (startup-unanswered): no words at all. T401 (tls-terminated) is proved by "no
        encryption" in the text, since our own leg is TLS; both are then reported. P504
        (pooler-answers) needs a connection that gets as far as authentication, so a pooler that
        refuses is known only by the missing routine. Whether a real user would get in is not
        told by a refusal of the made-up one; --user and --dbname settle it. Texts are matched
        in English: a server with other lc_messages shows its SQLSTATE, not its leg.

    What to change
        28000 from pg_hba: allow the address that the text names, which behind a proxy is the
        proxy's own, and only over TLS. pg_hba.conf, then a reload:
            hostssl all all 10.0.0.0/24 scram-sha-256
        "no encryption": let TLS pass (T401), rather than allowing host in clear. 53300:
            max_connections = 200
        or a pooler in front. 57P01 to 57P03: the server stops, starts or recovers; wait. A
        refused made-up user:
            pgprobe db-1.example.com --user app --dbname app
        Errors without a routine: look into the log and the user list of the pooler.
    """
    seen = through(evidence)
    if seen is None or not seen.startup_in_tls or seen.error is None or seen.authenticates:
        yield from _filled_up(evidence)
        return
    made_up = refused_made_up_user(evidence, seen)
    who = "" if seen.error.routine else " (no routine: a pooler or proxy says it)"
    beside = (
        f"; {MADE_UP_USER!r} was made up, others may be welcome: --user, --dbname"
        if made_up
        else ""
    )
    yield Found(
        f"StartupMessage is refused{who}: {seen.error.in_words()}{beside}",
        (evidence.proof(seen),),
        fix=_startup_fix(seen.error.sqlstate or "", seen.error.message, made_up=made_up),
    )


def _filled_up(evidence: Evidence) -> Iterator[Found]:
    """The server had room for the first connection, and none for a later one."""
    full = next((seen for seen in evidence.handshakes if server_is_full(seen)), None)
    if full and full is not evidence.main:
        yield Found(
            "the server ran out of connections while it was asked (53300): it is nearly full, "
            "and what was left to ask was not asked",
            (evidence.proof(full),),
            severity=Severity.WARNING,
            fix=_startup_fix(TOO_MANY_CONNECTIONS, ""),
        )


def _startup_fix(sqlstate: str, message: str, *, made_up: bool = False) -> tuple[Fix, ...]:
    if "no encryption" in message:
        return (Fix("gateway", "the server sees clear text: re-encrypt, or let TLS pass"),)
    if "client certificate" in message:
        return (Fix("client", "sslcert and sslkey: the server demands a client certificate"),)
    ask = (Fix("client", "ask with a user and database that exist: --user, --dbname"),)
    if sqlstate.startswith(CLASS_AUTHORIZATION):
        allow = Fix("server", "pg_hba.conf: allow the user at the address that the message names")
        return (*(ask if made_up else ()), allow)
    if made_up:
        return ask
    if sqlstate == TOO_MANY_CONNECTIONS:
        return (Fix("server", "raise max_connections, or put a pooler in front"),)
    if sqlstate.startswith("57P"):
        return (Fix("server", "wait: it is starting up, shutting down or recovering"),)
    return (Fix("server", "look into its log"),)


@rule("P504", "pooler-answers", Severity.WARNING)
def pooler_answers(evidence: Evidence) -> Iterator[Found]:
    """A pooler answers, not the server: TLS, SCRAM and errors are its own.

    What it says
        The PostgreSQL peer inside TLS is a connection pooler (PgBouncer, Pgpool-II or the
        like). TLS ends there, it checks passwords itself, and nothing that is seen here tells
        about the server behind.

    Why it matters
        Clients get in; the verdict is degraded, since TLS does not reach the server. There is
        no channel binding. The leg to the server is invisible: no -PLUS is offered whether it
        is TLS or clear. PgBouncer sends SNI to servers only with server_tls_sslmode=verify-full
        (pgbouncer/pgbouncer#1485).

    On the wire
        Control: an authentication request inside TLS, without SCRAM-SHA-256-PLUS. Attempt
        protocol-3.1002: StartupMessage with version 00 03 03 ea. A server answers v
        (NegotiateProtocolVersion) and goes on. A pooler answers E without a routine field;
        PgBouncer 1.18: 08P01 "bad packet header".

    How it is told from its look-alikes
        T401 (tls-terminated): a byte relay lacks -PLUS too, but passes the server's v on; it is
        not reported beside this one. P502 (channel-binding-impossible) accompanies it. N203
        (tls-refused): a pooler without TLS says N, and is not recognised there. P503
        (startup-refused) without a routine: a pooler that refuses the made-up user or database
        before authentication. The finding is likely, never more: a compatible database that is
        no PostgreSQL and refuses 3.1002 in words of its own looks alike, and a pooler that
        answers 3.1002 as a server does is taken for a terminating proxy.

    What to change
        Often nothing: a pooler is meant to be there. Look at both of its legs. pgbouncer.ini:
            client_tls_sslmode = require
            client_tls_key_file = /etc/pgbouncer/tls.key
            client_tls_cert_file = /etc/pgbouncer/tls.crt
            server_tls_sslmode = verify-full
            server_tls_ca_file = /etc/pgbouncer/ca.crt
        Probe the server's own address for what stands behind, and compare:
            pgprobe db-1.example.com --door 10.0.0.7:5432
        Where end-to-end TLS or cert rules are needed, route such clients past the pooler.
    """
    sign = pooler_sign(evidence)
    seen = through(evidence)
    if sign and seen:
        yield Found(
            "a connection pooler answers for the server: TLS ends there, and what is seen of "
            "TLS, authentication and the cluster is its own",
            (evidence.proof(seen), sign),
            Certainty.LIKELY,
            fix=(Fix("operator", "probe the server's own address for what is behind the pooler"),),
        )


@rule("P505", "clusters-differ", Severity.ERROR)
def clusters_differ(evidence: Evidence) -> Iterator[Found]:
    """The same name, asked in the same way, reaches different clusters.

    What it says
        Connections that differ in nothing but time or address ended at PostgreSQL clusters with
        different identities. The message lists their short ids, the evidence where each of them
        was met.

    Why it matters
        Users write to one database and read from another. psql shows no error, or an error that
        comes and goes: a role or database that does not exist, a password that fails now and
        then. Typical causes are two unrelated servers behind one balancer, DNS records of an
        old and a new cluster, or a door that leads elsewhere than the one in front of it.

    On the wire
        Control and control-again at one address, and the same at further addresses and doors:
        StartupMessage for user pgprobe-nobody and database postgres, SCRAM-SHA-256, then R with
        code 00 00 00 0b and a salt s=. For an unknown user the server derives the salt from the
        user's name and a secret of the cluster; it is the same on every connection. The
        exchange is left there.

    How it is told from its look-alikes
        S304 (wrong-backend) and S302 (name-ignored) compare openings or names; here name and
        opening are equal. C104 (addresses-disagree) reports addresses that answer in different
        ways, without asking which cluster. S308 (catch-all-route) is about an unknown name.
        Physical replicas and restored copies share the salt and are no finding; logical
        replicas differ. One run has few controls at one address, so a balancer may be missed:
        repeat. With --user or --dbname no id is taken, nor where a salt never comes twice, as
        from proxies that make one up for each connection (Neon's). Where a pooler answers
        (P504), the salt is the pooler's own, and several pooler processes can look like several
        clusters.

    What to change
        Put only members of one cluster behind a name. Kubernetes: the selector of a Service
        must match the pods of one cluster only:
            selector: { app: db-1 }
        TLSRoute: one backendRef for each database; several are a balancer. DNS: take the old
        record away once a migration is over. A primary and its logical replica get two names:
            db-1.example.com
            db-1-reports.example.com
        Compare on the servers themselves:
            SELECT system_identifier FROM pg_control_system();
    """
    if evidence.main is None or pooler_sign(evidence):
        return
    here = _clusters(evidence)
    everywhere = dict(here)
    for other in evidence.elsewhere:
        everywhere = _clusters(other) | everywhere
    fix = Fix("load balancer", "put only members of one cluster behind the name")
    if here and len(everywhere) > 1:
        yield Found(
            f"the same name reaches {len(everywhere)} different clusters: {', '.join(everywhere)}",
            tuple(everywhere.values()),
            fix=(fix,),
        )
        return
    behind = _innermost(evidence)
    if here and behind and not here.keys() & behind[1].keys():
        (cluster, proof), (other_cluster, other_proof) = (
            next(iter(found.items())) for found in (here, behind[1])
        )
        yield Found(
            f"the name reaches cluster {cluster} here, and cluster {other_cluster} at "
            f"{behind[0].door}, a door further inside",
            (proof, other_proof),
            fix=(fix, Fix("operator", "check that the door inside is where this one leads")),
        )


def _clusters(evidence: Evidence) -> dict[str, Proof]:
    """The clusters that the client in question reached at a door, each with where it was met."""
    met: dict[str, Proof] = {}
    for seen in evidence.home(evidence.main) if evidence.main else ():
        if cluster := evidence.cluster(seen):
            met.setdefault(cluster, evidence.proof(seen, f"cluster {cluster}"))
    return met


def _innermost(evidence: Evidence) -> tuple[Evidence, dict[str, Proof]] | None:
    """The innermost door whose cluster is its server's, and that cluster."""
    for other in reversed(evidence.inner):
        if not pooler_sign(other) and (met := _clusters(other)):
            return other, met
    return None


@rule("P506", "plaintext-fallback", Severity.WARNING)
def plaintext_fallback(evidence: Evidence) -> Iterator[Found]:
    """sslmode=prefer, libpq's default, gets in without TLS and without a word.

    What it says
        No SSLRequest with the asked name led to finished TLS, and a StartupMessage in clear
        text was let through to authentication. A client that may do without TLS does so here.

    Why it matters
        libpq's default sslmode is prefer: after an N, or after a TLS attempt that fails, it
        goes on in clear text and prints nothing. Queries and results travel readable, and
        whoever sits on the way can force it by answering N. Clients with require or stronger
        fail instead, which is how the fault usually comes to light.

    On the wire
        Attempt ssl-request: 00 00 00 08 04 d2 16 2f out, N (4e) back, or a close, or a
        handshake that breaks off. Attempt startup: StartupMessage with 00 03 00 00 as the first
        packet, R back: a SASL list, a request for a password, or AuthenticationOk, which is
        answered with Terminate at once.

    How it is told from its look-alikes
        N203 (tls-refused) is the N alone; beside it this finding says that the clear way is
        open. With N203 alone, pg_hba.conf or the pooler refuses clear text. T411
        (tls-handshake-failed), N202 and the like may be the cause where the message says "where
        TLS fails". A server that also takes clear text beside working TLS is not reported: no
        client falls back there unless somebody on the way interferes. A StartupMessage that
        hangs or gets an error lets nobody in. Where TLS is left hanging rather than refused, a
        client may wait instead of falling back; the two are not told apart here.

    What to change
        Client, in the connection string or in the environment:
            sslmode=verify-full sslrootcert=ca.crt
            PGSSLMODE=require
        Server: switch TLS on, and take clear text away. postgresql.conf, then pg_hba.conf:
            ssl = on
            hostssl all all 0.0.0.0/0 scram-sha-256
        Remove or narrow lines that begin with host, which match both. PgBouncer:
            client_tls_sslmode = require
    """
    clear, asked = evidence.one(Opening.STARTUP), asking(evidence)
    if asked and asked.authentication and asked.ssl_answer == "N":
        clear = asked  # a captured client that went on
    if clear is None or asked is None or clear.authentication is None or clear.startup_in_tls:
        return
    if through(evidence) or any(seen.established for seen in evidence.all()):
        return
    if asked.ssl_answer != "N" and asked.outcome is Outcome.SILENT:
        return  # a client that waits does not fall back
    after = "after the N" if asked.ssl_answer == "N" else "where TLS fails"
    yield Found(
        f"a clear-text StartupMessage is let through to authentication: sslmode=prefer goes on "
        f"without TLS {after}",
        tuple(dict.fromkeys((evidence.proof(asked), evidence.proof(clear)))),
        fix=(
            Fix("client", "sslmode=require or stronger"),
            Fix("server", "pg_hba.conf: hostssl instead of host"),
        ),
    )


@rule("P507", "startup-unanswered", Severity.ERROR)
def startup_unanswered(evidence: Evidence) -> Iterator[Found]:
    """TLS completes, and StartupMessage is closed or ignored.

    What it says
        The handshake finished, so somebody speaks TLS and has a certificate. The StartupMessage
        inside it got neither an authentication request nor an error: the peer closed, reset, or
        said nothing. A peer that hung up so fast that it was not sent is told the same way.

    Why it matters
        Every client of that kind stops there; psql reports a closed connection, or hangs.
        Checks that end with the TLS handshake (expiry monitors, s_client) stay green, so the
        fault is looked for in the client or in the password.

    On the wire
        Control, or no-alpn where ALPN is refused: S, ServerHello, Finished on both sides, then
        the StartupMessage (00 03 00 00 behind its length) as application data. Back comes
        close_notify, FIN, RST, or nothing. One known case: Traefik ends TLS and dials the
        server with TLS of its own, directly and without ALPN; PostgreSQL drops that and logs
        "received direct SSL connection request without ALPN protocol negotiation extension".

    How it is told from its look-alikes
        T411 (tls-handshake-failed): TLS did not finish. P503 (startup-refused): an error came.
        N204 (not-postgresql): another protocol's words came inside TLS. T409
        (alpn-not-selected) and T401 (tls-terminated) may stand beside it and say whose TLS it
        is. S309 (backend-down-or-without-tls) is a dead backend behind passthrough; here TLS
        was answered. A dead upstream, one spoken to in the wrong way, and a server too busy to
        answer cannot be told apart. A TLS alert after Finished is not reported here.

    What to change
        Whoever ended TLS cannot reach, or cannot talk to, its upstream. Check address, port and
        log there. Traefik v3 cannot re-encrypt to PostgreSQL: take the serversTransport with
        tls from the service, or let TLS pass, which is better:
            tls: { passthrough: true }
        A proxy that opens TLS towards the server must send SSLRequest first, or direct TLS with
        ALPN postgresql to version 17 or later. HAProxy, direct TLS:
            server db-1 10.0.0.7:5432 ssl verify required ca-file ca.crt alpn postgresql
        A BackendTLSPolicy asks a Gateway for TLS towards the Service, and knows no SSLRequest.
    """
    seen = through(evidence)
    if seen is None or seen.authentication or seen.error or seen.foreign:
        return
    if "authentication" in seen.not_captured and seen.startup_in_tls:
        return  # it may have been answered
    if insists_on_certificate(seen) is not False:
        return  # said by T413
    if seen.startup_in_tls:
        left, what = broke_off(seen) or seen.alert is not None, "the StartupMessage inside it is"
    else:
        left = hung_up(seen) and "startup" not in seen.not_captured
        what = "before the StartupMessage it is"
    if not left:
        return
    yield Found(
        f"TLS finishes, and {what} {in_words(seen)}",
        (evidence.proof(seen),),
        fix=(
            Fix(
                "gateway",
                "check its upstream: it may be down, or be spoken to in the wrong way "
                "(a server wants SSLRequest or direct TLS with ALPN, not bare TLS)",
            ),
        ),
    )


@rule("P508", "binding-impossible-for-leaf", Severity.ERROR)
def binding_impossible_for_leaf(evidence: Evidence) -> Iterator[Found]:
    """SCRAM-SHA-256-PLUS is offered, and the certificate's signature has no hash for it.

    What it says
        The server offers channel binding. The binding needs the hash of the leaf certificate,
        made with the hash function that its signature names. An Ed25519 or Ed448 signature
        names none, so the binding cannot be computed.

    Why it matters
        libpq's default, channel_binding=prefer, takes -PLUS whenever it is offered and then
        fails in the login, whatever the password; require fails likewise. Clients that never
        bind get in, so some drivers work and psql does not. The error is XX000 "could not find
        digest for NID UNDEF". Other drivers have met the same gap (pgjdbc/pgjdbc#4272).

    On the wire
        Control (or no-alpn): the leaf is signed with object identifier 1.3.101.112 (Ed25519,
        DER 06 03 2b 65 70) or 1.3.101.113 (Ed448, 06 03 2b 65 71). Behind StartupMessage R with
        code 00 00 00 0a lists SCRAM-SHA-256-PLUS. pgprobe itself goes on with SCRAM-SHA-256 and
        does not meet the fault.

    How it is told from its look-alikes
        P502 (channel-binding-impossible): -PLUS is not offered, and login goes on without it. A
        re-encrypting proxy fails in the same step with another text, "SCRAM channel binding
        check failed": there two certificates differ, here one has no hash. T403, T404 and T405
        judge names, trust and dates, which may all be right here. A wrong password gives 28P01.
        What counts is the signature on the leaf, made with the issuer's key; the type of the
        leaf's own key does not matter. It is proved from offer and certificate, without a
        login.

    What to change
        Server: a leaf that is signed with RSA or ECDSA. With a CA of one's own the CA key
        decides; a self-signed leaf is signed with its own key:
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes ...
        cert-manager, in the Certificate of the issuing CA (or of a self-signed leaf):
            privateKey: { algorithm: ECDSA, size: 256 }
        Then reload:
            SELECT pg_reload_conf();
        Client, until then:
            channel_binding=disable
    """
    seen = through(evidence)
    if seen is None or not seen.offers_binding or seen.leaf is None:
        return
    leaf = Certificate(seen.leaf)
    if leaf.readable and leaf.binding_hash is None:
        yield Found(
            "SCRAM-SHA-256-PLUS is offered, and the certificate's signature (Ed25519 or Ed448) "
            "names no hash for tls-server-end-point: libpq's default fails in the login",
            (evidence.proof(seen, f"subject {leaf.subject}"),),
            fix=(
                Fix("server", "a certificate signed with RSA or ECDSA"),
                Fix("client", "channel_binding=disable"),
            ),
        )


@rule("P509", "login-refused", Severity.ERROR)
def login_refused(evidence: Evidence) -> Iterator[Found]:
    """The real login that was asked for does not succeed.

    What it says
        With --login pgprobe logged in as the given user, with the password from PGPASSWORD or
        the password file. The server refused, or it let the client in and could not prove that
        it knows the password itself. The message quotes which.

    Why it matters
        Everything up to the authentication request works, and this user still does not get in:
        the fault is in the account, pg_hba.conf, or the database, not on the way. A server that
        cannot prove that it knows the password is the exception: that is somebody who stands in
        the server's place.

    On the wire
        Attempt login, inside TLS: StartupMessage with user and database, the password exchange
        that the server asks for (SCRAM with channel binding where it is offered), and E: 28P01
        for a wrong password, 28000 for a refusal by pg_hba or a role that may not log in, 3D000
        for a database that does not exist. Or AuthenticationSASLFinal whose v= is not the
        signature that the password gives.

    How it is told from its look-alikes
        T402 (tls-re-encrypted): 28000 about the channel binding, and nothing is said here. P503
        (startup-refused): an error before any password was asked for. 28P01 does not tell a
        wrong password from a user that does not exist: the server hides that. A pooler (P504)
        checks its own list of users.

    What to change
        28P01: check the password where pgprobe took it from; PGPASSWORD wins over ~/.pgpass,
        whose first line that fits host, port, database and user counts:
            db-1.example.com:5432:app:app:secret
        3D000: give the database:
            pgprobe db-1.example.com --login --user app --dbname app
        Server, for a password that is stored with another method than pg_hba asks for:
            ALTER ROLE app PASSWORD '...';
    """
    refused = next(_refused_logins(evidence), None)
    if refused is None or binding_test(evidence).result is Binding.RE_ENCRYPTED:
        return  # said by T402
    seen, says, fix = refused
    yield Found(
        f"the login as {printable(evidence.question.user or '', 63)!r} fails: {says}",
        (evidence.proof(seen, says),),
        fix=(fix,),
    )


def _refused_logins(evidence: Evidence) -> Iterator[tuple[Handshake, str, Fix]]:
    for seen in evidence.handshakes:
        if not seen.login:
            continue
        if seen.logged_in and seen.logged_in.signature is False:
            says = "the server cannot prove that it knows the password"
            yield seen, says, Fix("operator", "find out who answers in the server's place")
        elif seen.login_error:
            fix = Fix("server", "check the role, its password and pg_hba.conf")
            yield seen, seen.login_error.in_words(), fix
