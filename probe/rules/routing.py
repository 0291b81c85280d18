"""S: the server_name, and where it leads."""

from __future__ import annotations

from collections.abc import Iterator

from probe.certificate import Certificate
from probe.evidence import Evidence, Variation, host_of
from probe.fate import broke_off, hung_up, in_words, said_nothing_in_tls
from probe.finding import Certainty, Fix, Severity
from probe.handshake import Handshake, Opening, Outcome
from probe.path import Routing, dead_backend, no_route, trace
from probe.refusal import reaches_server, turned_away
from probe.rules import Found, rule
from probe.transcript import Asked
from probe.wire.records import UNRECOGNIZED_NAME

_NO_CERTIFICATE = Fix(
    "whoever ends TLS", "a certificate for the name (strict SNI; PostgreSQL 19: pg_hosts.conf)"
)


def _shown(seen: Handshake) -> str:
    """The certificate that a handshake showed, in a few words."""
    if seen.leaf is None:
        return "no certificate"
    leaf = Certificate(seen.leaf)
    return f"the certificate {leaf.fingerprint[:8]} for {', '.join(leaf.names[:3]) or '?'}"


def _stopped_behind_s(seen: Handshake) -> bool:
    unrecognized = seen.alert is not None and seen.alert.description == UNRECOGNIZED_NAME
    return (said_nothing_in_tls(seen) and hung_up(seen)) or (
        seen.ssl_answer == "S" and unrecognized
    )


@rule("S301", "name-not-routed", Severity.ERROR, starttls=True)
def name_not_routed(evidence: Evidence) -> Iterator[Found]:
    """The router has no route for this name: S, then closed, as for a name nobody configured.

    What it says
        The router answers S before it can know the name. When the ClientHello tells the name,
        it hangs up, or sends alert 112, just as it does for a made-up name. Another name works,
        or a bare ClientHello is told that there is no route.

    Why it matters
        All users of this one name fail while others on the same listener work. psql prints
        "server closed the connection unexpectedly" at best; with sslmode=prefer libpq comes
        back in clear text and may hang (traefik/traefik#9929). The S makes it look like a
        server fault.

    On the wire
        Attempt ssl-request: 00 00 00 08 04 d2 16 2f out, 53 back, a ClientHello with the asked
        name out, FIN back, no TLS byte. Attempt unknown-name: the same end with
        pgprobe-unknown.invalid. Attempt direct: alert 112 or 120, or, in direct-no-alpn, a
        placeholder such as TRAEFIK DEFAULT CERT. Attempt other-name: the handshake finishes.

    How it is told from its look-alikes
        S309 (backend-down-or-without-tls): the asked name and an unknown one end differently;
        attempts direct and direct-unknown-name separate them. T408 (alpn-rejected): the alert
        120 comes behind the S, and no-alpn gets through. T411 (tls-handshake-failed): every
        name is closed and nothing says that there is no route; Traefik 3.6.11 does that in
        passthrough. N209: silence instead of a close. With the refusal of a bare ClientHello it
        is proved. With only --other-name it is likely: a dead backend that is closed in the
        same way looks alike.

    What to change
        Traefik v3, IngressRouteTCP: the exact name, or several joined with ||, and passthrough:
            routes:
            - match: HostSNI(`db-1.example.com`) || HostSNI(`db-1.example.net`)
              services: [ { name: db-1, port: 5432 } ]
            tls: { passthrough: true }
        Gateway API, TLSRoute: the name in spec.hostnames, and covered by the listener's
        hostname:
            hostnames: [ "db-1.example.com" ]
        Check that the route is attached (status.parents, condition Accepted) and uses the right
        entry point or sectionName. Client: the name in host= is what is routed by; look for
        typing errors, a missing domain, an alias in DNS that no route has, or a trailing dot.
    """
    control, lost = evidence.control, evidence.unknown
    if control is None or lost is None or not _stopped_behind_s(control):
        return
    if not _stopped_behind_s(lost) or dead_backend(evidence):
        return
    if evidence.direct and evidence.direct.established:
        return  # there is a route, for those who come with TLS
    routed = next((seen for seen in evidence.others if seen.established), None)
    refusal = no_route(evidence)
    if routed is None and refusal is None:
        return
    proofs = [evidence.proof(control), evidence.proof(lost)]
    proofs += [evidence.proof(routed)] if routed else []
    proofs += [refusal] if refusal else []
    lacks = "no route or no certificate" if control.alert else "no route"
    yield Found(
        f"the router says S and has {lacks} for {evidence.question.name!r}: the name is "
        f"{in_words(control)} just as one that nobody configured",
        tuple(proofs),
        # without the refusal a dead backend that is closed in the same way looks alike
        Certainty.PROVED if refusal else Certainty.LIKELY,
        fix=(
            Fix("gateway", "add the name to HostSNI (Traefik) or hostnames (TLSRoute)"),
            Fix("client", "check the spelling of the host name: it is what is routed by"),
            *([_NO_CERTIFICATE] if control.alert else []),
        ),
    )


