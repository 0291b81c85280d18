"""``pgprobe witness``: a stand-in for a server that tells each caller what reached it."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from probe import __version__
from probe.commands import CouldNotLookError, Seconds
from probe.drivers.witness import Welcome
from probe.identity import IdentityError, load_identity, make_identity, server_context
from probe.sources.witness import MAX_CONNECTIONS, MAX_SECONDS, Witness

DEFAULT_NAME = "localhost"

ABOUT = """\
Deploy it where the server's pod would be, behind the same Service and route; then run pgprobe
at the front door: it recognises the witness and says what was changed on the way. Nobody can log
in: there is no password, no data, and no key but the one that it makes up. It tells the addresses
of its peers to whoever reaches it. The log is a line of JSON for each connection, on standard
output. See docs/witness.md.
"""


@click.command("witness", epilog=ABOUT)
@click.option("--host", help="The address to listen at.  [default: all]")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=5432, show_default=True, help="0: any."
)
@click.option("--cert", type=click.Path(), help="PEM file of the certificate chain.")
@click.option("--key", type=click.Path(), help="PEM file of its key, where that stands apart.")
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    help=f"A DNS name of the self-signed certificate; repeatable.  [default: {DEFAULT_NAME}]",
)
@click.option(
    "--proxy-protocol",
    is_flag=True,
    help="It stands where a PROXY header (v1 or v2) is expected: say so if none comes.",
)
@click.option(
    "--connections",
    type=click.IntRange(min=1, max=65536),
    default=MAX_CONNECTIONS,
    show_default=True,
    help="Connections at a time; where one more comes, the oldest is closed.",
)
@click.option(
    "--seconds",
    type=Seconds(3_600),
    default=MAX_SECONDS,
    show_default=True,
    help="How long a connection may last.",
)
def command(
    host: str | None,
    port: int,
    cert: str | None,
    key: str | None,
    names: tuple[str, ...],
    proxy_protocol: bool,
    connections: int,
    seconds: float,
) -> int:
    """Stand in for a PostgreSQL server, and tell each caller exactly what reached it."""
    if key and not cert:
        raise click.UsageError("--key needs --cert")
    if cert and names:
        raise click.UsageError("--name is for a certificate that is made up, and --cert gives one")
    try:
        identity = load_identity(cert, key) if cert else make_identity(names or (DEFAULT_NAME,))
        context = server_context(identity)
        fingerprint = identity.fingerprint
    except IdentityError as error:
        raise CouldNotLookError(str(error)) from error
    try:
        witness = Witness(host, port, log, max_connections=connections, max_seconds=seconds)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CouldNotLookError(f"cannot listen at {host or 'port'} {port}: {reason}") from error
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: witness.stop())
    log(
        {
            "event": "listening",
            "pgprobe": __version__,
            "address": witness.address,
            "certificate_sha256": fingerprint,
            "proxy_expected": proxy_protocol,
        }
    )
    witness.run(lambda peer, local: Welcome(context, peer, local, proxy_protocol))
    return 0


def log(line: Mapping[str, Any]) -> None:
    """One line of JSON, its time first."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    click.echo(json.dumps({"at": at, **line}))
