"""C: before a byte of PostgreSQL is spoken."""

from __future__ import annotations

from collections.abc import Iterator

from probe.evidence import Evidence, Variation
from probe.fate import fate, gets_through, hung_up, in_turn, in_words
from probe.finding import Certainty, Fix, Severity
from probe.handshake import Handshake, Opening, Outcome
from probe.rules import Found, rule
from probe.transcript import ConnectFailure


def _not_connected(evidence: Evidence, *failures: ConnectFailure) -> Handshake | None:
    first = evidence.first
    return first if first and first.not_connected in failures else None


@rule("C101", "name-not-resolved", Severity.ERROR)
def name_not_resolved(evidence: Evidence) -> Iterator[Found]:
    """The host name leads to no address.

    What it says
        The resolver was asked for the host and gave no address. No packet was sent towards a
        server, so nothing is known about the listener, the route or the database.

    Why it matters
        No client that uses the same resolver can connect, whatever its TLS settings. psql
        reports that the host name could not be translated and never opens a socket. The usual
        places are a new database whose DNS record was forgotten, and a cluster-internal name
        used outside.

    On the wire
        Only the question to the name service. There is no SYN, no SSLRequest and no
        ClientHello. The first connection ends at the stage resolve, and with it the run: the
        remaining attempts are not made, since they would fail alike.

    How it is told from its look-alikes
        C102 (connection-refused) and C103 (connection-timed-out) begin with an address; here
        there is none. The first connection of the run decides; no further attempt is needed.
        S301 (name-not-routed) is about the name inside the ClientHello, which a router may not
        know although DNS does. Use --door with an address to ask a listener past the name
        service. Not separable from here: a record that is missing, a resolver that is down, and
        a split horizon in which only another network sees the record.

    What to change
        Add the record and point it at the load balancer, not at the database:
            db-1.example.com.   300  IN  A  203.0.113.10
            *.db.example.com.   300  IN  A  203.0.113.10
        With one listener that routes by SNI, a wildcard record serves every database. Client:
        check spelling, search domain and resolver. To test before the record exists, give the
        address beside the name; libpq then still sends the name as SNI:
            host=db-1.example.com hostaddr=203.0.113.10
    """
    seen = _not_connected(evidence, ConnectFailure.NOT_RESOLVED)
    if seen:
        yield Found(
            f"the name is {in_words(seen)}",
            (evidence.proof(seen),),
            fix=(
                Fix("DNS", "add a record for the name that points at the load balancer"),
                Fix("client", "check the spelling, the search domain and the resolver in use"),
            ),
        )


@rule("C102", "connection-refused", Severity.ERROR)
def connection_refused(evidence: Evidence) -> Iterator[Found]:
    """Nothing listens at the address and port: the SYN was answered with a reset.

    What it says
        The address is reachable, and it refuses TCP connections on this port. The refusal comes
        from the host itself or from something that answers in its place.

    Why it matters
        Every client fails at once and in the same way, before any PostgreSQL byte. psql names
        the address and port and asks whether the server is running there. Since no routing took
        place, settings such as sslmode, sslnegotiation or sslsni make no difference.

    On the wire
        SYN out, RST back; the refusal normally takes about one round trip. No SSLRequest is
        sent. The finding rests on the first connection of the run, and no further attempt is
        made.

    How it is told from its look-alikes
        C103 (connection-timed-out): there the SYN gets no SYN-ACK and no reset, or the network
        reports the address as unreachable. C105 (accepts-then-closes): there TCP is accepted
        first. A reset that follows an accepted connection counts as C105, even if it arrives
        while connect is still returning. Not separable: a port on which nothing listens, and a
        packet filter that rejects with a reset instead of dropping. A server that restarts at
        this moment refuses as well; repeat the run. A listener whose backend is dead does not
        look like this: it accepts.

    What to change
        Load balancer or gateway: open the listener that DNS points at. Traefik v3, static part:
            entryPoints:
              postgres:
                address: ":5432"
        and publish that port in the Service of the gateway. Gateway API:
            listeners:
            - { name: pg, port: 5432, protocol: TLS, tls: { mode: Passthrough } }
        Kubernetes: check that the Service has ready endpoints on this port. postgresql.conf,
        for a server asked directly: listen_addresses = '*' and port = 5432.
    """
    seen = _not_connected(evidence, ConnectFailure.REFUSED)
    if seen:
        yield Found(
            f"{seen.server or seen.door} refuses the connection: nothing listens there",
            (evidence.proof(seen),),
            fix=(
                Fix("load balancer", "open a listener on this port, or give its real port"),
                Fix("Kubernetes", "check that the Service has ready endpoints on this port"),
            ),
        )