@rule("S302", "name-ignored", Severity.WARNING)
def name_ignored(evidence: Evidence) -> Iterator[Found]:
    """Behind SSLRequest the name does not decide: everybody lands on the default route.

    What it says
        The same name was asked twice, once behind SSLRequest and once in a bare ClientHello,
        and led to two places: another certificate or another cluster. The router reads the name
        only when TLS comes first; a PostgreSQL client ends up at the default.

    Why it matters
        TLS works, and the wrong database answers. Users of every name but the default one meet
        failed logins, a database that does not exist, or data that is not theirs. Under a
        shared wildcard certificate verify-full notices nothing. The default's own users see no
        fault.

    On the wire
        Attempt ssl-request: 00 00 00 08 04 d2 16 2f out, S (relayed from the default backend),
        ClientHello with the name, the default's certificate back. Attempt direct: 16 03 01 ...
        with the same name, the named backend's certificate back. Attempt unknown-name: the
        default's again, which makes it proved; without that it is likely.

    How it is told from its look-alikes
        S304 (wrong-backend) is an error beside this one when the asked name is hit; S302 alone
        means that an --other-name is. S308 (catch-all-route): known names decide, unknown ones
        land somewhere. N201 (sni-router-without-starttls): no default route, so SSLRequest
        breaks. Plain forwarding ignores the name in both openings and is no finding. Behind a
        balancer a server that both openings reach is no other place. A port shared with an
        HTTPS server gives no finding: the bare ClientHello has to reach a server. Without
        --other-name nothing shows when the default is the asked name's own.

    What to change
        Take the default away, so that the mistake shows, or keep the default's port for one
        database. nginx stream, where $ssl_preread_server_name is empty behind SSLRequest:
            map $ssl_preread_server_name $db { db-1.example.com 10.0.0.5:5432; }   # no default
        HAProxy: use_backend db1 if { req.ssl_sni -i db-1.example.com }, and no default_backend.
        Envoy: no filter chain without server_names, and no default_filter_chain. Then use a
        router that answers SSLRequest, such as Traefik v3 with
            match: HostSNI(`db-1.example.com`)      # tls: { passthrough: true }
        or one port for each database, or, where all clients and servers are 17 or later,
            sslmode=require sslnegotiation=direct
    """
    for starttls, direct in _same_name_elsewhere(evidence):
        lost = evidence.unknown
        alike = lost is not None and evidence.same_place(starttls, lost) is True
        proofs = [
            evidence.proof(starttls, f"behind SSLRequest: {_shown(starttls)}"),
            evidence.proof(direct, f"bare ClientHello: {_shown(direct)}"),
        ]
        if lost and alike:
            proofs.append(evidence.proof(lost, f"an unknown name: {_shown(lost)}"))
        yield Found(
            f"behind SSLRequest {starttls.server_name!r} leads to another place than with a bare "
            "ClientHello: the router does not see the name, and takes its default route",
            tuple(proofs),
            Certainty.PROVED if alike else Certainty.LIKELY,
            fix=(
                Fix("gateway", "take away the default route, so that the mistake shows"),
                Fix(
                    "gateway",
                    "use a router that speaks PostgreSQL's StartTLS (Traefik 3), or a port for "
                    "each database",
                ),
                Fix("client", "sslnegotiation=direct with libpq 17 or later, where all can"),
            ),
        )
        return


