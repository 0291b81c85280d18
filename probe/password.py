"""A password for ``--login``, and where libpq finds one: PGPASSWORD, or the password file.

Takes the environment and who asks for what; gives a :class:`Password`, which does not show itself,
or raises :class:`~probe.conninfo.TargetError` with one sentence. A message never quotes a line of
the file.

Source: PostgreSQL documentation, libpq, "The Password File" and "Environment Variables".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from probe.conninfo import TargetError, quoted

MAX_FILE = 1 << 20  # bytes; a real one has a few hundred

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Password:
    """A secret: ``reveal`` gives it, nothing else shows it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Password(…)"

    def reveal(self) -> bytes:
        """The password itself, for the bytes of a login and for nothing else.

        Its bytes are those of the file or the environment, UTF-8 or not.
        """
        return self._text.encode("utf-8", "surrogateescape")


def find_password(
    environ: Mapping[str, str],
    *,
    host: str,
    port: int,
    dbname: str,
    user: str,
    home: Path | None = None,
) -> Password | None:
    """The password that libpq would use, or None where there is none.

    ``environ`` is a mapping such as os.environ; ``host``, ``port``, ``dbname`` and ``user`` are
    what a line of the password file must fit. ``home`` is where .pgpass is looked for; None means
    HOME of ``environ``. Raises TargetError for a file that is readable by others, which libpq
    ignores, or that cannot be read although PGPASSFILE names it.
    """
    if given := environ.get("PGPASSWORD"):
        return Password(given)
    named = environ.get("PGPASSFILE")
    if home is None and environ.get("HOME"):
        home = Path(environ["HOME"])
    path = Path(named) if named else home / ".pgpass" if home else None
    if path is None:
        return None
    wanted = (host, str(port), dbname, user)
    for fields in _lines(path, required=named is not None):
        if all(field in ("*", want) for field, want in zip(fields, wanted, strict=False)):
            return Password(fields[4])
    return None


def _lines(path: Path, *, required: bool) -> Iterator[list[str]]:
    """The lines that have all five fields, each parted."""
    shown = quoted(str(path))
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise TargetError(f"the password file {shown} is not a plain file")
            if mode & _OTHERS:
                raise TargetError(
                    f"the password file {shown} is open to group or others, and libpq would "
                    "ignore it; chmod 0600"
                )
            content = file.read(MAX_FILE + 1)
    except FileNotFoundError as error:
        if required:
            raise TargetError(f"the password file {shown} is not there") from error
        return
    except OSError as error:
        raise TargetError(f"the password file {shown}: {error.strerror}") from error
    if len(content) > MAX_FILE:
        raise TargetError(f"the password file {shown} has more than {MAX_FILE} bytes")
    for line in content.decode("utf-8", "surrogateescape").splitlines():
        fields = _fields(line)
        if not line.startswith("#") and len(fields) == 5:
            yield fields


def _fields(line: str) -> list[str]:
    """The parts between colons; a backslash takes the next character as it is."""
    fields, escaped = [""], False
    for character in line:
        if escaped or character not in "\\:":
            fields[-1] += character
            escaped = False
        elif character == "\\":
            escaped = True
        elif len(fields) == 5:  # the password may hold a colon as it is
            fields[-1] += character
        else:
            fields.append("")
    return fields
