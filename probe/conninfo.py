"""libpq's connection strings, environment and service files, as mappings of parameters.

Takes text that people already have for psql (a ``key=value`` string, a URI, the PG* environment,
a service file), or a plain ``HOST:PORT``. Gives a plain mapping, parameter name to text, of the
parameters that decide how a server is reached; :mod:`probe.target` gives them a meaning. Nothing
here connects or resolves, and only :func:`read_service` opens a file.

The grammar is libpq's (fe-connect.c), down to its odd corners, so that what works for psql works
here: the last of two equal parameters wins, a URI's user ends at the first ``@``, a service file
has no spaces around ``=`` and its first of two equal lines wins. An empty value is a value: it
hides the environment, as in libpq.

Passwords are everywhere in such strings. They are skipped and never kept, and a message never
quotes a place where a badly quoted password may have ended up.

Source: PostgreSQL documentation, libpq, "Connection Strings", "Parameter Key Words", "Environment
Variables" and "The Connection Service File".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

MAX_SERVICE_FILE = 1 << 20  # bytes; a real one has a few hundred
MAX_QUOTED = 80  # characters of the user's text in a message

URI_PREFIXES = ("postgresql://", "postgres://")

ENVIRONMENT = {
    "PGHOST": "host",
    "PGHOSTADDR": "hostaddr",
    "PGPORT": "port",
    "PGDATABASE": "dbname",
    "PGUSER": "user",
    "PGSSLMODE": "sslmode",
    "PGSSLNEGOTIATION": "sslnegotiation",
    "PGSSLSNI": "sslsni",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLCERT": "sslcert",
    "PGSSLKEY": "sslkey",
    "PGGSSENCMODE": "gssencmode",
}
HONOURED = frozenset(ENVIRONMENT.values()) | {"service", "servicefile"}

# Every other parameter of libpq up to 19, and those that older ones knew. They say nothing about
# the way to the server, or pgprobe varies them itself (ssl_min_protocol_version).
IGNORED = frozenset(
    """
    application_name authtype channel_binding client_encoding connect_timeout
    fallback_application_name gssdelegation gsslib keepalives keepalives_count keepalives_idle
    keepalives_interval krbsrvname load_balance_hosts max_protocol_version min_protocol_version
    oauth_ca_file oauth_client_id oauth_client_secret oauth_issuer oauth_scope options passfile
    password replication require_auth requirepeer scram_client_key scram_server_key
    ssl_max_protocol_version ssl_min_protocol_version sslcertmode sslcompression sslcrl sslcrldir
    sslkeylogfile sslpassword target_session_attrs tcp_user_timeout tty
    """.split()
)

_BLANKS = " \t\n\r\f\v"  # C's isspace(), not Unicode's
_HOST_PORT = re.compile(
    r"(?:\[(?P<v6>[^\[\]]*:[^\[\]]*)\]|(?P<host>[^\[\]:]*))(?::(?P<port>.*))?", re.DOTALL
)
_NAME = re.compile(r"\s*+([^=\s]*+)\s*+", re.ASCII)
_VALUE = re.compile(
    r"\s*+(?:'(?P<quoted>(?:[^'\\]|\\.)*+)'|(?!')(?P<plain>(?:[^\s\\]|\\.)*+)\\?)\s*+",
    re.ASCII | re.DOTALL,
)
_NETLOC = re.compile(
    r"(?:\[(?P<bracketed>[^\]]+)\]|(?!\[)(?P<host>[^:/?,]*))(?::(?P<port>[^/?,]*))?(?=[/?,]|\Z)"
)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_ESCAPES = re.compile(r"(?:%[0-9A-Fa-f]{2})+")


class TargetError(ValueError):
    """What was asked for cannot be probed; the text is one sentence for the user."""


def quoted(text: str) -> str:
    """``text`` as it may stand in a message: quoted, escaped, MAX_QUOTED at most."""
    shown = repr(text[:MAX_QUOTED])
    if len(text) <= MAX_QUOTED and len(shown) <= MAX_QUOTED:
        return shown
    return shown[: MAX_QUOTED - 2] + "…" + shown[-1]


def parse_host_port(text: str) -> dict[str, str]:
    """The host, and the port if there is one, of ``HOST``, ``HOST:PORT``, ``[v6]``, ``[v6]:PORT``.

    Takes a str; gives a dict. A text that cannot be parted (a bare IPv6 address, a list, a socket
    directory) is the host as a whole, for its reader to judge. Raises TargetError for brackets
    without an IPv6 address, and for a ``:`` without a host before it or a port behind it.
    """
    bare_ipv6 = "[" not in text and text.count(":") > 1
    if text.startswith("/") or "@" in text or "," in text or bare_ipv6:
        return {"host": text}
    parts = _HOST_PORT.fullmatch(text)
    if parts is None:
        raise TargetError(
            f"{quoted(text)} has brackets, which are for an IPv6 address alone; "
            "write HOST:PORT or [2001:db8::1]:PORT"
        )
    host = parts["v6"] or parts["host"] or ""
    if not host or parts["port"] == "":
        raise TargetError(f"{quoted(text)} has nothing on one side of its ':'; write HOST:PORT")
    return {"host": host} if parts["port"] is None else {"host": host, "port": parts["port"]}


def parse_keywords(text: str) -> dict[str, str]:
    """The parameters of a ``key=value`` string.

    Takes a str; gives a dict of the honoured parameters. Raises TargetError for a word without
    ``=``, a quote without an end, or a parameter that libpq does not know.
    Source: libpq, "Keyword/Value Connection Strings".
    """
    pairs: list[tuple[str, str]] = []
    text = text.lstrip(_BLANKS)
    at = 0
    while at < len(text):
        name = _NAME.match(text, at)
        if name is None or not text.startswith("=", name.end()):
            where = f"after the value of {quoted(pairs[-1][0])}" if pairs else "at the beginning"
            raise TargetError(
                f"the connection string has a word without '=' {where}; "
                "write name=value, and single quotes around a value that has spaces"
            )
        value = _VALUE.match(text, name.end() + 1)
        if value is None:
            raise TargetError(
                f"the value of {quoted(name[1])} begins with a single quote that never ends; "
                r"end it with ' and write \' for a quote inside"
            )
        raw = value["plain"] if value["quoted"] is None else value["quoted"]
        pairs.append((name[1], re.sub(r"(?s)\\(.)", r"\1", raw)))
        at = value.end()
    return _honoured(pairs)


def parse_uri(text: str) -> dict[str, str]:
    """The parameters of a libpq URI.

    Takes a str that begins with one of URI_PREFIXES,
    ``postgresql://[user[:password]@][host][:port][/dbname][?name=value&…]``; gives a dict of the
    honoured parameters, percent-decoded and without brackets. Raises TargetError for a list of
    hosts, brackets or escapes that do not close, and unknown parameters.
    Source: libpq, "Connection URIs".
    """
    rest = text.partition("://")[2]
    userinfo, at_sign, _ = rest.partition("/")[0].partition("@")
    if at_sign:
        rest = rest[len(userinfo) + 1 :]
    else:
        userinfo = ""
    user, _, password = userinfo.partition(":")
    _decoded(password, "the password")  # a bad escape there usually cuts the URI elsewhere

    netloc = _NETLOC.match(rest)
    if netloc is None:
        raise TargetError(
            "the host in the URI begins with '[' and is no bracketed address; "
            "write postgresql://[2001:db8::1]:5432/"
        )
    host = netloc["bracketed"] or netloc["host"] or ""
    port = netloc["port"] or ""
    tail = rest[netloc.end() :]
    if tail.startswith(","):
        raise TargetError("the URI lists several hosts; give one host at a time")
    if "@" in netloc[0] or ("@" in tail and not port.isdigit() and port):
        raise TargetError(
            "the URI has an '@' behind the place where the host should be; "
            "write %40 for '@' and %2F for '/' in a user name or password"
        )

    path, _, query = tail.partition("?")
    parts = {"user": user, "host": host, "port": port, "dbname": path.removeprefix("/")}
    pairs = [(name, _decoded(part, f"the {name}")) for name, part in parts.items() if part]
    return _honoured([*pairs, *_query(query)])


def parse_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The parameters that PG* variables in ``environ`` give, as a dict, without the service.

    Raises nothing. Source: libpq, "Environment Variables".
    """
    return {
        name: environ[variable] for variable, name in ENVIRONMENT.items() if variable in environ
    }