def _same_name_elsewhere(evidence: Evidence) -> Iterator[tuple[Handshake, Handshake]]:
    """Pairs of one name that ended at different servers behind SSLRequest and bare."""
    for asked in (Asked.TARGET, Asked.OTHER):
        for starttls in evidence.all(asked=asked):
            for direct in evidence.all(Opening.DIRECT_TLS, asked):
                if starttls.server_name != direct.server_name or not starttls.established:
                    continue
                # a port may be shared with somebody who ends TLS: it must be a server, too
                ended = starttls.offers_binding and not direct.offers_binding
                if ended or not reaches_server(direct):
                    continue
                if evidence.leads_elsewhere(direct, evidence.home(starttls)):
                    yield starttls, direct


@rule("S303", "sni-required", Severity.WARNING)
def sni_required(evidence: Evidence) -> Iterator[Found]:
    """A client that sends no name does not get through where one with the name does.

    What it says
        With the asked name in the ClientHello the handshake finishes. With the same ClientHello
        without server_name it does not. The listener needs the name to choose a backend or a
        certificate, which is normal for a router by SNI.

    Why it matters
        Some clients send no name: libpq up to 13, anything that connects by address, sslsni=0,
        older drivers (pgx before 5, Postgrex before 0.18), PgBouncer towards servers unless it
        uses verify-full. psql 13 fails and psql 14 works (neondatabase/website#685). Clients
        with SNI are not affected, hence a warning.

    On the wire
        Control, or no-alpn: S, ClientHello with server_name, ServerHello back. Attempt no-name,
        or no-name-no-alpn: S, the same ClientHello without that extension; then FIN, RST, an
        alert, or silence; or, behind TLS, an ErrorResponse to a StartupMessage that is let
        through with the name, as proxies say it that find their server by the name. The pair
        with ALPN is compared first, the one without ALPN second; the first that differs is
        reported.

    How it is told from its look-alikes
        S301 (name-not-routed): the name is sent and unknown. T407 (default-certificate): the
        asked name itself is shown a placeholder. If the client without a name gets a default
        certificate and a finished handshake, this is silent: S308 (catch-all-route) or plain
        forwarding is closer. T408 (alpn-rejected) is kept apart by comparing like with like.
        C110 (answers-vary): it got through when it was made again. Silence is not tried twice.

    What to change
        Client: a host name instead of an address, libpq 14 or later, and SNI left on:
            host=db-1.example.com hostaddr=203.0.113.10 sslsni=1
        PgBouncer towards such a router:
            server_tls_sslmode = verify-full
            server_tls_ca_file = /etc/pgbouncer/ca.crt
        Traefik v3: a router for clients without a name is a catch-all and takes unknown names
        as well, so it is fit only for an entry point with one database:
            match: HostSNI(`*`)
        For old clients, better a port or address of their own, as TCPRoute or plain TCP. Some
        providers take the name elsewhere, such as options=endpoint%3D... or --cluster=...
    """
    for alpn in (True, False):
        named = evidence.one(alpn=alpn)
        nameless = evidence.one(asked=None, alpn=alpn)
        if not named or not nameless or not named.established or nameless.not_connected:
            continue
        stopped = not nameless.established and (broke_off(nameless) or nameless.alert)
        if not stopped and not turned_away(nameless, named):
            continue
        what = "StartupMessage" if nameless.established else "ClientHello"
        yield Found(
            f"without server_name the {what} is {in_words(nameless)}: libpq up to 13, "
            "clients that connect by address, sslsni=0",
            (evidence.proof(named), evidence.proof(nameless)),
            Certainty.LIKELY if nameless.outcome is Outcome.SILENT else Certainty.PROVED,
            fix=(Fix("client", "libpq 14 or later, a host name (not an address), sslsni=1"),),
        )
        return


