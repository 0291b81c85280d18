"""The witness's part in memory: what it says to each sort of caller, and the comparison."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import DOOR, NAME, SSL_REQUEST, Backend, asks_for_retry, converse, transcript

from probe.attempt import Attempt, HelloShape, TlsVersions
from probe.diagnosis import Diagnosis, diagnose
from probe.drivers import Receive, Send
from probe.drivers.witness import Visit, Welcome, play
from probe.evidence import Question
from probe.handshake import Handshake, Opening
from probe.identity import make_identity, server_context
from probe.observer import observe
from probe.transcript import Asked, Connected, Connecting, Transcript
from probe.wire.foreign import PROXY_V1_UNKNOWN
from probe.wire.messages import decode_error, error_response
from probe.wire.startup import GSSENC_REQUEST, cancel_request, startup_message
from probe.wire.witness import Arrival, StartupFacts, error_fields, find_testimony
from probe.witness import Comparison, Part, compare

CONTROL = Attempt("control", server_name=NAME)
US = "127.0.0.1:40000"
STARTUP = startup_message((3, 0), {"user": "somebody"})


@cache
def context() -> ssl.SSLContext:
    return server_context(make_identity((NAME,)))


class Caller:
    """Talks to a witness; ``visit`` is what it makes of it, once it has ended."""

    def __init__(self, peer: str = US, tls: ssl.SSLContext | None = None) -> None:
        self._part = play(Welcome(tls or context(), peer, DOOR))
        self.visit: Visit | None = None
        assert next(self._part) == Receive()

    def hear(self, data: bytes | None) -> bytes:
        """Bytes from the caller; gives the witness's answer. None: no more will come."""
        if self.visit or data == b"":
            return b""
        said = b""
        try:
            command = self._part.send(data)
            while isinstance(command, Send):
                said += command.data
                command = next(self._part)
        except StopIteration as end:
            self.visit = end.value
        return said

    def leave(self) -> Visit:
        while self.visit is None:
            self.hear(None)
        return self.visit


def met(
    attempt: Attempt, on_the_way: Callable[[bytes], bytes] = lambda said: said, peer: str = US
) -> tuple[Handshake, Visit]:
    """An attempt at a witness, through somebody who changes what the client says."""
    caller = Caller(peer)
    _, facts = converse(attempt, lambda said: caller.hear(on_the_way(said)))
    told = transcript(Connecting(DOOR), Connected(US, DOOR), *facts)
    return observe(told._replace(asked=attempt.asked)), caller.leave()


def arrived(attempt: Attempt, on_the_way: Callable[[bytes], bytes] = lambda s: s) -> Comparison:
    seen, _ = met(attempt, on_the_way)
    told = compare(seen)
    assert told is not None
    return told


def told_by(answer: bytes) -> Arrival:
    decoded = decode_error(answer)
    assert decoded is not None
    told = find_testimony(decoded[0].fields)
    assert told is not None
    return told


@pytest.mark.parametrize(
    "attempt",
    [
        CONTROL,
        replace(CONTROL, alpn=False),
        replace(CONTROL, server_name=None),
        replace(CONTROL, versions=TlsVersions.ONLY_1_2),
        replace(CONTROL, shape=HelloShape.RECORDS),
        replace(CONTROL, shape=HelloShape.SEGMENTS),
        replace(CONTROL, shape=HelloShape.LARGE),
        replace(CONTROL, split_request=True),
        replace(CONTROL, opening=Opening.DIRECT_TLS),
        replace(CONTROL, opening=Opening.DIRECT_TLS, alpn=False),
        replace(CONTROL, proxy_header="v1"),
        replace(CONTROL, proxy_header="v2"),
        replace(CONTROL, opening=Opening.DIRECT_TLS, proxy_header="v2"),
    ],
)
def test_what_nobody_touches_arrives_as_it_was_sent(attempt: Attempt) -> None:
    seen, visit = met(attempt)
    told = compare(seen)
    assert told is not None
    assert told.changed == ()
    assert told.end_to_end
    assert not told.again
    assert seen.authenticates
    assert visit.outcome == "testified"
    assert visit.testimony is not None
    assert visit.hello is not None
    assert told.testimony.hello is not None
    cut = visit.hello._replace(alpn=told.testimony.hello.alpn)  # bounded in the testimony
    assert visit.testimony._replace(hello=cut) == told.testimony
    assert seen.client_hello is not None
    assert visit.hello.server_name == attempt.server_name
    assert visit.client_hello[:1] == b"\x01"
    assert len(visit.client_hello) == seen.client_hello.size
    assert (visit.proxy is not None) == (attempt.proxy_header is not None)


