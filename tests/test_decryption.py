"""TLS opened with a key log: what comes out of it, what never does, and what stays closed."""

from __future__ import annotations

import ssl
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import (
    BINDING_OFFER,
    NAME,
    SERVER_FIRST,
    Backend,
    asks_for_certificate,
    asks_for_retry,
    authority,
    converse,
    only_tls12,
    server_context,
    transcript,
)
from sealer import Sealer
from sessions import (
    AUTHENTICATION_OK,
    LOGIN,
    SECRET_WORDS,
    STARTUP,
    Session,
    client_context,
    message,
    rsa_context,
    session,
)

from probe.attempt import Attempt, HelloShape, TlsVersions
from probe.cipher import SUITES
from probe.decryption import MAX_OPENED, open_connection, open_tls
from probe.handshake import Handshake, Opening
from probe.observer import observe
from probe.secrets import Secrets, parse_key_log
from probe.transcript import (
    Closed,
    Data,
    Ending,
    Established,
    Fact,
    Layer,
    NotCaptured,
    Party,
    Transcript,
)
from probe.wire.hello import (
    CERTIFICATE,
    CERTIFICATE_REQUEST,
    ENCRYPTED_EXTENSIONS,
    NEW_SESSION_TICKET,
)

CONTROL = Attempt("control", server_name=NAME)


def on_the_wire(facts: Sequence[Fact]) -> tuple[Fact, ...]:
    """What a capture would hold of them."""
    return tuple(f for f in facts if isinstance(f, Data) and f.layer is Layer.TCP)


def added(opened: Transcript) -> list[Fact]:
    """What opening has added."""
    facts = [event.fact for event in opened.events]
    return [f for f in facts if not isinstance(f, Data) or f.layer is not Layer.TCP]


def inside(opened: Transcript, sender: Party) -> bytes:
    said = [f for f in added(opened) if isinstance(f, Data) and f.layer is Layer.TLS]
    return b"".join(f.data for f in said if f.sender is sender)


def told(opened: Transcript) -> list[int]:
    said = [f for f in added(opened) if isinstance(f, Data) and f.layer is Layer.HANDSHAKE]
    return [f.data[0] for f in said]


@pytest.fixture
def key_log(tmp_path: Path) -> Path:
    return tmp_path / "key.log"


# --- every suite ----------------------------------------------------------------------------