@rule("S304", "wrong-backend", Severity.ERROR, starttls=True)
def wrong_backend(evidence: Evidence) -> Iterator[Found]:
    """The asked name leads to another certificate or cluster than its own.

    What it says
        Behind SSLRequest the asked name is taken to a place that is not its own. Either a bare
        ClientHello with the same name leads elsewhere, or another name that was given is shown
        a certificate which covers the asked one, while the asked one's does not.

    Why it matters
        Clients of this name talk to somebody else's database. psql reports a failed password or
        a database that does not exist, and with verify-full a certificate for another host.
        With sslmode=require, equal role names and a shared certificate nobody is warned; writes
        may go to the wrong place. Hence an error.

    On the wire
        Attempt ssl-request: S, ClientHello with the asked name, the handshake finishes with
        leaf X. Attempt direct: the same name, leaf Y or another cluster id. Or attempt
        other-name: a leaf Y that covers the asked name, which X does not. The cluster id comes
        from the SCRAM salt of the made-up user, so it is there only where SCRAM is offered to
        it.

    How it is told from its look-alikes
        S302 (name-ignored) is the cause in the first case and stands beside it; direct
        separates the two places. T403 (certificate-name-mismatch): the leaf does not fit, and
        nobody else was shown the right one. S301: no handshake at all. P505 (clusters-differ):
        one name, several clusters by turns; an unsteady control blocks the first case. The
        second case is likely only: two routes changed over, or two certificates changed over,
        cannot be told apart. A port shared with an HTTPS server by protocol also gives the
        first case.

    What to change
        First case: take the default route away; see S302 for the router that is needed. Second
        case: compare the routes with the Services. Traefik v3:
            - match: HostSNI(`db-1.example.com`)
              services: [ { name: db-1, port: 5432 } ]
            - match: HostSNI(`db-2.example.com`)
              services: [ { name: db-2, port: 5432 } ]
        TLSRoute: hostnames and backendRefs of the same route belong together, and a Service's
        selector must match the pods of one database only. If the servers were given each
        other's certificate, correct ssl_cert_file and ssl_key_file and reload. Client, so that
        it shows at once: sslmode=verify-full sslrootcert=/etc/ssl/db-ca.crt
    """
    control, name = evidence.control, evidence.question.name
    if control is None or not control.established or name is None:
        return
    for starttls, direct in _same_name_elsewhere(evidence):
        if starttls.asked is Asked.TARGET:
            lost = evidence.unknown
            alike = lost is not None and evidence.same_place(starttls, lost) is True
            yield Found(
                f"{name!r} leads to {_shown(starttls)} behind SSLRequest; a bare ClientHello with "
                f"it leads to {_shown(direct)}",
                (
                    evidence.proof(starttls, f"behind SSLRequest: {_shown(starttls)}"),
                    evidence.proof(direct, f"bare ClientHello: {_shown(direct)}"),
                ),
                Certainty.PROVED if alike else Certainty.LIKELY,
                fix=(Fix("gateway", "take away the default route; see name-ignored (S302)"),),
            )
            return
    owner = _owner(evidence, control, name)
    if owner:
        yield Found(
            f"{name!r} leads to {_shown(control)}, and {owner.server_name!r} to "
            f"{_shown(owner)}, which is the one for it",
            (evidence.proof(control, _shown(control)), evidence.proof(owner, _shown(owner))),
            Certainty.LIKELY,
            fix=(Fix("gateway", "correct the route of the name: it leads to another's backend"),),
        )


def _owner(evidence: Evidence, control: Handshake, name: str) -> Handshake | None:
    """Another name's handshake whose certificate is for the asked name, where its own is not."""
    if control.leaf is None or Certificate(control.leaf).covers(name):
        return None
    for seen in evidence.others:
        if seen.leaf and seen.leaf != control.leaf and Certificate(seen.leaf).covers(name):
            return seen
    return None


