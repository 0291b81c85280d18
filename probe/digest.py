"""What is kept of each connection of a capture, in a few hundred bytes.

Takes a :class:`~probe.captured.Captured` and its handshake; gives a :class:`Digest`: enough to
choose the connection, to count it, to group it, and to tell which others asked alike and fared
alike. A capture may hold very many connections, and hardly any two that differ to a rule: so a
digest is made of each while the capture is read, and the handshake is made again for those few
that are asked about or shown.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from probe.alike import Likeness, Outline, Spans, likeness, outline, spans
from probe.captured import Captured
from probe.evidence import host_of
from probe.fate import gets_through
from probe.handshake import Handshake, Opening, Outcome, Stage
from probe.observer import observe
from probe.sighting import Sighting, sighting
from probe.transcript import Event, Fact, GaveUp, NotCaptured, Party, Resent, Transcript

MAX_KNOWN = 1_024  # conversations that others are compared with
MAX_SPANS = 8  # ways of one outline to be like another
SILENCE = 5.0  # seconds; a server that has not answered by then, while the capture went on, is mute


class Digest(NamedTuple):
    """A connection in short.

    ``name`` is the server_name as it was written, ``began`` and ``ended`` are the times of its
    first and last event in seconds since the epoch. ``over``: its end was seen, so that the rest
    of the capture tells nothing more of it. ``told``: it is known what was asked for, and how far
    it got. ``broken``: it did not get through (None: nobody knows, or nothing was asked for).
    ``through``: it did; ``answered``: with a byte at least; ``for_tls``: it asked for TLS.

    ``own``: a note says that it is an attempt of a run of ours; ``asked``: and says
    what it meant by its server_name; ``run``: and how the run was judged. ``kind``: two with the
    same cannot lead to different findings. ``sighting``: it as it is compared with those of other
    captures, where there are some.
    """

    file: str
    client: str | None
    door: str
    name: str | None
    began: float
    ended: float
    over: bool
    told: bool
    broken: bool | None
    through: bool
    answered: bool
    for_tls: bool
    own: bool
    asked: bool
    run: bool
    kind: Hashable
    sighting: Sighting | None = None

    @property
    def host(self) -> str:
        """The client's address."""
        return host_of(self.client)


class Digester:
    """Makes digests; what many of them have in common is kept once.

    A capture is full of connections that are said alike: one of them is read. But each of those
    that are to be known in other captures again is (``several``).
    """

    def __init__(self, *, several: bool = False) -> None:
        self._several = several
        self._common: dict[Hashable, Hashable] = {}
        self._known: dict[Likeness, Digest] = {}
        self._spans: dict[Outline, set[Spans]] = {}

    def __call__(self, captured: Captured) -> Digest:
        """Of a connection as far as its own packets tell."""
        transcript = captured.transcript
        ours = captured.note is not None or transcript.asked is not None
        told = None if ours or self._several else outline(transcript)
        if told is None:
            return self.digest(captured, observe(transcript))
        for left_out in self._spans.get(told, ()):
            known = self._known.get(likeness(transcript, told, left_out))
            if known is not None:
                return known._replace(
                    client=known.client and captured.client,
                    door=captured.server,
                    began=transcript.started,
                    ended=last_event(transcript),
                )
        digest = self.digest(captured, observe(transcript))
        ways = self._spans.setdefault(told, set())
        if len(self._known) < MAX_KNOWN:
            left_out = spans(transcript)
            if left_out in ways or len(ways) < MAX_SPANS:
                ways.add(left_out)
                self._known[likeness(transcript, told, left_out)] = digest
        return digest

    def digest(self, captured: Captured, seen: Handshake) -> Digest:
        """Of a connection of which this was seen."""
        transcript, note = captured.transcript, captured.note
        common = self._common.setdefault
        door, kind = seen.server or transcript.door, _kind(seen)
        file, began, ended = captured.file, transcript.started, last_event(transcript)
        return Digest(
            file=file,
            client=seen.client,
            door=common(door, door),  # type: ignore[arg-type]
            name=common(seen.server_name, seen.server_name),  # type: ignore[arg-type]
            began=began,
            ended=ended,
            over=_is_over(seen),
            told=seen.told,
            broken=_broken(seen),
            through=gets_through(seen),
            answered=bool(seen.server_bytes),
            for_tls=_asks_for_tls(seen),
            own=note is not None,
            asked=transcript.asked is not None,
            run=note is not None and note.run is not None,
            kind=common(kind, kind),
            sighting=self._shared(sighting(file, began, ended, seen)) if self._several else None,
        )

    def _shared(self, one: Sighting) -> Sighting:
        common = self._common.setdefault
        request, answer = common(one.request, one.request), common(one.answer, one.answer)
        name = common(one.server_name, one.server_name)
        return one._replace(request=request, answer=answer, server_name=name)  # type: ignore[arg-type]


