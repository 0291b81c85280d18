"""Where a password comes from, and that it never shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from probe.conninfo import TargetError
from probe.password import MAX_FILE, Password, find_password


def found(passfile: Path, **who: object) -> str | None:
    asked = {"host": "db-1", "port": 5432, "dbname": "app", "user": "me"} | who
    password = find_password({"PGPASSFILE": str(passfile)}, **asked)  # type: ignore[arg-type]
    return password.reveal().decode() if password else None


@pytest.fixture
def passfile(tmp_path: Path) -> Path:
    path = tmp_path / "pgpass"
    path.touch(mode=0o600)
    return path


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("db-1:5432:app:me:secret", "secret"),
        ("*:*:*:*:secret", "secret"),
        ("db-2:*:*:*:no\n*:*:*:me:first\n*:*:*:me:second", "first"),
        ("*:5433:*:*:no", None),
        ("*:*:other:*:no", None),
        ("*:*:*:you:no", None),
        (r"*:*:*:*:a\:b\\c", r"a:b\c"),
        ("*:*:*:*:a:b", "a:b"),
        ("*:*:*:*: spaces stay ", " spaces stay "),
        ("#*:*:*:*:comment", None),
        ("*:*:*:me", None),
        ("", None),
        ("*:*:*:*:", ""),
    ],
)
def test_the_first_line_that_fits_counts(passfile: Path, lines: str, expected: str | None) -> None:
    passfile.write_text(lines)
    assert found(passfile) == expected


def test_a_password_is_the_bytes_of_the_file(passfile: Path) -> None:
    passfile.write_bytes(b"*:*:*:*:p\xe4ss")
    password = find_password({"PGPASSFILE": str(passfile)}, host="a", port=1, dbname="b", user="c")
    assert password is not None
    assert password.reveal() == b"p\xe4ss"


def test_escaped_colons_fit_an_ipv6_host(passfile: Path) -> None:
    passfile.write_text("\\:\\:1:5432:app:me:six")
    assert found(passfile, host="::1") == "six"


def test_the_environment_wins_and_an_empty_one_does_not(passfile: Path) -> None:
    passfile.write_text("*:*:*:*:filed")
    who = {"host": "db-1", "port": 5432, "dbname": "app", "user": "me"}
    for given, expected in (("direct", "direct"), ("", "filed")):
        environ = {"PGPASSWORD": given, "PGPASSFILE": str(passfile)}
        password = find_password(environ, **who)  # type: ignore[arg-type]
        assert password is not None
        assert password.reveal().decode() == expected


def test_home_has_the_default_file_and_may_have_none(tmp_path: Path) -> None:
    who = {"host": "db-1", "port": 5432, "dbname": "app", "user": "me"}
    assert find_password({"HOME": str(tmp_path)}, **who) is None  # type: ignore[arg-type]
    assert find_password({}, **who) is None  # type: ignore[arg-type]
    path = tmp_path / ".pgpass"
    path.write_text("*:*:*:*:home")
    path.chmod(0o600)
    password = find_password({"HOME": str(tmp_path)}, **who)  # type: ignore[arg-type]
    assert password is not None
    assert password.reveal() == b"home"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_file_that_is_open_to_others_is_refused(passfile: Path, mode: int) -> None:
    passfile.write_text("*:*:*:*:secret")
    passfile.chmod(mode)
    with pytest.raises(TargetError, match="chmod 0600"):
        found(passfile)


def test_what_is_no_file_is_refused_without_quoting_it(tmp_path: Path, passfile: Path) -> None:
    with pytest.raises(TargetError, match="directory"):
        found(tmp_path)
    with pytest.raises(TargetError, match="is not there"):
        found(tmp_path / "none")
    passfile.write_bytes(b"x" * (MAX_FILE + 1))
    with pytest.raises(TargetError, match="more than"):
        found(passfile)


def test_a_file_that_is_no_text_is_read_as_far_as_it_goes(passfile: Path) -> None:
    passfile.write_bytes(b"\xff\xfe\0\n*:*:*:*:fine\n" + os.urandom(64))
    assert found(passfile) == "fine"


def test_a_password_does_not_show_itself() -> None:
    password = Password("secret")
    assert "secret" not in f"{password!r} {password} {[password]}"