def test_the_first_of_two_hellos_is_the_one_that_is_compared() -> None:
    caller = Caller(tls=asks_for_retry())
    _, facts = converse(CONTROL, caller.hear)
    seen = observe(transcript(Connecting(DOOR), Connected(US, DOOR), *facts))
    assert seen.retried
    told = compare(seen)
    assert told is not None
    assert told.end_to_end
    assert told.changed == ()


def test_an_obsolete_client_is_told_so_by_tls_itself() -> None:
    seen, visit = met(replace(CONTROL, versions=TlsVersions.OBSOLETE))
    assert seen.alert is not None
    assert seen.alert.name == "protocol_version"
    assert visit.outcome == "tls-failed"


def test_alpn_is_selected_where_it_is_offered() -> None:
    assert met(CONTROL)[0].alpn_selected == "postgresql"
    assert met(replace(CONTROL, alpn=False))[0].alpn_selected is None


def test_a_hello_that_does_not_wait_is_told_of() -> None:
    told = arrived(replace(CONTROL, shape=HelloShape.WITH_REQUEST))
    assert told.testimony.early
    assert told.testimony.refused
    assert Part.SSL_REQUEST in told.changed


def test_a_startup_message_in_clear_is_answered_in_the_same_form() -> None:
    told = arrived(replace(CONTROL, opening=Opening.STARTUP))
    assert told.testimony.hello is None
    assert told.changed == ()
    assert not told.end_to_end


def behind(header: bytes) -> Callable[[bytes], bytes]:
    """Puts a PROXY header before all else."""
    left = [header]
    return lambda said: (left.pop() if left else b"") + said


def test_a_proxy_header_that_was_not_sent_is_named() -> None:
    told = arrived(CONTROL, behind(b"PROXY TCP4 192.0.2.7 10.0.1.7 40000 5432\r\n"))
    assert told.changed == (Part.PROXY_HEADER,)
    assert told.end_to_end
    assert "192.0.2.7:40000" in told.says(Part.PROXY_HEADER)
    assert told.testimony.refused


def test_a_proxy_header_that_was_sent_and_is_replaced_or_gone_is_named() -> None:
    ours = replace(CONTROL, proxy_header="v1")
    gone = arrived(ours, lambda said: said.removeprefix(PROXY_V1_UNKNOWN))
    assert gone.changed == (Part.PROXY_HEADER,)
    other = b"PROXY TCP4 192.0.2.7 10.0.1.7 40000 5432\r\n"
    replaced = arrived(ours, lambda said: said.replace(PROXY_V1_UNKNOWN, other))
    assert replaced.changed == (Part.PROXY_HEADER,)


def test_a_request_that_somebody_answers_himself_is_named() -> None:
    """An on-path router that says S and then sends the ClientHello alone."""
    caller = Caller()

    def router(said: bytes) -> bytes:
        return b"S" if said == SSL_REQUEST else caller.hear(said)

    _, facts = converse(CONTROL, router)
    told = compare(observe(transcript(Connected(US, DOOR), *facts)))
    assert told is not None
    assert told.changed == (Part.SSL_REQUEST,)
    assert told.end_to_end
    assert told.testimony.refused is None  # ALPN was selected: 17 would take it


def test_pieces_of_a_hello_are_counted() -> None:
    caller = Caller()

    def cuts(said: bytes) -> bytes:
        if said[:1] != b"\x16":
            return caller.hear(said)
        return b"".join(caller.hear(part) for part in (said[:100], said[100:300], said[300:]))

    _, facts = converse(CONTROL, cuts)
    told = compare(observe(transcript(Connected(US, DOOR), *facts)))
    assert told is not None
    assert told.changed == (Part.SEGMENTS,)
    assert told.says(Part.SEGMENTS) == "segments: sent 1, arrived 3"


def test_a_terminator_shows_as_clear_text_or_as_another_hello() -> None:
    seen, _ = met(CONTROL)
    told = seen.witness
    assert told is not None
    assert told.hello is not None
    seen.witness = told._replace(hello=None, ssl_request=False, tls=None, alpn=None)
    clear = compare(seen)
    assert clear is not None
    assert clear.changed == (Part.SSL_REQUEST, Part.TLS)
    assert not clear.end_to_end
    assert not clear.again
    seen.witness = told._replace(
        hello=told.hello._replace(sha256="00" * 32, server_name=None, alpn=())
    )
    again = compare(seen)
    assert again is not None
    assert again.changed == (Part.CLIENT_HELLO, Part.SERVER_NAME, Part.ALPN)
    assert again.again


