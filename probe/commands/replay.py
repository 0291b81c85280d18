"""``pgprobe replay FILE --to TARGET``: a recorded client's bytes, and today's answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import click

from probe.attempt import Attempt
from probe.commands import (
    STANDARD_INPUT,
    CouldNotLookError,
    ExitStatus,
    address_family,
    apart,
    cannot_read,
    deliver,
    family_options,
    record_option,
    recorder,
    report_options,
    timeout_option,
    writable,
)
from probe.drivers.recorded import Kind, NotReplayableError, Script, play, script
from probe.handshake import Handshake
from probe.observer import observe
from probe.pcapng import NotACapture
from probe.recording import Take
from probe.replay import Point, Replay, Replays, Sent, Verdict, compare
from probe.reports import FORMATS, render, sent_line
from probe.sources.capture import Capture, read_capture
from probe.sources.live import not_resolved, probe_door, resolve
from probe.target import Place, TargetError, parse_target
from probe.transcript import Data, Party, Transcript
from probe.wire import endpoint, printable

MAX_REPLAYED = 25  # connections; as many as any run makes at a door

LOG = """\
What it leaves in a server's log: for each connection that asks for TLS, an error like "could not
accept SSL connection: EOF detected", since no handshake is completed; a StartupMessage in clear is
left at the authentication request. No password is ever sent, no CancelRequest, nothing behind the
ClientHello. A PROXY header that was recorded is sent as it is.
"""

POINTS = {
    Kind.GSSENC_REQUEST: Point.GSSENC_REQUEST,
    Kind.SSL_REQUEST: Point.SSL_REQUEST,
    Kind.CLIENT_HELLO: Point.SERVER_HELLO,
    Kind.SECOND_HELLO: Point.SECOND_HELLO,
    Kind.STARTUP: Point.STARTUP,
}


class Recorded(NamedTuple):
    """A connection that may be said again."""

    number: int
    handshake: Handshake
    script: Script

    @property
    def attempt(self) -> Attempt:
        """What its repetition is called, and how it opens."""
        return Attempt(f"connection {self.number}", self.handshake.opening, asked=None)

    @property
    def sent(self) -> tuple[Sent, ...]:
        """What will be sent, for people."""
        return tuple(Sent(self._named(p.kind), p.data, p.segments) for p in self.script.parts)

    @property
    def points(self) -> list[Point]:
        """What its answers are compared at."""
        kinds = (part.kind for part in self.script.parts)
        return [Point.CONNECT, *(POINTS[kind] for kind in kinds if kind in POINTS)]

    def _named(self, kind: Kind) -> str:
        name = self.handshake.server_name
        hello = kind is Kind.CLIENT_HELLO
        return f"{kind.value} for {printable(name, 100)}" if hello and name else kind.value


@click.command("replay", epilog=LOG)
@click.argument("file", metavar="FILE")
@click.option(
    "--to", metavar="TARGET", required=True, help="Where to say it: HOST[:PORT]; nowhere else."
)
@click.option(
    "--connection",
    "number",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only this one, as pgprobe read numbers them.",
)
@click.option(
    "--past-hello",
    is_flag=True,
    help="Also the second ClientHello, where a HelloRetryRequest asks for it now as well.",
)
@timeout_option
@family_options
@report_options(FORMATS)
@record_option("Keep what passed as a capture.")
@click.option(
    "--fail-on",
    type=click.Choice(["difference", "never"]),
    default="difference",
    show_default=True,
    help="Exit status 1 when an answer differs.",
)
def command(
    file: str,
    to: str,
    number: int | None,
    past_hello: bool,
    timeout: float,
    only_v4: bool,
    only_v6: bool,
    format_name: str,
    output: str | None,
    recording: str | None,
    fail_on: str,
) -> int:
    """Say again what recorded clients said first, and compare the answers with the recorded ones.

    The bytes go out as they were cut, up to the end of the ClientHello, and are shown before that
    on standard error. FILE is a capture (pcap, pcapng; - is standard input).
    """
    family = address_family(only_v4, only_v6)
    try:
        (place,) = parse_target(to, {}).places  # no environment: --to alone says where
    except TargetError as error:
        raise click.UsageError(f"--to: {error}") from error
    apart(recording, file)
    goes_to = writable(output, file, recording)
    chosen, left_out = choose(_load(file), number, past_hello=past_hello)
    with recorder(recording) as kept:
        report, told = replay(chosen, place, family, timeout)
        if kept:
            kept.keep([Take(transcript) for transcript in told])
    report = report._replace(file=file, left_out=tuple(left_out))
    deliver(render(report, format_name), goes_to)
    return exit_status(report, fail_on)


def choose(
    capture: Capture, number: int | None, *, past_hello: bool
) -> tuple[list[Recorded], list[tuple[int, str]]]:
    """The connections to say again, and those left out, each with the reason."""
    if number is not None and number > len(capture.connections):
        count = len(capture.connections)
        raise click.UsageError(f"--connection {number}: the capture has {count} of them")
    chosen: list[Recorded] = []
    left_out: list[tuple[int, str]] = []
    for n in [number] if number else range(1, len(capture.connections) + 1):
        if len(chosen) == MAX_REPLAYED:
            left_out.append((n, f"{MAX_REPLAYED} are enough at a time; --connection chooses"))
            continue
        transcript = capture.connections[n - 1].transcript
        try:
            told = script(transcript, past_hello=past_hello)
        except NotReplayableError as why:
            left_out.append((n, str(why)))
        else:
            chosen.append(Recorded(n, observe(transcript), told))
    if not chosen:
        reason = f": {left_out[0][1]}" if left_out else ""
        raise CouldNotLookError(f"no connection in {capture.file!r} can be said again{reason}")
    return chosen, left_out


def replay(
    chosen: Sequence[Recorded], place: Place, family: int, timeout: float
) -> tuple[Replays, list[Transcript]]:
    """Say each of them again, one after the other; what passed as well."""
    resolution = resolve(place.host, place.port, family, timeout)
    addresses = list(resolution.addresses)
    replays: list[Replay] = []
    told: list[Transcript] = []
    for recorded in chosen:
        for sent in recorded.sent:
            click.echo(f"connection {recorded.number}: {sent_line(sent)}", err=True)
        if resolution.failure:
            transcript = not_resolved(recorded.attempt, place.label, resolution)
        else:
            transcript = _say(recorded, addresses, place.port, timeout)
        now = observe(transcript)
        rows = compare(recorded.handshake, now, recorded.points)
        sent_now = tuple(_sent(recorded, transcript))
        replays.append(Replay(recorded.number, sent_now, recorded.handshake, now, rows))
        told.append(transcript)
    at = endpoint(addresses[0], place.port) if addresses else place.label
    to = at if at == place.label else f"{place.label} ({at})"
    return Replays("", to, tuple(replays)), told


def _sent(recorded: Recorded, transcript: Transcript) -> Iterator[Sent]:
    """What went out of it: behind another answer than then, nothing more does."""
    facts = (event.fact for event in transcript.events)
    left = sum(len(f.data) for f in facts if isinstance(f, Data) and f.sender is Party.CLIENT)
    for sent in recorded.sent:
        if left <= 0:
            return
        yield sent
        left -= len(sent.data)


def _say(recorded: Recorded, addresses: list[str], port: int, timeout: float) -> Transcript:
    """At the first address that takes a connection; those before it are not asked again."""
    while True:
        (transcript,), _ = probe_door(
            addresses[0],
            port,
            [recorded.attempt],
            timeout=timeout,
            deadline=_deadline(recorded, timeout),
            play=lambda _: play(recorded.script),
        )
        if transcript.connected or len(addresses) == 1:
            return transcript
        del addresses[0]


def _deadline(recorded: Recorded, timeout: float) -> float:
    """A wait for the connection and for each part's answer; the pauses are a few seconds."""
    return (len(recorded.script.parts) + 3) * timeout + len(recorded.script.moves)


def exit_status(report: Replays, fail_on: str) -> int:
    """0 the same, 1 an answer differs, 3 nothing could be compared."""
    if report.verdict is Verdict.UNKNOWN:
        return ExitStatus.COULD_NOT_LOOK
    differs = report.verdict is Verdict.DIFFERS and fail_on != "never"
    return ExitStatus.FOUND if differs else ExitStatus.NOTHING_FOUND


def _load(file: str) -> Capture:
    source = sys.stdin.buffer if file == STANDARD_INPUT else file
    try:
        return read_capture(source, name=file)
    except (OSError, NotACapture) as error:
        raise cannot_read(file, error) from error
