"""Live probing: sockets, a clock and deadlines around the players of ``probe.drivers``.

Takes a door's addresses, attempts and a schedule; gives a Transcript for each attempt. One
selectors loop runs all connections: there is nothing to join and nothing to lock, so that
Ctrl-C ends it at once, and a stuck name service (which has no way to be cancelled) is left
behind in a thread that does not keep the process alive.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from probe.attempt import Attempt
from probe.drivers import AwaitTurn, Command, Pause, Player, Receive, Send
from probe.drivers.client import play as play_client
from probe.schedule import Ended, Schedule
from probe.transcript import (
    Closed,
    Connected,
    ConnectFailure,
    Connecting,
    Data,
    Ending,
    Established,
    Event,
    Fact,
    GaveUp,
    Layer,
    NotConnected,
    Party,
    Resolved,
    Transcript,
)
from probe.wire import endpoint

READ_SIZE = 65_536  # bytes
MAX_TRANSCRIPT = 1_048_576  # bytes from the server on one connection; more is not read

_UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM, errno.ENETDOWN}
_UNREACHABLE |= {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL}
_RESET = {errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED}


class Resolution(NamedTuple):
    """What a host name led to: addresses in the resolver's order, or why not."""

    addresses: tuple[str, ...]
    took: float  # seconds
    failure: NotConnected | None = None


def resolve(host: str, port: int, family: int, timeout: float) -> Resolution:
    """The addresses of ``host``, at most ``timeout`` seconds waited for.

    ``family`` is ``socket.AF_UNSPEC``, ``AF_INET`` or ``AF_INET6``. Raises nothing: a name that
    does not resolve is an answer.
    """
    if _is_address(host):
        return Resolution((host,), 0.0)
    found: list[str] = []
    problem: list[str] = []

    def look_up() -> None:
        try:
            for *_, address in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM):
                if str(address[0]) not in found:
                    found.append(str(address[0]))
        except (OSError, UnicodeError) as error:
            problem.append(getattr(error, "strerror", None) or str(error))

    began = time.monotonic()
    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(timeout)
    took = time.monotonic() - began
    if thread.is_alive():
        problem = [f"no answer from the name service in {timeout:g} s"]
    if problem or not found:
        says = problem[0] if problem else "no address"
        return Resolution((), took, NotConnected(ConnectFailure.NOT_RESOLVED, says))
    return Resolution(tuple(found), took)


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return False


def not_resolved(attempt: Attempt, door: str, resolution: Resolution) -> Transcript:
    """The transcript of a connection for which there was no address."""
    assert resolution.failure is not None
    events = (Event(resolution.took, resolution.failure),)
    return Transcript(attempt.name, door, events, attempt.asked, time.time() - resolution.took)


def probe_door(
    address: str,
    port: int,
    attempts: Iterable[Attempt],
    *,
    timeout: float,
    deadline: float,
    resolution: Resolution | None = None,
    watch: Callable[[str], None] = lambda _: None,
    play: Callable[[Attempt], Player] = play_client,
) -> tuple[list[Transcript], list[tuple[str, str]]]:
    """The transcripts of all attempts at one address, and those not made, with the reason.

    ``timeout`` is for each wait, ``deadline`` for all of it, both in seconds. ``watch`` is told
    each attempt's name as it starts. ``resolution`` is written into the control's transcript.
    ``play`` gives the player of an attempt.
    """
    schedule = Schedule(attempts, min(timeout, deadline))
    with contextlib.closing(_Loop(address, port, schedule, resolution, watch, play)) as loop:
        loop.run(deadline)
        return loop.transcripts, schedule.not_made