def test_another_startup_message_is_named() -> None:
    seen, _ = met(CONTROL)
    assert seen.witness is not None
    other = seen.witness.startup._replace(sha256="00" * 32)
    seen.witness = seen.witness._replace(startup=other)
    told = compare(seen)
    assert told is not None
    assert told.changed == (Part.STARTUP,)


def test_every_row_is_printable_whatever_the_witness_says() -> None:
    seen, _ = met(CONTROL)
    assert seen.witness is not None
    assert seen.witness.hello is not None
    hello = seen.witness.hello._replace(
        sha256="00" * 32, server_name="\x1b[31m", alpn=("\x1b[2J", "x" * 400)
    )
    seen.witness = seen.witness._replace(hello=hello, peer="\x1b[0m")
    told = compare(seen)
    assert told is not None
    assert all(row.sent.isprintable() and row.arrived.isprintable() for row in told.rows)


# --- what is concluded ----------------------------------------------------------------------------


def diagnosed(*seen: Transcript) -> Diagnosis:
    return diagnose(Question(name=NAME, identity=NAME), {DOOR: seen})


def through(on_the_way: Callable[[Caller, bytes], bytes]) -> Transcript:
    """The control at a witness, through somebody who may answer himself."""
    caller = Caller("127.0.0.1:50000")
    _, facts = converse(CONTROL, lambda said: on_the_way(caller, said))
    made = transcript(Connecting(DOOR), Connected(US, DOOR), *facts)
    return made._replace(asked=Asked.TARGET)


def findings(diagnosis: Diagnosis) -> dict[str, str]:
    return {finding.name: finding.severity.value for finding in diagnosis.findings}


def test_a_witness_behind_a_faithful_relay_passes() -> None:
    diagnosis = diagnosed(through(Caller.hear))
    assert diagnosis.first.verdict.status == "passes"
    assert "witness" in diagnosis.first.verdict.summary
    assert findings(diagnosis) == {"passthrough-proved": "info"}
    assert diagnosis.first.path.tls_ends_at == "server"
    assert not diagnosis.first.path.pooler


def test_a_router_that_swallows_the_request_is_warned_of() -> None:
    diagnosis = diagnosed(
        through(lambda caller, said: b"S" if said == SSL_REQUEST else caller.hear(said))
    )
    assert findings(diagnosis) == {"passthrough-proved": "info", "changed-on-the-way": "warning"}
    assert diagnosis.first.path.ssl_request_answered_by == "proxy"
    assert diagnosis.first.path.tls_ends_at == "server"
    assert diagnosis.first.verdict.status == "passes"


def test_what_a_server_would_refuse_breaks_it() -> None:
    header = behind(b"PROXY TCP4 192.0.2.7 10.0.1.7 40000 5432\r\n")
    diagnosis = diagnosed(through(lambda caller, said: caller.hear(header(said))))
    assert diagnosis.first.verdict.status == "broken"
    assert findings(diagnosis)["server-would-refuse"] == "error"
    rows = {row.client: row.gets_through for row in diagnosis.first.clients}
    assert rows["libpq-17"] is False


@pytest.mark.parametrize("field", ["C", "D", "R"])
def test_who_only_looks_like_a_witness_is_a_refusal(field: str) -> None:
    """A stranger with another SQLSTATE, without a testimony, or with a server's routine."""
    strange = {"C": "28000", "D": '{"witness":1}', "R": "ClientAuthentication"}
    told = Arrival(US, DOOR, StartupFacts("00" * 32, 72, "3.0"))
    fields = {**dict(error_fields(told)), field: strange[field]}
    backend = Backend(messages=lambda _: error_response(fields.items()))
    _, facts = converse(CONTROL, backend.hear)
    made = transcript(Connecting(DOOR), Connected(US, DOOR), *facts)
    diagnosis = diagnosed(made._replace(asked=Asked.TARGET))
    assert diagnosis.first.path.witness is None
    assert "startup-refused" in findings(diagnosis)
    assert diagnosis.first.verdict.status != "passes"


