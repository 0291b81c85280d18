"""libpq's strings, URIs, environment and service files become the parameters that libpq sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from probe import conninfo
from probe.conninfo import (
    HONOURED,
    IGNORED,
    MAX_QUOTED,
    TargetError,
    parse_environment,
    parse_host_port,
    parse_keywords,
    parse_uri,
    quoted,
    read_service,
)

SECRET = "hunter2"

# PQconndefaults() of libpq 18.0: the keywords that may stand in a connection string today.
LIBPQ_18 = frozenset(
    """
    service user password passfile channel_binding connect_timeout dbname host hostaddr port
    client_encoding options application_name fallback_application_name keepalives keepalives_idle
    keepalives_interval keepalives_count tcp_user_timeout sslmode sslnegotiation sslcompression
    sslcert sslkey sslcertmode sslpassword sslrootcert sslcrl sslcrldir sslsni requirepeer
    require_auth min_protocol_version max_protocol_version ssl_min_protocol_version
    ssl_max_protocol_version gssencmode krbsrvname gsslib gssdelegation replication
    target_session_attrs load_balance_hosts scram_client_key scram_server_key oauth_issuer
    oauth_client_id oauth_client_secret oauth_scope sslkeylogfile
    """.split()
)


def quote_value(value: str) -> str:
    """A value as the documentation says to write it."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def percent_encode(value: str) -> str:
    """Every byte of a value as an escape."""
    return "".join(f"%{byte:02x}" for byte in value.encode())


# --- parameters ---------------------------------------------------------------------------------


def test_every_parameter_of_libpq_18_is_known() -> None:
    assert not LIBPQ_18 - HONOURED - IGNORED


def test_no_parameter_is_both_honoured_and_ignored() -> None:
    assert not HONOURED & IGNORED


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_ignored_parameters_leave_no_trace(name: str) -> None:
    assert parse_keywords(f"host=db {name}={SECRET}") == {"host": "db"}
    assert parse_uri(f"postgres://db/?{name}={SECRET}") == {"host": "db"}


# --- HOST:PORT ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("db", {"host": "db"}),
        ("db:5433", {"host": "db", "port": "5433"}),
        ("[::1]", {"host": "::1"}),
        ("[::1]:5433", {"host": "::1", "port": "5433"}),
        ("::1", {"host": "::1"}),
        ("/var/run:5432", {"host": "/var/run:5432"}),
        ("a:1,b:2", {"host": "a:1,b:2"}),
        ("[::1],[::2]", {"host": "[::1],[::2]"}),
    ],
)
def test_host_and_port_are_parted(text: str, expected: dict[str, str]) -> None:
    assert parse_host_port(text) == expected


@pytest.mark.parametrize(
    "text", ["db:", ":5432", "[::1]:", "[]", "[db]", "[::1", "[::1]5432", "::1]x["]
)
def test_half_a_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="write HOST:PORT"):
        parse_host_port(text)


# --- key=value ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host=db port=5433", {"host": "db", "port": "5433"}),
        ("host = db\tport\n=\r5433 ", {"host": "db", "port": "5433"}),
        ("  host=db", {"host": "db"}),
        ("host='db' port='5433'", {"host": "db", "port": "5433"}),
        ("dbname='my db'", {"dbname": "my db"}),
        (r"dbname='it\'s \\ \x'", {"dbname": "it's \\ x"}),
        (r"dbname=my\ db", {"dbname": "my db"}),
        (r"dbname=it\'s", {"dbname": "it's"}),
        ("dbname=it's", {"dbname": "it's"}),
        ("dbname=a=b", {"dbname": "a=b"}),
        ("dbname=x\\", {"dbname": "x"}),
        ("host=''", {"host": ""}),
        ("port=", {"port": ""}),
        ("host='a'port=1", {"host": "a", "port": "1"}),
        ("host=a host=b", {"host": "b"}),
        ("requiressl=1", {"sslmode": "require"}),
        ("requiressl=0", {"sslmode": "prefer"}),
        ("   ", {}),
        ("dbname=a\u00a0b", {"dbname": "a\u00a0b"}),
    ],
)
def test_key_value_strings_are_read_as_libpq_reads_them(
    text: str, expected: dict[str, str]
) -> None:
    assert parse_keywords(text) == expected


