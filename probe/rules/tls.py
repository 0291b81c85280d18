"""T: the TLS handshake, the certificate, and who ends it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from probe.binding import Binding, binding_test
from probe.certificate import Certificate
from probe.evidence import Evidence, Question, Variation, breaks_on_request, foreign_answer
from probe.fate import broke_off, in_words, placeholder, said_nothing_in_tls, selects_alpn
from probe.finding import Certainty, Fix, Severity
from probe.handshake import Handshake, Opening
from probe.path import trace
from probe.refusal import insists_on_certificate, refuses_alpn, through
from probe.rules import Found, gets_in_direct, rule
from probe.signs import TlsEnd
from probe.transcript import Asked
from probe.wire.records import VERSIONS

EXPIRES_SOON = timedelta(days=30)

PASS_THROUGH = Fix("gateway", "let TLS pass to the server: TLSRoute Passthrough, plain TCP")


def shown(evidence: Evidence) -> Handshake | None:
    """The handshake whose certificate the clients in question see."""
    candidates = [evidence.main, evidence.control, evidence.one(alpn=False)]
    if breaks_on_request(evidence) or evidence.question.direct:
        candidates += [evidence.direct, evidence.one(Opening.DIRECT_TLS, alpn=False)]
    candidates.append(evidence.one(variation=Variation.VERIFIED))
    return next((seen for seen in candidates if seen and seen.leaf), None)


def _strict(evidence: Evidence) -> bool:
    return evidence.question.sslmode in ("verify-ca", "verify-full")


@rule("T401", "tls-terminated", Severity.WARNING)
def tls_terminated(evidence: Evidence) -> Iterator[Found]:
    """TLS does not end at the PostgreSQL server, but at somebody in front of it.

    What it says
        The handshake that the client finishes is not with the server. A proxy decrypts the
        session and either goes on in clear text or opens TLS of its own towards the server.
        What is known of that second leg stands in backend_leg.

    Why it matters
        Login may still work, so this degrades and does not break. Cert rules of pg_hba see no
        client certificate, and hostssl rules refuse a clear leg: the error says "no encryption"
        (traefik/traefik#10644). Through a re-encrypting proxy libpq's default takes -PLUS and
        ends with FATAL "SCRAM channel binding check failed" (ambarltd/pgt-proxy#6).

    On the wire
        Control, inside TLS: AuthenticationSASL lists SCRAM-SHA-256 and no -PLUS, or a 28000
        refusal says "no encryption". Control and no-alpn: alert 120 (15 03 0x 00 02 02 78) to
        ALPN postgresql, success without. protocol-3.1002: the server names 3.2 as its newest,
        and nobody selected ALPN. direct-no-alpn, where a server closes: authentication (counted
        where SSLRequest breaks) or an open, silent connection. Behind the client's Finished, a
        NewSessionTicket (04) from one who selected ALPN: PostgreSQL gives none.

    How it is told from its look-alikes
        P504 (pooler-answers) offers no -PLUS either; protocol-3.1002 separates them: a relay
        passes the server's answer on, a pooler refuses in its own words and silences T401. N202
        (tls-terminator-without-starttls) breaks on SSLRequest. N204 (not-postgresql) wins where
        another protocol speaks inside TLS. T407 (default-certificate) stands beside this one. A
        missing -PLUS, a placeholder, a session ticket alone give likely: forks may differ. A
        re-encrypting proxy before a server older than 18 shows -PLUS, and is not seen unless
        ALPN gives it away. Methods without SASL show no list. A witness in the server's place
        (pgprobe witness) proves it, whatever is behind: see W602 (changed-on-the-way).

    What to change
        Let TLS pass. Traefik v3, IngressRouteTCP:
            tls: { passthrough: true }
        Gateway API, listener of the Gateway; then a TLSRoute with the host name. Only an
        implementation that knows SSLRequest serves default clients that way:
            tls: { mode: Passthrough }
        HAProxy and nginx stream: mode tcp and proxy_pass, with no certificate on the listener.
        Where the proxy must end TLS, use one that can start TLS again by SSLRequest (Envoy
        postgres_proxy with upstream_ssl), and on the client, if the proxy is trusted:
            channel_binding=disable
    """
    path = trace(evidence)
    if path.tls_ends_at is not TlsEnd.PROXY or path.pooler or through(evidence) is None:
        return
    if foreign_answer(evidence) and not gets_in_direct(evidence):
        return  # said by N204
    signs = [sign for sign in path.signs if sign.end is TlsEnd.PROXY]
    sure = any(sign.decides for sign in signs)
    seen = shown(evidence)
    proofs = [sign.proof for sign in signs] or ([evidence.proof(seen)] if seen else [])
    yield Found(
        f"TLS ends at a proxy in front of the server{path.backend_leg.goes_on}",
        tuple(proofs),
        Certainty.PROVED if sure else Certainty.LIKELY,
        fix=(
            PASS_THROUGH,
            Fix("client", "channel_binding=disable, where the proxy is trusted and re-encrypts"),
        ),
    )


@rule("T402", "tls-re-encrypted", Severity.ERROR)
def tls_re_encrypted(evidence: Evidence) -> Iterator[Found]:
    """TLS ends at a proxy and starts again: the server's certificate is not the one we saw.

    What it says
        A login with channel binding was tried (--prove, or --login). The client told the server
        which certificate it had been shown, and the server answered that its own is another
        one. So there are two TLS sessions, and somebody between them reads everything.

    Why it matters
        libpq's default, channel_binding=prefer, takes SCRAM-SHA-256-PLUS when it is offered and
        TLS is used. Through such a proxy every such login fails with FATAL "SCRAM channel
        binding check failed", whatever the password, while drivers that do not bind get in. The
        same picture is a man in the middle: that is what the check is for.

    On the wire
        Attempt prove: AuthenticationSASL lists SCRAM-SHA-256-PLUS; SASLInitialResponse chooses
        it with the GS2 header p=tls-server-end-point; the SASLResponse carries c=, base64 of
        that header and of the hash of the leaf that was shown (RFC 5929: the hash function of
        its signature; SHA-256 for MD5 and SHA-1). Back comes E with C28000 and R
        read_client_final_message, before the password is looked at. User and password are made
        up; the server logs one failed login.

    How it is told from its look-alikes
        28P01 instead of 28000: the binding held; TLS ends at the server, or at a proxy that
        holds the server's own certificate and key, which this test cannot tell apart: path.signs
        may (a HelloRetryRequest or ALPN that a server of its version would have sent). P502
        (channel-binding-impossible): -PLUS is not offered, as by poolers (P504) and behind a
        clear leg (T401). P508 (binding-impossible-for-leaf): an Ed25519 leaf has no hash, and
        the server fails with XX000. T401 stands beside this one. A server whose certificate was
        renewed on disk and not loaded does not look like this: it compares what it serves. A
        certificate that is exchanged between two connections does; repeat.

    What to change
        Let TLS pass to the server: Traefik v3, IngressRouteTCP:
            tls: { passthrough: true }
        Gateway API:
            listeners: [ { name: pg, protocol: TLS, tls: { mode: Passthrough } } ]
        Or give the proxy the server's own certificate and key, if it is to be trusted so far.
        Or tell every client not to bind, which gives the protection up:
            channel_binding=disable
        pgjdbc: channelBinding=disable. Take a BackendTLSPolicy away where the route is meant to
        pass TLS through.
    """
    tested = binding_test(evidence)
    if tested.result is Binding.RE_ENCRYPTED and tested.proof:
        yield Found(
            "TLS ends at a proxy and starts again behind it: the server's own certificate is not "
            "the one that clients see, so libpq's default fails in the login",
            (tested.proof,),
            fix=(
                PASS_THROUGH,
                Fix("client", "channel_binding=disable, where the proxy is trusted"),
            ),
        )


@rule("T403", "certificate-name-mismatch", Severity.WARNING)
def certificate_name_mismatch(evidence: Evidence) -> Iterator[Found]:
    """The certificate is not for the asked name.

    What it says
        The leaf certificate that clients are shown lists other names than the one asked for.
        Names are compared without regard to case; a wildcard stands for exactly one leftmost
        label. The common name counts only where no alternative name is listed.

    Why it matters
        sslmode=verify-full refuses the connection, and the finding is an error there. With
        require or verify-ca the login goes on, and a route to another tenant stays unnoticed.
        Where no name was asked for (an address, --no-sni), it is information. A client that
        begins to send SNI may meet another certificate (grafana/grafana#84249).

    On the wire
        Nothing fails in the handshake: S, ServerHello, Certificate, Finished. The leaf is taken
        from the control; where that shows none, from no-alpn, direct, direct-no-alpn or
        verified, in this order. The message names the leaf's first five names, the evidence its
        subject and issuer.

    How it is told from its look-alikes
        S302 (name-ignored) and S304 (wrong-backend) show a wrong route: direct gets another
        leaf for the same name, or --other-name meets the leaf that is for it. T407
        (default-certificate): the leaf is a known placeholder; both are reported. T404
        (certificate-not-trusted) is about the issuer. Without S302, S304 or T407 a certificate
        that lacks a name and a route to somebody else cannot be told apart: compare
        fingerprints with the one seen inside the cluster. Where SSLRequest shows no
        certificate, the leaf may be one that only direct TLS clients meet.

    What to change
        Reissue the certificate with every name that clients use as a DNS alternative name:
            subjectAltName = DNS:db-1.example.com, DNS:*.db.example.com
        cert-manager, Certificate:
            dnsNames: [ db-1.example.com ]
        If another database's certificate came, correct the route instead. Traefik v3:
            match: HostSNI(`db-1.example.com`)
        TLSRoute:
            hostnames: [ db-1.example.com ]
        A client that must dial an address keeps the name for SNI and verification:
            host=db-1.example.com hostaddr=203.0.113.10 sslmode=verify-full
    """
    question = evidence.question
    seen, name = shown(evidence), question.name or question.identity
    if seen is None or seen.leaf is None or name is None:
        return
    leaf = Certificate(seen.leaf)
    if not leaf.readable or leaf.covers(name):
        return
    yield Found(
        f"the certificate is for {', '.join(leaf.names[:5]) or 'no name'}, not for {name!r}",
        (evidence.proof(seen, f"subject {leaf.subject}, issuer {leaf.issuer}"),),
        severity=_mismatch_severity(question),
        fix=(
            Fix("server", "add the name to the certificate's subjectAltName"),
            Fix("gateway", "check the route: another's certificate may be another's database"),
        ),
    )


def _mismatch_severity(question: Question) -> Severity | None:
    if question.sslmode == "verify-full":
        return Severity.ERROR
    return None if question.name else Severity.INFO  # nobody's name was asked for


@rule("T404", "certificate-not-trusted", Severity.ERROR)
def certificate_not_trusted(evidence: Evidence) -> Iterator[Found]:
    """The chain does not lead to the roots that the client trusts.

    What it says
        OpenSSL checked the certificates that the peer sent against the given roots and gave up.
        Its reason is quoted: an unknown issuer, a missing intermediate, a self-signed leaf, or
        a certificate outside its time.

    Why it matters
        Under verify-ca and verify-full libpq leaves before it sends StartupMessage; with
        require it does the same as soon as a root file is given. Other modes go on, and the
        finding is information there. All clients with that root file fail alike, and clients
        with none notice nothing.

    On the wire
        Attempt verified: S, ServerHello, Certificate. Then our side breaks off with an alert to
        the peer, and no StartupMessage follows. It is made only where sslmode is verify-ca or
        verify-full, or sslrootcert is given; without a path the file is ~/.postgresql/root.crt,
        and sslrootcert=system takes the roots of the system. The control verifies nothing and
        goes on.

    How it is told from its look-alikes
        T403 (certificate-name-mismatch) is judged apart: names play no part in attempt
        verified. T405 (certificate-expired) is the leaf's own date; an expired leaf under the
        given roots shows as both, an expired intermediate only here, in the quoted reason. T407
        (default-certificate) and T401 (tls-terminated) are frequent causes: a proxy shows a
        certificate of its own. T411 (tls-handshake-failed) is the peer's breaking off; here our
        side does. A root file that is wrong and a peer that is wrong give the same reason.
        Revocation lists are not read.

    What to change
        Client: name the CA that signed the server's certificate, not the leaf:
            sslmode=verify-full sslrootcert=/etc/ssl/pg/ca.crt
            sslmode=verify-full sslrootcert=system       (certificates of a public CA)
        Server: put the intermediates behind the leaf, in one file, and reload:
            ssl_cert_file = 'server-chain.crt'
        PgBouncer:
            client_tls_cert_file = /etc/pgbouncer/server-chain.crt
        HAProxy takes the chain in the file of crt, nginx stream in ssl_certificate. Traefik v3
        that ends TLS reads it from tls.crt of the Secret named in tls.secretName.
    """
    seen = next((h for h in evidence.handshakes if h.verified and h.verified.problem), None)
    checks = evidence.question.sslmode in ("require", "verify-ca", "verify-full")
    if seen and seen.verified:
        yield Found(
            f"the certificate is not trusted: {seen.verified.problem}",
            (evidence.proof(seen, seen.verified.problem),),
            severity=None if checks else Severity.INFO,
            fix=(
                Fix("client", "sslrootcert: give the CA that signed the server's certificate"),
                Fix("server", "send the intermediate certificates behind the leaf"),
            ),
        )


class _Dated(NamedTuple):
    """The certificate that clients are shown: its dates, and the time by which it is judged."""

    seen: Handshake
    begins: datetime
    ends: datetime
    now: datetime


def _dated(evidence: Evidence) -> _Dated | None:
    seen, at = shown(evidence), evidence.question.at
    dates = Certificate(seen.leaf).validity if seen and seen.leaf else None
    return _Dated(seen, *dates, datetime.fromtimestamp(at, UTC)) if seen and dates and at else None


@rule("T405", "certificate-expired", Severity.INFO)
def certificate_expired(evidence: Evidence) -> Iterator[Found]:
    """The certificate's time is over, or has not begun.

    What it says
        The leaf that clients are shown carries validity dates that do not include the time at
        which it was seen. The message tells which end was missed. That time is told by the
        clock of the machine that pgprobe runs on, or by the capture that is read.

    Why it matters
        Under verify-ca and verify-full every client is refused, and the finding is an error.
        With require and no root file nobody looks at the dates, and it is information.
        Certificates expire unnoticed because few monitors read them behind SSLRequest; the
        request to Gatus for it came after an outage.

    On the wire
        The handshake finishes as usual. notBefore and notAfter stand in the leaf of the
        server's Certificate message, in the control or, where that shows none, in no-alpn,
        direct, direct-no-alpn or verified. In TLS 1.3 the message is encrypted: a capture
        without keys does not show it.

    How it is told from its look-alikes
        T404 (certificate-not-trusted) reports the same date as OpenSSL's reason when attempt
        verified is made; it also covers an expired intermediate or root, which this rule does
        not read. T406 (certificate-expires-soon) is the state before. T407
        (default-certificate): an expired placeholder means that the route has no certificate of
        its own. A wrong clock, ours or that of whoever captured, looks the same: compare it
        with another machine's. A renewed file that was never loaded and one that was never
        renewed cannot be told apart from outside.

    What to change
        Renew, then make the process read the new files. PostgreSQL:
            SELECT pg_reload_conf();
        PgBouncer: RELOAD on the admin console. HAProxy and nginx: reload the service. With
        cert-manager, look at the Certificate's Ready condition and at its renewal time:
            renewBefore: 720h
        Behind passthrough the server's own certificate counts, and a new Secret at the gateway
        changes nothing. Where a proxy ends TLS, it is the other way round.
    """
    dated = _dated(evidence)
    if dated is None:
        return
    seen, begins, ends, now = dated
    if begins <= now <= ends:
        return
    says = f"expired on {ends:%Y-%m-%d}" if now > ends else f"is valid from {begins:%Y-%m-%d} on"
    yield Found(
        f"the certificate {says}",
        (evidence.proof(seen, f"valid {begins:%Y-%m-%d} to {ends:%Y-%m-%d}"),),
        severity=Severity.ERROR if _strict(evidence) else None,
        fix=(Fix("server", "renew the certificate, and reload the server"),),
    )


@rule("T406", "certificate-expires-soon", Severity.INFO)
def certificate_expires_soon(evidence: Evidence) -> Iterator[Found]:
    """The certificate expires within 30 days.

    What it says
        The leaf that clients are shown ends within 30 days of the time at which it was seen, by
        our clock or in a capture. The message gives the date and the number of full days left.

    Why it matters
        Nothing fails yet. On the named day clients with verify-ca or verify-full are refused,
        all at once, and the finding is a warning for them. For clients that verify nothing it
        is information. To read expiry behind SSLRequest without credentials is a frequent wish
        in the trackers of general monitors (prometheus/blackbox_exporter#1424).

    On the wire
        notAfter in the leaf of the server's Certificate message. The leaf is that of the
        control; where it shows none, of no-alpn, direct, direct-no-alpn or verified. No bytes
        beyond those of an ordinary handshake are sent for it.

    How it is told from its look-alikes
        T405 (certificate-expired) follows when the date has passed. A leaf that is not valid
        yet and ends within 30 days shows as both. T404 (certificate-not-trusted) is about the
        issuer; the dates of intermediates and roots are not read here. T401 (tls-terminated)
        and P504 (pooler-answers) say whose certificate it is: with them, not the server's. A
        certificate made to live for less than 30 days and renewed by a machine looks the same
        as a forgotten one; only its renewal history tells.

    What to change
        Renew the certificate and reload whoever ends TLS. PostgreSQL reads ssl_cert_file
        and ssl_key_file again on
            SELECT pg_reload_conf();
        PgBouncer on RELOAD; HAProxy and nginx on a reload of the service. cert-manager renews
        at a time that can be set, here 40 days before the end:
            spec: { duration: 2160h, renewBefore: 960h }
        A renewed Secret helps only when the process reads it again: compare the date shown
        here with the one in the file.
    """
    dated = _dated(evidence)
    if dated is None:
        return
    seen, begins, ends, now = dated
    left = ends - now
    # a certificate that lives for a few days is renewed every few days
    soon = min(EXPIRES_SOON, (ends - begins) / 3)
    if begins <= now < ends and left <= soon:
        yield Found(
            f"the certificate expires on {ends:%Y-%m-%d}, in {left.days} days",
            (evidence.proof(seen, f"valid until {ends:%Y-%m-%d}"),),
            severity=Severity.WARNING if _strict(evidence) else None,
            fix=(Fix("server", "renew the certificate, and reload the server"),),
        )


@rule("T407", "default-certificate", Severity.WARNING)
def default_certificate(evidence: Evidence) -> Iterator[Found]:
    """For the asked name a proxy shows the placeholder that it made for itself.

    What it says
        The certificate is one that a known proxy generates where it has nothing configured:
        TRAEFIK DEFAULT CERT, or Kubernetes Ingress Controller Fake Certificate. TLS ends at
        that proxy, and it has no certificate for the name.

    Why it matters
        verify-ca and verify-full refuse it, and the finding is an error there. With require the
        session is encrypted towards anybody who holds the listener, and often works, so that
        the missing Secret or the mistyped name goes unnoticed (traefik/traefik#8123).

    On the wire
        The leaf's DER holds the placeholder's subject in plain text. Behind SSLRequest a
        terminating Traefik shows it when the Secret is missing. A name without any route is not
        answered so: Traefik closes behind the S, sends alert 120 to a bare ClientHello that
        offers ALPN postgresql, and shows the placeholder in attempt direct-no-alpn only.

    How it is told from its look-alikes
        T403 (certificate-name-mismatch) accompanies it: there any other leaf counts, here only
        the known placeholders. S301 (name-not-routed) takes the same certificate as proof when
        StartTLS is closed for the name; then a route is missing, not a Secret. T401
        (tls-terminated) is what the placeholder makes likely. Where SSLRequest breaks (Traefik
        v2, beside T411), the leaf comes from direct or direct-no-alpn, and a missing route
        cannot be told from a missing certificate. A placeholder that is not in the list shows
        as T403 alone.

    What to change
        Mostly, TLS was to pass. Traefik v3, IngressRouteTCP:
            tls: { passthrough: true }
        If the proxy is to end TLS, give the route a Secret of type kubernetes.io/tls in the
        same namespace, and let new clients in (T408):
            tls:
              secretName: db-1-tls
              options: { name: postgres }
        If a Secret is named already, look into the proxy's log: it is missing, unreadable, or
        in another namespace.
    """
    seen = shown(evidence)
    name = placeholder(seen) if seen else None
    if seen and name:
        asked = evidence.question.name or evidence.question.identity
        yield Found(
            f"for {asked!r} the placeholder certificate {name!r} is shown",
            (evidence.proof(seen, f"subject {name}"),),
            severity=Severity.ERROR if _strict(evidence) else None,
            fix=(
                Fix("gateway", "give the route a certificate for the name (tls.secretName)"),
                PASS_THROUGH,
            ),
        )


@rule("T408", "alpn-rejected", Severity.ERROR, starttls=True)
def alpn_rejected(evidence: Evidence) -> Iterator[Found]:
    """A client that offers ALPN postgresql is refused, one that offers none gets through.

    What it says
        Two connections differ in one thing. With postgresql in the ALPN extension the handshake
        breaks off, without the extension it finishes. Somebody in front of the server ends TLS
        with a fixed list of protocols that lacks this one.

    Why it matters
        libpq 17 and later offer ALPN in every TLS connection and cannot be told not to; Npgsql
        does since 9.0. They fail, and psql 16, pgjdbc or pgx get in over the same path: an
        upgrade of the client seems to break the database. psql prints "SSL error: tlsv1 alert
        no application protocol" (pgadmin-org/pgadmin4#8282, #8337).

    On the wire
        Control: S, ClientHello with ALPN 0a 70 6f 73 74 67 72 65 73 71 6c, then the fatal alert
        15 03 0x 00 02 02 78 (120, no_application_protocol). Attempt no-alpn: S, the same hello
        without the extension, ServerHello, Finished. PostgreSQL never sends 120. Traefik's list
        is h2, http/1.1, acme-tls/1 unless it is set.

    How it is told from its look-alikes
        S301 (name-not-routed) and S309 (backend-down-or-without-tls) stop both hellos; here
        no-alpn gets through. T411 (tls-handshake-failed) stands where no-alpn fails too. T409
        (alpn-not-selected) is the mild form: ALPN is ignored, not refused, and only direct TLS
        suffers. In attempt direct alone, 120 may also mean that the name has no route. With
        alert 120 the finding is proved. With another alert, a close, a reset or silence it is
        likely: a backend that came up between the two connections gives the same picture, and
        the repeated control shows it.

    What to change
        Let TLS pass to the server (see T401), or put postgresql on the list. Traefik v3:
            kind: TLSOption
            metadata: { name: postgres }
            spec: { alpnProtocols: [ postgresql ] }
        and in the IngressRouteTCP:
            tls: { secretName: db-1-tls, options: { name: postgres } }
        HAProxy: alpn postgresql on the bind line. nginx stream: ssl_alpn postgresql;
        Envoy, common_tls_context: alpn_protocols: [postgresql]. libpq has no switch for it;
        libpq 16 works until the proxy is changed.
    """
    control, bare = evidence.control, evidence.one(alpn=False)
    if control is None or bare is None or control.established or not bare.established:
        return
    if control.client_hello is None or not (control.alert or broke_off(control)):
        return
    named = refuses_alpn(control)
    yield Found(
        f"offering ALPN postgresql is {in_words(control)}, offering none gets through: libpq 17 "
        "and later and Npgsql 9 and later always offer it",
        (evidence.proof(control), evidence.proof(bare)),
        Certainty.PROVED if named else Certainty.LIKELY,
        fix=(
            Fix("gateway", "Traefik: a TLSOption with alpnProtocols: [postgresql] on the route"),
            PASS_THROUGH,
        ),
    )


@rule("T409", "alpn-not-selected", Severity.WARNING)
def alpn_not_selected(evidence: Evidence) -> Iterator[Found]:
    """Direct TLS completes and nobody selects ALPN: libpq leaves.

    What it says
        A bare ClientHello that offers ALPN postgresql finishes its handshake, and the peer
        selects no protocol. PostgreSQL 17 and later always select it, so the TLS peer is
        somebody else.

    Why it matters
        sslnegotiation=direct fails in libpq with "direct SSL connection was established without
        ALPN protocol negotiation extension"; for such a target the finding is an error, for
        others a warning. Drivers that do not check go on, so their success proves little.
        Classic StartTLS is not touched: libpq checks ALPN in direct mode only.

    On the wire
        Attempt direct: 16 03 01 ... with the ALPN extension (00 10) out, ServerHello back. The
        selection would stand in EncryptedExtensions (TLS 1.3) or in ServerHello (1.2), and is
        absent. The handshake finishes all the same. A StartupMessage inside it is often
        answered.

    How it is told from its look-alikes
        T408 (alpn-rejected): ALPN is refused with an alert, behind SSLRequest. T410
        (direct-tls-unsupported): no ServerHello came to attempt direct. N202
        (tls-terminator-without-starttls) accompanies this finding where SSLRequest breaks. N204
        (not-postgresql) wins where another protocol answers inside TLS, so an HTTPS port is not
        reported here. The opposite fault, a driver that offers no ALPN to a real server, is the
        client's: attempt direct-no-alpn finishes TLS and is then closed. Which product ended
        TLS is not told by this alone.

    What to change
        Make the terminator select it. nginx stream:
            ssl_alpn postgresql;
        HAProxy:
            bind :5432 ssl crt /etc/haproxy/db.pem alpn postgresql
        Envoy, in common_tls_context:
            alpn_protocols: [ postgresql ]
        Traefik v3: a TLSOption with alpnProtocols: [ postgresql ], named by the route. Or let
        TLS pass to a server of version 17 or later, which selects it itself. Client, meanwhile:
            sslnegotiation=postgres
    """
    seen = evidence.direct
    if seen is None or not seen.lacks_alpn or foreign_answer(evidence):
        return
    yield Found(
        "a bare ClientHello finishes TLS without ALPN postgresql selected: libpq with "
        "sslnegotiation=direct aborts there",
        (evidence.proof(seen),),
        severity=Severity.ERROR if evidence.question.direct else None,
        fix=(
            Fix("gateway", "nginx: ssl_alpn postgresql; HAProxy: alpn postgresql on the bind line"),
            PASS_THROUGH,
        ),
    )


@rule("T410", "direct-tls-unsupported", Severity.INFO)
def direct_tls_unsupported(evidence: Evidence) -> Iterator[Found]:
    """A bare ClientHello gets no ServerHello: sslnegotiation=direct will not work here.

    What it says
        TLS behind SSLRequest works on this listener. The same name in a ClientHello that comes
        first is closed, reset, ignored, or answered with something that is no ServerHello. One
        of the parties on the way knows the classic opening only.

    Why it matters
        Clients with their defaults are not touched, so this is information. A target that asks
        for sslnegotiation=direct fails, and there it is an error. It decides whether direct TLS
        can serve as a way round a router that does not know SSLRequest: here it cannot.

    On the wire
        Control: 00 00 00 08 04 d2 16 2f, S, and a finished handshake. Attempt direct: 16 03 01
        ... as the first bytes, then FIN, RST or nothing. PostgreSQL 16 and older take these for
        the length of a packet and close. PgBouncer 1.18 answers with an ErrorResponse in clear
        (45 ..., 08P01).

    How it is told from its look-alikes
        T409 (alpn-not-selected): ServerHello comes, ALPN does not. N201
        (sni-router-without-starttls) is the mirror image: direct works, SSLRequest breaks. C105
        and C106: SSLRequest gets nothing either. The rule wants a control that finished TLS, so
        S301 and S309 (missing route, dead backend) do not lead here. An old server and a middle
        tier without direct mode close alike. Attempt protocol-3.1002 helps: newest 3.2 means a
        server of 18, so a middle tier is in the way; 3.0 means 17 or older and leaves it open.
        ALPN postgresql, selected behind the S, tells more: whoever selects it (PostgreSQL 17,
        PgBouncer 1.25) takes direct TLS as well, so that something in between closes on it.

    What to change
        Client, which is the default:
            sslnegotiation=postgres
        Or bring every party to a version that knows direct TLS: PostgreSQL 17, PgBouncer 1.25.0
        towards clients (it cannot use it towards servers). On the server:
            SHOW server_version;
        Traefik v3, and HAProxy or nginx stream with SNI rules, pass a bare ClientHello on; then
        only the server behind them must be 17 or later. Teleport: gravitational/teleport#46070.
    """
    seen, control = evidence.direct, evidence.control
    if seen is None or seen.not_connected or seen.server_hello:
        return
    if control is None or not control.established:
        return
    server = Fix("server", "PostgreSQL 17 or later")
    between = Fix("gateway", "let a ClientHello pass that comes first: the server would take it")
    yield Found(
        f"a bare ClientHello is {in_words(seen)}: sslnegotiation=direct will not work here",
        (evidence.proof(seen),),
        severity=Severity.ERROR if evidence.question.direct else None,
        fix=(
            between if selects_alpn(control) else server,
            Fix("client", "sslnegotiation=postgres (the default)"),
        ),
    )


_NO_WORD = (
    Fix("gateway", "check that there is a route for this very name, and that its backend is up"),
    Fix("gateway", "Traefik 3.6.11 loses the ClientHello behind SSLRequest: use 3.6.12"),
)
_IN_THE_LOG = (Fix("server", "an alert names its cause in the log of whoever sent it"),)


@rule(
    "T411",
    "tls-handshake-failed",
    Severity.ERROR,
    starttls=True,
    unless=("C109", "N209", "S301", "S309", "T408", "T410"),
)
def tls_handshake_failed(evidence: Evidence) -> Iterator[Found]:
    """The TLS handshake breaks off, and nothing more precise can be said.

    What it says
        Somebody took the ClientHello or at least spoke TLS, and the handshake did not finish:
        an alert, a close, a reset, or silence after ServerHello. Every finding that names a
        cause was considered first and does not hold.

    Why it matters
        The clients in question do not get in; psql reports the alert, or a connection that was
        closed. Traefik 3.6.11 is one cause: it reads the SSLRequest again as TLS and logs "tls:
        first record does not look like a TLS handshake" (traefik/traefik#12842, #12866).

    On the wire
        Control: S, ClientHello, then FIN, RST, or an alert record 15 03 0x 00 02 02 NN; NN is
        28 (40, handshake_failure), 46 (70, protocol_version), 50 (80, internal_error) or
        another. A second form: SSLRequest is closed or gets a raw alert, direct gets an alert
        or a ServerHello, and no bare ClientHello finishes, except with a placeholder
        certificate; that one is likely.

    How it is told from its look-alikes
        T408 (alpn-rejected): no-alpn finishes. S301 (name-not-routed): unknown-name ends alike,
        and another name works or direct is told of no route. S311 (sni-trailing-dot): the name
        ends in a dot, which is the likelier cause. S309 (backend-down-or-without-tls):
        unknown-name or direct-unknown-name ends otherwise. N209 (silent-after-ssl-answer): S,
        then not one byte. N201, N202: a bare ClientHello finishes, or gets alert 120. T410: a
        direct client without a byte. P507 (startup-unanswered): TLS finished. Where direct
        tells nothing, a missing route and a dead backend that close alike need --other-name.

    What to change
        Traefik 3.6.11: go to 3.6.12. Otherwise the log of whoever sent the alert names the
        reason. Where the message says that tls-1.2 or tls-1.0-1.1 gets through, compare the
        versions and ciphers of both ends. postgresql.conf:
            ssl_min_protocol_version = 'TLSv1.2'
            ssl_max_protocol_version = ''
        Check that the backend runs and has TLS (ssl = on), and give the name of a neighbour
        that works, which splits the cases:
            pgprobe db-1.example.com --other-name db-2.example.com
        Where a TLS listener takes no handshake of ours, let the port pass as plain TCP.
    """
    if evidence.mute:
        return
    yield from _nobody_finishes(evidence)
    seen = evidence.main
    if seen is None or seen.client_hello is None or seen.established or seen.foreign:
        return
    if insists_on_certificate(seen) is not False:
        return  # said by T413
    if (seen.server_name or "").endswith("."):
        return  # said by S311
    if seen.strange_resets:
        return  # said by C108
    direct = evidence.direct if seen.opening is Opening.SSL_REQUEST else None
    beside = ""
    proofs = [evidence.proof(seen)]
    if direct and direct.established:
        beside = "; a bare ClientHello with the same name gets through, so the route exists"
        proofs.append(evidence.proof(direct))
    for variation in (Variation.ONLY_TLS_1_2, Variation.OBSOLETE_TLS):
        older = evidence.one(variation=variation)
        if older and older.established:
            beside += f"; {variation.value} gets through"
            proofs.append(evidence.proof(older))
    yield Found(
        f"the TLS handshake breaks off: the ClientHello is {in_words(seen)}"
        f"{f' ({seen.tls_failed})' if seen.tls_failed and not seen.alert else ''}{beside}",
        tuple(proofs),
        fix=_NO_WORD if said_nothing_in_tls(seen) else _IN_THE_LOG,
    )


def _nobody_finishes(evidence: Evidence) -> Iterator[Found]:
    """SSLRequest breaks, somebody speaks TLS there, and finishes no handshake either."""
    broken = breaks_on_request(evidence)
    bare = [seen for seen in evidence.handshakes if seen.opening is Opening.DIRECT_TLS]
    if broken is None or foreign_answer(evidence):
        return
    if any(seen.established and not placeholder(seen) for seen in bare):
        return  # said by N201 or N202
    if any(refuses_alpn(seen) for seen in bare) and not any(map(placeholder, bare)):
        return  # said by N202
    spoke = [seen for seen in (broken, *bare) if seen.alert or seen.server_hello]
    if not spoke:
        return
    last = evidence.direct or spoke[0]
    yield Found(
        f"somebody speaks TLS here, SSLRequest is {in_words(broken)}, and a bare ClientHello is "
        f"{in_words(last)}: a listener that expects TLS first, and takes no handshake of ours",
        tuple(dict.fromkeys(evidence.proof(seen) for seen in (broken, *spoke[:2]))),
        Certainty.LIKELY,
        fix=(
            Fix("gateway", "let the port pass as plain TCP to the server"),
            Fix("gateway", "an alert names its cause in the log of whoever sent it"),
        ),
    )


@rule("T412", "obsolete-tls", Severity.WARNING)
def obsolete_tls(evidence: Evidence) -> Iterator[Found]:
    """TLS 1.0 or 1.1 is accepted (RFC 8996 forbids both).

    What it says
        A ClientHello that offers nothing newer than TLS 1.1 was answered, and the handshake
        finished. The message names the version that the peer chose.

    Why it matters
        No client is kept out by it, and modern clients negotiate 1.2 or 1.3 here as before. It
        lets an old or a misled client end up with a protocol whose hashes are broken, and
        audits report it. The setting belongs to whoever ends TLS, often a proxy.

    On the wire
        Attempt tls-1.0-1.1: SSLRequest, S, then a ClientHello that goes no higher than 03 02
        and has no supported_versions extension. The answer is a ServerHello with version 03 01
        or 03 02. A peer that refuses sends alert 70 (15 03 0x 00 02 02 46, protocol_version),
        some send 40, some close. The attempt is made where SSLRequest got its S.

    How it is told from its look-alikes
        No other finding says this; the attempt itself is the proof. T411 (tls-handshake-failed)
        is the opposite case, seen where modern versions fail. T401 (tls-terminated) and P504
        (pooler-answers) tell whether the setting is the proxy's or the server's. Silence of
        this rule proves less: a bare listener without SSLRequest (N201, N202) is not asked, and
        the TLS library of the probing machine may be built or configured without the old
        versions, and then offers nothing to accept.

    What to change
        postgresql.conf:
            ssl_min_protocol_version = 'TLSv1.2'
        PgBouncer, pgbouncer.ini:
            client_tls_protocols = secure
        Traefik v3, TLSOption:
            spec: { minVersion: VersionTLS12 }
        HAProxy, bind line: ssl-min-ver TLSv1.2
        nginx stream: ssl_protocols TLSv1.2 TLSv1.3;
        Envoy, tls_params: tls_minimum_protocol_version: TLSv1_2
        Clients can insist on their side:
            ssl_min_protocol_version=TLSv1.2
    """
    seen = evidence.one(variation=Variation.OBSOLETE_TLS)
    if seen is None:  # where all clients are old, none differs in that
        seen = next((h for h in evidence.handshakes if h.tls_version in ("1.0", "1.1")), None)
    if seen and seen.established and seen.server_hello:
        version = VERSIONS.get(seen.server_hello.version, "?")
        yield Found(
            f"TLS {version} is accepted, which RFC 8996 forbids",
            (evidence.proof(seen),),
            fix=(
                Fix("server", "ssl_min_protocol_version = 'TLSv1.2'"),
                Fix("gateway", "the same in the listener that ends TLS"),
            ),
        )


@rule("T413", "client-certificate-asked", Severity.INFO)
def client_certificate_asked(evidence: Evidence) -> Iterator[Found]:
    """The TLS peer asks for a client certificate, or demands one.

    What it says
        A CertificateRequest came in the handshake. The message tells how many certificate
        authorities it names. When TLS ends at a proxy, the proxy is the one that asks, and the
        finding is a warning. Where the connection ended because none was shown, it is an error.

    Why it matters
        PostgreSQL asks whenever it has a CA file for clients, and most clients answer with no
        certificate and get in: that is information. At a proxy it matters, since the server
        behind never sees the certificate: rules with the method cert, or with clientcert, in
        pg_hba.conf cannot match (envoyproxy/envoy#10942).

    On the wire
        Handshake message type 0d from the server, between ServerHello and its Finished:
        encrypted in TLS 1.3, in clear in 1.2. Its list of distinguished names says whose
        certificates are welcome. The client answers with a Certificate message, empty where it
        has none. A peer that insists sends alert 116 after that, in TLS 1.2 alert 40 or 42;
        PostgreSQL's rules for certificates end in a 28000 that speaks of a client certificate.

    How it is told from its look-alikes
        Who asks is what T401 (tls-terminated) is concluded from: -PLUS in the control speaks
        for the server, its absence, alert 120 or a placeholder for a proxy. Beside P504
        (pooler-answers) it stays information. P503 (startup-refused) with 28000 stands beside
        this one where the server itself demands it, after TLS. T411 (tls-handshake-failed) and
        P507 (startup-unanswered) are silent where this is an error; it is likely with an alert
        40 or 42, which has other reasons, too. No CertificateRequest, where cert
        rules exist, is a sign of termination that this rule does not report. Any attempt of the
        run may be the evidence, one with another name too: read which.

    What to change
        With cert rules, TLS must reach the server (passthrough, see T401), and there:
            ssl_ca_file = 'clients-ca.crt'
            hostssl all all 0.0.0.0/0 cert                  (pg_hba.conf)
        Client:
            sslcert=client.crt sslkey=client.key sslmode=verify-full
        Where the proxy is to check clients itself, say so in its own configuration, and use
        another method in pg_hba.conf. Traefik v3, TLSOption:
            clientAuth:
              secretNames: [ clients-ca ]
              clientAuthType: RequireAndVerifyClientCert
    """
    main = evidence.main
    needed = insists_on_certificate(main) if main else False
    if main and needed is not False:
        yield Found(
            f"a client certificate is demanded, and none was shown: {in_words(main)}",
            (evidence.proof(main),),
            Certainty.PROVED if needed else Certainty.LIKELY,
            Severity.ERROR,
            (Fix("client", "sslcert and sslkey: a certificate that the peer trusts"),),
        )
        return
    asked = (h for h in evidence.handshakes if h.asked is not Asked.UNKNOWN)
    seen = next((h for h in asked if h.certificate_asked), None)
    if seen is None:
        return
    path = trace(evidence)
    proxy = path.tls_ends_at is TlsEnd.PROXY and not path.pooler
    whose = f", from {len(seen.authorities)} named authorities" if seen.authorities else ""
    at_proxy = ": it ends at a proxy, so cert rules of pg_hba cannot work" if proxy else ""
    yield Found(
        f"a client certificate is asked for{whose}{at_proxy}",
        (evidence.proof(seen, "a CertificateRequest came"),),
        severity=Severity.WARNING if proxy else None,
        fix=(PASS_THROUGH,) if proxy else (),
    )