def usable() -> Iterator[str]:
    """The suites of TLS 1.2 and older that this OpenSSL speaks, but for those without a proof."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")
    for cipher in context.get_ciphers():
        name = SUITES.get(cipher["id"] & 0xFFFF)
        if name and not name.startswith(("TLS_", "DHE-", "ADH-", "AECDH-")):
            yield name


def test_the_suites_are_named_as_openssl_names_them() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")
    known = {cipher["id"] & 0xFFFF: cipher["name"] for cipher in context.get_ciphers()}
    assert {n: name for n, name in SUITES.items() if n in known and known[n] != name} == {}
    assert len(SUITES.keys() & known.keys()) >= 40


def contexts(version: ssl.TLSVersion, suite: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    client = client_context()
    server = server_context() if "ECDSA" in suite else rsa_context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for context in (client, server):
            context.minimum_version = context.maximum_version = version
            context.set_ciphers(f"{suite}:@SECLEVEL=0")
    return client, server


@pytest.mark.parametrize("suite", sorted(usable()))
def test_a_login_in_tls_1_2_is_opened_whatever_the_suite(suite: str, key_log: Path) -> None:
    passed = session(key_log, *contexts(ssl.TLSVersion.TLSv1_2, suite))
    assert_login_opened(passed, Established("1.2", suite, "postgresql"))


@pytest.mark.parametrize(
    ("version", "name"), [(ssl.TLSVersion.TLSv1, "1"), (ssl.TLSVersion.TLSv1_1, "1.1")]
)
@pytest.mark.parametrize("suite", ["AES128-SHA", "ECDHE-ECDSA-AES256-SHA"])
def test_obsolete_tls_is_opened(
    version: ssl.TLSVersion, name: str, suite: str, key_log: Path
) -> None:
    passed = session(key_log, *contexts(version, suite))
    assert_login_opened(passed, Established(name, suite, "postgresql"))


def test_a_login_in_tls_1_3_is_opened(key_log: Path) -> None:
    passed = session(key_log)
    assert_login_opened(passed, Established("1.3", "TLS_AES_256_GCM_SHA384", "postgresql"))


def assert_login_opened(passed: Session, agreed: Established) -> None:
    opened, problem = open_connection(transcript(*passed.facts), passed.secrets)
    assert problem is None
    assert [f for f in added(opened) if isinstance(f, Established)] == [agreed]
    assert inside(opened, Party.CLIENT) == STARTUP
    assert inside(opened, Party.SERVER) == BINDING_OFFER + SERVER_FIRST + AUTHENTICATION_OK
    assert not any(word in repr(opened).encode() for word in SECRET_WORDS)
    seen = observe(opened)
    assert seen.authenticates
    assert seen.offers_binding
    assert seen.salt == bytes(range(16))
    assert seen.leaf


# --- as the live driver tells it ------------------------------------------------------------


def facts_of(seen: Handshake) -> dict[str, object]:
    """Everything but the times, which the made-up transcripts do not share."""
    facts = dict(vars(seen))
    facts["steps"] = [s._replace(at=0, took=0) for s in seen.steps]
    # what our own library thought is not on the wire
    return facts | {"closed_after": None, "tls_failed": None}


@pytest.mark.parametrize(
    "attempt",
    [
        CONTROL,
        replace(CONTROL, opening=Opening.DIRECT_TLS),
        replace(CONTROL, server_name=None, alpn=False),
        replace(CONTROL, versions=TlsVersions.ONLY_1_2),
        replace(CONTROL, versions=TlsVersions.OBSOLETE),
        replace(CONTROL, shape=HelloShape.SEGMENTS),
        replace(CONTROL, shape=HelloShape.RECORDS),
        replace(CONTROL, shape=HelloShape.LARGE),
        replace(CONTROL, shape=HelloShape.WITH_REQUEST),
        replace(CONTROL, split_request=True),
        replace(CONTROL, proxy_header="v1"),
        replace(CONTROL, proxy_header="v2"),
        replace(CONTROL, greets=False),
        replace(CONTROL, opening=Opening.STARTUP),
        replace(CONTROL, opening=Opening.CANCEL),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "server",
    [server_context, only_tls12, asks_for_retry, asks_for_certificate],
    ids=lambda s: s.__name__,
)
def test_what_is_opened_reads_as_what_the_live_driver_told(
    attempt: Attempt, server: Callable[[], ssl.SSLContext], key_log: Path
) -> None:
    context = server()
    context.keylog_filename = str(key_log)
    backend = Backend(context, direct=attempt.opening is Opening.DIRECT_TLS)
    header = {"v1": 15, "v2": 16, None: 0}[attempt.proxy_header]
    skipped = [header]

    def hear(data: bytes) -> bytes:
        cut, skipped[0] = skipped[0], 0
        return backend.hear(data[cut:]) if len(data) > cut or not cut else b""

    _, live = converse(attempt, hear)
    opened = open_tls(transcript(*on_the_wire(live)), parse_key_log(key_log.read_bytes()))
    assert facts_of(observe(opened)) == facts_of(observe(transcript(*live)))


def test_established_stands_where_the_clients_finished_passed(key_log: Path) -> None:
    opened = open_tls(transcript(*session(key_log).facts), session_secrets(key_log))
    facts = [event.fact for event in opened.events]
    at = next(n for n, fact in enumerate(facts) if isinstance(fact, Established))
    before = facts[at - 1]
    assert isinstance(before, Data)
    assert (before.sender, before.layer) == (Party.CLIENT, Layer.TCP)


def session_secrets(key_log: Path) -> Secrets:
    return parse_key_log(key_log.read_bytes())


# --- the shapes of a session ----------------------------------------------------------------


def resegmented(facts: Sequence[Fact], size: int) -> list[Fact]:
    """The same bytes in segments of ``size``."""
    cut: list[Fact] = []
    for fact in facts:
        assert isinstance(fact, Data)
        pieces = range(0, len(fact.data), size)
        cut += [Data(fact.sender, fact.data[at : at + size]) for at in pieces]
    return cut


@pytest.mark.parametrize("size", [1, 2, 7, 100, 1_000, 100_000])
def test_how_the_records_were_cut_into_segments_does_not_matter(size: int, key_log: Path) -> None:
    passed = session(key_log)
    whole = open_tls(transcript(*passed.facts), passed.secrets)
    cut = open_tls(transcript(*resegmented(passed.facts, size)), passed.secrets)
    assert added(cut) == added(whole)


def test_a_hello_retry_request_is_followed(key_log: Path) -> None:
    passed = session(key_log, server=asks_for_retry())
    opened = open_tls(transcript(*passed.facts), passed.secrets)
    assert observe(opened).retried
    assert observe(opened).authenticates


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_certificates_pass(newest: ssl.TLSVersion, key_log: Path) -> None:
    client, server = client_context(), asks_for_certificate()
    server.maximum_version = newest
    authority().issue_cert("client.example.com").configure_cert(client)
    passed = session(key_log, client, server)
    opened = open_tls(transcript(*passed.facts), passed.secrets)
    assert observe(opened).certificate_asked
    assert observe(opened).authenticates


def test_the_servers_protected_messages_are_those_that_the_live_driver_tells(
    key_log: Path,
) -> None:
    passed = session(key_log, server=asks_for_certificate())
    opened = open_tls(transcript(*passed.facts), passed.secrets)
    assert told(opened) == [ENCRYPTED_EXTENSIONS, CERTIFICATE_REQUEST, CERTIFICATE]


def giving_tickets(count: int) -> ssl.SSLContext:
    context = server_context()
    context.num_tickets = count
    return context


@pytest.mark.parametrize("count", [0, 2])
def test_session_tickets_are_told_as_the_live_driver_tells_them(count: int, key_log: Path) -> None:
    passed = session(key_log, server=giving_tickets(count))
    opened = open_tls(transcript(*passed.facts), passed.secrets)
    _, live = converse(CONTROL, Backend(giving_tickets(count)).hear)
    assert told(opened) == [ENCRYPTED_EXTENSIONS, CERTIFICATE, *[NEW_SESSION_TICKET] * count]
    assert told(transcript(*live)) == told(opened)
    assert observe(opened).ticket is bool(count)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_close_notify_is_told(newest: ssl.TLSVersion, key_log: Path) -> None:
    server = server_context()
    server.maximum_version = newest
    passed = session(key_log, server=server, talk=LOGIN[:2], leave=True)
    opened = open_tls(transcript(*passed.facts), passed.secrets)
    assert Closed(Party.SERVER, Ending.CLOSE_NOTIFY) in added(opened)
    assert observe(opened).alert is None


def test_an_alert_behind_finished_is_told(key_log: Path) -> None:
    """TLS 1.3: the server refuses the client for having no certificate, once it has finished."""
    context = asks_for_certificate()
    context.verify_mode = ssl.CERT_REQUIRED
    context.keylog_filename = str(key_log)
    _, live = converse(CONTROL, Backend(context).hear)
    opened = open_tls(transcript(*on_the_wire(live)), session_secrets(key_log))
    alert = observe(opened).alert
    assert alert is not None
    assert alert.name == "certificate_required"


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_resumed_session_is_opened(newest: ssl.TLSVersion, tmp_path: Path) -> None:
    client, server = client_context(), giving_tickets(1)
    server.maximum_version = newest
    first = session(tmp_path / "first", client, server)
    passed = session(tmp_path / "second", client, server, resume=first.client.session)
    assert passed.client.session_reused
    opened, problem = open_connection(transcript(*passed.facts), passed.secrets)
    assert problem is None
    assert observe(opened).authenticates


def test_a_whole_flow_is_opened_though_tickets_and_much_data_follow(key_log: Path) -> None:
    rows = [(Party.SERVER, message("D", bytes(100_000)))] * 5
    passed = session(key_log, server=giving_tickets(2), talk=[*LOGIN, *rows])
    opened = open_tls(transcript(*passed.facts), passed.secrets)
    assert inside(opened, Party.SERVER).endswith(AUTHENTICATION_OK)


# --- what never comes out -------------------------------------------------------------------

PASSWORD = b"pass-word-1"


@pytest.mark.parametrize(
    "talk",
    [
        LOGIN,
        ((Party.CLIENT, STARTUP + message("p", PASSWORD)),),
        ((Party.CLIENT, message("p", PASSWORD)),),
        ((Party.CLIENT, b"POST / HTTP/1.1\r\n\r\n" + PASSWORD),),
        ((Party.CLIENT, b"GET / HTTP/1.1\r\n"), (Party.SERVER, b"HTTP/1.1 200\r\n" + PASSWORD)),
        ((Party.CLIENT, STARTUP), (Party.CLIENT, b"p\0\0"), (Party.CLIENT, b"\0\x0f" + PASSWORD)),
        (
            (Party.CLIENT, STARTUP + message("p", PASSWORD)),
            (Party.SERVER, STARTUP + message("p", PASSWORD)),  # an echo
        ),
        (
            (Party.CLIENT, STARTUP),
            (Party.SERVER, message("R", b"\0\0\0\0") + message("K", PASSWORD)),
        ),
        (
            (Party.CLIENT, STARTUP),
            (Party.SERVER, message("R", b"\0\0\0\x08" + PASSWORD)),
        ),
    ],
)
def test_no_secret_is_in_what_was_opened(
    talk: Sequence[tuple[Party, bytes]], key_log: Path
) -> None:
    passed = session(key_log, talk=talk)
    opened = open_tls(transcript(*passed.facts), passed.secrets)
    assert any(isinstance(fact, Established) for fact in added(opened))
    for word in (*SECRET_WORDS, PASSWORD):
        assert word not in repr(opened).encode()


def test_a_cancel_request_is_told_without_its_key(key_log: Path) -> None:
    request = bytes.fromhex("00000010 04d2162e 00000007 0badcafe")
    passed = session(key_log, talk=[(Party.CLIENT, request)])
    opened = open_tls(transcript(*passed.facts), passed.secrets)
    assert inside(opened, Party.CLIENT) == request[:12] + bytes(4)


def test_an_error_after_a_password_is_told(key_log: Path) -> None:
    refusal = message("E", b"SFATAL\0C28P01\0Mpassword authentication failed\0\0")
    talk = [*LOGIN[:5], (Party.SERVER, refusal)]
    passed = session(key_log, talk=talk)
    opened = open_tls(transcript(*passed.facts), passed.secrets)
    assert inside(opened, Party.SERVER) == BINDING_OFFER + SERVER_FIRST + refusal


def test_another_protocol_inside_tls_is_told_by_its_first_words(key_log: Path) -> None:
    talk = [(Party.CLIENT, b"GET / HTTP/1.1\r\n\r\n")]
    greeting = b"HTTP/1.1 200 OK\r\n" + bytes(1_000)
    passed = session(key_log, talk=[(Party.SERVER, greeting), *talk])
    opened = open_tls(transcript(*passed.facts), passed.secrets)
    assert len(inside(opened, Party.SERVER)) == 512
    seen = observe(opened)
    assert seen.foreign_in_tls
    assert seen.foreign
    assert seen.foreign.protocol == "HTTP"


# --- what stays closed ----------------------------------------------------------------------


def problem_of(facts: Sequence[Fact], key_log: str) -> str | None:
    return open_connection(transcript(*facts), parse_key_log(key_log)).problem


def test_without_a_secret_of_the_session_it_stays_closed(key_log: Path) -> None:
    passed = session(key_log)
    opened, problem = open_connection(transcript(*passed.facts), parse_key_log(""))
    assert problem == "no secret of this session is known"
    assert opened == transcript(*passed.facts)


@pytest.mark.parametrize(
    ("label", "reached"),
    [
        ("SERVER_HANDSHAKE_TRAFFIC_SECRET", []),
        ("CLIENT_HANDSHAKE_TRAFFIC_SECRET", [8, 11]),
        ("CLIENT_TRAFFIC_SECRET_0", [8, 11]),
    ],
)
def test_a_missing_secret_is_named_and_the_rest_is_opened(
    label: str, reached: list[int], key_log: Path
) -> None:
    passed = session(key_log)
    lines = [line for line in passed.key_log.splitlines() if not line.startswith(label)]
    opened, problem = open_connection(transcript(*passed.facts), parse_key_log("\n".join(lines)))
    assert problem == f"the secrets of this session have no {label}"
    assert told(opened) == reached
    assert inside(opened, Party.CLIENT) == (b"" if "CLIENT" in label else STARTUP)


def test_a_wrong_secret_opens_nothing_and_is_said(key_log: Path) -> None:
    passed = session(key_log)
    wrong = [f"{line[:-2]}{int(line[-2:], 16) ^ 1:02x}" for line in passed.key_log.splitlines()[1:]]
    opened, problem = open_connection(transcript(*passed.facts), parse_key_log("\n".join(wrong)))
    assert problem is not None
    assert "does not open" in problem
    assert added(opened) == []


def test_an_unknown_suite_is_said(key_log: Path) -> None:
    passed = session(key_log)
    facts = [
        f._replace(data=f.data.replace(b"\x13\x02\x00", b"\x13\x7f\x00"))
        if isinstance(f, Data) and f.sender is Party.SERVER
        else f
        for f in passed.facts
    ]
    assert problem_of(facts, passed.key_log) == "cipher suite 0x137f is not known"


@pytest.mark.parametrize("sender", Party)
def test_a_gap_closes_its_side_from_there_on(sender: Party, key_log: Path) -> None:
    passed = session(key_log)
    opens = next(
        n
        for n, f in enumerate(passed.facts)
        if isinstance(f, Data) and f.sender is Party.CLIENT and n > 3
    )
    facts = [*passed.facts[:opens], NotCaptured(sender, 7), *passed.facts[opens:]]
    opened, problem = open_connection(transcript(*facts), passed.secrets)
    assert problem == f"the capture does not hold all that the {sender} said"
    assert inside(opened, sender) == b""
    if sender is Party.SERVER:
        assert inside(opened, Party.CLIENT) == STARTUP


def test_a_gap_behind_what_is_opened_is_no_problem(key_log: Path) -> None:
    passed = session(key_log)
    gaps = (NotCaptured(Party.CLIENT, 1), NotCaptured(Party.SERVER, None))
    assert problem_of([*passed.facts, *gaps], passed.key_log) is None


def test_a_capture_that_began_in_mid_stream_is_not_opened(key_log: Path) -> None:
    passed = session(key_log)
    told = transcript(NotCaptured(Party.CLIENT, None), *passed.facts[3:])
    opened, problem = open_connection(told, passed.secrets)
    assert opened == told
    assert problem == "the capture does not hold all that the client said"


def test_what_is_no_tls_is_no_problem() -> None:
    clear = (Data(Party.CLIENT, STARTUP), Data(Party.SERVER, BINDING_OFFER))
    refused = (Data(Party.CLIENT, bytes.fromhex("0000000804d2162f")), Data(Party.SERVER, b"N"))
    for facts in (clear, (*refused, *clear), (Data(Party.SERVER, b"SSH-2.0-x\r\n"),)):
        assert open_connection(transcript(*facts), parse_key_log("")) == (
            transcript(*facts),
            None,
        )


def test_what_is_open_already_is_left_alone(key_log: Path) -> None:
    passed = session(key_log)
    opened = open_tls(transcript(*passed.facts), passed.secrets)
    assert open_tls(opened, passed.secrets) == opened


def test_a_missing_library_is_said(key_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = session(key_log)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    problem = problem_of(passed.facts, passed.key_log)
    assert problem == "opening TLS needs the package cryptography (pip install cryptography)"


def test_renegotiation_is_not_opened(key_log: Path) -> None:
    """Sealed with the session's own keys: what a TLS 1.2 server says to ask for it."""
    passed = session(key_log, server=only_tls12(), talk=[])
    hello_request = Sealer(passed).seal(Party.SERVER, 22, b"\0\0\0\0")
    facts = [*passed.facts, Data(Party.SERVER, hello_request)]
    problem = problem_of(facts, passed.key_log)
    assert problem == "the session was renegotiated, which is not opened"


