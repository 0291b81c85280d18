"""A stream's bytes, in chunks: a window that slides over it, and what is packed with gzip.

Not ``mmap``, which counts as memory, and which a pipe has not.
"""

from __future__ import annotations

import gzip
import io
import zlib
from typing import BinaryIO

CHUNK = 1 << 18  # bytes read at a time


class Window:
    """A window that slides over a stream: ``buffer[:size]`` stands at ``start`` in the file."""

    def __init__(self, stream: BinaryIO | Unzipped) -> None:
        self.stream = stream
        self.buffer = bytearray(CHUNK)
        self.size = 0
        self.start = 0

    @property
    def failure(self) -> str:
        """Why the stream ended early, or nothing."""
        return self.stream.failure if isinstance(self.stream, Unzipped) else ""

    def slide(self, at: int, need: int) -> int:
        """Forget what stands before ``at``; read on, to ``need`` bytes if there are so many.

        Gives where ``at`` stands now: 0. A growing stream gives what it has, without a wait for
        a whole chunk.
        """
        rest = self.size - at
        kept = self.buffer[at : self.size]
        if need > len(self.buffer):
            self.buffer = bytearray(need + CHUNK)
        self.buffer[:rest] = kept
        self.start += at
        self.size = rest
        with memoryview(self.buffer) as view:
            while self.size < need:
                with view[self.size :] as room:
                    count = self.stream.readinto(room)  # type: ignore[union-attr]
                if not count:
                    break
                self.size += count
        return 0


class Unzipped:
    """A gzip stream; a damaged one ends where it is damaged, and ``failure`` says so."""

    def __init__(self, compressed: Window) -> None:
        self.file = gzip.GzipFile(fileobj=_Again(compressed), mode="rb")
        self.failure = ""

    def readinto(self, room: memoryview) -> int:
        """Some of what is unpacked; 0: there is no more."""
        try:
            # one piece at a time: what was unpacked before the damage must not be lost with it
            return self.file.readinto1(room)
        except EOFError:
            self.failure = "the gzip file is cut off: everything before that was read"
        except (OSError, zlib.error) as problem:
            self.failure = f"the gzip file is damaged ({problem}): everything before was read"
        return 0


class _Again(io.RawIOBase):
    """A stream whose beginning was looked at already."""

    def __init__(self, window: Window) -> None:
        self.head = bytes(window.buffer[: window.size])
        self.stream = window.stream

    def readable(self) -> bool:
        return True

    def readinto(self, room: memoryview) -> int:  # type: ignore[override]
        if not self.head:
            return self.stream.readinto(room)  # type: ignore[union-attr]
        count = min(len(room), len(self.head))
        room[:count] = self.head[:count]
        self.head = self.head[count:]
        return count
