"""What is asked for, and where.

Takes the TARGET as a user writes it (``HOST``, ``HOST:PORT``, ``[v6]:PORT``, a libpq URI or a
``key=value`` string), the environment, and the names given by option. Gives one :class:`Target`
with nothing left to guess, or raises :class:`TargetError` with one sentence that says what to
change. Precedence is libpq's: what the TARGET says, then its service, then PG* variables, then
defaults.

It differs from libpq where a diagnosis would otherwise answer another question than was asked:

- the default sslmode is ``require``, for pgprobe always asks for TLS;
- a TARGET that names a host is never sent elsewhere by the environment: PGHOSTADDR, and the
  hostaddr of a service that only PGSERVICE names, are then left aside;
- user and database stay None unless someone named them, and no password is kept;
- the name asked for has no trailing dot (RFC 6066 section 3; libpq sends the dot), and a
  non-ASCII one goes as its A-label;
- one run probes one host by TCP: lists of hosts and socket directories are refused.

Source: PostgreSQL documentation, libpq, "Connection Strings", "Environment Variables" and "The
Connection Service File"; the parsing is in :mod:`probe.conninfo`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from probe.conninfo import (
    URI_PREFIXES,
    TargetError,
    parse_environment,
    parse_host_port,
    parse_keywords,
    parse_uri,
    quoted,
    read_service,
)
from probe.wire import endpoint

__all__ = ["DEFAULT_PORT", "Place", "Target", "TargetError", "is_ip_literal", "parse_target"]

DEFAULT_PORT = 5432
MAX_PORT = 65535
MAX_TARGET = 8192  # characters of a TARGET; its longest useful part, a host name, has 253
MAX_NAME = 253  # RFC 1035 section 2.3.4, without the root's dot
MAX_LABEL = 63
MAX_DOORS = 16  # of one run; a path with more hops is looked at in parts

CHOICES = {  # the first is the default
    "sslmode": ("require", "disable", "allow", "prefer", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "sslsni": ("1", "0"),
    "gssencmode": ("prefer", "disable", "require"),
}

_FOREIGN_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
_ILLEGAL = re.compile(r"[^A-Za-z0-9._-]")


class Place(NamedTuple):
    """Where to ask: a name to resolve or an IP literal, and a port."""

    host: str
    port: int

    @property
    def label(self) -> str:
        """``host:port``, a str, with an IPv6 address in brackets."""
        return endpoint(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for and where; made by :func:`parse_target`, which checks all of it."""

    host: str  # as the user wrote it, without brackets: a name or an IP literal
    port: int  # 1 to 65535
    _: KW_ONLY
    hostaddr: str | None = None  # an IP literal: connect there instead of resolving host
    sni: str | None  # the name to ask for, in ASCII; None sends no server_name
    sni_note: str | None  # why sni is None, else None
    user: str | None = None  # None: nobody named one, take the made-up one
    dbname: str | None = None
    sslmode: str = "require"  # what the answers are judged by
    sslnegotiation: str = "postgres"
    sslrootcert: str | None = None  # a path, or "system"
    sslcert: str | None = None
    sslkey: str | None = None
    gssencmode: str = "prefer"
    other_names: tuple[str, ...] = ()
    doors: tuple[Place, ...] = ()  # ask here instead, the outermost first

    @property
    def label(self) -> str:
        """``host:port``, a str, with an IPv6 address in brackets."""
        return Place(self.host, self.port).label

    @property
    def places(self) -> tuple[Place, ...]:
        """Where to ask, the outermost first: the doors, or the target's own host."""
        return self.doors or (Place(self.hostaddr or self.host, self.port),)


def parse_target(
    text: str | None,
    environ: Mapping[str, str],
    *,
    sni: str | None = None,
    no_sni: bool = False,
    other_names: Sequence[str] = (),
    doors: Sequence[str] = (),
    user: str | None = None,
    dbname: str | None = None,
    home: Path | None = None,
) -> Target:
    """The target that a command line means.

    ``text`` is the TARGET, or None to take all from ``environ`` (a mapping such as os.environ).
    ``sni``, ``no_sni``, ``other_names`` and ``doors`` are the options ``--sni``, ``--no-sni``,
    ``--other-name`` and ``--door``; ``user`` and ``dbname`` win over what the TARGET says. ``home``
    is where .pg_service.conf is looked for; None means HOME of ``environ``. Gives a Target;
    raises TargetError, and nothing else, for whatever cannot be probed as written.
    Source: libpq, "Parameter Key Words"; what is an IP literal: fe-secure-openssl.c.
    """
    given = _parse_text(text)
    if home is None and environ.get("HOME"):
        home = Path(environ["HOME"])
    parameters = _with_defaults(given, environ, home)
    for name, value in [*parameters.items(), ("--user", user or ""), ("--dbname", dbname or "")]:
        _check_text(name, value)

    hostaddr = parameters.get("hostaddr") or None
    host = parameters.get("host") or hostaddr
    if not host:
        raise TargetError(
            "no host is named; give HOST[:PORT], a postgresql:// URI or a host=… string, "
            "or set PGHOST"
        )
    name = _check_host(host)
    if hostaddr is not None and not _is_address(hostaddr):
        raise TargetError(
            f"hostaddr {quoted(hostaddr)} is not one IP address; give one, or give a name as host"
        )
    asked, note = _asked_name(name, host, _choice(parameters, "sslsni") == "1", sni, no_sni)
    sslmode, sslnegotiation = _tls_modes(parameters)
    port = _port(parameters.get("port") or str(DEFAULT_PORT))
    return Target(
        host=host,
        port=port,
        hostaddr=hostaddr,
        sni=asked,
        sni_note=note,
        user=user or parameters.get("user") or None,
        dbname=dbname or parameters.get("dbname") or None,
        sslmode=sslmode,
        sslnegotiation=sslnegotiation,
        sslrootcert=parameters.get("sslrootcert") or None,
        sslcert=parameters.get("sslcert") or None,
        sslkey=parameters.get("sslkey") or None,
        gssencmode=_choice(parameters, "gssencmode"),
        other_names=_other_names(other_names, asked),
        doors=_doors(doors, port),
    )