def test_a_word_without_an_equals_sign_is_refused_with_its_place() -> None:
    with pytest.raises(TargetError, match="after the value of 'host'"):
        parse_keywords("host=db example port=1")
    with pytest.raises(TargetError, match="at the beginning"):
        parse_keywords("db host=x")


def test_an_unterminated_quote_is_refused_with_its_parameter() -> None:
    with pytest.raises(TargetError, match="the value of 'dbname' begins with a single quote"):
        parse_keywords("host=db dbname='my db")
    with pytest.raises(TargetError, match="never ends"):
        parse_keywords(r"dbname='x\'")


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(TargetError, match="'ssl_mode'"):
        parse_keywords("host=db ssl_mode=require")
    with pytest.raises(TargetError, match="''"):
        parse_keywords("=x")


@given(st.dictionaries(st.sampled_from(sorted(HONOURED)), st.text()))
def test_quoted_values_come_back(parameters: dict[str, str]) -> None:
    text = " ".join(f"{name}={quote_value(value)}" for name, value in parameters.items())
    assert parse_keywords(text) == parameters


# --- URIs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://", {}),
        ("postgres://db", {"host": "db"}),
        ("postgresql://db:5433/app", {"host": "db", "port": "5433", "dbname": "app"}),
        ("postgresql://me@db", {"user": "me", "host": "db"}),
        ("postgresql://me:hunter2@db", {"user": "me", "host": "db"}),
        ("postgresql://:hunter2@db", {"host": "db"}),
        ("postgresql://me:hun:ter2@db", {"user": "me", "host": "db"}),
        ("postgresql://me:hun?ter2@db", {"user": "me", "host": "db"}),
        ("postgresql://[::1]:5433", {"host": "::1", "port": "5433"}),
        ("postgresql://[fe80::1%25eth0]/", {"host": "fe80::1%eth0"}),
        ("postgresql://db:/app", {"host": "db", "dbname": "app"}),
        ("postgresql:///app", {"dbname": "app"}),
        ("postgresql://db//app", {"host": "db", "dbname": "/app"}),
        ("postgresql://db?port=5433", {"host": "db", "port": "5433"}),
        ("postgresql://a/b?host=c&dbname=d", {"host": "c", "dbname": "d"}),
        ("postgresql://db/?user=m%65&", {"host": "db", "user": "me"}),
        ("postgresql://db/?%75ser=me", {"host": "db", "user": "me"}),
        ("postgresql://db/?ssl=true", {"host": "db", "sslmode": "require"}),
        ("postgresql://%2Fvar%2Frun/app", {"host": "/var/run", "dbname": "app"}),
        ("postgresql://db/caf%C3%A9", {"host": "db", "dbname": "café"}),
        ("postgresql://db/caf%E9", {"host": "db", "dbname": "caf\udce9"}),
        ("postgresql://db/a%2525", {"host": "db", "dbname": "a%25"}),
    ],
)
def test_uris_are_read_as_libpq_reads_them(text: str, expected: dict[str, str]) -> None:
    assert parse_uri(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("postgresql://a,b/", "several hosts"),
        ("postgresql://a:1,b:2/", "several hosts"),
        ("postgresql://[::1],[::2]/", "several hosts"),
        ("postgresql://[::1/", "begins with '\\['"),
        ("postgresql://[]/", "begins with '\\['"),
        ("postgresql://[::1]x/", "begins with '\\['"),
        ("postgresql://d%zz/", "the host in the URI has a '%'"),
        ("postgresql://d%4/", "the host in the URI has a '%'"),
        ("postgresql://db/a%00", "%00"),
        ("postgresql://me:100%@db/", "the password in the URI"),
        ("postgresql://db/?user=%", "the value of 'user'"),
        ("postgresql://db/?%=x", "a parameter's name"),
        ("postgresql://db/?user", "without '='"),
        ("postgresql://db/?&", "without '='"),
        ("postgresql://db/?user=a&&port=1", "without '='"),
        ("postgresql://db/?user=a=b", "second '='"),
        ("postgresql://db/?ssl=false", "'ssl'"),
        ("postgresql://db/?sslMode=require", "'sslMode'"),
        ("postgresql://me:p@ss@db/", "write %40"),
        ("postgresql://me:pa/ss@db/", "write %40"),
    ],
)
def test_bad_uris_are_refused_with_the_part_that_is_bad(text: str, reason: str) -> None:
    with pytest.raises(TargetError, match=reason):
        parse_uri(text)