def read_service(
    service: str, environ: Mapping[str, str], *, servicefile: str | None, home: Path | None
) -> dict[str, str]:
    """The parameters of ``service`` from the first service file that has it.

    Looks in ``servicefile``, else in PGSERVICEFILE of ``environ``, else in .pg_service.conf in
    ``home``; then in pg_service.conf in PGSYSCONFDIR. The directory that is compiled into
    libpq is not known here. Raises TargetError when a file that was named is missing, a file
    cannot be read or understood, or no file has the service.
    Source: libpq, "The Connection Service File".
    """
    named = environ.get("PGSERVICEFILE") if servicefile is None else servicefile
    candidates: list[tuple[Path, bool]] = []
    if named is not None:
        candidates.append((Path(named), True))
    elif home is not None:
        candidates.append((home / ".pg_service.conf", False))
    if environ.get("PGSYSCONFDIR"):
        candidates.append((Path(environ["PGSYSCONFDIR"]) / "pg_service.conf", False))

    for path, required in candidates:
        text = _read(path, required=required)
        found = None if text is None else _section(text, service, path)
        if found is not None:
            return found
    looked = " and ".join(quoted(str(path)) for path, _ in candidates) or "no file at all"
    raise TargetError(
        f"the service {quoted(service)} is not defined (looked in {looked}); "
        "correct its name, or name its file with PGSERVICEFILE"
    )