@rule("C103", "connection-timed-out", Severity.ERROR)
def connection_timed_out(evidence: Evidence) -> Iterator[Found]:
    """No SYN-ACK came: packets are dropped, or there is no route to the address.

    What it says
        The TCP connection could not be opened: either nobody answered the SYN within the
        time-out, or the network reported that the address cannot be reached. The message says
        which of the two it was.

    Why it matters
        Clients wait for their connect time-out before they fail, which in a connection pool
        looks like a hang. psql without connect_timeout waits as long as the operating system
        does. Typical for one network only: a security group or firewall lets some sources pass.

    On the wire
        SYN out, repeated by the operating system; no SYN-ACK and no RST come back. In the other
        case the answer is an ICMP error or a local lack of route, and it may come at once. No
        SSLRequest goes out. The first connection of the run decides; no further one is made.

    How it is told from its look-alikes
        C102 (connection-refused): a RST answers the SYN there. C101 (name-not-resolved): there
        is no address. C106 (accepts-then-silent): the handshake of TCP completes there, and
        only then nothing is heard. That is what a proxy shows whose own SYN to the backend is
        dropped, so a filter in front of the proxy gives C103 and a filter behind it gives C106.
        Not separable: a filter that drops, a host that is switched off, an address that nobody
        has, and a lost route on the way back. Asking from a second network helps to tell them.

    What to change
        Allow the port in each packet filter and security group between client and listener, for
        the source that the listener sees. For Kubernetes, that includes a NetworkPolicy on the
        pods of the gateway:
            ingress:
            - ports: [ { protocol: TCP, port: 5432 } ]
        DNS: make sure that the name does not carry the address of a listener that is gone, or a
        private address that only the inside can reach. For a name with IPv4 and IPv6 addresses,
        -4 and -6 show which family is the broken one. Client: connect_timeout makes the failure
        quick; it does not mend it.
    """
    seen = _not_connected(evidence, ConnectFailure.TIMED_OUT, ConnectFailure.UNREACHABLE)
    if seen:
        timed_out = seen.not_connected is ConnectFailure.TIMED_OUT
        why = "never answers the SYN" if timed_out else "cannot be reached"
        yield Found(
            f"{seen.server or seen.door} {why}: {in_words(seen)}",
            (evidence.proof(seen),),
            fix=(
                Fix("network", "allow the port in the packet filters and security groups between"),
                Fix("DNS", "check that the name points at an address that exists"),
            ),
        )