@rule("S305", "split-client-hello-breaks", Severity.WARNING)
def split_client_hello_breaks(evidence: Evidence) -> Iterator[Found]:
    """A ClientHello in two segments or two TLS records does not get through.

    What it says
        The ClientHello of the control gets through in one piece. The same message, cut inside
        the server_name into two TCP segments or two TLS records, is closed, answered with an
        alert, left waiting, or led to another place. The router reads the name from the first
        piece.

    Why it matters
        TLS allows both cuts. Clients whose key share is post-quantum (OpenSSL 3.5 and later, Go
        1.24 and later) send a ClientHello of more than one segment, so an upgrade or a small
        MTU begins to break connections, often not all of them. The user sees a connection that
        is lost during the handshake (haproxy/haproxy#3148, mholt/caddy-l4#346).

    On the wire
        After S, attempt hello-in-two-segments: one record 16 03 01 ... whose bytes leave in two
        writes, 30 ms apart. Attempt hello-in-two-records: two records, each with its own header
        16 03 01, in one write. FIN, RST, an alert or silence comes back instead of 16 03 03.
        Both are made only when the control finished its handshake. With sslnegotiation=direct
        all of them begin with the ClientHello.

    How it is told from its look-alikes
        S306 (large-client-hello-breaks): large-hello also leaves in two segments. Where S305
        names the two segments, S306 is only its consequence; where large-hello alone fails,
        size is the cause. N208 (split-ssl-request-breaks): the cut is in SSLRequest. S301 and
        T411: the whole ClientHello fails too. One finding names the first shape that breaks,
        segments before records; the steps of the other attempt tell about the other. A
        connection that is lost by chance looks alike. Silence is likely at most. Measured:
        HAProxy, sniproxy and sslh lose the name in two records, and sslh in two segments.

    What to change
        Router: collect the segments and records of the ClientHello before looking for the name.
        Traefik: 3.6.12 or later puts fragments together (traefik/traefik#12787, #12847); 3.6.11
        breaks StartTLS in doing so. caddy-l4: a release with mholt/caddy-l4#346. HAProxy: an
        inspect delay with a rule that waits, not the delay alone:
            tcp-request inspect-delay 5s
            tcp-request content accept if { req.ssl_hello_type 1 }
        Network: look for a firewall that reads ClientHellos on the way (dadrian/tldr.fail#23).
        Until then, plain TCP forwarding (TCPRoute) is not affected, since it reads no name.
    """
    yield from _breaks(
        evidence,
        (Variation.TWO_SEGMENTS, Variation.TWO_RECORDS),
        (
            Fix("gateway", "put ClientHellos together before reading the name (Traefik 3.6.12)"),
            Fix("gateway", "HAProxy: tcp-request content rules beside inspect-delay"),
        ),
    )


@rule("S306", "large-client-hello-breaks", Severity.WARNING)
def large_client_hello_breaks(evidence: Evidence) -> Iterator[Found]:
    """A ClientHello longer than one segment, as post-quantum key shares make it, breaks.

    What it says
        The control's ClientHello, which fits into one segment, gets through. One of 1.8 to 2.7
        kB is closed, answered with an alert, left waiting, or led elsewhere. A buffer on the
        way is too small, or only the first packet is looked at.

    Why it matters
        Clients with OpenSSL 3.5 and later or Go 1.24 and later send X25519MLKEM768 by default
        and thereby such a ClientHello. They fail after an upgrade on the client's side, while
        older clients go on. The user sees a lost connection or a hang in the handshake,
        sometimes only on one network. The server is not at fault.

    On the wire
        Attempt large-hello: 00 00 00 08 04 d2 16 2f out, S back, then one TLS record whose
        first 1400 bytes leave in one segment and whose rest follows after 30 ms. The size comes
        from more ALPN entries behind postgresql, not from another key share. FIN, RST, an alert
        or silence comes back. It is made only when the control finished its handshake.

    How it is told from its look-alikes
        S305 (split-client-hello-breaks): this attempt is cut into segments as well. If
        hello-in-two-segments fails too, the cut is the cause; if it passes, the size is. N209
        (silent-after-ssl-answer): the small ClientHello is silent too, as on a path whose
        server flight is lost. Not separable: a proxy's buffer limit, a middlebox that drops
        long ClientHellos, an MTU hole in the client's direction, and a peer that dislikes the
        long ALPN list. Silence points to the network, an alert to a TLS peer, and is likely at
        most. Measured: nginx and Envoy reset it where their buffer was set to 1 kB.

    What to change
        Proxy: raise the limit for the ClientHello. HAProxy, which looks into one buffer:
            global
              tune.bufsize 32768
        nginx stream:
            preread_buffer_size 32k;
        caddy-l4: a release with mholt/caddy-l4#346 (16 KB, with reassembly). Traefik: 3.6.12 or
        later. Envoy: watch the counter client_hello_too_large of the TLS inspector. Network:
        allow ICMP "fragmentation needed", clamp the MSS, exempt the port from inspection.
        Client, as a test and for the time being: leave out the hybrid share, in openssl.cnf:
            Groups = X25519:P-256
    """
    if next(_breaks(evidence, (Variation.TWO_SEGMENTS,), ()), None):
        return  # it is the second segment that breaks: S305
    yield from _breaks(
        evidence,
        (Variation.LARGE,),
        (
            Fix("gateway", "raise the buffer that it looks for the name in"),
            Fix("network", "check the path MTU and any middlebox that reads ClientHellos"),
        ),
    )


