"""Key logs: which lines count, and what of them is never shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from probe import secrets
from probe.secrets import CLIENT_HANDSHAKE, MASTER, parse_key_log

RANDOM, OTHER = bytes(range(32)), bytes(32)
SECRET = bytes(range(48))


def line(label: str, random: bytes = RANDOM, secret: bytes = SECRET) -> str:
    return f"{label} {random.hex()} {secret.hex()}\n"


def test_secrets_are_found_by_client_random_and_label() -> None:
    found = parse_key_log(line(MASTER) + line(CLIENT_HANDSHAKE, OTHER, SECRET[:32]))
    assert found.of(RANDOM) == {MASTER: SECRET}
    assert found.of(OTHER) == {CLIENT_HANDSHAKE: SECRET[:32]}
    assert found.of(b"another") == {}
    assert len(found) == 2


def test_upper_case_and_windows_line_ends_and_bytes_are_read() -> None:
    text = f"# comment\r\n\r\nCLIENT_RANDOM {RANDOM.hex().upper()} {SECRET.hex().upper()}\r\n"
    assert parse_key_log(text.encode()).of(RANDOM) == {MASTER: SECRET}


def test_several_texts_are_one_log_and_the_newest_line_counts() -> None:
    newer = SECRET[::-1]
    assert parse_key_log(line(MASTER), line(MASTER, secret=newer)).of(RANDOM) == {MASTER: newer}


def test_what_is_no_line_of_the_format_is_passed_over() -> None:
    strange = (
        "RSA 0011 2233\n"
        "CLIENT_RANDOM 00 11\n"
        f"CLIENT_RANDOM {RANDOM.hex()}\n"
        f"CLIENT_RANDOM {RANDOM.hex()} {SECRET.hex()}0\n"
        f"EXPORTER_SECRET {RANDOM.hex()} {SECRET.hex()}\n"
    )
    assert len(parse_key_log(strange)) == 0


def test_only_so_many_sessions_are_kept_and_those_are_the_newest(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(secrets, "MAX_SESSIONS", 2)
    randoms = [bytes([n]) * 32 for n in range(4)]
    found = parse_key_log("".join(line(MASTER, random) for random in randoms))
    assert [bool(found.of(random)) for random in randoms] == [False, False, True, True]


def test_a_secret_does_not_show_when_printed() -> None:
    assert repr(parse_key_log(line(MASTER))) == "<Secrets of 1 sessions>"


@given(st.binary() | st.text())
def test_reading_a_key_log_never_raises(text: bytes | str) -> None:
    parse_key_log(text)
