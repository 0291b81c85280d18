"""``pgprobe probe TARGET``: one endpoint, the standard attempts, the diagnosis."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from probe.attempt import MADE_UP_DATABASE, MADE_UP_USER, SETS, Attempt, everything
from probe.commands import (
    CouldNotLookError,
    ExitStatus,
    Seconds,
    address_family,
    apart,
    deliver,
    family_options,
    of_the_family,
    record_option,
    recorder,
    report_options,
    severity_option,
    timeout_option,
    writable,
)
from probe.diagnosis import Diagnosis, diagnose_hops
from probe.evidence import Question
from probe.finding import Severity
from probe.handshake import Opening
from probe.password import find_password
from probe.reports import FORMATS, Report, render
from probe.target import Target, TargetError, parse_target
from probe.tls import CertificateFileError, make_context
from probe.verdict import Status
from probe.visit import Limits, SecondRound, visit

if TYPE_CHECKING:
    from probe.recorder import Recorder

LOG = """\
What it leaves in a server's log: with log_connections, a line for each connection. Besides, of
the standard attempts: tls-1.0-1.1 "unsupported protocol", cancel "PID … did not match any
process", direct-no-alpn and direct-unknown-name-no-alpn "direct SSL connection request without
ALPN" (17 and later); up to 16, all direct ones "invalid length of startup packet". Only in all, or
where the control was closed: proxy-header "invalid length of startup packet"; in all:
garbage-after-answer "could not accept SSL connection". No password is sent and nothing is logged
in: each attempt leaves when the server asks for authentication. On request only: --prove leaves
one failed login ("password authentication failed" or "SCRAM channel binding check failed") at each
door, --login one session.
"""


@click.command("probe", epilog=LOG)
@click.argument("target", required=False)
@click.option("--sni", metavar="NAME", help="The name to ask for; default the TARGET's host.")
@click.option("--no-sni", is_flag=True, help="Ask for no name.")
@click.option(
    "--other-name",
    "other_names",
    multiple=True,
    metavar="NAME",
    help="Another name known to be routed here; repeatable.",
)
@click.option(
    "--door",
    "doors",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Ask for the same name here, and not at the TARGET; repeatable, the outermost first.",
)
@click.option(
    "--attempts",
    default="standard",
    metavar="quick|standard|all|NAME,…",
    help="Which attempts to make; quick is the control alone.",
    show_default=True,
)
@timeout_option
@click.option(
    "--deadline",
    type=Seconds(86_400),
    help="Seconds, for the whole run.  [default: twice the time-out, for each address]",
)
@click.option(
    "--proxy-protocol",
    type=click.Choice(["v1", "v2"]),
    help="Begin every connection with a PROXY header that names no addresses.",
)
@family_options
@click.option("--user", help=f"Default: a made-up one, {MADE_UP_USER}.")
@click.option("--dbname", help=f"Default: {MADE_UP_DATABASE}.")
@click.option(
    "--prove",
    is_flag=True,
    help="Test the channel binding with a made-up user: one failed login in the server's log.",
)
@click.option(
    "--login",
    is_flag=True,
    help="Log in as --user, with PGPASSWORD or the password file, and ask what the server sees.",
)
@report_options(FORMATS)
@record_option("Keep what passed as a capture, with the TLS secrets unless --login is given.")
@severity_option
def command(
    target: str | None,
    sni: str | None,
    no_sni: bool,
    other_names: Sequence[str],
    doors: Sequence[str],
    attempts: str,
    timeout: float,
    deadline: float | None,
    proxy_protocol: str | None,
    only_v4: bool,
    only_v6: bool,
    user: str | None,
    dbname: str | None,
    prove: bool,
    login: bool,
    format_name: str,
    output: str | None,
    recording: str | None,
    fail_on: str,
) -> int:
    """Probe one endpoint: HOST[:PORT], [v6]:PORT, a libpq URI or "key=value" string.

    Of libpq's parameters and PG* environment, host, hostaddr, port, dbname, user, sslmode,
    sslnegotiation, sslsni, sslrootcert, sslcert, sslkey, gssencmode and service files count.
    """
    family = address_family(only_v4, only_v6)
    try:
        asked = parse_target(
            target,
            os.environ,
            sni=sni,
            no_sni=no_sni,
            other_names=other_names,
            doors=doors,
            user=user,
            dbname=dbname,
        )
    except TargetError as error:
        raise click.UsageError(str(error)) from error
    of_the_family(asked.hostaddr or asked.host, family)
    control = _control(asked, proxy_protocol)
    chosen = _choose(control, asked, attempts)
    read = list(_files(chosen))
    apart(recording, *read)
    place = writable(output, recording, *read)
    limits = Limits(family, timeout, deadline)
    guest = _guest(asked, chosen) if login else None
    with recorder(recording) as kept:
        diagnosis = run(asked, chosen, limits, proves=prove, login=guest, kept=kept)
    deliver(render(Report(asked, diagnosis), format_name), place)
    return exit_status(diagnosis, fail_on)


def run(
    target: Target,
    attempts: Sequence[Attempt],
    limits: Limits,
    *,
    proves: bool = False,
    login: Attempt | None = None,
    kept: Recorder | None = None,
) -> Diagnosis:
    """Ask at every door, diagnose.

    ``proves`` adds the channel binding test, ``login`` a real login; ``kept`` keeps the run.
    """
    if kept:
        attempts = [replace(attempt, key_log=kept.key_log) for attempt in attempts]
    question = Question(
        name=target.sni,
        sslmode=target.sslmode,
        direct=target.sslnegotiation == "direct",
        user=attempts[0].user,
        proxy_header=attempts[0].proxy_header is not None,
        identity=target.sni or target.host,
        at=time.time(),
        proves=proves,
    )
    second = SecondRound(question, attempts[0], proves, login)
    hops = visit(target, attempts, limits, second)
    if kept:
        kept.keep_run(question, hops)
    return diagnose_hops(question, hops)


def _control(target: Target, proxy_protocol: str | None) -> Attempt:
    certificate = (target.sslcert, target.sslkey) if target.sslcert else None
    direct = target.sslnegotiation == "direct"
    return Attempt(
        name="control",
        opening=Opening.DIRECT_TLS if direct else Opening.SSL_REQUEST,
        server_name=target.sni,
        user=target.user or MADE_UP_USER,
        database=target.dbname or MADE_UP_DATABASE,
        proxy_header=proxy_protocol,
        client_certificate=certificate,
    )


def _choose(control: Attempt, target: Target, wanted: str) -> tuple[Attempt, ...]:
    """The attempts of a set, or the named ones behind the control."""
    if wanted in SETS:
        chosen = SETS[wanted](control, target.other_names)
    else:
        known = {attempt.name: attempt for attempt in everything(control, target.other_names)}
        names = [name.strip() for name in wanted.split(",") if name.strip()]
        strange = [name for name in names if name not in known]
        if strange or not names:
            raise click.UsageError(
                f"no attempt is called {(strange or [wanted])[0][:60]!r}; there are quick, "
                f"standard, all, and: {', '.join(known)}"
            )
        if control.opening is Opening.DIRECT_TLS:
            names.append("ssl-request")  # what the others stand on
        chosen = (control, *(known[name] for name in known if name in names and name != "control"))
    if target.gssencmode == "disable":
        chosen = tuple(a for a in chosen if a.opening is not Opening.GSSENC_REQUEST)
    return (*chosen, *_verifying(control, target))


def _verifying(control: Attempt, target: Target) -> tuple[Attempt, ...]:
    """An attempt that verifies the chain, where the client in question would."""
    roots = target.sslrootcert
    if roots is None and target.sslmode in ("verify-ca", "verify-full"):
        roots = str(Path("~/.postgresql/root.crt").expanduser())
    try:
        if control.client_certificate:
            make_context(control)
        if roots is None:
            return ()
        verified = replace(control, name="verified", roots=roots)
        make_context(verified)
    except CertificateFileError as error:
        raise CouldNotLookError(str(error)) from error
    return (verified,)


def _files(attempts: Sequence[Attempt]) -> Iterator[str | None]:
    """What is read beside the command line."""
    for attempt in attempts:
        yield from attempt.client_certificate or ()
        if attempt.roots != "system":
            yield attempt.roots
    yield from map(os.environ.get, ("PGPASSFILE", "PGSERVICEFILE"))


def _guest(target: Target, attempts: Sequence[Attempt]) -> Attempt:
    """The attempt that logs in; the password never comes from the command line."""
    if target.user is None:
        raise click.UsageError("--login needs a user; give --user, or PGUSER")
    control = attempts[0]
    try:
        password = find_password(
            os.environ,
            host=target.host,
            port=target.port,
            dbname=control.database,
            user=control.user,
        )
    except TargetError as error:
        raise click.UsageError(str(error)) from error
    if password is None:
        raise click.UsageError(
            "--login needs a password; set PGPASSWORD, or add a line for this host, port, "
            "database and user to ~/.pgpass or the file that PGPASSFILE names"
        )
    roots = next((attempt.roots for attempt in attempts if attempt.roots), None)
    return replace(control, roots=roots, password=password)


def exit_status(diagnosis: Diagnosis, fail_on: str) -> int:
    """0 or 1, as ``--fail-on`` asks; never 0 where clients do not get in, unless ``never``."""
    if fail_on == "never":
        return ExitStatus.NOTHING_FOUND
    failed = diagnosis.verdict.status in (
        Status.BROKEN,
        Status.UNREACHABLE,
        Status.INDETERMINATE,
    )
    threshold = Severity(fail_on).rank
    found = any(finding.severity.rank >= threshold for finding in diagnosis.findings)
    return ExitStatus.FOUND if failed or found else ExitStatus.NOTHING_FOUND