def test_a_capture_that_lacks_the_hello_proves_nothing() -> None:
    seen, _ = met(CONTROL)
    seen.client_hello = None
    assert compare(seen) is None


# --- callers that are no pgprobe ------------------------------------------------------------------


def test_gssenc_is_refused_and_ssl_offered_behind_it() -> None:
    caller = Caller()
    assert caller.hear(GSSENC_REQUEST) == b"N"
    assert caller.hear(SSL_REQUEST) == b"S"
    assert caller.leave().gssenc_request


def test_a_startup_message_behind_gssenc_is_answered() -> None:
    caller = Caller()
    assert caller.hear(GSSENC_REQUEST) == b"N"
    told = told_by(caller.hear(STARTUP))
    assert told.gssenc_request
    assert not told.ssl_request


def test_a_cancel_request_is_closed_without_a_word() -> None:
    caller = Caller()
    assert caller.hear(cancel_request(1, b"key.")) == b""
    assert caller.leave().outcome == "cancel"


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-scanner\r\n",
        b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00",  # a ServerHello
        b"\x16\x03\x01\x00\x00" + b"\x15\x03\x01\x00\x02\x01\x00",  # an empty record, an alert
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",  # a ClientHello of one byte
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",  # one that is too long
        b"\x00\x00\x00\x00",
        b"\xff" * 64,
        SSL_REQUEST * 4,
        SSL_REQUEST + b"GET / HTTP/1.1\r\n\r\n",
        SSL_REQUEST + STARTUP,
        GSSENC_REQUEST * 2,
        b"PROXY TCP4 x\r\n" + SSL_REQUEST,
    ],
)
def test_rubbish_ends_the_visit(rubbish: bytes) -> None:
    caller = Caller()
    caller.hear(rubbish)
    assert caller.visit is not None
    assert caller.visit.outcome == "not-postgresql"
    assert caller.visit.testimony is None


def test_rubbish_inside_tls_ends_the_visit() -> None:
    for said, outcome in (
        (b"GET / HTTP/1.1\r\n\r\n", "not-postgresql"),
        (SSL_REQUEST, "not-postgresql"),
        (cancel_request(1, b"key."), "cancel"),
    ):
        assert inside(said).outcome == outcome


def inside(said: bytes) -> Visit:
    """Say this inside TLS."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = client.wrap_bio(incoming, outgoing)
    caller = Caller()
    for step in (session.do_handshake, session.do_handshake, lambda: session.write(said)):
        with contextlib.suppress(ssl.SSLWantReadError):
            step()
        incoming.write(caller.hear(outgoing.read()))
    return caller.leave()


def test_who_leaves_early_is_unfinished() -> None:
    hello = first_flight()
    for said in (b"", SSL_REQUEST[:5], SSL_REQUEST, hello[:200], hello, b"PROX"):
        caller = Caller()
        if said:
            caller.hear(said)
        assert caller.leave().outcome == "unfinished"


def first_flight() -> bytes:
    said: list[bytes] = []
    converse(replace(CONTROL, opening=Opening.DIRECT_TLS), lambda data: said.append(data) or b"")  # type: ignore[func-returns-value]
    return said[0]


@pytest.mark.parametrize("size", [1, 3, 7])
def test_bytes_may_come_in_any_pieces(size: int) -> None:
    hello = first_flight()
    caller = Caller()
    wire = b"PROXY UNKNOWN\r\n" + SSL_REQUEST
    answers = b"".join(caller.hear(wire[n : n + size]) for n in range(0, len(wire), size))
    assert answers == b"S"
    for n in range(0, len(hello), size):
        answers = caller.hear(hello[n : n + size])
    assert answers[:1] == b"\x16"  # the ServerHello
    visit = caller.leave()
    assert visit.hello is not None
    assert visit.hello.reads == -(-len(hello) // size)
    assert visit.hello.server_name == NAME


@given(st.lists(st.binary(min_size=1, max_size=80), max_size=6), st.integers(0, 4))
def test_no_bytes_make_it_fail_or_let_anybody_in(pieces: list[bytes], kind: int) -> None:
    openings = (b"", SSL_REQUEST, GSSENC_REQUEST, b"PROXY UNKNOWN\r\n", first_flight()[:60])
    caller = Caller()
    said = b"".join(caller.hear(piece) for piece in (openings[kind], *pieces) if piece)
    caller.leave()
    assert b"R\0\0\0" not in said  # no authentication request, ever
