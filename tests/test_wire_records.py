"""TLS records, alerts and handshake messages: exact bytes, every truncation."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.wire import Malformed
from probe.wire.records import (
    ALERT,
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    HANDSHAKE,
    MAX_FRAGMENT,
    MAX_HANDSHAKE_MESSAGE,
    Alert,
    Record,
    decode_alert,
    decode_carried,
    decode_handshake,
    decode_record,
    split_record,
)

HANDSHAKE_FAILURE = bytes.fromhex(
    "15"  # alert
    "0301"  # TLS 1.0
    "0002"  # length
    "02 28"  # fatal, handshake_failure
)
CHANGE = bytes.fromhex(
    "14"  # change_cipher_spec
    "0303"
    "0001"
    "01"
)
HELLO_DONE = bytes.fromhex(
    "16"  # handshake
    "0303"
    "0004"
    "0e 000000"  # ServerHelloDone, empty
)
EMPTY = bytes.fromhex(
    "17"  # application_data
    "0303"
    "0000"
)
RECORDS = [
    (HANDSHAKE_FAILURE, Record(ALERT, 0x0301, b"\x02\x28")),
    (CHANGE, Record(CHANGE_CIPHER_SPEC, 0x0303, b"\x01")),
    (HELLO_DONE, Record(HANDSHAKE, 0x0303, b"\x0e\0\0\0")),
    (EMPTY, Record(APPLICATION_DATA, 0x0303, b"")),
]

FINISHED = bytes.fromhex(
    "14"  # Finished
    "00000c"  # length
    "000102030405060708090a0b"
)


@pytest.mark.parametrize(("data", "record"), RECORDS)
@pytest.mark.parametrize("trailing", [b"", b"\x16", b"HTTP", HANDSHAKE_FAILURE])
def test_a_whole_record_is_read_and_what_follows_is_left(
    data: bytes, record: Record, trailing: bytes
) -> None:
    assert decode_record(data + trailing) == (record, len(data))


@pytest.mark.parametrize(("data", "record"), RECORDS)
def test_every_proper_prefix_of_a_record_needs_more(data: bytes, record: Record) -> None:
    assert [decode_record(data[:n]) for n in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"H",
        b"\x13",
        b"\x18\x03\x03\x00\x00",  # heartbeat
        b"\x16\x02",
        b"\x16\x04",
        bytes.fromhex("16 0303") + struct.pack("!H", MAX_FRAGMENT + 1),
        bytes.fromhex("16 0303 ffff"),
    ],
)
def test_what_is_no_record_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_record(data)


def test_the_longest_record_allowed_is_read() -> None:
    data = bytes.fromhex("17 0303") + struct.pack("!H", MAX_FRAGMENT) + bytes(MAX_FRAGMENT)
    assert decode_record(data[:5]) is None
    assert decode_record(data) == (Record(APPLICATION_DATA, 0x0303, bytes(MAX_FRAGMENT)), len(data))


@pytest.mark.parametrize(
    ("fragment", "alert", "text"),
    [
        ("02 28", Alert(2, 40), "alert 40 handshake_failure"),
        ("01 00", Alert(1, 0), "alert 0 close_notify"),
        ("02 70", Alert(2, 112), "alert 112 unrecognized_name"),
        ("02 78", Alert(2, 120), "alert 120 no_application_protocol"),
        ("02 fe", Alert(2, 254), "alert 254"),
    ],
)
def test_an_alert_is_read_and_named(fragment: str, alert: Alert, text: str) -> None:
    assert decode_alert(bytes.fromhex(fragment)) == alert
    assert str(alert) == text


def test_the_name_of_an_unknown_alert_is_its_number() -> None:
    assert (Alert(2, 40).name, Alert(2, 254).name) == ("handshake_failure", "alert 254")


@pytest.mark.parametrize("fragment", ["", "02", "00 28", "03 28", "02 28 00", "00" * 24])
def test_a_protected_or_broken_alert_is_none(fragment: str) -> None:
    assert decode_alert(bytes.fromhex(fragment)) is None


@pytest.mark.parametrize("trailing", [b"", b"\x0b", FINISHED])
def test_a_whole_handshake_message_is_read_and_what_follows_is_left(trailing: bytes) -> None:
    assert decode_handshake(FINISHED + trailing) == ((20, bytes(range(12))), 16)


def test_every_proper_prefix_of_a_handshake_message_needs_more() -> None:
    assert [decode_handshake(FINISHED[:n]) for n in range(16)] == [None] * 16


def test_an_empty_handshake_message_is_read() -> None:
    assert decode_handshake(b"\x0e\0\0\0") == ((14, b""), 4)


def test_a_handshake_message_longer_than_any_is_malformed() -> None:
    longest = MAX_HANDSHAKE_MESSAGE.to_bytes(3, "big")
    too_long = (MAX_HANDSHAKE_MESSAGE + 1).to_bytes(3, "big")
    assert decode_handshake(b"\x0b" + longest) is None
    with pytest.raises(Malformed):
        decode_handshake(b"\x0b" + too_long)


def test_a_record_cut_in_two_is_these_bytes() -> None:
    whole = bytes.fromhex(
        "16 0301"  # handshake
        "0004"
        "01020304"
    )
    assert split_record(whole, 1) == bytes.fromhex(
        "16 0301"  # handshake
        "0001"
        "01"
        "16 0301"  # handshake, going on
        "0003"
        "020304"
    )


@given(st.binary(min_size=2, max_size=600), st.data())
def test_a_record_cut_anywhere_carries_the_same_bytes(fragment: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(fragment) - 1))
    whole = bytes.fromhex("16 0301") + struct.pack("!H", len(fragment)) + fragment
    cut = split_record(whole, at)
    first = decode_record(cut)
    assert first is not None
    second = decode_record(cut[first[1] :])
    assert second is not None
    assert first[1] + second[1] == len(cut)
    assert (len(first[0].fragment), first[0].fragment + second[0].fragment) == (at, fragment)


@given(
    st.sampled_from([CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA]),
    st.integers(0x0300, 0x03FF),
    st.binary(max_size=400),
    st.binary(max_size=20),
)
def test_a_record_reads_back_as_it_was_written(
    kind: int, version: int, fragment: bytes, trailing: bytes
) -> None:
    data = struct.pack("!BHH", kind, version, len(fragment)) + fragment
    assert decode_record(data + trailing) == (Record(kind, version, fragment), len(data))


@given(st.integers(0, 255), st.binary(max_size=400), st.binary(max_size=20))
def test_a_handshake_message_reads_back_as_it_was_written(
    kind: int, body: bytes, trailing: bytes
) -> None:
    data = bytes([kind]) + len(body).to_bytes(3, "big") + body
    assert decode_handshake(data + trailing) == ((kind, body), len(data))


MOSTLY_RECORDS = st.builds(
    bytes.__add__, st.sampled_from([b"\x16\x03\x01\0", b"\x15\x03"]), st.binary()
)


@given(st.binary() | MOSTLY_RECORDS)
def test_any_bytes_are_a_record_need_more_or_are_malformed(data: bytes) -> None:
    try:
        decoded = decode_record(data)
    except Malformed:
        return
    assert decoded is None or 5 <= decoded[1] <= len(data)


@given(st.binary())
def test_any_bytes_are_a_handshake_message_need_more_or_are_malformed(data: bytes) -> None:
    decode_alert(data)
    try:
        decoded = decode_handshake(data)
    except Malformed:
        return
    assert decoded is None or 4 <= decoded[1] <= len(data)


# --- a handshake message across records ---------------------------------------------------------


def carried(message: bytes, cuts: Sequence[int]) -> bytes:
    """The message in records that end at these places."""
    borders = [0, *sorted(cuts), len(message)]
    parts = [message[a:b] for a, b in itertools.pairwise(borders)]
    return b"".join(b"\x16\3\1" + struct.pack("!H", len(part)) + part for part in parts)


@given(body=st.binary(max_size=80), data=st.data())
def test_a_message_is_put_together_from_its_records(body: bytes, data: st.DataObject) -> None:
    message = b"\1" + len(body).to_bytes(3, "big") + body
    cuts = data.draw(st.lists(st.integers(0, len(message)), max_size=4))
    said = carried(message, cuts)
    decoded = decode_carried(said + b"more", 1)
    assert decoded is not None
    assert (decoded[0].message, decoded[0].body) == (message, body)
    assert 0 < decoded[0].records <= len(cuts) + 1
    assert decoded[1] <= len(said)
    assert all(decode_carried(said[:n], 1) is None for n in range(decoded[1]))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"\x15\3\3\0\2\2\x28", "a record of type 21 instead of a handshake message"),
        (b"\x16\3\1\0\1\2", "handshake message 2 instead of 1"),
        (b"\x16\3\1\0\2\1\0\x17\3\1\0\1x", "a record of type 23 instead of a handshake message"),
        (b"GET / HTTP", "a record of type 0x47"),
    ],
)
def test_what_is_not_the_message_is_told_at_once(said: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        decode_carried(said, 1)
