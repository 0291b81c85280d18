"""A TARGET, the environment and the options become one Target, or one clear sentence."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from probe.conninfo import ENVIRONMENT
from probe.target import MAX_TARGET, Target, TargetError, is_ip_literal, parse_target

LONG_LABEL = "a" * 63
LONG_NAME = ".".join(["a" * 49] * 5) + ".abc"  # 253


def target(text: str | None, environ: dict[str, str] | None = None, **options: Any) -> Target:
    """What a command line means, in an empty environment unless one is given."""
    return parse_target(text, environ or {}, **options)


def refusal(text: str | None, environ: dict[str, str] | None = None, **options: Any) -> str:
    """The sentence with which a command line is refused."""
    with pytest.raises(TargetError) as caught:
        target(text, environ, **options)
    return str(caught.value)


# --- the forms of a TARGET ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port", "label"),
    [
        ("db.example.com", "db.example.com", 5432, "db.example.com:5432"),
        ("db.example.com:6432", "db.example.com", 6432, "db.example.com:6432"),
        ("db:00005433", "db", 5433, "db:5433"),
        ("10.0.0.1:1", "10.0.0.1", 1, "10.0.0.1:1"),
        ("[2001:db8::1]", "2001:db8::1", 5432, "[2001:db8::1]:5432"),
        ("[2001:db8::1]:65535", "2001:db8::1", 65535, "[2001:db8::1]:65535"),
        ("::1", "::1", 5432, "[::1]:5432"),
        ("fe80::1%eth0", "fe80::1%eth0", 5432, "[fe80::1%eth0]:5432"),
        ("postgresql://db:5433/app", "db", 5433, "db:5433"),
        ("postgres://[::1]:5433/app", "::1", 5433, "[::1]:5433"),
        ("host=db port=5433", "db", 5433, "db:5433"),
        ("host=db port=''", "db", 5432, "db:5432"),
        ("host=::1", "::1", 5432, "[::1]:5432"),
        (LONG_NAME, LONG_NAME, 5432, f"{LONG_NAME}:5432"),
        ("my_db." + LONG_LABEL, "my_db." + LONG_LABEL, 5432, f"my_db.{LONG_LABEL}:5432"),
    ],
)
def test_every_form_of_a_target_names_a_host_and_a_port(
    text: str, host: str, port: int, label: str
) -> None:
    made = target(text)
    assert (made.host, made.port, made.label) == (host, port, label)


def test_a_bare_host_leaves_everything_else_at_its_default() -> None:
    assert target("db") == Target("db", 5432, sni="db", sni_note=None)


def test_a_uri_gives_all_that_is_honoured() -> None:
    text = (
        "postgresql://me:secret@db:5433/app?hostaddr=10.0.0.1&sslmode=verify-full"
        "&sslnegotiation=direct&sslrootcert=/ca&sslcert=/c&sslkey=/k&gssencmode=disable"
        "&connect_timeout=3"
    )
    assert target(text) == Target(
        "db",
        5433,
        hostaddr="10.0.0.1",
        sni="db",
        sni_note=None,
        user="me",
        dbname="app",
        sslmode="verify-full",
        sslnegotiation="direct",
        sslrootcert="/ca",
        sslcert="/c",
        sslkey="/k",
        gssencmode="disable",
    )


def test_a_password_is_nowhere_in_the_target() -> None:
    environ = {"PGPASSWORD": "secret"}
    for text in ("postgresql://me:secret@db/?password=secret", "host=db password=secret"):
        assert "secret" not in repr(target(text, environ))


def test_a_target_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        target("db").port = 1  # type: ignore[misc]


# --- precedence ---------------------------------------------------------------------------------

SERVICE = "[prod]\nhost=service\nport=1001\nuser=service\nsslmode=verify-ca\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".pg_service.conf").write_text(SERVICE)
    return tmp_path


def test_text_wins_over_service_over_environment_over_default(home: Path) -> None:
    environ = {
        "PGHOST": "environment",
        "PGPORT": "1002",
        "PGUSER": "environment",
        "PGDATABASE": "environment",
        "PGSSLMODE": "allow",
    }
    made = target("service=prod port=1000", environ, home=home)
    assert made == Target(
        "service",
        1000,
        sni="service",
        sni_note=None,
        user="service",
        dbname="environment",
        sslmode="verify-ca",
    )


def test_without_a_target_the_environment_says_all() -> None:
    environ = {
        "PGHOST": "db",
        "PGHOSTADDR": "10.0.0.1",
        "PGPORT": "5433",
        "PGDATABASE": "app",
        "PGUSER": "me",
        "PGSSLMODE": "verify-full",
        "PGSSLNEGOTIATION": "direct",
        "PGSSLSNI": "0",
        "PGSSLROOTCERT": "system",
        "PGSSLCERT": "/c",
        "PGSSLKEY": "/k",
        "PGGSSENCMODE": "require",
    }
    made = target(None, environ)
    assert made.sni is None
    assert made == Target(
        "db",
        5433,
        hostaddr="10.0.0.1",
        sni=None,
        sni_note=made.sni_note,
        user="me",
        dbname="app",
        sslmode="verify-full",
        sslnegotiation="direct",
        sslrootcert="system",
        sslcert="/c",
        sslkey="/k",
        gssencmode="require",
    )


def test_without_a_target_the_service_of_the_environment_is_read(home: Path) -> None:
    assert target(None, {"PGSERVICE": "prod"}, home=home).host == "service"


def test_home_of_the_environment_is_where_the_service_file_is(home: Path) -> None:
    assert target("service=prod", {"HOME": str(home)}).host == "service"


def test_a_service_file_may_be_named_in_the_text(home: Path) -> None:
    text = f"service=prod servicefile='{home / '.pg_service.conf'}'"
    assert target(text).host == "service"


def test_a_bare_host_takes_its_port_from_the_environment_if_it_has_none() -> None:
    assert target("db", {"PGPORT": "5433"}).port == 5433
    assert target("db:5434", {"PGPORT": "5433"}).port == 5434


@pytest.mark.parametrize("text", ["db", "db:5432", "host=db", "postgresql://db"])
def test_a_named_host_is_never_sent_elsewhere_by_the_environment(text: str, tmp_path: Path) -> None:
    (tmp_path / ".pg_service.conf").write_text("[prod]\nhostaddr=10.0.0.2\nuser=me\n")
    environ = {"PGHOSTADDR": "10.0.0.1", "PGSERVICE": "prod"}
    made = target(text, environ, home=tmp_path)
    assert (made.hostaddr, made.user) == (None, "me")


def test_hostaddr_counts_in_the_same_text_and_in_its_service(tmp_path: Path) -> None:
    (tmp_path / ".pg_service.conf").write_text("[prod]\nhostaddr=10.0.0.2\n")
    environ = {"PGHOSTADDR": "10.0.0.1"}
    assert target("host=db hostaddr=::1", environ).hostaddr == "::1"
    assert target("host=db service=prod", environ, home=tmp_path).hostaddr == "10.0.0.2"
    assert target("port=5433", environ | {"PGHOST": "db"}).hostaddr == "10.0.0.1"


def test_a_hostaddr_alone_is_the_host_and_asks_for_no_name() -> None:
    made = target("hostaddr=10.0.0.1")
    assert (made.host, made.hostaddr, made.sni) == ("10.0.0.1", "10.0.0.1", None)


def test_user_and_dbname_given_apart_win() -> None:
    made = target("postgresql://me@db/app", user="you", dbname="other")
    assert (made.user, made.dbname) == ("you", "other")


def test_an_empty_value_hides_the_environment_as_in_libpq() -> None:
    environ = {"PGPORT": "5433", "PGUSER": "me"}
    made = target("host=db port='' user=''", environ)
    assert (made.port, made.user) == (5432, None)


# --- the name asked for -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "name"),
    [
        ("db.example.com", {}, "db.example.com"),
        ("DB.Example.com", {}, "DB.Example.com"),
        ("db.example.com.", {}, "db.example.com"),
        ("db", {"sni": "other.example.com"}, "other.example.com"),
        ("10.0.0.1", {"sni": "db.example.com"}, "db.example.com"),
        ("host=db sslsni=0", {"sni": "other"}, "other"),
        ("host=db hostaddr=10.0.0.1", {}, "db"),
        ("bücher.example", {}, "xn--bcher-kva.example"),
        ("db", {"sni": "bücher.example"}, "xn--bcher-kva.example"),
        ("1a", {}, "1a"),
    ],
)
def test_the_name_asked_for(text: str, options: dict[str, Any], name: str) -> None:
    made = target(text, **options)
    assert (made.sni, made.sni_note) == (name, None)


def test_the_host_stays_as_written_where_the_name_does_not() -> None:
    assert target("db.example.com.").host == "db.example.com."
    assert target("bücher.example").host == "bücher.example"


@pytest.mark.parametrize(
    ("text", "options", "note"),
    [
        ("10.0.0.1", {}, "'10.0.0.1' is an IP address"),
        ("1.2", {}, "is an IP address"),
        ("::1", {}, "'::1' is an IP address"),
        ("db", {"no_sni": True}, "--no-sni was given"),
        ("host=db sslsni=0", {}, "sslsni=0"),
    ],
)
def test_why_no_name_is_asked_for_is_said(text: str, options: dict[str, Any], note: str) -> None:
    made = target(text, **options)
    assert made.sni is None
    assert made.sni_note is not None
    assert note in made.sni_note


@pytest.mark.parametrize("host", ["1.2.3.4", "1", "999.1", "::1", "a:b"])
def test_libpq_takes_digits_and_dots_or_a_colon_for_an_address(host: str) -> None:
    assert is_ip_literal(host)


@pytest.mark.parametrize("host", ["db", "1.2.3.4a", "0x7f.1", "1-2"])
def test_libpq_takes_everything_else_for_a_name(host: str) -> None:
    assert not is_ip_literal(host)


def test_other_names_are_kept_in_order() -> None:
    made = target("db", other_names=["b.example.com", "ä.example"])
    assert made.other_names == ("b.example.com", "xn--4ca.example")


def test_another_name_must_be_another() -> None:
    assert "asked for anyway" in refusal("DB.example.com", other_names=["db.EXAMPLE.com"])
    assert "asked for anyway" in refusal("db", sni="a", other_names=["b", "a"])


def test_with_and_without_a_name_contradict_each_other() -> None:
    assert "contradict" in refusal("db", sni="a", no_sni=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is empty"),
        ("10.0.0.1", "is an IP address"),
        ("::1", "is an IP address"),
        ("db.example.com.", "RFC 6066 section 3"),
        (".", "ends with a dot"),
        ("*.example.com", "has a '*'"),
        ("a b", "has ' '"),
        ("a\x1b", r"has '\x1b'"),
        ("a/b", "has '/'"),
        ("a..b", "empty or longer than 63"),
        (".a", "empty or longer than 63"),
        ("a" * 64, "empty or longer than 63"),
        (LONG_NAME + "d", "more than 253"),
        ("ä." + "a" * 64, "cannot be encoded"),
        ("ä." * 100 + "b", "more than 253 in all"),
        ("\ud800", "cannot be encoded"),
        ("\uff11\uff12\uff17.0.0.1", "stands for '127.0.0.1'"),
        ("db\u3002", "stands for 'db.'"),
        ("\uff41\uff0a", "has '*'"),
    ],
)
def test_a_name_that_cannot_be_sent_is_refused_with_the_reason(name: str, reason: str) -> None:
    said = refusal("db", sni=name)
    assert said.startswith("--sni ")
    assert reason in said
    said = refusal("db", other_names=[name])
    assert said.startswith("--other-name ")
    assert reason in said


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the TARGET is empty"),
        (" \n", "the TARGET is empty"),
        ("a" * (MAX_TARGET + 1), "more than 8192"),
        ("host=''", "no host is named"),
        ("postgresql:///app", "no host is named"),
        ("/var/run/postgresql", "socket directory"),
        ("/tmp:5432", "socket directory"),
        ("@abstract", "socket directory"),
        ("host=/tmp", "socket directory"),
        ("postgresql://%2Ftmp/app", "socket directory"),
        ("a,b", "is a list"),
        ("host=a,b", "is a list"),
        ("postgresql://a,b/", "several hosts"),
        ("host=db hostaddr=10.0.0.1,10.0.0.2", "not one IP address"),
        ("host=db port=1,2", "'1,2' is not possible; give one number"),
        ("db:0", "'0' is not possible"),
        ("db:65536", "'65536' is not possible"),
        ("db:x", "'x' is not possible"),
        ("db:-1", "'-1' is not possible"),
        ("db:\u0665", "is not possible"),
        ("db:" + "9" * 5000, "is not possible"),
        ("db:5432/app", "'5432/app' is not possible"),
        ("host=db hostaddr=db", "'db' is not one IP address"),
        ("host=db hostaddr='::1%\x1b'", "is not one IP address"),
        ("a:b:c", "[ADDRESS]:PORT"),
        ("1:2:3:4:5:6:7:8:5432", "[ADDRESS]:PORT"),
        ("host=db:5432", "[ADDRESS]:PORT"),
        ("me@db", "has an '@'"),
        ("a b", "white space"),
        ("db\x1b", "control characters"),
        ("db\n", "control characters"),
        ("::1%\x1b", "control characters"),
        ("*.example.com", "has a '*'"),
        ("db/app", "has '/'"),
        ("a..b", "empty or longer"),
        ("...", "empty or longer"),
        (".", "is empty"),
        ("a" * 64, "empty or longer"),
        (LONG_NAME + "d", "more than 253"),
        ("\u00ad", "control characters"),
        ("http://db", "'http://' does not begin a URI of libpq"),
        ("jdbc:postgresql://db/?user=me", "'jdbc:postgresql://' does not begin"),
        ("POSTGRES://db", "does not begin"),
        ("host=db sslmode=nonsense", "sslmode is 'nonsense'"),
        ("host=db sslmode=", "sslmode is ''"),
        ("host=db sslnegotiation=requiredirect", "sslnegotiation is 'requiredirect'"),
        ("host=db sslsni=yes", "sslsni is 'yes'"),
        ("host=db gssencmode=allow", "gssencmode is 'allow'"),
        ("host=db sslmode=prefer sslnegotiation=direct", "sslmode=require or stronger"),
        ("host=db sslmode=require sslrootcert=system", "sslmode=verify-full"),
        ("host=db user='a\0b'", "user is 'a\\x00b', which has a NUL"),
        ("postgresql://db/caf%E9", "no UTF-8"),
        ("host=db sslcert=\ud800", "no UTF-8"),
        ("host=db nonsense=1", "'nonsense'"),
        ("service=missing", "'missing' is not defined"),
    ],
)
def test_what_cannot_be_probed_is_refused_with_the_reason(text: str, reason: str) -> None:
    said = refusal(text)
    assert reason in said
    assert said.isprintable()


def test_without_any_host_it_is_said_what_to_give() -> None:
    assert "give HOST[:PORT]" in refusal(None)
    assert "PGHOST" in refusal(None, {"PGPORT": "5432"})


def test_what_the_environment_says_is_checked_alike() -> None:
    assert "socket directory" in refusal(None, {"PGHOST": "/tmp"})
    assert "sslmode is 'x'" in refusal("db", {"PGSSLMODE": "x"})
    assert "'missing' is not defined" in refusal("db", {"PGSERVICE": "missing"})


def test_user_and_dbname_given_apart_are_checked_alike() -> None:
    assert refusal("db", user="a\0").startswith("--user is")
    assert refusal("db", dbname="\udce9").startswith("--dbname is")


def test_a_password_before_a_host_is_not_repeated() -> None:
    for text in ("me:secret@db", "me:secret@[::1]:5432", "me:secret@a,b", "host=me:secret@db"):
        assert "secret" not in refusal(text)


# --- modes that go together ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca"])
def test_a_given_sslmode_is_kept_as_written(mode: str) -> None:
    assert target(f"host=db sslmode={mode}").sslmode == mode


def test_the_system_s_roots_mean_full_verification() -> None:
    assert target("host=db sslrootcert=system").sslmode == "verify-full"


def test_direct_negotiation_goes_with_the_default_sslmode() -> None:
    assert target("host=db sslnegotiation=direct").sslnegotiation == "direct"


# --- any input ----------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters()) | st.text("'\\= ah%[]@:/?&,.*1ä")
NAMES = st.lists(ANY_TEXT, max_size=2)
VARIABLES = st.sampled_from([*ENVIRONMENT, "PGSERVICE", "PGSERVICEFILE", "PGSYSCONFDIR", "HOME"])
SHAPES = st.sampled_from(["{}", "{}:1", "[{}]", "postgres://{}", "postgres://h/?user={}"])
TARGETS = st.none() | st.builds(str.format, SHAPES, ANY_TEXT) | ANY_TEXT.map("host={}".format)


@given(TARGETS, st.dictionaries(VARIABLES, ANY_TEXT), st.none() | ANY_TEXT, NAMES)
@example("host=h", {}, "a\u3002", [])
@example("h", {"PGSERVICE": "x", "PGSERVICEFILE": "\0"}, None, [])
def test_any_input_gives_a_sound_target_or_one_sentence(
    text: str | None, environ: dict[str, str], sni: str | None, other_names: list[str]
) -> None:
    try:
        made = parse_target(text, environ, sni=sni, other_names=other_names)
    except TargetError as error:
        said = str(error)
    else:
        check_sound(made)
        return
    assert said.isprintable()
    assert len(said) < 400


def check_sound(made: Target) -> None:
    """What the rest of the program may rely on."""
    assert made.host
    assert made.host.isprintable()
    assert " " not in made.host
    assert 1 <= made.port <= 65535
    assert made.hostaddr is None or ip_address(made.hostaddr)
    assert (made.sni is None) is (made.sni_note is not None)
    for name in [*([made.sni] if made.sni else []), *made.other_names]:
        assert name.isascii()
        assert 1 <= len(name) <= 253
        assert not is_ip_literal(name)
    for value in (made.user, made.dbname):
        assert value is None or b"\0" not in value.encode()


@given(st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{1,9}){0,4}", fullmatch=True))
def test_one_host_means_the_same_in_every_form(name: str) -> None:
    expected = target(f"{name}:5433")
    assert target(f"host={name} port=5433") == expected
    assert target(f"postgresql://{name}:5433/") == expected
    assert target(None, {"PGHOST": name, "PGPORT": "5433"}) == expected


@given(st.ip_addresses())
def test_one_address_means_the_same_in_every_form(address: object) -> None:
    written = f"[{address}]" if ":" in str(address) else str(address)
    expected = target(f"{written}:5433")
    assert expected.host == str(address)
    assert target(f"host={address} port=5433") == expected
    assert target(f"postgresql://{written}:5433/") == expected
    assert expected.label == f"{written}:5433"
