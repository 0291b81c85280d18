"""``pgprobe read FILE…``: captures of other people's connections, and the diagnosis."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate
from pathlib import Path

import click

from probe.captured import Captured
from probe.commands import (
    STANDARD_INPUT,
    CouldNotLookError,
    ExitStatus,
    cannot_read,
    deliver,
    report_options,
    severity_option,
    writable,
)
from probe.digest import Digester
from probe.finding import Severity
from probe.pcapng import NotACapture
from probe.processes import USEFUL, NoProcesses, pool, useful
from probe.reading import Connection, Reading, read
from probe.reports import FORMATS, Captures, render
from probe.secrets import parse_key_log
from probe.sighting import Vantage
from probe.sources.capture import Capture, read_capture
from probe.split import worth_splitting
from probe.store import temporary_places
from probe.wire import printable


@click.command("read")
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option(
    "--port",
    "ports",
    type=click.IntRange(1, 65535),
    multiple=True,
    help="Only connections to this port, whatever is said there; repeatable.",
)
@click.option(
    "--all", "everything", is_flag=True, help="Every TCP connection, not PostgreSQL's alone."
)
@click.option("--steps", is_flag=True, help="Each connection step by step.")
@click.option("--sni", metavar="NAME", help="Only connections that ask for this name.")
@click.option(
    "--client", metavar="ADDR", help="Only connections of this client: ADDR or ADDR:PORT."
)
@click.option("--broken", is_flag=True, help="Only connections that did not get through.")
@click.option(
    "--keylog",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="TLS secrets (SSLKEYLOGFILE), beside those that the captures hold themselves.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    help=f"Processes that read.  [default: one for each core, up to {USEFUL}, for large captures]",
)
@report_options(FORMATS)
@severity_option
def command(
    files: Sequence[str],
    ports: Sequence[int],
    everything: bool,
    steps: bool,
    sni: str | None,
    client: str | None,
    broken: bool,
    keylog: str | None,
    jobs: int | None,
    format_name: str,
    output: str | None,
    fail_on: str,
) -> int:
    """Read captures (pcap, pcapng; - is standard input) and diagnose what they hold.

    Several files, each taken at another place, are given with the outermost first (client,
    gateway, pod). Connections are then followed from one to the next: by their ClientHello, else by
    the times, where these leave no choice.

    Connections that are neither PostgreSQL nor TLS offered to a PostgreSQL port or with ALPN
    postgresql are left out. All are judged; --sni, --client and --broken choose what is shown,
    with the same connection in other files.
    """
    if list(files).count(STANDARD_INPUT) > 1:
        raise click.UsageError("standard input can be read once")
    place = writable(output, *files, keylog)
    log = _key_log(keylog) if keylog else b""
    captures = load(files, ports=ports or None, everything=everything, jobs=jobs)
    reading = judged(captures, log, everything=everything, narrowed=bool(ports))
    if not reading.connections:
        raise CouldNotLookError(
            f"no connection of PostgreSQL's in {', '.join(files)}"
            + ("" if everything else "; --all shows every TCP connection, --port names a port")
            + "".join(f"\nnot read: {printable(problem, 400)}" for problem in reading.problems)
        )
    chosen = choose(reading, sni=sni, client=client, broken=broken)
    deliver(render(Captures(chosen, steps), format_name), place)
    if not chosen.connections and not broken:
        raise CouldNotLookError("no connection is as --sni and --client ask")
    return exit_status(chosen, fail_on)


def load(
    files: Sequence[str], *, ports: Sequence[int] | None, everything: bool, jobs: int | None
) -> list[Capture]:
    """The captures, in the order given; several are read side by side where ``jobs`` allow.

    ``jobs`` None: as many as are of use.
    """
    one = partial(_load, ports=ports, everything=everything)
    if jobs is None:
        jobs = useful() if worth_splitting(sum(map(_size, files))) else 1
    if len(files) == 1:
        return [one(files[0], jobs=jobs, digest=Digester())]
    one = partial(one, digest=Digester(several=True))
    if jobs > 1 and STANDARD_INPUT not in files:
        count = min(jobs, len(files))
        with suppress(NoProcesses), pool(count) as processes, temporary_places() as places:
            named = zip(files, places, strict=False)
            loading = [processes.submit(one, *each) for each in named]
            return [each.result() for each in loading]
    return [one(name, jobs=jobs) for name in files]


def _size(name: str) -> int:
    """Of a file, in bytes; 0 where it is none, which is told when it is read."""
    try:
        return Path(name).stat().st_size
    except OSError:
        return 0


def _load(
    name: str,
    place: Path | None = None,
    *,
    ports: Sequence[int] | None,
    everything: bool,
    jobs: int = 1,
    digest: Digester | None = None,
) -> Capture:
    source = sys.stdin.buffer if name == STANDARD_INPUT else name
    try:
        return read_capture(
            source,
            ports=ports,
            everything=everything,
            name=name,
            jobs=jobs,
            digest=digest,
            place=place,
        )
    except (OSError, NotACapture) as error:
        raise cannot_read(name, error) from error


def judged(
    captures: Iterable[Capture],
    key_log: bytes = b"",
    *,
    everything: bool = False,
    narrowed: bool = False,
) -> Reading:
    """What the captures say, opened with the secrets that are known.

    ``everything`` and ``narrowed`` tell how they were read, as a
    :class:`~probe.sighting.Vantage` has it.
    """
    captures = list(captures)
    vantages = [Vantage(c.file, c.began, c.ended, everything, narrowed) for c in captures]
    problems = (f"{c.file}: {problem}" for c in captures for problem in c.problems)
    opened = _Opened(captures, key_log)
    made = [] if opened.with_secrets else [each for c in captures for each in c.digests]
    return read(opened, vantages, made)._replace(problems=tuple(problems))


class _Opened(Sequence[Captured]):
    """The connections of all captures, opened with the secrets that are known."""

    def __init__(self, captures: Sequence[Capture], key_log: bytes) -> None:
        self._captures = captures
        self._secrets = [parse_key_log(key_log, *each.secrets) for each in captures]
        self._begins = list(accumulate((len(each.connections) for each in captures), initial=0))
        self.with_secrets = any(map(len, self._secrets))

    def __len__(self) -> int:
        return self._begins[-1]

    def __getitem__(self, number: int) -> Captured:  # type: ignore[override]
        file = bisect_right(self._begins, number) - 1
        captured = self._captures[file].connections[number - self._begins[file]]
        if not len(self._secrets[file]):
            return captured
        from probe.decryption import open_tls  # slow to import, and hardly ever needed

        return captured._replace(transcript=open_tls(captured.transcript, self._secrets[file]))


def choose(
    reading: Reading, *, sni: str | None = None, client: str | None = None, broken: bool = False
) -> Reading:
    """The connections that are asked for, and what was found in them.

    A connection that was followed through several files is chosen as a whole.
    """
    if sni is None and client is None and not broken:
        return reading

    def wanted(row: Connection) -> bool:
        told = row.digest
        named = (told.name or "").lower() == (sni or "").lower()
        by = client in (told.client, told.host)
        return (
            (sni is None or named) and (client is None or by) and (not broken or bool(told.broken))
        )

    chosen = [number for number, row in enumerate(reading.connections) if wanted(row)]
    numbers, paths = reading.paths.only(chosen)
    rows = tuple(reading.connections[number] for number in numbers)
    told = {(f.code, f.door, f.message) for row in rows for f in row.findings}
    kept = tuple(f for f in reading.findings if (f.code, f.door, f.message) in told)
    return reading._replace(connections=rows, findings=kept, paths=paths)


def exit_status(reading: Reading, fail_on: str) -> int:
    """0 or 1, as ``--fail-on`` asks."""
    if fail_on == "never":
        return ExitStatus.NOTHING_FOUND
    threshold = Severity(fail_on).rank
    ways = (way.severity for way in reading.paths.ways if way.severity)
    severities = (*(finding.severity for finding in reading.findings), *ways)
    found = any(severity.rank >= threshold for severity in severities)
    return ExitStatus.FOUND if found else ExitStatus.NOTHING_FOUND


def _key_log(name: str) -> bytes:
    try:
        log = Path(name).read_bytes()
    except OSError as error:
        raise cannot_read(name, error) from error
    if not len(parse_key_log(log)):
        raise CouldNotLookError(f"{name!r} holds no TLS secrets; SSLKEYLOGFILE writes such a file")
    return log
