"""The witness's sockets: one selectors loop around the players of ``probe.drivers.witness``.

Takes an address, a TLS context and somewhere to log to; gives nothing but what it logs. It
stands on a network where anybody may come, so that everything is bounded: the bytes and the
seconds of a connection, and how many there are. When there are too many, the oldest goes: an
honest client needs milliseconds, and whoever has been there for long wants something else.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import resource
import selectors
import socket
import time
from collections.abc import Callable, Container, Mapping
from typing import Any

from probe.drivers import Send
from probe.drivers.witness import Visit, Welcome, play
from probe.wire import endpoint

MAX_CONNECTIONS = 512  # at a time
MAX_SECONDS = 20.0  # of a connection, from its first byte or none to its last
MAX_BYTES = 65_536  # that a connection may say
LINGER = 2.0  # seconds for the caller to read the answer and leave first
READ_SIZE = 16_384  # bytes
BACKLOG = 1_024  # connections that the kernel keeps for us
ACCEPTS = 64  # connections that are taken in before the others have their turn
TURNS = 16  # connections that are heard before it looks who has come meanwhile
OTHER_FILES = 32  # descriptors that are none of a connection

_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
FULL_PAUSE = 0.1  # seconds without accept(), where the machine has no descriptor left

Log = Callable[[Mapping[str, Any]], None]


class Witness:
    """Listens from construction on; :meth:`run` serves until :meth:`stop`.

    ``host`` None: every address of the machine. ``port`` 0: any. Raises :class:`OSError` when
    it cannot listen.
    """

    def __init__(
        self,
        host: str | None,
        port: int,
        log: Log,
        *,
        max_connections: int = MAX_CONNECTIONS,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        self._listener = _listen(host, port)
        self._log = log
        self._max = min(max_connections, _room_for_files(max_connections))
        self._max_seconds = max_seconds
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._alarm, bell = socket.socketpair()  # select() would sleep through a signal
        self.bell = bell
        for end in (self._alarm, bell):
            end.setblocking(False)
        self._selector.register(self._alarm, selectors.EVENT_READ)
        # in the order in which they came, which is the order of their deadlines, too
        self._visitors: dict[socket.socket, _Visitor] = {}
        self._count = 0
        self._stopping = False
        self._accepting_since = 0.0  # monotonic; later than now: a pause

    @property
    def address(self) -> str:
        """Where it listens, "addr:port"."""
        return _endpoint(self._listener.getsockname())

    def stop(self) -> None:
        """Make :meth:`run` return; may be called by a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self.bell.send(b"\0")

    def run(self, welcome: Callable[[str, str], Welcome]) -> None:
        """Serve. ``welcome`` is given a connection's ends, the peer's and ours."""
        try:
            while not self._stopping:
                ready = {key.fileobj for key, _ in self._selector.select(self._pause())}
                if self._alarm in ready:
                    self._alarm.recv(64)
                if self._listener in ready:
                    self._accept(welcome)
                for visitor in self._next_turns(ready):
                    visitor.on_ready()
                self._send_away_the_late()
        finally:
            for visitor in list(self._visitors.values()):
                visitor.end("stopped")
            for each in (self._listener, self._alarm, self.bell, self._selector):
                each.close()
        self._log({"event": "stopped", "connections": self._count})

    def _next_turns(self, ready: Container[object]) -> list[_Visitor]:
        """Who is heard now: the newest of those that are ready, so that no flood delays a guest."""
        newest = (each for s, each in reversed(self._visitors.items()) if s in ready)
        return list(itertools.islice(newest, TURNS))

    def _pause(self) -> float | None:
        """Seconds until somebody's time is over; None: nobody is here."""
        due = [visitor.deadline for visitor in self._visitors.values()]
        if self._accepting_since:
            due.append(self._accepting_since)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _send_away_the_late(self) -> None:
        now = time.monotonic()
        for visitor in list(self._visitors.values()):
            if visitor.deadline <= now:
                visitor.end("timed-out")
        if self._accepting_since and self._accepting_since <= now:
            self._accepting_since = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self, welcome: Callable[[str, str], Welcome]) -> None:
        for _ in range(ACCEPTS):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _FULL:
                    self._make_room("no-descriptor")
                    self._selector.unregister(self._listener)
                    self._accepting_since = time.monotonic() + FULL_PAUSE
                    return
                continue  # gone before it was taken in
            if len(self._visitors) >= self._max:
                self._make_room("too-many")
            self._count += 1
            connection.setblocking(False)
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer, local = connection.getpeername(), connection.getsockname()
            except OSError:  # reset already
                connection.close()
                continue
            visitor = _Visitor(self, connection, welcome(_endpoint(peer), _endpoint(local)))
            self._visitors[connection] = visitor
            self._selector.register(connection, selectors.EVENT_READ)

    def _make_room(self, why: str) -> None:
        oldest = next(iter(self._visitors.values()), None)
        if oldest:
            oldest.end(why)

    # -- for visitors ------------------------------------------------------------------------

    def listen(self, connection: socket.socket, *, writing: bool) -> None:
        """Wake the visitor when it can be written to, else when it says something."""
        mask = selectors.EVENT_WRITE if writing else selectors.EVENT_READ
        self._selector.modify(connection, mask)

    def forget(self, connection: socket.socket) -> None:
        """The visitor is gone."""
        if self._visitors.pop(connection, None):
            self._selector.unregister(connection)

    def note(self, line: Mapping[str, Any]) -> None:
        """A line for the log."""
        self._log(line)

    @property
    def number(self) -> int:
        """Of the latest connection, counted from 1."""
        return self._count

    @property
    def max_seconds(self) -> float:
        """What a connection may last."""
        return self._max_seconds