@given(
    st.dictionaries(
        st.sampled_from(sorted(HONOURED)),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    )
)
def test_percent_encoded_values_come_back(parameters: dict[str, str]) -> None:
    query = "&".join(f"{name}={percent_encode(value)}" for name, value in parameters.items())
    assert parse_uri(f"postgresql://?{query}") == parameters


# --- environment --------------------------------------------------------------------------------


def test_only_the_variables_of_a_connection_are_taken() -> None:
    environ = {"PGHOST": "db", "PGPORT": "", "PGPASSWORD": SECRET, "PGSERVICE": "x", "HOME": "/"}
    assert parse_environment(environ) == {"host": "db", "port": ""}


# --- service files ------------------------------------------------------------------------------


def read(text: str, tmp_path: Path, service: str = "prod") -> dict[str, str]:
    file = tmp_path / "services"
    file.write_bytes(text.encode())
    return read_service(service, {}, servicefile=str(file), home=None)


def test_a_service_is_read_without_comments_and_other_sections(tmp_path: Path) -> None:
    text = """
        # all of them
        [test]
        host=wrong
        [prod]   # the trailing text does not matter
        host=db
        # port=1
        port=5433\r
        password=hunter2
        dbname=with spaces and = and 'quotes'

        [other]
        user=wrong
        [prod]
        user=too-late
        """
    assert read(text, tmp_path) == {
        "host": "db",
        "port": "5433",
        "dbname": "with spaces and = and 'quotes'",
    }


def test_the_first_of_two_equal_lines_in_a_service_wins(tmp_path: Path) -> None:
    assert read("[prod]\nhost=a\nhost=b\n", tmp_path) == {"host": "a"}


def test_an_empty_service_is_a_service(tmp_path: Path) -> None:
    assert read("[prod]", tmp_path) == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("host", "line 2 .* has no '='"),
        ("host = db", "'host '.*no spaces around '='"),
        ("hots=db", "'hots', which is no parameter"),
        ("service=other", "no nesting"),
        ("ldap://ldap.example.com/dc=example?x?one?y", "LDAP"),
    ],
)
def test_a_bad_line_in_a_service_is_refused_with_its_number(
    line: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match=reason):
        read(f"[prod]\n{line}\n", tmp_path)


def test_bad_lines_of_other_services_do_not_matter(tmp_path: Path) -> None:
    assert read("nonsense\n[test]\nnonsense\n[prod]\nhost=db\n[x]\nnonsense", tmp_path) == {
        "host": "db"
    }


def test_an_unknown_service_is_refused_with_the_places_searched(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"'stage' is not defined \(looked in '.*services'\)"):
        read("[prod]\nhost=db\n", tmp_path, service="stage")
    with pytest.raises(TargetError, match="looked in no file at all"):
        read_service("stage", {}, servicefile=None, home=None)