@rule("S307", "sni-case-sensitive", Severity.WARNING)
def sni_case_sensitive(evidence: Evidence) -> Iterator[Found]:
    """The name in mixed case does not get through, or leads elsewhere: names have no case.

    What it says
        The asked name gets through as written. The same name with every second letter in upper
        case is closed, answered with an alert, left waiting, or led to another certificate or
        cluster. Somebody compares names byte by byte, although case does not count (RFC 4343).

    Why it matters
        Host names are copied in whatever case they stand in. DNS and certificate checks do not
        mind, so the connection string looks right. psql then loses the connection during the
        handshake, or reaches the default database without a word. Only clients that write the
        name differently from the route are hit, hence a warning.

    On the wire
        Control: S, ClientHello with db-1.example.com, handshake finished. Attempt mixed-case:
        S, ClientHello with dB-1.ExAmPlE.CoM in the server_name; then FIN, RST, an alert,
        silence, or another leaf. Everything else is equal. It is made only when the control
        finished its handshake and a name was asked for.

    How it is told from its look-alikes
        S301 (name-not-routed): the name fails as written, too. S308 (catch-all-route): a
        made-up name is taken in; it stands beside this one where the mixed name falls to the
        default. S302 and S304 concern the name as written. A router that compares case and a
        server that does so, with certificates by host name, cannot be told apart from outside;
        --door asks behind the router. C110 (answers-vary): it got through when it was made
        again.

    What to change
        Router: compare without regard to case. HAProxy has the flag -i for it:
            use_backend db1 if { req.ssl_sni -i db-1.example.com }
        A regular expression needs it as well. nginx stream, with ~* in place of ~:
            map $ssl_preread_server_name $db { ~*^db-1[.]example[.]com$ 10.0.0.5:5432; }
        Traefik, Envoy and nginx were seen to route a mixed-case name with their plain matchers,
        HAProxy with -i alone; sniproxy and sslh compare letter by letter. Prefer plain matchers
        to regular expressions. Write host names in routes in lower case.
        Client: write host= in the case that the route has.
    """
    yield from _breaks(
        evidence,
        (Variation.MIXED_CASE,),
        (
            Fix("gateway", "compare names without regard to case (RFC 4343)"),
            Fix("client", "write the host name in the case that the route has"),
        ),
    )


def _breaks(
    evidence: Evidence, variations: tuple[Variation, ...], fix: tuple[Fix, ...]
) -> Iterator[Found]:
    for variation in variations:
        seen = evidence.broken_by(variation)
        if seen is None:
            continue
        assert evidence.main is not None
        ended = f"led to {_shown(seen)}" if seen.established else in_words(seen)
        yield Found(
            f"{variation.value} is {ended}, where the plain one gets through",
            (evidence.proof(evidence.main), evidence.proof(seen)),
            Certainty.LIKELY if seen.outcome is Outcome.SILENT else Certainty.PROVED,
            fix=fix,
        )
        return


