"""Middleboxes that nobody has declared: whatever they answer, none is called healthy for lack of
a rule, and no finding says what the bytes deny.

Each question that the standard attempts ask is answered on its own: SSLRequest, GSSENCRequest, a
ClientHello with the asked name, another one, an unknown one or none, behind S and bare, with ALPN
and without, a clear StartupMessage, CancelRequest, a PROXY header, silence. So there are more
middleboxes than anybody can build, and most of them make no sense.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from middleboxes import (
    CLOSED,
    CONTROL,
    IN_CLEAR,
    ONLY_SCRAM,
    OTHER,
    RESET,
    SERVED,
    SILENT,
    Fate,
    alert,
    ask,
    error,
)
from peers import DOOR, NAME, SSL_REQUEST

from probe.attempt import UNKNOWN_NAME, Attempt, Needs, TlsVersions, standard
from probe.diagnosis import Diagnosis, diagnose
from probe.evidence import Question
from probe.fate import PLACEHOLDERS, server_is_full
from probe.finding import Severity
from probe.handshake import Handshake, Opening
from probe.observer import observe
from probe.reports import Report
from probe.reports.json import document
from probe.target import parse_target
from probe.transcript import Ending, Transcript

SCHEMA = json.loads((Path(__file__).parents[1] / "probe/reports/schema.json").read_text())

HTTP = b"HTTP/1.1 400 Bad Request\r\n\r\n"
SSH = b"SSH-2.0-OpenSSH_9.6\r\n"
MD5 = bytes.fromhex("52 0000000c 00000005 01020304")
TRUST = bytes.fromhex("52 00000008 00000000 5a 00000005 49")
HBA = "no pg_hba.conf entry for host"


def closing(*answers: bytes) -> Fate:
    return Fate(Ending.FIN, answers=answers)


# What may come of SSLRequest; None is an S, behind which the ClientHello meets its own fate.
REQUESTS: tuple[Fate | None, ...] = (
    None,
    Fate(answers=(b"N",)),
    closing(b"N"),
    closing(b"N", error("28000", f"{HBA}, no encryption", R="ClientAuthentication")),
    closing(b"Eunsupported frontend protocol\n\0"),
    closing(error("53300", "too many clients", R="InitProcess")),
    closing(error("08P01", "bad packet header")),
    SILENT,
    CLOSED,
    RESET,
    alert(70),
    alert(40),
    closing(HTTP),
    closing(SSH),
    closing(SSL_REQUEST),
    closing(b"Sjunk"),
    closing(b"G"),
    closing(b"\0" * 9),
)
# What may come of a ClientHello.
HELLOS = (
    SERVED,
    replace(SERVED, offer=ONLY_SCRAM),
    replace(SERVED, alpn=None),
    replace(SERVED, alpn=None, offer=ONLY_SCRAM),
    replace(SERVED, name=OTHER),
    replace(SERVED, name=PLACEHOLDERS[0], offer=ONLY_SCRAM, alpn=None),
    replace(SERVED, tickets=True),
    replace(SERVED, tickets=True, offer=b""),
    replace(SERVED, offer=MD5),
    replace(SERVED, offer=TRUST),
    replace(SERVED, offer=error("28000", f"{HBA}, no encryption", R="ClientAuthentication")),
    replace(SERVED, offer=error("28000", f"{HBA}, SSL encryption", R="ClientAuthentication")),
    replace(SERVED, offer=error("08P01", "no such user")),
    replace(SERVED, offer=error("53300", "too many clients", R="InitProcess")),
    replace(SERVED, offer=HTTP),
    replace(SERVED, offer=b"", ends=Ending.FIN),
    replace(SERVED, offer=b""),
    SILENT,
    CLOSED,
    RESET,
    alert(40),
    alert(70),
    alert(112),
    alert(120),
    closing(HTTP),
    closing(b"\x16\x03\x03\0\x04junk"),
)
GSSENC = (*IN_CLEAR.values(), closing(b"N"), closing(b"S"), closing(HTTP), RESET, closing(b"E"))
STARTUPS = (CLOSED, SILENT, closing(ONLY_SCRAM), closing(TRUST), closing(HTTP), REQUESTS[3])
CANCELS = (CLOSED, SILENT, RESET, closing(HTTP))
SILENCES = (SILENT, CLOSED, closing(HTTP))


class Asking(NamedTuple):
    """What a ClientHello shows of itself."""

    direct: bool
    name: str | None
    alpn: bool


ASKINGS = [
    Asking(*each)
    for each in product((False, True), (NAME, OTHER, UNKNOWN_NAME, None), (True, False))
]


@dataclass(frozen=True)
class Oddity:
    """A middlebox by its answers. ``hellos`` has what differs from ``hello``."""

    request: Fate | None
    hello: Fate
    hellos: dict[Asking, Fate] = field(default_factory=dict)
    clear: dict[Opening, Fate] = field(default_factory=dict)
    odd: dict[str, Fate] = field(default_factory=dict)  # single attempts

    def fate(self, attempt: Attempt) -> Fate:
        """What becomes of an attempt."""
        if attempt.name in self.odd:
            return self.odd[attempt.name]
        if attempt.opening in IN_CLEAR:
            return self.clear.get(attempt.opening, IN_CLEAR[attempt.opening])
        direct = attempt.opening is Opening.DIRECT_TLS
        if not direct and self.request is not None:
            return self.request
        name = attempt.server_name and attempt.server_name.lower()
        hello = self.hellos.get(Asking(direct, name, attempt.alpn), self.hello)
        if hello.serves and attempt.versions is TlsVersions.OBSOLETE:
            hello = alert(70)
        return hello if direct else hello.behind_s()


# -- asking ------------------------------------------------------------------------------------


@cache
def met(attempt: Attempt, fate: Fate) -> Transcript:
    return fate.transcript(attempt)


def worth(attempt: Attempt, control: Handshake, asks: Handshake) -> bool:
    """Whether a run would make the attempt, after what has come of the first ones."""
    behind = control if attempt.opening is Opening.DIRECT_TLS else asks
    match attempt.needs:
        case Needs.SSL_ANSWER:
            return behind.ssl_answer == "S" or behind.opening is Opening.DIRECT_TLS
        case Needs.TLS:
            return behind.established is not None
        case Needs.NO_BYTE:
            return not control.server_bytes and control.ended_by is not None
    return True


def probe(box: Oddity, *, direct: bool = False) -> Diagnosis:
    """A run at a middlebox; ``direct``: the client has sslnegotiation=direct."""
    first = replace(CONTROL, opening=Opening.DIRECT_TLS) if direct else CONTROL
    attempts = standard(first, [OTHER])
    plain = next(a for a in attempts if a.opening is Opening.SSL_REQUEST)
    control, asks = (observe(met(each, box.fate(each))) for each in (first, plain))
    made = [a for a in attempts if worth(a, control, asks)]
    if control.server_bytes:
        made.append(replace(first, name="control-again"))
    told = [met(attempt, box.fate(attempt)) for attempt in made]
    return diagnose(Question(name=NAME, identity=NAME, direct=direct), {DOOR: told})


# -- what must hold ----------------------------------------------------------------------------

# What cannot be said of a client that was like this.
DENIED_BY: dict[str, Callable[[Handshake], bool]] = {
    "connection-refused": lambda main: main.client is not None,
    "accepts-then-closes": lambda main: main.server_bytes > 0,
    "accepts-then-silent": lambda main: main.server_bytes > 0,
    "tls-refused": lambda main: main.ssl_answer == "S",
    "not-postgresql": lambda main: main.authenticates,
    "name-not-routed": lambda main: main.established is not None,
    "backend-down-or-without-tls": lambda main: main.established is not None,
    "tls-handshake-failed": lambda main: main.established is not None,
    "silent-after-ssl-answer": lambda main: main.server_hello is not None,
    "startup-unanswered": lambda main: main.authenticates,
    "sni-router-without-starttls": lambda main: main.authenticates,
    "tls-terminator-without-starttls": lambda main: main.authenticates,
}
# What stops a client that is let in: another place, or a certificate that it cannot bind to.
STOPS_THERE = {"wrong-backend", "clusters-differ", "binding-impossible-for-leaf"}
# Whose handshake a row of the clients table stands on.
STANDS_ON = {
    "libpq-13": "no-name-no-alpn",
    "libpq-16": "no-alpn",
    "libpq-17": "control",
    "libpq-17-direct": "direct",
    "npgsql": "control",
    "pgx": "no-alpn",
    "pgjdbc": "no-alpn",
    "node-postgres": "no-alpn",
    "asyncpg": "control",
}


def contradictions(diagnosis: Diagnosis) -> Iterator[str]:
    """What is said although the bytes deny it; nothing: all is well."""
    first = diagnosis.first
    main, verdict, path = first.evidence.main, first.verdict, first.path
    assert main is not None
    direct = first.evidence.question.direct
    seen = {each.attempt: each for each in first.evidence.handshakes}
    errors = [f.name for f in diagnosis.findings if f.severity is Severity.ERROR]
    if verdict.status in ("passes", "degraded"):
        if not main.authenticates or errors:
            yield f"{verdict.status}, and the control is {main.outcome}, errors {errors}"
        if not all(c.authenticates or server_is_full(c) for c in first.evidence.controls):
            yield f"{verdict.status}, and a control is not let in"
    if verdict.status in ("broken", "unreachable") and not errors:
        yield f"{verdict.status} without an error"
    if (verdict.status == "unreachable") and any(each.server_bytes for each in seen.values()):
        yield "unreachable, and somebody answered"
    if verdict.status == "passes" and (path.tls_ends_at == "proxy" or path.pooler):
        yield "passes, and TLS ends on the way"
    if path.tls_ends_at == "server":
        yield from (f"ends at the server, and {proof}" for proof in ended_by_a_proxy(main, seen))
    stops = STOPS_THERE | ({"alpn-not-selected"} if direct and main.lacks_alpn else set())
    if main.authenticates and not stops.issuperset(errors):
        yield f"the control is let in, and {errors} is to stop it"
    for finding in diagnosis.findings:
        denied = DENIED_BY.get(finding.name)
        told_of_all = not direct or finding.severity is Severity.ERROR
        if denied and denied(main) and told_of_all:
            yield f"{finding.name}, and the control is {main.outcome} at {main.reached}"
        if not finding.evidence or any(proof.attempt not in seen for proof in finding.evidence):
            yield f"{finding.name} stands on nothing that was seen"
    for row in first.clients:
        label = STANDS_ON[row.client]
        if direct:  # then the control is direct, and the other one stands beside it
            label = {"direct": "control", "control": "ssl-request"}.get(label, label)
        alike = filter(None, (seen.get(label), seen.get(f"{label}-again")))
        if row.gets_through and not any(each.authenticates for each in alike):
            yield f"{row.client} gets through, and {label} did not"


def ended_by_a_proxy(main: Handshake, seen: dict[str, Handshake]) -> Iterator[str]:
    """Proofs that the TLS of clients like the main one does not end at a server."""
    direct = main.opening is Opening.DIRECT_TLS
    bare = seen.get("direct-no-alpn" if direct else "no-alpn")
    for each in filter(None, (main, bare)):
        if each.error and "no encryption" in each.error.message:
            yield "pg_hba speaks of no encryption"
        if any(name.encode() in (each.leaf or b"") for name in PLACEHOLDERS):
            yield "a placeholder was shown"
    if bare and bare.authenticates and direct:
        yield "direct TLS without ALPN is let in"
    refused = main.alert is not None and main.alert.description == 120
    if refused and bare and bare.authenticates:
        yield "ALPN is refused"


def check(box: Oddity, *, direct: bool = False) -> Diagnosis:
    diagnosis = probe(box, direct=direct)
    assert list(contradictions(diagnosis)) == []
    return diagnosis


# -- the tests ---------------------------------------------------------------------------------

FEW = (SERVED, replace(SERVED, alpn=None, offer=ONLY_SCRAM), CLOSED, alert(112))


@pytest.mark.parametrize("request_fate", REQUESTS[1:])
def test_whatever_comes_of_ssl_request_and_of_a_bare_client_hello(request_fate: Fate) -> None:
    for hello, direct in product(FEW, (False, True)):
        check(Oddity(request_fate, hello), direct=direct)


@pytest.mark.parametrize("hello", HELLOS)
def test_whatever_comes_of_the_asked_name_behind_s(hello: Fate) -> None:
    bare = {Asking(True, NAME, alpn) for alpn in (True, False)}
    for lost, other in product((SERVED, CLOSED), (hello, SERVED)):
        asked = dict.fromkeys((a for a in ASKINGS if a.name == NAME), hello)
        check(Oddity(None, lost, asked | dict.fromkeys(bare, other)))


@settings(max_examples=60)
@given(
    box=st.builds(
        Oddity,
        st.one_of(st.none(), st.sampled_from(REQUESTS)),
        st.sampled_from(HELLOS),
        st.dictionaries(st.sampled_from(ASKINGS), st.sampled_from(HELLOS)),
        st.fixed_dictionaries(
            {},
            optional={
                Opening.GSSENC_REQUEST: st.sampled_from(GSSENC),
                Opening.STARTUP: st.sampled_from(STARTUPS),
                Opening.CANCEL: st.sampled_from(CANCELS),
                Opening.NOTHING: st.sampled_from(SILENCES),
            },
        ),
    ),
    direct=st.booleans(),
)
def test_whatever_comes_of_every_question(box: Oddity, direct: bool) -> None:
    check(box, direct=direct)


ATTEMPTS = standard(CONTROL, [OTHER])
ANY = (*HELLOS, *(hello.behind_s() for hello in HELLOS), *filter(None, REQUESTS))


@settings(max_examples=60)
@given(
    odd=st.dictionaries(
        st.sampled_from([a.name for a in ATTEMPTS] + ["control-again"]),
        st.sampled_from(ANY),
        max_size=4,
    )
)
def test_a_server_with_a_few_odd_answers(odd: dict[str, Fate]) -> None:
    check(Oddity(None, SERVED, odd=odd))


@settings(max_examples=30)
@given(st.lists(st.sampled_from(ANY), min_size=len(ATTEMPTS), max_size=len(ATTEMPTS)))
def test_an_answer_of_its_own_for_each_attempt(fates: list[Fate]) -> None:
    odd = dict(zip((a.name for a in ATTEMPTS), fates, strict=True))
    diagnosis = check(Oddity(None, SERVED, odd=odd))
    jsonschema.validate(document(Report(parse_target(NAME, {}), diagnosis)), SCHEMA)


def test_a_server_contradicts_nothing_and_passes() -> None:
    assert probe(Oddity(None, SERVED)).first.verdict.status == "passes"
    check(Oddity(None, SERVED))


@pytest.mark.parametrize(("alpn", "who"), [("postgresql", "gateway"), (None, "server")])
def test_who_has_to_learn_direct_tls_is_told_by_the_alpn_behind_the_s(
    alpn: str | None, who: str
) -> None:
    """A server of version 17 or later selects it, and takes direct TLS as well."""
    served = replace(SERVED, alpn=alpn)
    told = ask(lambda attempt: CLOSED if attempt.opening is Opening.DIRECT_TLS else served)
    (finding,) = (each for each in told.findings if each.name == "direct-tls-unsupported")
    assert finding.fix[0].who == who