@rule("C104", "addresses-disagree", Severity.WARNING)
def addresses_disagree(evidence: Evidence) -> Iterator[Found]:
    """The addresses of one name answer differently.

    What it says
        The same control connection was made to more than one address and did not end alike: it
        stopped at another stage, ended in another way, or showed another certificate or
        cluster. Each further address that differs from the first gets a finding of its own.

    Why it matters
        A client takes one address of the name, so the same connection string works on one
        attempt and fails on the next. Such faults are reported as sporadic and are rarely taken
        for DNS. psql tries the addresses one after another only while TCP fails; once connected
        it stays, even where the TLS route behind that address is broken.

    On the wire
        The control, repeated for each address: 00 00 00 08 04 d2 16 2f, then S, a ClientHello
        with the asked name and ALPN postgresql, then StartupMessage. With sslnegotiation=direct
        the control is the bare ClientHello. Compared are the stage that was reached, how the
        connection ended, and the cluster, or the leaf certificate where none is shown.

    How it is told from its look-alikes
        C102, C103 (connection-refused, connection-timed-out) judge the first address alone.
        P505 (clusters-differ) needs an authentication offer and may stand beside this. The
        further addresses get the control only: C104 says that they differ, not why; ask each
        with --door. Not separable: a balancer that alternates between servers behind one
        address. A close, a reset and an alert count as one: a dead upstream gives either by
        chance. Doors given with --door are compared too; where one stands behind a terminating
        proxy, another certificate is to be expected.

    What to change
        DNS: take out the address that does not serve the name, or repair its listener. Often it
        is the AAAA record of a load balancer whose IPv6 listener has no route.
            db-1.example.com.  IN  A     203.0.113.10
            db-1.example.com.  IN  AAAA  2001:db8::10
        Gateway: give every replica and every address the same listeners and routes. Two
        gateways that end TLS themselves need the same certificate. Passthrough shows the
        server's own certificate at every address, provided that the servers share one.
    """
    here = evidence.main
    for other in evidence.elsewhere:
        there = other.main
        if here is None or there is None:
            continue
        if there.not_connected is ConnectFailure.UNREACHABLE:
            continue  # this machine has no route, for IPv6 say: it tells nothing of the address
        same_end = fate(here) == fate(there)
        if same_end and evidence.same_place(here, there) is not False:
            continue
        yield Found(
            f"{evidence.door} is {in_words(here)}, {other.door} is {in_words(there)}"
            if not same_end
            else f"{evidence.door} and {other.door} show different certificates or clusters",
            (evidence.proof(here), other.proof(there)),
            fix=(Fix("DNS", "remove the address that does not serve this name, or repair it"),),
        )


def _spoke(evidence: Evidence) -> list[Handshake]:
    """The connections on which the client said something, or was cut off before it could."""
    return [
        seen
        for seen in evidence.handshakes
        if seen.opening is not Opening.NOTHING or _reset_at_once(seen)
    ]


def _reset_at_once(seen: Handshake) -> bool:
    """Inside connect, where a live client sees it, or right behind, where a capture does."""
    behind = seen.outcome is Outcome.RESET and hung_up(seen) and _at_once(seen)
    return seen.not_connected is ConnectFailure.RESET or behind


def _at_once(seen: Handshake) -> bool:
    return (seen.closed_after or 0) < 1


def _hung_up_on_all(evidence: Evidence) -> bool:
    spoke = _spoke(evidence)
    silent = any(seen.outcome is Outcome.SILENT for seen in spoke)
    return any(hung_up(seen) for seen in spoke) and not silent