@rule("S308", "catch-all-route", Severity.WARNING)
def catch_all_route(evidence: Evidence) -> Iterator[Found]:
    """Known names decide, and a name that nobody configured still reaches a database.

    What it says
        The name in the ClientHello chooses the backend for known names. A made-up name finishes
        the handshake as well, at a default backend. The router has a catch-all route beside the
        routes by name.

    Why it matters
        A typing error, or a database whose route was deleted, does not fail: the client reaches
        somebody else's server. psql then prints an authentication error or an unknown database,
        and with equal roles it even logs in. Only verify-full stops it, and not under a
        wildcard certificate that both share. Correct names work, hence a warning.

    On the wire
        Attempt unknown-name: 00 00 00 08 04 d2 16 2f out, S back, ClientHello with
        pgprobe-unknown.invalid out, and a finished handshake with a leaf that is not a
        placeholder. The control or an other-name shows another leaf or another cluster. The
        bare ClientHello with the asked name, where it was sent, leads to the same place as the
        control.

    How it is told from its look-alikes
        S302 (name-ignored) excludes this one: there the name does not decide behind SSLRequest.
        Plain forwarding takes any name to the same place and is no finding. T407
        (default-certificate): the asked name itself gets a placeholder. S303 (sni-required) is
        about no name. Not seen: a catch-all that leads to the asked name's own backend, unless
        an --other-name leads elsewhere. One cluster may show several certificates: it is one
        place. Where no known name is seen to lead elsewhere, since the asked one breaks off, it
        is only possible: a filter by name before a plain forwarder looks the same.

    What to change
        Remove the catch-all, or put it on an entry point of its own. Traefik v3:
            match: HostSNI(`*`)                     # with tls: delete this router
        Gateway API: no TLSRoute without hostnames on this listener, and a hostname on the
        listener:
            hostname: "*.db.example.com"
        HAProxy: no default_backend in this frontend. nginx stream: no default in the map, so
        that the upstream stays empty and the connection is closed. Envoy: no
        default_filter_chain. If it is wanted, let it lead to a server that lets nobody in, in
        pg_hba.conf:
            host all all all reject
        Client: sslmode=verify-full, so that a typing error ends at the certificate.
    """
    lost, control = evidence.unknown, evidence.control
    if lost is None or control is None or not lost.established:
        return
    if trace(evidence).routing is not Routing.CATCH_ALL or next(
        _same_name_elsewhere(evidence), None
    ):
        return
    known = (control, *evidence.others)
    other = next((s for s in known if evidence.same_place(s, lost) is False), None)
    reached = "reaches authentication" if reaches_server(lost) else "is taken in"
    elsewhere = "known names lead elsewhere"
    if other is None:
        elsewhere = f"the asked name is {in_words(control)}: by its own route, or by a filter"
    yield Found(
        f"a name that nobody configured {reached}, at {_shown(lost)}; {elsewhere}",
        (
            evidence.proof(other, _shown(other)) if other else evidence.proof(control),
            evidence.proof(lost, _shown(lost)),
        ),
        Certainty.PROVED if other else Certainty.POSSIBLE,
        fix=(Fix("gateway", "take away the default route (HostSNI(`*`)): a typo must not log in"),),
    )


@rule("S309", "backend-down-or-without-tls", Severity.ERROR, starttls=True)
def backend_down_or_without_tls(evidence: Evidence) -> Iterator[Found]:
    """The name is routed, and nothing behind it speaks TLS: down, or without TLS.

    What it says
        The router says S by itself and has a route for the asked name: what becomes of this
        name differs from what becomes of one that nobody configured. Behind the route the
        connection is closed or hangs. The backend is down, unreachable, or refuses TLS.

    Why it matters
        Users of this name fail, others on the listener work. psql prints "server closed the
        connection unexpectedly", or hangs where the backend's SYN is dropped. Because of the S
        it is taken for a fault of TLS or certificates. With sslmode=prefer the clear-text retry
        may hang too (traefik/traefik#9929).

    On the wire
        Attempt ssl-request: S, ClientHello with the asked name, then FIN, RST or silence, and
        no TLS byte. Attempt direct: closed or silent without a byte. Attempt
        direct-unknown-name: alert 112 or 120; or direct-unknown-name-no-alpn: a placeholder
        certificate. The other proof: ssl-request is silent and unknown-name is closed, both
        behind S.

    How it is told from its look-alikes
        S301 (name-not-routed): direct with the asked name gets alert 112 or 120 or a
        placeholder itself. N209 (silent-after-ssl-answer): all names are silent. T411
        (tls-handshake-failed): every name is closed and direct does not tell them apart. C105:
        a plain forwarder has no S of its own. Not separable: a refused backend and one with ssl
        = off, which send the same bytes. A server of 16 or older closes on direct TLS while it
        is well, so a router that loses StartTLS in front of it (Traefik 3.6.11) looks the same:
        hence likely, and proved only where an --other-name gets through.

    What to change
        Kubernetes: kubectl get endpointslices, for the Service that the route names; the port
        in IngressRouteTCP or backendRefs is the Service's. Let a NetworkPolicy admit the
        gateway:
            ingress:
            - from: [ { namespaceSelector: { matchLabels: { gateway: "yes" } } } ]
              ports: [ { protocol: TCP, port: 5432 } ]
        postgresql.conf, since behind passthrough the server itself must speak TLS:
            ssl = on                                # and ssl_cert_file, ssl_key_file
        PgBouncer as the backend: client_tls_sslmode = require, with key and certificate. Ask
        the backend itself with --door: C102 and C103 mean down or filtered, N203 means without
        TLS.
    """
    proofs = dead_backend(evidence)
    control = evidence.control
    if not proofs or control is None:
        return
    yield Found(
        f"the router says S and knows {evidence.question.name!r}, and the connection is "
        f"{in_words(control)}: its backend is down, or has no TLS",
        proofs,
        # without a name that works, a router that loses every ClientHello looks alike
        Certainty.PROVED if any(seen.established for seen in evidence.others) else Certainty.LIKELY,
        fix=(
            Fix("Kubernetes", "check that the Service of this route has ready endpoints"),
            Fix("server", "ssl = on: behind passthrough the server itself must speak TLS"),
        ),
    )