class _Connection:
    """One socket, one player, one growing list of events."""

    def __init__(self, loop: _Loop, attempt: Attempt, resolution: Resolution | None) -> None:
        self.loop, self.attempt = loop, attempt
        self.events: list[Event] = []
        spent = resolution.took if resolution else 0.0
        self.began = time.monotonic() - spent
        self.wall = time.time() - spent
        self.player: Player = loop.play(attempt)
        self.socket: socket.socket | None = None
        self.unsent = b""
        self.received = 0
        self.waiting_since: float | None = None  # for bytes, or for the connection
        self.resume_at: float | None = None  # the end of a pause
        self.awaiting_turn = False
        self.connected = False
        if resolution:
            self.note(Resolved(resolution.addresses))

    def note(self, fact: Fact) -> None:
        self.events.append(Event(time.monotonic() - self.began, fact))

    # -- the socket's side -------------------------------------------------------------------

    def connect(self) -> None:
        address, port = self.loop.address, self.loop.port
        version = ipaddress.ip_address(address.partition("%")[0]).version
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        self.note(Connecting(endpoint(address, port)))
        self.waiting_since = time.monotonic()
        try:
            self.socket = socket.socket(family, socket.SOCK_STREAM)
            self.socket.setblocking(False)
            # without it the message behind Finished waits for an acknowledgement: 40 ms
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            numeric = socket.AI_NUMERICHOST  # keeps a scope id and never asks a name service
            literal = address.encode()  # text would go through the idna codec
            where = socket.getaddrinfo(literal, port, family, socket.SOCK_STREAM, 0, numeric)
            code = self.socket.connect_ex(where[0][4])
        except OSError as error:
            self._not_connected(error.errno or 0, str(error.strerror))
            return
        if code not in (0, errno.EINPROGRESS):
            self._not_connected(code)
            return
        self.loop.selector.register(self.socket, selectors.EVENT_WRITE, self)

    def on_ready(self) -> None:
        if not self.connected:
            self._on_connected()
        elif self.unsent:
            self._write()
        else:
            self._read()

    def _on_connected(self) -> None:
        assert self.socket is not None
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._not_connected(code)
            return
        try:
            client = self.socket.getsockname()
            server = self.socket.getpeername()
        except OSError as error:  # gone between the SYN-ACK and now
            self._not_connected(error.errno or errno.ECONNRESET)
            return
        self.connected = True
        self.note(Connected(endpoint(*client[:2]), endpoint(*server[:2])))
        self.waiting_since = None
        self.go_on(None)

    def _not_connected(self, code: int, says: str = "") -> None:
        if code in _RESET:
            failure = ConnectFailure.RESET
        elif code == errno.ECONNREFUSED:
            failure = ConnectFailure.REFUSED
        elif code == errno.ETIMEDOUT:
            failure = ConnectFailure.TIMED_OUT
        else:
            failure = ConnectFailure.UNREACHABLE
        self.note(NotConnected(failure, says or errno_text(code)))
        reset = failure is ConnectFailure.RESET
        self.end(Ended.CLOSED if reset else Ended.NOT_CONNECTED)

    def _write(self) -> None:
        assert self.socket is not None
        try:
            sent = self.socket.send(self.unsent)
        except BlockingIOError:
            self._listen(selectors.EVENT_WRITE)
            return
        except OSError:
            # the error that send() takes away would make a reset look like a clean close later
            self._read_rest()
            self._server_closed(Ending.RST)
            return
        self.note(Data(Party.CLIENT, self.unsent[:sent]))
        self.unsent = self.unsent[sent:]
        if self.unsent:
            self._listen(selectors.EVENT_WRITE)
        else:
            self.go_on(None)

    def _read_rest(self) -> None:
        """What the server said before it reset the connection is still there to be read."""
        assert self.socket is not None
        with contextlib.suppress(OSError):
            while data := self.socket.recv(READ_SIZE):
                self._hear(data)

    def _hear(self, data: bytes) -> None:
        waited = self.waited(time.monotonic())
        self.note(Data(Party.SERVER, data))
        self.received += len(data)
        self.waiting_since = None
        self.loop.heard(self.attempt, data, waited)

    def _read(self) -> None:
        assert self.socket is not None
        try:
            data = self.socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self._server_closed(Ending.RST)
            return
        if not data:
            self._server_closed(Ending.FIN)
            return
        self._hear(data)
        self.go_on(data if self.received <= MAX_TRANSCRIPT else None)

    def _server_closed(self, how: Ending) -> None:
        self.note(Closed(Party.SERVER, how))
        self.finish(Ended.CLOSED)

    # -- the player's side -------------------------------------------------------------------

    def go_on(self, reply: bytes | None) -> None:
        """Give the player its answer and carry out commands up to the next wait."""
        command = self._advance(reply)
        while command is not None:
            match command:
                case Receive():
                    self.waiting_since = time.monotonic()
                    self._listen(selectors.EVENT_READ)
                    return
                case Send(data):
                    self.unsent = data
                    self._write()
                    return
                case Pause(seconds):
                    self.resume_at = time.monotonic() + seconds
                    self._listen(0)
                    return
                case AwaitTurn():
                    if not self.loop.schedule.may_pass_startup():
                        self.awaiting_turn = True
                        self._listen(0)
                        return
                    self.loop.schedule.passed_startup(self.attempt)
                case fact:
                    self._tell(fact)
            command = self._advance(None)
        self.note(Closed(Party.CLIENT, Ending.FIN))
        self.end(Ended.LEFT)

    def _tell(self, fact: Fact) -> None:
        self.note(fact)
        if isinstance(fact, Established):
            self.loop.schedule.established(self.attempt)
        elif isinstance(fact, Data) and fact.layer is Layer.TLS:
            self.loop.schedule.said(self.attempt, fact.data, fact.layer)

    def _advance(self, reply: bytes | None) -> Command | None:
        try:
            return self.player.send(reply)
        except StopIteration:
            return None

    def finish(self, how: Ended) -> None:
        """Let the player say what it still knows, now that nothing can pass any more."""
        command = self._advance(None)
        while command is not None:
            if not isinstance(command, Receive | Send | Pause | AwaitTurn):
                self._tell(command)
            command = self._advance(None)
        self.end(how)

    def _listen(self, mask: int) -> None:
        self.loop.listen(self, mask)

    # -- time --------------------------------------------------------------------------------

    @property
    def due(self) -> float | None:
        """When this connection wants attention although nothing happened; monotonic seconds."""
        if self.resume_at is not None:
            return self.resume_at
        if self.waiting_since is None:
            return None
        return self.waiting_since + self.loop.schedule.patience(self.attempt)

    def on_time(self, now: float) -> None:
        if self.resume_at is not None:
            self.resume_at = None
            self.go_on(None)
        else:
            self.give_up(now)

    def take_turn(self) -> None:
        """Go past StartupMessage if there is room now."""
        if self.awaiting_turn and self.loop.schedule.may_pass_startup():
            self.awaiting_turn = False
            self.loop.schedule.passed_startup(self.attempt)
            self.go_on(None)

    def waited(self, now: float) -> float:
        """For how many seconds it has been waiting for the server."""
        return now - self.waiting_since if self.waiting_since is not None else 0.0

    def give_up(self, now: float) -> None:
        waited = self.waited(now)
        if not self.connected:
            self.note(NotConnected(ConnectFailure.TIMED_OUT, f"no answer in {waited:.1f} s"))
            self.end(Ended.NOT_CONNECTED)
            return
        self.note(GaveUp(waited))
        self.finish(Ended.SILENT)

    def end(self, how: Ended) -> None:
        self.loop.ended(self, how)
        self.close()

    def close(self) -> None:
        self.player.close()
        if self.socket is not None:
            self.loop.forget(self.socket)
            self.socket.close()
            self.socket = None