@rule("C105", "accepts-then-closes", Severity.ERROR)
def accepts_then_closes(evidence: Evidence) -> Iterator[Found]:
    """TCP is accepted, and every connection that says something is closed without a byte.

    What it says
        Somebody accepts the connection and hangs up, whatever is said: SSLRequest, a bare
        ClientHello or anything else. A reset that arrives inside connect counts as well. Not
        one byte came from the other side in the whole run.

    Why it matters
        All clients fail, in every TLS mode. psql prints "server closed the connection
        unexpectedly". Health checks that only open a TCP connection stay green, so the load
        balancer reports a healthy listener while nobody gets in.

    On the wire
        Attempt ssl-request: 00 00 00 08 04 d2 16 2f out, FIN or RST back, no data. Attempt
        direct: 16 03 01 ... out, the same end. Attempt silent: nothing out. When it is closed
        within a second too, the proxy probably lost its upstream; a steady 3 s fits connect
        retries, as HAProxy makes them. FIN against RST tells nothing: proxies with a dead
        backend give either.

    How it is told from its look-alikes
        N201, N202 (sni-router-without-starttls, tls-terminator-without-starttls): attempt
        direct gets a ServerHello there. C106 (accepts-then-silent): at least one connection is
        left unanswered. C107 (proxy-protocol-expected): attempt proxy-header gets a byte. S301,
        S309: an S comes first. Not separable: dead upstream, allow-list, a PROXY header sent to
        a server that cannot read one; and an SNI router whose asked name has no route, or whose
        server is 16 or older, since it closes on both openings too. --other-name helps there.
        Without a bare ClientHello in the evidence, or one that was closed before it said
        anything, the certainty is only possible.

    What to change
        Check that the proxy reaches its upstream, then allow-lists: the client's source address
        as the listener sees it must be permitted. Do not send PROXY headers to PostgreSQL.
        HAProxy:
            server db1 10.0.0.5:5432 check          # no send-proxy, no send-proxy-v2
        nginx stream:
            proxy_protocol off;
        Kubernetes: the Service that the TCPRoute or IngressRouteTCP names must have ready
        endpoints on the port that the route gives. If the server's log says "invalid length of
        startup packet" at these times, a PROXY header or a ClientHello reached it.
    """
    if not evidence.mute or not _hung_up_on_all(evidence):
        return
    bare = evidence.one(Opening.DIRECT_TLS)
    proofs = [evidence.proof(seen) for seen in (evidence.first, bare) if seen]
    listening = evidence.one(Opening.NOTHING)
    several = len(evidence.handshakes) > 1
    message = "TCP is accepted, and every connection is closed without a byte"
    at_once = listening is not None and hung_up(listening) and _at_once(listening)
    if listening and at_once:
        message += ", a silent one too and at once: so does a proxy whose upstream is down"
        proofs.append(evidence.proof(listening))
    elif listening and hung_up(listening):
        message += f", a silent one after {listening.closed_after:.1f} s"
        proofs.append(evidence.proof(listening))
    elif bare is None:
        message += "; only one way was tried"
        if not evidence.question.strangers:
            message += ", --attempts standard tells more"
    yield Found(
        message,
        tuple(proofs),
        # who is closed before he says anything would be, whatever he said
        Certainty.PROVED if bare or (at_once and several) else Certainty.POSSIBLE,
        fix=(
            Fix("load balancer", "check that the upstream is up and reachable from the proxy"),
            Fix("load balancer", "check allow-lists: the client's address may not be welcome"),
            Fix(
                "load balancer",
                "send the PROXY header only to servers that expect one: PostgreSQL does not",
            ),
            Fix(
                "gateway",
                "a router by SNI that expects TLS first closes so, too: pgprobe with --sni and "
                "--other-name tells",
            ),
        ),
    )


@rule("C106", "accepts-then-silent", Severity.ERROR)
def accepts_then_silent(evidence: Evidence) -> Iterator[Found]:
    """TCP is accepted, and nothing is ever answered, a bare ClientHello included.

    What it says
        The three-way handshake completes and then no byte comes back on any connection within
        the time-out. Some connections may be closed in between; the message counts them.
        Whoever accepts the connection has nobody behind it that answers.

    Why it matters
        Clients hang after connecting, and a connect time-out that ends with TCP does not catch
        it. psql sits without a prompt until its own limit or the user ends it. Pools fill up
        with waiting connections, and TCP health checks remain green.

    On the wire
        Attempt ssl-request: 00 00 00 08 04 d2 16 2f out, ACKed, then silence. Attempt direct: a
        ClientHello with the asked name and ALPN postgresql out, silence again. Attempt silent:
        nothing in either direction. --timeout (7 s by default) is longer than the customary 5 s
        inspect delay, so a listener that only delays is normally heard.

    How it is told from its look-alikes
        C103 (connection-timed-out): no SYN-ACK. C105 (accepts-then-closes): each connection
        that spoke is hung up. N201 and N202: attempt direct gets a ServerHello, and SSLRequest
        may well be silent. N209 (silent-after-ssl-answer): the S comes. C107
        (proxy-protocol-expected) is tested only where the control was closed; use
        --proxy-protocol v2 by hand against a silent listener. Not separable: a backend whose
        SYNs are dropped, a filter that passes the SYN and no data, an exhausted pre-forking
        pooler, and a TLS-first router with a dead backend.

    What to change
        Look from the proxy's side: can it open a connection to the upstream? A NetworkPolicy or
        security group that drops its SYN is the common cause. Make the proxy give up sooner
        than the clients, so that the fault shows as a close. HAProxy:
            timeout connect 3s
        nginx stream:
            proxy_connect_timeout 3s;
        Envoy cluster:
            connect_timeout: 3s
        Network: look for a middlebox that completes TCP in the server's place, and for a path
        on which only data packets are filtered. A health check that speaks SSLRequest finds
        this.
    """
    spoke = _spoke(evidence)
    if not evidence.mute or not any(seen.outcome is Outcome.SILENT for seen in spoke):
        return
    bare = evidence.one(Opening.DIRECT_TLS)
    proofs = tuple(evidence.proof(seen) for seen in (evidence.first, bare) if seen)
    closed = [seen for seen in spoke if hung_up(seen)]
    beside = f"; {len(closed)} of the connections were closed without a byte" if closed else ""
    yield Found(
        f"TCP is accepted, and nothing is ever answered{beside}",
        proofs,
        Certainty.PROVED if bare else Certainty.POSSIBLE,
        fix=(
            Fix("load balancer", "check that the proxy can reach the upstream: SYNs may be lost"),
            Fix("network", "check for a packet filter that lets the SYN pass and nothing else"),
        ),
    )