def is_ip_literal(host: str) -> bool:
    """Whether libpq takes ``host`` for an address and sends no server_name.

    The test is libpq's own (fe-secure-openssl.c): digits and dots only, or a colon anywhere.
    """
    return ":" in host or not host.strip("0123456789.")


def _parse_text(text: str | None) -> dict[str, str]:
    """What the TARGET itself says."""
    if text is None:
        return {}
    if not text.strip():
        raise TargetError("the TARGET is empty; give HOST[:PORT], or leave it out to take PGHOST")
    if len(text) > MAX_TARGET:
        raise TargetError(f"the TARGET has more than {MAX_TARGET} characters; give HOST[:PORT]")
    if text.startswith(URI_PREFIXES):
        return parse_uri(text)
    if foreign := _FOREIGN_URI.match(text):
        raise TargetError(
            f"{quoted(foreign[0])} does not begin a URI of libpq; write postgresql://HOST:PORT/"
        )
    return parse_keywords(text) if "=" in text else parse_host_port(text)


def _with_defaults(
    given: Mapping[str, str], environ: Mapping[str, str], home: Path | None
) -> dict[str, str]:
    """``given``, and below it what the service and the environment say."""
    environment = parse_environment(environ)
    service: dict[str, str] = {}
    name = given.get("service", environ.get("PGSERVICE"))
    if name is not None:
        service = read_service(name, environ, servicefile=given.get("servicefile"), home=home)
    if given.get("host"):
        environment.pop("hostaddr", None)
        if "service" not in given:
            service.pop("hostaddr", None)
    return environment | service | dict(given)


def _check_text(name: str, value: str) -> None:
    """Refuse what neither a file name nor a StartupMessage can hold."""
    errors = "strict" if name in ("user", "--user", "dbname", "--dbname") else "surrogateescape"
    try:
        encoded = value.encode("utf-8", errors)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise TargetError(
            f"{name} is {quoted(value)}, which has a NUL or is no UTF-8; write it in UTF-8"
        )


def _check_host(host: str) -> str:
    """The host as a name in ASCII without its trailing dot, or the address as it is."""
    if host.startswith(("/", "@")):
        raise TargetError(
            f"the host {quoted(host)} is a socket directory, where nothing routes by name; "
            "give a host that is reached by TCP"
        )
    if "@" in host:  # not quoted: a password may stand before it
        raise TargetError(
            "the host has an '@', which no host name has; "
            "write postgresql://USER@HOST:PORT/ to name a user"
        )
    if "," in host:
        raise TargetError(f"the host {quoted(host)} is a list; give one host at a time")
    if " " in host or not host.isprintable():
        raise TargetError(
            f"the host {quoted(host)} has white space or control characters; take them out"
        )
    if host.isdigit():
        raise TargetError(f"the host {quoted(host)} is a number; write HOST:{host} for a port")
    if ":" not in host:
        return _ascii_name(host.removesuffix("."), "the host")
    if not _is_address(host):
        raise TargetError(
            f"the host {quoted(host)} has a ':' and is no IPv6 address; "
            "write HOST:PORT, or [ADDRESS]:PORT with an IPv6 address"
        )
    return host