# --- hostile bytes --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["1.2", "1.3"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    server = only_tls12() if request.param == "1.2" else server_context()
    return session(tmp_path_factory.mktemp("keys") / "key.log", server=server)


@given(data=st.data())
def test_opening_never_raises_and_tells_no_secret_on_changed_bytes(
    recorded: Session, data: st.DataObject
) -> None:
    facts = list(recorded.facts)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(facts) - 1))
        fact = facts[at]
        if not isinstance(fact, Data):
            continue
        said = bytearray(fact.data)
        where = data.draw(st.integers(0, len(said) - 1)) if said else 0
        match data.draw(st.sampled_from(["change", "cut", "add", "drop", "gap", "twice"])):
            case "change" if said:
                said[where] = data.draw(st.integers(0, 255))
                facts[at] = Data(fact.sender, bytes(said))
            case "cut":
                facts[at] = Data(fact.sender, bytes(said[:where]))
            case "add":
                more = data.draw(st.binary(max_size=40))
                facts[at] = Data(fact.sender, bytes(said[:where] + more + said[where:]))
            case "drop" if len(facts) > 1:
                del facts[at]
            case "gap":
                facts.insert(at, NotCaptured(fact.sender, data.draw(st.none() | st.just(3))))
            case _:
                facts.insert(at, fact)
    opened = open_tls(transcript(*facts), recorded.secrets)
    observe(opened)
    assert not any(word in repr(opened).encode() for word in SECRET_WORDS)


@given(st.lists(st.tuples(st.sampled_from(Party), st.binary(max_size=80))))
def test_opening_never_raises_on_any_bytes(said: list[tuple[Party, bytes]]) -> None:
    facts = [Data(sender, data) for sender, data in said]
    open_tls(transcript(*facts), parse_key_log(""))


def test_only_so_much_is_given_of_an_endless_server(key_log: Path) -> None:
    notices = [(Party.SERVER, message("N", bytes(60_000)))] * 6
    passed = session(key_log, talk=[(Party.CLIENT, STARTUP), *notices])
    opened = open_tls(transcript(*passed.facts), passed.secrets)
    assert MAX_OPENED <= len(inside(opened, Party.SERVER)) <= MAX_OPENED + 16_384