class _Loop:
    """All connections of one door."""

    def __init__(
        self,
        address: str,
        port: int,
        schedule: Schedule,
        resolution: Resolution | None,
        watch: Callable[[str], None],
        play: Callable[[Attempt], Player],
    ) -> None:
        self.address, self.port, self.schedule = address, port, schedule
        self.selector = selectors.DefaultSelector()
        self.running: list[_Connection] = []
        self.done: list[tuple[float, Transcript]] = []
        self._resolution, self._watch, self.play = resolution, watch, play
        self._began = 0.0

    @property
    def transcripts(self) -> list[Transcript]:
        """In the order in which they began."""
        return [transcript for _, transcript in sorted(self.done, key=lambda pair: pair[0])]

    def run(self, deadline: float) -> None:
        began = self._began = time.monotonic()
        while True:
            now = time.monotonic()
            self._start(now - began)
            if self.schedule.finished:
                return
            if now - began >= deadline:
                self._cut_off(now)
                return
            for key, _ in self.selector.select(self._pause(now, began, deadline)):
                key.data.on_ready()
            now = time.monotonic()
            for connection in list(self.running):
                if connection.due is not None and connection.due <= now:
                    connection.on_time(now)
            for connection in list(self.running):
                connection.take_turn()

    def _start(self, now: float) -> None:
        while attempt := self.schedule.next(now):
            self._watch(attempt.name)
            resolution, self._resolution = self._resolution, None
            self.schedule.started(attempt)
            connection = _Connection(self, attempt, resolution)
            self.running.append(connection)
            connection.connect()

    def _pause(self, now: float, began: float, deadline: float) -> float:
        dues = [c.due for c in self.running if c.due is not None]
        nearest = min([*dues, began + deadline])
        if now < began + self.schedule.wakes_at:
            nearest = min(nearest, began + self.schedule.wakes_at)
        return max(0.0, nearest - now)

    def _cut_off(self, now: float) -> None:
        for connection in list(self.running):
            # the control's wait is all that a short deadline has
            enough = self.schedule.least_patience if self.done else self.schedule.timeout / 2
            if connection.waited(now) >= enough:
                connection.give_up(now)
            else:
                self.schedule.not_made.append((connection.attempt.name, "cut off by the deadline"))
                self.running.remove(connection)
                connection.close()
        self.schedule.cut_off("the deadline was over")

    def ended(self, connection: _Connection, how: Ended) -> None:
        self.schedule.ended(connection.attempt, how, connection.waited(time.monotonic()))
        self.running.remove(connection)
        attempt = connection.attempt
        transcript = Transcript(
            attempt=attempt.name,
            door=endpoint(self.address, self.port),
            events=tuple(connection.events),
            asked=attempt.asked,
            started=connection.wall,
            login=attempt.password is not None,
        )
        self.done.append((connection.began, transcript))

    def heard(self, attempt: Attempt, data: bytes, waited: float) -> None:
        self.schedule.heard(attempt, data, waited, time.monotonic() - self._began)

    def listen(self, connection: _Connection, mask: int) -> None:
        """Wake the connection up for reading, writing, or nothing."""
        if connection.socket is None:
            return
        registered = connection.socket in self.selector.get_map()
        if mask and registered:
            self.selector.modify(connection.socket, mask, connection)
        elif mask:
            self.selector.register(connection.socket, mask, connection)
        else:
            self.forget(connection.socket)

    def forget(self, sock: socket.socket) -> None:
        if sock in self.selector.get_map():
            self.selector.unregister(sock)

    def close(self) -> None:
        for connection in self.running:
            connection.close()
        self.selector.close()


def errno_text(code: int) -> str:
    """The operating system's text for an error number."""
    return os.strerror(code)
