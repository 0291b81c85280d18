"""The form in which a witness tells: written and read, and nothing else is taken for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.wire import Malformed
from probe.wire.messages import decode_error, error_response
from probe.wire.witness import (
    FORM,
    MAX_NUMBER,
    MAX_PROTOCOLS,
    MAX_TESTIMONY,
    SQLSTATE,
    Arrival,
    HelloFacts,
    ProxyFacts,
    StartupFacts,
    decode_testimony,
    encode_testimony,
    error_fields,
    find_testimony,
    sentence,
)

DIGEST = "8b" * 32
HELLO = HelloFacts("1a" * 32, 517, 1, 2, "db-1.example.com", ("postgresql", "h2"))
STARTUP = StartupFacts(DIGEST, 72, "3.0")
FULL = Arrival(
    peer="10.0.1.7:40312",
    local="10.0.2.9:5432",
    startup=STARTUP,
    proxy_expected=True,
    proxy=ProxyFacts(2, "192.0.2.7:50000", "192.0.2.8:5432"),
    ssl_request=True,
    gssenc_request=False,
    early=False,
    hello=HELLO,
    tls="1.3",
    alpn="postgresql",
)
IN_CLEAR = Arrival("10.0.1.7:40312", "10.0.2.9:5432", STARTUP)


def test_version_1_is_written_so() -> None:
    assert json.loads(encode_testimony(FULL)) == {
        "witness": 1,
        "peer": "10.0.1.7:40312",
        "local": "10.0.2.9:5432",
        "proxy_expected": True,
        "proxy": {
            "version": 2,
            "source": "192.0.2.7:50000",
            "destination": "192.0.2.8:5432",
        },
        "ssl_request": True,
        "gssenc_request": False,
        "early": False,
        "hello": {
            "sha256": "1a" * 32,
            "size": 517,
            "records": 1,
            "reads": 2,
            "server_name": "db-1.example.com",
            "alpn": ["postgresql", "h2"],
        },
        "tls": "1.3",
        "alpn": "postgresql",
        "startup": {"sha256": DIGEST, "size": 72, "protocol": "3.0"},
    }


names = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60)
numbers = st.integers(0, MAX_NUMBER)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
hellos = st.builds(
    HelloFacts,
    digests,
    numbers,
    numbers,
    numbers,
    st.none() | names,
    st.lists(names, max_size=MAX_PROTOCOLS).map(tuple),
)
testimonies = st.builds(
    Arrival,
    peer=names,
    local=names,
    startup=st.builds(StartupFacts, digests, numbers, names),
    proxy_expected=st.booleans(),
    proxy=st.none() | st.builds(ProxyFacts, numbers, st.none() | names, st.none() | names),
    ssl_request=st.booleans(),
    gssenc_request=st.booleans(),
    early=st.booleans(),
    hello=st.none() | hellos,
    tls=st.none() | names,
    alpn=st.none() | names,
)
wild = st.text(max_size=400)
wild_testimonies = st.builds(
    Arrival,
    peer=wild,
    local=wild,
    startup=st.just(STARTUP),
    proxy=st.builds(ProxyFacts, numbers, wild, wild),
    hello=st.builds(
        HelloFacts, digests, numbers, numbers, numbers, wild, st.lists(wild).map(tuple)
    ),
    tls=wild,
    alpn=wild,
)


@given(testimonies)
def test_what_is_written_is_read(told: Arrival) -> None:
    assert decode_testimony(encode_testimony(told)) == told
    decoded = decode_error(error_response(error_fields(told)))
    assert decoded is not None
    assert find_testimony(decoded[0].fields) == told


@given(wild_testimonies)
def test_whatever_a_stranger_said_it_stays_one_bounded_line_of_ascii(told: Arrival) -> None:
    text = encode_testimony(told)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= MAX_TESTIMONY
    assert decode_testimony(text).startup == STARTUP
    assert sentence(told).isprintable() or not told.peer.isprintable()
    assert b"\0" not in text.encode()


def changed(**members: Any) -> str:
    return json.dumps({**json.loads(encode_testimony(FULL)), **members})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "1",
        "null",
        "[" * 100_000,
        '{"witness":1}',
        changed(witness=2),
        changed(witness=True),
        changed(witness="1"),
        changed(startup=None),
        changed(startup={"sha256": "8b", "size": 72, "protocol": "3.0"}),
        changed(startup={"sha256": DIGEST.upper(), "size": 72, "protocol": "3.0"}),
        changed(hello={"sha256": DIGEST}),
        changed(hello=[]),
        changed(hello={**HELLO._asdict(), "size": -1}),
        changed(hello={**HELLO._asdict(), "size": 1.5}),
        changed(hello={**HELLO._asdict(), "size": MAX_NUMBER + 1}),
        changed(hello={**HELLO._asdict(), "alpn": "postgresql"}),
        changed(hello={**HELLO._asdict(), "alpn": [1]}),
        changed(hello={**HELLO._asdict(), "alpn": ["x"] * (MAX_PROTOCOLS + 1)}),
        changed(peer=None),
        changed(peer="x" * 256),
        changed(ssl_request="yes"),
        changed(proxy={"version": "2"}),
        changed(more="x" * MAX_TESTIMONY),
    ],
)
def test_what_is_no_testimony_of_this_version_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        decode_testimony(text)
    assert find_testimony([("C", SQLSTATE), ("D", text)]) is None


def test_a_key_that_is_not_known_is_passed_over() -> None:
    assert decode_testimony(changed(later="something")) == FULL


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
MEMBERS = st.sampled_from([*json.loads(encode_testimony(FULL)), "witness", "more"])


@given(st.dictionaries(MEMBERS, json_values, min_size=1))
def test_any_member_may_be_anything(members: dict[str, Any]) -> None:
    try:
        decode_testimony(changed(**members))
    except Malformed:
        return


@given(st.text(max_size=300) | st.integers(0, 500).map(lambda n: encode_testimony(FULL)[:n]))
def test_any_text_is_a_testimony_or_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        decode_testimony(text)


@pytest.mark.parametrize("letter", "FLR")
def test_what_a_postgresql_wrote_is_no_testimony(letter: str) -> None:
    assert find_testimony([*error_fields(FULL), (letter, "something")]) is None


def test_another_sqlstate_is_no_testimony() -> None:
    other = [(k, "28000" if k == "C" else v) for k, v in error_fields(FULL)]
    assert find_testimony(other) is None
    assert find_testimony([]) is None


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (FULL, "for 'db-1.example.com' of 517 bytes"),
        (FULL, "behind a PROXY header of version 2"),
        (FULL._replace(ssl_request=False), "TLS arrived directly"),
        (FULL._replace(hello=HELLO._replace(server_name=None)), "for no name"),
        (IN_CLEAR, "in clear text, without TLS, from 10.0.1.7:40312"),
    ],
)
def test_the_sentence_tells_a_person(told: Arrival, words: str) -> None:
    assert words in sentence(told)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (FULL, None),
        (FULL._replace(proxy=None), "no PROXY header"),
        (FULL._replace(proxy_expected=False), "a PROXY header arrived"),
        (FULL._replace(early=True), "before SSLRequest was answered"),
        (FULL._replace(ssl_request=False), None),  # direct TLS, as 17 takes it
        (FULL._replace(ssl_request=False, alpn=None), "without ALPN"),
        (FULL._replace(alpn=None), None),
        (IN_CLEAR, None),
    ],
)
def test_what_a_server_would_refuse(told: Arrival, words: str | None) -> None:
    if words is None:
        assert told.refused is None
    else:
        assert told.refused
        assert words in told.refused


def test_the_form_has_a_number() -> None:
    assert json.loads(encode_testimony(IN_CLEAR))["witness"] == FORM == 1