@rule("C107", "proxy-protocol-expected", Severity.ERROR)
def proxy_protocol_expected(evidence: Evidence) -> Iterator[Found]:
    """The listener answers only a client that begins with a PROXY protocol header.

    What it says
        SSLRequest alone gets no byte. The same SSLRequest behind a PROXY protocol header is
        answered with S, N or E. The listener is configured to believe that a load balancer
        stands in front of it and announces the client.

    Why it matters
        Clients that come directly cannot get in, in any TLS mode; psql prints "server closed
        the connection unexpectedly". It appears when a load balancer is replaced, when PROXY
        protocol is switched on at one side only, or when in-cluster clients use the external
        listener.

    On the wire
        Control: 00 00 00 08 04 d2 16 2f out, then FIN or RST. Attempt proxy-header: the v2
        LOCAL header 0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a 20 00 00 00, then the same 8 bytes, and
        one byte back. The attempt is made only when the control was closed without a byte,
        because a healthy listener takes the header for garbage; with --attempts all it is made
        anyway.

    How it is told from its look-alikes
        C105 (accepts-then-closes) looks the same until the header is tried: there it changes
        nothing. N201 (sni-router-without-starttls) closes on SSLRequest too, but answers
        attempt direct without a header. N204 (not-postgresql) covers the reverse case, a
        balancer that sends its header towards the client. Not seen here: a listener that waits
        in silence for a header, for which --proxy-protocol must be given, and one that accepts
        headers from trusted addresses only. A backend that came up between the two attempts
        would look alike: repeat.

    What to change
        Both sides or neither. Towards this listener, HAProxy and nginx stream in front:
            server gw 10.0.0.7:5432 send-proxy-v2
            proxy_protocol on;
        Or let this listener do without. Traefik v3 entry point, believing only its balancer:
            entryPoints:
              postgres:
                proxyProtocol: { trustedIPs: ["10.0.0.0/24"] }
        HAProxy: take accept-proxy from the bind line. nginx: listen 5432; without
        proxy_protocol. TLSRoute leaves PROXY protocol out; it is set in the policy of the
        implementation. Give in-cluster clients a listener of their own. PostgreSQL itself never
        understands the header.
    """
    control = evidence.control
    headed = evidence.one(variation=Variation.PROXY_HEADER)
    if control is None or headed is None or any(seen.server_bytes for seen in evidence.all()):
        return
    if headed.ssl_answer in ("S", "N", "E"):
        yield Found(
            f"without a PROXY header SSLRequest is {in_words(control)}, "
            f"with one it is answered with {headed.ssl_answer}",
            (evidence.proof(control), evidence.proof(headed)),
            fix=(
                Fix("load balancer in front", "switch PROXY protocol on towards this listener"),
                Fix("this listener", "switch PROXY protocol off where clients come directly"),
            ),
        )