def test_service_files_are_searched_in_libpq_s_order(tmp_path: Path) -> None:
    (tmp_path / ".pg_service.conf").write_text("[mine]\nhost=home\n")
    (tmp_path / "pg_service.conf").write_text("[mine]\nhost=shadowed\n[ours]\nhost=system\n")
    (tmp_path / "named").write_text("[mine]\nhost=named\n")
    (tmp_path / "given").write_text("[mine]\nhost=given\n")
    system = {"PGSYSCONFDIR": str(tmp_path)}
    named = system | {"PGSERVICEFILE": str(tmp_path / "named")}

    def host(service: str, environ: dict[str, str], servicefile: str | None = None) -> str:
        found = read_service(service, environ, servicefile=servicefile, home=tmp_path)
        return found["host"]

    assert host("mine", system) == "home"
    assert host("ours", system) == "system"
    assert host("mine", named) == "named"
    assert host("ours", named) == "system"
    assert host("mine", named, str(tmp_path / "given")) == "given"


def test_a_missing_file_matters_only_if_it_was_named(tmp_path: Path) -> None:
    (tmp_path / "pg_service.conf").write_text("[prod]\nhost=db\n")
    environ = {"PGSYSCONFDIR": str(tmp_path)}
    home = tmp_path / "nobody"
    assert read_service("prod", environ, servicefile=None, home=home) == {"host": "db"}
    with pytest.raises(TargetError, match="cannot be read"):
        read_service("prod", environ, servicefile=str(tmp_path / "missing"), home=home)


@pytest.mark.parametrize("name", ["", ".", "a\0b", "\ud800"])
def test_a_service_file_that_is_no_file_is_refused(name: str) -> None:
    with pytest.raises(TargetError, match="cannot be read"):
        read_service("prod", {}, servicefile=name, home=None)


def test_reading_a_service_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conninfo, "MAX_SERVICE_FILE", 16)
    assert read("[prod]\nhost=dbs", tmp_path) == {"host": "dbs"}
    with pytest.raises(TargetError, match="more than 16 bytes"):
        read("[prod]\nhost=dbs\n\n", tmp_path)


# --- messages -----------------------------------------------------------------------------------


@given(st.text(st.characters()))
@example("'" * 200)
@example("\x1b[2J" * 50)
@example("\udc80" * 79)
def test_what_is_quoted_is_bounded_and_printable(text: str) -> None:
    assert quoted(text).isprintable()
    assert len(quoted(text)) <= MAX_QUOTED
    assert quoted(text)[0] == quoted(text)[-1]


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://me:p@{SECRET}@db/",
        f"postgresql://me:p@x:{SECRET}@db/",
        f"postgresql://me:p/{SECRET}@db/",
        f"postgresql://me:{SECRET}/x@db/",
        f"postgresql://me:{SECRET}%@db/",
        f"postgresql://me:{SECRET}@[db/",
        f"postgresql://me:{SECRET}@a,b/",
        f"postgresql://me:{SECRET}@db/?nonsense=1",
        f"postgresql://db/?password=a&{SECRET}",
        f"postgresql://db/?password=a={SECRET}",
        f"postgresql://db/?password={SECRET}%",
    ],
)
def test_a_badly_quoted_password_in_a_uri_is_not_repeated(text: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse_uri(text)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text", [f"password=my {SECRET}", f"password='{SECRET}", f"password='' {SECRET}"]
)
def test_a_badly_quoted_password_in_a_string_is_not_repeated(text: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse_keywords(text)
    assert SECRET not in str(caught.value)


@given(st.text(st.characters()) | st.text("'\\= ah%[]@:/?&,o"))
@pytest.mark.parametrize(
    "parse", [parse_host_port, parse_keywords, lambda text: parse_uri("postgres://" + text)]
)
def test_any_text_is_read_or_refused(parse: Callable[[str], dict[str, str]], text: str) -> None:
    said = ""
    parameters: dict[str, str] = {}
    try:
        parameters = parse(text)
    except TargetError as error:
        said = str(error)
    assert said.isprintable()
    assert parameters.keys() <= HONOURED