def _is_address(text: str) -> bool:
    """Whether ``text`` is an IP address; what follows the '%' of a scope has no blanks."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return text.isprintable() and " " not in text


def _port(text: str) -> int:
    digits = re.fullmatch(r"0*([0-9]{1,5})", text)
    if digits is None or not 1 <= int(digits[1]) <= MAX_PORT:
        raise TargetError(
            f"the port {quoted(text)} is not possible; give one number from 1 to {MAX_PORT}"
        )
    return int(digits[1])


def _choice(parameters: Mapping[str, str], name: str) -> str:
    value = parameters.get(name, CHOICES[name][0])
    if value not in CHOICES[name]:
        raise TargetError(
            f"{name} is {quoted(value)}; write one of {', '.join(sorted(CHOICES[name]))}"
        )
    return value


def _tls_modes(parameters: Mapping[str, str]) -> tuple[str, str]:
    """sslmode and sslnegotiation, which libpq allows in some combinations only."""
    system = parameters.get("sslrootcert") == "system"
    if system and "sslmode" not in parameters:
        sslmode = "verify-full"  # libpq's default beside the system's roots
    else:
        sslmode = _choice(parameters, "sslmode")
    sslnegotiation = _choice(parameters, "sslnegotiation")
    if system and sslmode != "verify-full":
        raise TargetError(
            f"sslmode is {quoted(sslmode)} beside sslrootcert=system, which libpq refuses; "
            "write sslmode=verify-full"
        )
    if sslnegotiation == "direct" and sslmode in ("disable", "allow", "prefer"):
        raise TargetError(
            f"sslmode is {quoted(sslmode)} beside sslnegotiation=direct, which libpq refuses; "
            "write sslmode=require or stronger"
        )
    return sslmode, sslnegotiation


def _asked_name(
    name: str, host: str, sslsni: bool, sni: str | None, no_sni: bool
) -> tuple[str | None, str | None]:
    """The name to ask for, or None and the reason."""
    if sni is not None and no_sni:
        raise TargetError(f"--sni {quoted(sni)} and --no-sni contradict each other; give one")
    if sni is not None:
        return _check_option_name(sni, "--sni"), None
    if no_sni:
        return None, "--no-sni was given"
    if not sslsni:
        return None, "sslsni=0 asks for no server_name; give --sni NAME to send one"
    if is_ip_literal(host):
        return None, (
            f"{quoted(host)} is an IP address: TLS carries no address as server_name; "
            "give --sni NAME"
        )
    return name, None


def _doors(texts: Sequence[str], port: int) -> tuple[Place, ...]:
    """The places that ``--door`` names; ``port`` is theirs where they give none."""
    places: list[Place] = []
    for text in texts:
        try:
            place = _door(text, port)
        except TargetError as error:
            raise TargetError(f"--door {quoted(text)}: {error}") from None
        if place in places:
            raise TargetError(f"--door {quoted(text)} is given twice; give each door once")
        places.append(place)
    if len(places) > MAX_DOORS:
        raise TargetError(f"there are more than {MAX_DOORS} doors; give those that matter")
    return tuple(places)


def _door(text: str, port: int) -> Place:
    if text.startswith(URI_PREFIXES) or "=" in text:
        raise TargetError("a door is only a place; write HOST, HOST:PORT or [v6]:PORT")
    parts = parse_host_port(text)
    return Place(_check_host(parts["host"]), _port(parts.get("port") or str(port)))


def _other_names(names: Sequence[str], asked: str | None) -> tuple[str, ...]:
    checked = tuple(_check_option_name(name, "--other-name") for name in names)
    for name in checked:
        if asked is not None and name.lower() == asked.lower():
            raise TargetError(
                f"--other-name {quoted(name)} is the name that is asked for anyway; "
                "give another name that is known to be routed"
            )
    return checked


def _check_option_name(name: str, option: str) -> str:
    """A name that the user wants sent as it is."""
    if name.endswith("."):
        raise TargetError(
            f"{option} {quoted(name)} ends with a dot, which RFC 6066 section 3 forbids "
            "in server_name; leave the dot out"
        )
    if name and is_ip_literal(name):
        raise TargetError(
            f"{option} {quoted(name)} is an IP address, and TLS carries no address as server_name; "
            "give a name"
        )
    return _ascii_name(name, option)


def _ascii_name(name: str, what: str) -> str:
    """``name`` as a server_name carries it; ``what`` says in a message whose name it is."""
    refused = f"{what} {quoted(name)}"
    if not name:
        raise TargetError(f"{what} is empty; give a name")
    if "*" in name:
        raise TargetError(f"{refused} has a '*'; give one name that the pattern covers")
    if len(name) > MAX_NAME:
        raise TargetError(f"{refused} has more than {MAX_NAME} characters; give a shorter name")
    wire = name
    if not name.isascii():
        try:
            wire = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise TargetError(
                f"{refused} cannot be encoded as an internationalized name; give its xn-- form"
            ) from None
        if is_ip_literal(wire) or wire.endswith("."):
            raise TargetError(f"{refused} stands for {quoted(wire)}; write that in ASCII")
    if illegal := _ILLEGAL.search(wire):
        raise TargetError(
            f"{refused} has {quoted(illegal[0])}; a name has only letters, digits, '-', '_', '.'"
        )
    if len(wire) > MAX_NAME or not all(1 <= len(part) <= MAX_LABEL for part in wire.split(".")):
        raise TargetError(
            f"{refused} has a part between dots that is empty or longer than {MAX_LABEL} "
            f"characters, or more than {MAX_NAME} in all; correct it"
        )
    return wire