@rule("C108", "reset-from-between", Severity.WARNING)
def reset_from_between(evidence: Evidence) -> Iterator[Found]:
    """A reset came whose TTL or IP id does not fit its stream: somebody in between sent it.

    What it says
        The connection was reset in the server's name or the client's, by a packet that did not
        travel the way of the other packets from there. It was made by a device on the path: a
        firewall, an intrusion prevention system, a load balancer that gives up a flow.

    Why it matters
        Both ends believe that the other one hung up, and neither has a line in its log. So the
        database and the client are searched, and the device between them is not. It is an error
        where the connection had not finished TLS yet, since no client gets in then.

    On the wire
        A TCP segment with RST whose IP time to live (IPv6: hop limit) differs from the one that
        all other packets of the same sender have in this connection, be it the SYN-ACK alone. An
        ordinary reset has the TTL of its stream. Or its IP identification is thousands away from
        a counter that its sender's packets show, within a second of the last of them.

    How it is told from its look-alikes
        Only a capture shows it. C105 (accepts-then-closes) and N201 (sni-router-without-starttls)
        may rest on resets, too: there the reset has the TTL of the peer, who is the one to ask.
        Not separable: a change of the route at that moment, and a server behind a balancer that
        resets on its own behalf with the server's address. A balancer that ends TCP itself gives
        one TTL for everything and does not fire this.

    What to change
        Network: look for the device whose distance fits the TTL (start values are 64, 128 and
        255), and into its log at that second; idle time-outs, TLS inspection and rules on
        protocols that do not begin with TLS are the usual reasons:
            tcpdump -v 'tcp[13] & 4 != 0 and port 5432'        # prints the TTL of each reset
        Client and server: keepalives below the device's idle time-out, where that is the reason:
            tcp_keepalives_idle = 60        # postgresql.conf; libpq: keepalives_idle=60
    """
    for seen in evidence.handshakes:
        if seen.strange_resets:
            through = gets_through(seen)
            yield Found(
                f"a reset did not come from the end that it names: {seen.strange_resets[0]}",
                (evidence.proof(seen, f"RST with {seen.strange_resets[0]}"),),
                Certainty.LIKELY,
                severity=None if through else Severity.ERROR,
                fix=(Fix("network", "find the device that resets, by its TTL, and ask its log"),),
            )


LEAST_RESENT = 2  # times that a segment is said again before it counts as lost for good
LARGE_SEGMENT = 1_000  # bytes that a path with too small an MTU may stop


@rule("C109", "segments-lost", Severity.ERROR)
def segments_lost(evidence: Evidence) -> Iterator[Found]:
    """The ClientHello or the server's flight was sent again and again, and never got through.

    What it says
        The connection stands, small packets pass, and one side repeats the same bytes of the TLS
        handshake until somebody gives up. The bytes leave their sender and do not arrive. Where
        large segments are lost and small ones are not, the path's MTU is the first suspect.

    Why it matters
        The client hangs until its time-out, and each ping or small query from the same place
        works. A post-quantum ClientHello fills a whole segment, so the fault may appear with a
        new release of OpenSSL alone.

    On the wire
        TCP retransmissions of the ClientHello, or of the segments behind the ServerHello, with
        growing pauses, and no acknowledgement. Before them, SSLRequest and its S, a byte, pass.
        Behind the loss, the small last segment of a flight comes without those before it, and
        its receiver acknowledges again what it had.

    How it is told from its look-alikes
        Only a capture shows it. N209 (silent-after-ssl-answer) and S306
        (large-client-hello-breaks) see the same from outside: there the bytes were acknowledged
        and not answered. It is possible only, where the lost segments are small (a peer that is
        gone looks so), and likely where they are large. Not separable: a tunnel with a small MTU
        and a filter that drops what it cannot read. Where nothing was sent behind what is lost,
        a capture on the other side of the loss shows nothing but silence; and one that ends
        within five seconds does not tell.

    What to change
        Network: let ICMP "fragmentation needed" (IPv6: packet too big) pass, or clamp the MSS to
        what the tunnel takes:
            iptables -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN \\
                -j TCPMSS --clamp-mss-to-pmtu
        Kubernetes: give the CNI the MTU of the network below it, less its own headers. To see
        whether it is the MTU:
            ping -M do -s 1400 db-1.example.com
    """
    lost = [seen for seen in evidence.handshakes if _hello_lost(seen) or _flight_lost(seen)]
    if not lost:
        return
    seen = lost[0]
    if _hello_lost(seen):
        what, sizes, missed = "the ClientHello", seen.hello_resent, seen.hello_missed
    else:
        what, sizes, missed = "the server's flight", seen.flight_resent, seen.flight_missed
    size = missed or max(sizes)
    large = size >= LARGE_SEGMENT
    if missed:
        told = f"{missed} bytes of {what} never came here, and what was sent behind them did"
    else:
        pieces = f"in segments of up to {size} bytes"
        told = f"{what} was sent again {len(sizes)} times, {pieces}, and never got through"
    yield Found(
        f"{told}: the path's MTU is the first suspect" if large else told,
        tuple(evidence.proof(each) for each in lost[:3]),
        Certainty.LIKELY if large else Certainty.POSSIBLE,
        fix=(
            Fix("network", "let ICMP 'fragmentation needed' pass, or clamp the MSS to the path"),
            Fix("Kubernetes", "set the MTU of the CNI below that of the network that carries it"),
        ),
    )