class _Visitor:
    """One connection."""

    def __init__(self, witness: Witness, connection: socket.socket, welcome: Welcome) -> None:
        self._witness, self._socket, self._welcome = witness, connection, welcome
        self._number = witness.number
        self._came = time.monotonic()
        self.deadline = self._came + witness.max_seconds
        self._received = 0
        self._unsent = b""
        self._visit: Visit | None = None
        self._part = play(welcome)
        next(self._part)  # to its first Receive: a witness never speaks first

    def on_ready(self) -> None:
        try:
            if self._unsent:
                self._write()
            else:
                self._read()
        except BlockingIOError:
            return
        except OSError:
            self.end("reset")

    def _read(self) -> None:
        data = self._socket.recv(READ_SIZE)
        self._received += len(data)
        if not data:
            self.end("closed")
        elif self._received > MAX_BYTES:
            self.end("too-much")
        elif self._visit is None:
            self._go_on(data)

    def _go_on(self, data: bytes | None) -> None:
        """Give the player what was heard, or None, and carry out what it wants."""
        try:
            command = self._part.send(data)
            while isinstance(command, Send):
                self._unsent += command.data
                command = next(self._part)
        except StopIteration as end:
            self._visit = end.value
        except Exception as error:  # whatever a stranger's bytes do, the next one is served
            self._witness.note({"event": "failed", "connection": self._number, "says": repr(error)})
            self.end("failed")
            return
        if self._unsent:
            self._write()
        elif self._visit:
            self.end("answered")

    def _write(self) -> None:
        sent = self._socket.send(self._unsent)
        self._unsent = self._unsent[sent:]
        if not self._unsent and self._visit:
            # to close with their bytes unread would be a reset, which takes our answer away
            self._socket.shutdown(socket.SHUT_WR)
            self.deadline = min(self.deadline, time.monotonic() + LINGER)
        self._witness.listen(self._socket, writing=bool(self._unsent))

    def end(self, how: str) -> None:
        """Close, and log it; ``how`` the connection ended, in a word."""
        if self._visit is None:
            self._visit = self._ask_the_player()
        self._witness.forget(self._socket)
        self._socket.close()
        self._witness.note(
            {
                "event": "connection",
                "connection": self._number,
                "peer": self._welcome.peer,
                "local": self._welcome.local,
                "seconds": round(time.monotonic() - self._came, 3),
                "received": self._received,
                "ended": how,
                **_told(self._visit),
            }
        )

    def _ask_the_player(self) -> Visit | None:
        """What it knows, now that no more will come."""
        try:
            while True:
                self._part.send(None)
        except StopIteration as end:
            visit: Visit | None = end.value
            return visit
        except Exception:
            return None


def _told(visit: Visit | None) -> dict[str, Any]:
    """What a visit adds to its line; nothing that is not known."""
    if visit is None:
        return {"outcome": "failed"}
    line: dict[str, Any] = {"outcome": visit.outcome}
    if visit.says:
        line["says"] = visit.says
    if visit.proxy:
        line["proxy"] = visit.proxy._asdict()
    line["ssl_request"], line["gssenc_request"] = visit.ssl_request, visit.gssenc_request
    if visit.hello:
        line["hello"] = visit.hello._asdict()
        line["client_hello"] = visit.client_hello.hex()
    if visit.testimony:
        told = visit.testimony
        line.update(tls=told.tls, alpn=told.alpn, startup=told.startup._asdict())
        line["refused"] = told.refused
    return line


def _listen(host: str | None, port: int) -> socket.socket:
    if host is None and socket.has_dualstack_ipv6():
        listener = socket.create_server(
            ("::", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
        )
    else:
        version = ipaddress.ip_address(host or "0.0.0.0").version
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        listener = socket.create_server((host or "", port), family=family, backlog=BACKLOG)
    listener.setblocking(False)
    return listener


def _endpoint(where: tuple[Any, ...]) -> str:
    """ "addr:port", IPv6 in brackets, an IPv4 address of a dual-stack socket as what it is."""
    address = ipaddress.ip_address(str(where[0]).partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return endpoint(str(mapped or address), where[1])


def _room_for_files(wanted: int) -> int:
    """How many connections the limit of open files leaves room for, raised where it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (soft, hard) and soft < wanted + OTHER_FILES:
        soft = min(hard, wanted + OTHER_FILES)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, soft - OTHER_FILES)