def _honoured(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The pairs that count; of two with one name the last."""
    kept: dict[str, str] = {}
    for name, value in pairs:
        match name:
            case "requiressl":  # before sslmode existed
                kept["sslmode"] = "require" if value.startswith("1") else "prefer"
            case _ if name in HONOURED:
                kept[name] = value
            case _ if name not in IGNORED:
                raise TargetError(
                    f"libpq has no connection parameter {quoted(name)}; "
                    "correct its name or leave it out"
                )
    return kept


def _query(query: str) -> list[tuple[str, str]]:
    """The pairs behind a URI's ``?``, decoded."""
    pairs: list[tuple[str, str]] = []
    for piece in query.removesuffix("&").split("&") if query else ():
        raw, equals, value = piece.partition("=")
        if not equals:
            raise TargetError(
                "the URI has a parameter without '=' behind its '?'; "
                "write name=value, and %26 for '&' inside a value"
            )
        name = _decoded(raw, "a parameter's name")
        if "=" in value:
            raise TargetError(
                f"the value of {quoted(name)} in the URI has a second '='; write it as %3D"
            )
        pair = (name, _decoded(value, f"the value of {quoted(name)}"))
        pairs.append(("sslmode", "require") if pair == ("ssl", "true") else pair)  # as pgJDBC's
    return pairs


def _decoded(text: str, what: str) -> str:
    """``text`` without its percent escapes. They are bytes: of UTF-8, or kept as surrogates."""
    if _BAD_ESCAPE.search(text):
        raise TargetError(
            f"{what} in the URI has a '%' that no two hexadecimal digits follow, or %00; "
            "write %25 for a plain '%'"
        )
    return _ESCAPES.sub(
        lambda run: bytes.fromhex(run[0].replace("%", "")).decode("utf-8", "surrogateescape"),
        text,
    )


def _read(path: Path, *, required: bool) -> str | None:
    """The text of a service file; None if it need not be there and is not."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SERVICE_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        if isinstance(error, FileNotFoundError | NotADirectoryError) and not required:
            return None
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise TargetError(
            f"the service file {quoted(str(path))} cannot be read ({reason}); "
            "make it readable or name another with PGSERVICEFILE"
        ) from error
    if len(content) > MAX_SERVICE_FILE:
        raise TargetError(
            f"the service file {quoted(str(path))} has more than {MAX_SERVICE_FILE} bytes; "
            "name the right file with PGSERVICEFILE"
        )
    return content.decode("utf-8", "surrogateescape")


def _section(text: str, service: str, path: Path) -> dict[str, str] | None:
    """The parameters below the first ``[service]``, None without one."""
    pairs: list[tuple[str, str]] = []
    inside = False
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip(_BLANKS)
        if line.startswith("["):
            if inside:
                break
            inside = line.startswith(f"[{service}]")
        elif inside and line and not line.startswith("#"):
            pairs.append(_setting(line, f"line {number} of the service file {quoted(str(path))}"))
    return _honoured(reversed(pairs)) if inside else None


def _setting(line: str, where: str) -> tuple[str, str]:
    """One ``key=value`` line of a service file, which ``where`` names."""
    name, equals, value = line.partition("=")
    if line.startswith("ldap"):
        raise TargetError(f"{where} asks an LDAP server; write its answer there as name=value")
    if not equals:
        raise TargetError(f"{where} has no '='; write name=value")
    if name in ("service", "servicefile"):
        raise TargetError(f"{where} names another service; libpq allows no nesting, take it out")
    if name not in HONOURED | IGNORED:
        raise TargetError(
            f"{where} sets {quoted(name)}, which is no parameter of libpq; "
            "correct its name, and write no spaces around '='"
        )
    return name, value