def _hello_lost(seen: Handshake) -> bool:
    answered = seen.server_hello or seen.alert or seen.foreign or seen.error or seen.flight_missed
    return bool(seen.hello_missed or len(seen.hello_resent) >= LEAST_RESENT) and not answered


def _flight_lost(seen: Handshake) -> bool:
    lost = seen.flight_missed or len(seen.flight_resent) >= LEAST_RESENT
    return bool(lost) and seen.established is None


@rule("C110", "answers-vary", Severity.WARNING, of_variance=True)
def answers_vary(evidence: Evidence) -> Iterator[Found]:
    """The same attempt, made twice, ends differently: what fails fails by chance or by number.

    What it says
        Connections that said the same, and differ in nothing but time, ended in different ways.
        So their faults are not those of a rule or a route, which are there each time. What was
        closed without a word while others were open got through when it was made by itself, or
        the control does not end as it did.

    Why it matters
        Some logins fail and succeed when tried again; a pool that opens many connections at once
        meets it more often than psql does. A probe that tries each thing once would blame
        whatever it was trying: the missing name, the missing ALPN.

    On the wire
        An attempt and the one of the same name with -again, or control and control-again: the
        same bytes out, and once S and a handshake that finishes, once FIN or RST. FIN, RST and
        an alert at the same step count as one: which of them arrives is chance.

    How it is told from its look-alikes
        S303, S305, S306, S307, N207 and N208 are about what differs between attempts, and hold
        each time they are tried; beside this one they are possible at most. Where the control
        itself varies, the verdict is indeterminate. P505 (clusters-differ): all get through, to
        different clusters. P503 with 53300 is a server that says that it is full. Not
        separable: one node of several that is down, a limit on connections from one address, a
        rate limiter, a server that is restarted meanwhile. Silence is not tried twice.

    What to change
        Look at the health checks of what the balancer sends to: a node that is down must leave.
        HAProxy, where the check has to speak to PostgreSQL, and the limits:
            option pgsql-check user healthcheck
            server db1 10.0.0.5:5432 check maxconn 100
        Envoy: circuit_breakers and rate limits of the cluster. nginx stream: limit_conn. A
        firewall that counts connections from one address (iptables connlimit, hashlimit) resets
        what comes above. Repeat the run, and compare with the number of connections in flight:
            pgprobe db-1.example.com --attempts quick
    """
    if not evidence.varying:
        return
    yield Found(
        in_turn(evidence.varying),
        tuple(evidence.proof(seen) for seen in evidence.varying),
        fix=(
            Fix("load balancer", "check the health of each node, and its health checks"),
            Fix("gateway", "look for a limit on connections from one address, or a rate limit"),
        ),
    )
