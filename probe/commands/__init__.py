"""The command line: one module a command; the only place that prints or exits.

``pgprobe TARGET`` is short for ``pgprobe probe TARGET``. A command's module is imported when it
is run, so that ``--help`` costs no more than click.
"""

from __future__ import annotations

import gc
import os
import sys
from enum import IntEnum
from importlib import import_module

import click

from probe import __version__

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
    except BrokenPipeError:
        sys.stderr.close()  # the reader left: nobody is there to be told
        sys.exit(ExitStatus.NOTHING_FOUND)
    finally:
        gc.freeze()  # nor is the end of the process the time to look