@rule("S310", "sni-not-sent", Severity.INFO)
def sni_not_sent(evidence: Evidence) -> Iterator[Found]:
    """A client sends no server_name, in any of its connections: nobody can route it by name.

    What it says
        The ClientHello asks for no name, and the same client sends none elsewhere at this door.
        It is a warning where that client does not get through.

    Why it matters
        A router that chooses by name has nothing to choose by. Such a client lands on the default
        route, which may be another database, or is closed. It works in tests against a plain
        server and fails behind the gateway.

    On the wire
        A ClientHello without the extension server_name (type 0), behind the S or at once.

    How it is told from its look-alikes
        S303 (sni-required) says that such a client breaks where one with the name gets through;
        this says that there is such a client, whatever becomes of it. S311 (sni-trailing-dot) is
        a name in the wrong form. It is told of captures alone: a live run leaves the name out on
        purpose. Not separable: an old driver, one that was given an address instead of a host
        name, and sslsni=0.

    What to change
        Client: libpq 14 or later, and a host name. With the address known beforehand:
            psql "host=db-1.example.com hostaddr=203.0.113.10 sslmode=require"
        Client: sslsni=1, which is the default. Gateway, where a client cannot: a port or address
        of its own for its database (TCPRoute).
    """
    if not evidence.question.strangers:
        return
    for seen in sorted(evidence.handshakes, key=lambda h: h.established is not None):
        nameless = seen.client_hello is not None and seen.server_name is None
        if nameless and host_of(seen.client) not in evidence.ask_for_names:
            through = seen.established is not None
            yield Found(
                "the client sends no server_name, so that nobody can route it by name"
                + ("" if through else f": it is {in_words(seen)}"),
                (evidence.proof(seen, "a ClientHello without server_name"),),
                severity=None if through else Severity.WARNING,
                fix=(Fix("client", "libpq 14 or later, a host name (not an address), sslsni=1"),),
            )
            return


@rule("S311", "sni-trailing-dot", Severity.WARNING)
def sni_trailing_dot(evidence: Evidence) -> Iterator[Found]:
    """A client sends the name with a dot at its end, which no route is written with.

    What it says
        The server_name ends in a dot. RFC 6066 section 3 wants it without one, and routers
        compare it letter by letter with a name that has none. It is an error where the client
        does not get through.

    Why it matters
        The fully qualified form db-1.example.com. is good DNS, and saves look-ups in a cluster,
        so it finds its way into connection strings. Most TLS libraries send it as it is written.
        The router finds no route for it, and the certificate does not cover it.

    On the wire
        server_name in the ClientHello, with 2e as the last byte of the name.

    How it is told from its look-alikes
        S301 (name-not-routed) is about a name that has no route in any form. Without the dot the
        same name may work, and in the capture it often does, from another client. S307
        (sni-case-sensitive) is the same mistake with letters' case. Nothing else looks like it:
        the byte is there or not.

    What to change
        Client: write the host without the dot:
            psql "host=db-1.example.com sslmode=require"
        Kubernetes: ndots:1 in the pod's dnsConfig avoids the look-ups, too. Gateway: take the
        dot away before comparing, where it can.
    """
    for seen in sorted(evidence.handshakes, key=lambda h: h.established is not None):
        name = seen.server_name
        if name and name.endswith("."):
            through = seen.established is not None
            ended = "gets through here" if through else f"is {in_words(seen)}"
            yield Found(
                f"the server_name '{name}' ends in a dot, and {ended}",
                (evidence.proof(seen, f"server_name {name}"),),
                Certainty.LIKELY,
                severity=None if through else Severity.ERROR,
                fix=(Fix("client", "write the host name without the dot at its end"),),
            )
            return
