"""The command line: one module a command; the only place that prints or exits.

``pgprobe TARGET`` is short for ``pgprobe probe TARGET``. A command's module is imported when it
is run, so that ``--help`` costs no more than click.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from probe import __version__

if TYPE_CHECKING:
    from probe.recorder import Recorder

COLLECT_AFTER = 100_000  # objects

COMMANDS = {
    "probe": "Probe one endpoint: the handshake step by step, what breaks it, what to change.",
    "read": "Read captures: the same diagnosis from other people's connections.",
    "replay": "Say again what a recorded client said, and compare the answers.",
    "witness": "A stand-in for a server, deployed in its place: tells what reached it.",
    "explain": "The manual of a finding.",
    "rules": "All findings that pgprobe knows.",
}


class ExitStatus(IntEnum):
    """What the process ends with; other programs rely on it."""

    NOTHING_FOUND = 0
    FOUND = 1  # at or above --fail-on, or broken, unreachable, indeterminate
    USAGE = 2
    COULD_NOT_LOOK = 3  # an unreadable file, a bad certificate file
    INTERRUPTED = 130


class CouldNotLookError(click.ClickException):
    """A file that is needed cannot be used."""

    exit_code = ExitStatus.COULD_NOT_LOOK


# -- what several commands take and do -----------------------------------------------------------

STANDARD_INPUT = "-"

_Command = Callable[..., Any]


class Seconds(click.FloatRange):
    """More than none, and no more than so many."""

    def __init__(self, most: float) -> None:
        super().__init__(min=0, min_open=True, max=most)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """As click has it; what is no number at all (nan) is in no range."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


timeout_option = click.option(
    "--timeout",
    type=Seconds(3_600),
    default=7.0,
    show_default=True,
    help="Seconds, for each wait.",
)
severity_option = click.option(
    "--fail-on",
    type=click.Choice(["info", "warning", "error", "never"]),
    default="error",
    show_default=True,
    help="Exit status 1 from this severity on.",
)


def family_options(command: _Command) -> _Command:
    """``-4`` and ``-6``, for :func:`address_family`."""
    six = click.option("-6", "only_v6", is_flag=True, help="IPv6 only.")
    return click.option("-4", "only_v4", is_flag=True, help="IPv4 only.")(six(command))


def report_options(formats: Sequence[str]) -> Callable[[_Command], _Command]:
    """``--format`` and ``--output``, for :func:`writable` and :func:`deliver`."""
    choice = click.Choice(formats)
    form = click.option("--format", "format_name", type=choice, default="text", show_default=True)
    place = click.option(
        "--output", type=click.Path(dir_okay=False), help="Write the report to this file."
    )
    return lambda command: form(place(command))


def record_option(says: str) -> Callable[[_Command], _Command]:
    """``--record``, for :func:`recorder`."""
    path = click.Path(dir_okay=False)
    return click.option("--record", "recording", type=path, metavar="FILE.pcapng", help=says)


def address_family(only_v4: bool, only_v6: bool) -> int:
    """As ``socket`` has it."""
    import socket  # which the help can do without

    if only_v4 and only_v6:
        raise click.UsageError("-4 and -6 exclude each other")
    if only_v4 or only_v6:
        return socket.AF_INET if only_v4 else socket.AF_INET6
    return socket.AF_UNSPEC


def of_the_family(host: str, family: int) -> None:
    """Raise :class:`click.UsageError` for an address that -4 or -6 excludes."""
    import socket

    others = {socket.AF_INET: ("-4", socket.AF_INET6), socket.AF_INET6: ("-6", socket.AF_INET)}
    option, other = others.get(socket.AddressFamily(family), ("", None))
    if other is None:
        return
    with suppress(OSError):
        socket.inet_pton(other, host)
        raise click.UsageError(f"{option} and the address {host} exclude each other")


def writable(output: str | None, *others: str | None) -> Path | None:
    """The report's place, looked at before anything is asked: what was learnt shall not be lost.

    ``others`` are files that are read, or written as well: none may be this one.
    """
    apart(output, *others)
    if output is None:
        return None
    path = Path(output)
    there = path.exists() or path.is_symlink()
    try:
        path.open("a").close()
        if not there:
            path.unlink()  # whatever becomes of the run, it leaves no empty report
    except OSError as error:
        raise CouldNotLookError(f"cannot write {output!r}: {error.strerror}") from error
    return path


def apart(place: str | None, *others: str | None) -> None:
    """Raise :class:`click.UsageError` where something would be written over one of the others."""
    if place is None:
        return
    for other in others:
        if other is not None and Path(other).resolve() == Path(place).resolve():
            raise click.UsageError(f"{place!r} would be written over: give another file")


def deliver(pieces: Iterable[str], place: Path | None = None) -> None:
    """The report, to its place or to standard output; a reader may leave before its end."""
    where = "standard output" if place is None else repr(str(place))
    with _writing(where):
        file = place.open("w", encoding="utf-8") if place else None
    try:
        for piece in pieces:  # which may fail in words of its own
            with _writing(where):
                click.echo(piece, file, nl=False)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - to the end
    finally:
        with _writing(where):
            if file:
                file.close()


@contextmanager
def _writing(where: str) -> Iterator[None]:
    """What is denied is told in a sentence, but for a reader that left."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CouldNotLookError(f"cannot write {where}: {error.strerror}") from error


@contextmanager
def recorder(path: str | None) -> Iterator[Recorder | None]:
    """What keeps the run as a capture; None: nobody asked for it."""
    if path is None:
        yield None
        return
    from probe.recorder import Recorder, RecorderError  # most runs are not kept

    try:
        with Recorder(path) as opened:
            yield opened
    except RecorderError as error:
        raise CouldNotLookError(str(error)) from error


def cannot_read(name: str, error: Exception) -> CouldNotLookError:
    """The sentence about a file that cannot be opened, or is not what it should be."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return CouldNotLookError(f"cannot read {name!r}: {why}")


# -- the program ---------------------------------------------------------------------------------


class _Commands(click.Group):
    """Imports a command when it is asked for; a first word that is none is a TARGET."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"probe.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version", *COMMANDS}
        said_elsewhere = any(os.environ.get(name) for name in ("PGHOST", "PGSERVICE"))
        if (args and args[0] not in own) or (not args and said_elsewhere):
            args = ["probe", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="pgprobe TARGET is short for pgprobe probe TARGET.",
)
@click.version_option(__version__, prog_name="pgprobe", message="%(prog)s %(version)s")
def cli() -> None:
    """Why does PostgreSQL not connect through this load balancer, Gateway or proxy?

    Drives the SSLRequest handshake against an endpoint, records each step, and says where it
    breaks, how that is known, what to change, and which clients are hit.
    """


def main() -> None:
    """The entry point: runs the command and ends the process with its exit status."""
    # What a run makes is needed to its end: looking for what is not costs a fifth of it.
    gc.set_threshold(COLLECT_AFTER)
    try:
        status = cli.main(prog_name="pgprobe", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else ExitStatus.NOTHING_FOUND)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(ExitStatus.INTERRUPTED)
    except OSError as error:  # what has no words of its own: the help on a full disk
        click.echo(f"Error: {error.strerror or error}", err=True)
        sys.exit(ExitStatus.COULD_NOT_LOOK)
    finally:
        gc.freeze()  # nor is the end of the process the time to look