def last_event(transcript: Transcript) -> float:
    """When that was, in seconds since the epoch."""
    return transcript.started + (transcript.events[-1].at if transcript.events else 0.0)


def observed(transcript: Transcript, end: float) -> Handshake:
    """The connection, read up to the end of its capture: its last packet's time since the epoch."""
    seen = observe(transcript)
    if _is_over(seen):
        return seen
    return observe(_prolonged(transcript, seen, end - transcript.started))


def _is_over(seen: Handshake) -> bool:
    ends = seen.ended_by, seen.gave_up_after, seen.not_connected
    return any(end is not None for end in ends)


def _prolonged(transcript: Transcript, seen: Handshake, end: float) -> Transcript:
    """With what its capture tells by going on until then, or hides by ending.

    What is only said again is no new word: who repeats it waits all the while.
    """
    at = transcript.events[-1].at if transcript.events else 0.0
    words = [event.at for event in transcript.events if not isinstance(event.fact, Resent)]
    left = end - (words[-1] if words else at)
    unanswered = seen.told and not gets_through(seen) and seen.opening is not Opening.NOTHING
    fact: Fact = NotCaptured(Party.SERVER, None)
    if unanswered and seen.outcome is Outcome.SILENT and left >= SILENCE:
        fact, at = GaveUp(left), max(at, end)
    elif seen.opening is Opening.NOTHING:
        return transcript
    return transcript._replace(events=(*transcript.events, Event(at, fact)))


def _broken(seen: Handshake) -> bool | None:
    """It did not get through; None: the capture does not tell, or nothing was asked for."""
    if seen.not_connected:
        return True
    if gets_through(seen):
        return seen.error is not None or seen.foreign is not None
    if seen.opening in (Opening.NOTHING, Opening.CANCEL, Opening.OTHER) or not seen.told:
        return None
    # behind a G GSSAPI is spoken, which nobody reads here, or the client comes again without it
    return None if seen.gss_answer == "G" else True


def _asks_for_tls(seen: Handshake) -> bool:
    return seen.opening in (Opening.SSL_REQUEST, Opening.DIRECT_TLS) or seen.ssl_answer is not None


def _kind(seen: Handshake) -> tuple[Hashable, ...]:
    """Whatever rules look at."""
    hello, startup = seen.client_hello, seen.startup
    shape = (hello.server_name, hello.alpn, hello.versions, hello.size // 500) if hello else None
    answer = seen.took(Stage.SSL_REQUEST)
    agreed = seen.established.alpn if seen.established else None
    refusal = (seen.error.sqlstate, seen.error.routine) if seen.error else None
    return (
        (seen.opening, seen.asked, shape, min(seen.hello_segments, 3), seen.hello_records),
        (seen.proxy_header, seen.split_request, seen.pipelined, seen.garbage),
        (seen.not_connected, seen.ssl_answer, seen.gss_answer, bool(seen.glued)),
        (seen.tls_version, agreed, seen.leaf, seen.certificate_asked, seen.alert),
        (seen.client_alert, seen.tls_failed, seen.foreign and seen.foreign.protocol),
        (startup.version if startup else None, seen.startup_in_tls, seen.mechanisms),
        (seen.authentication is not None, seen.salt, refusal, seen.negotiated),
        (seen.reached, seen.outcome, seen.ended_by, seen.not_captured),
        (bool(seen.strange_resets), len(seen.hello_resent) > 1, len(seen.flight_resent) > 1),
        (bool(seen.hello_missed), bool(seen.flight_missed)),
        round(answer, 2) if answer >= 1 else 0,
    )
