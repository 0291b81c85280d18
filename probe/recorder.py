"""Keeps a run as a capture file: the place for it, and where TLS leaves its secrets meanwhile.

Takes a path; gives, for as long as a block lasts, the name of a key log for the run's sessions,
and at :meth:`Recorder.keep` writes the file. It has mode 0600 and is made beside its name before
anything is asked, then renamed: whatever becomes of the run, no half of it is left behind, and
nothing is ever written through a link. The key log has no name in any directory, so nothing of it
outlives the process. Raises :class:`RecorderError`.
"""

from __future__ import annotations

import contextlib
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from probe.diagnosis import Hop
from probe.evidence import Question
from probe.note import Run
from probe.recording import Take, record


class RecorderError(Exception):
    """The file cannot be written; the text is a sentence."""


class Recorder:
    """A file that a run will be kept as."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def __enter__(self) -> Self:
        with self._in_words(), contextlib.ExitStack() as opened:
            self._refuse_what_is_no_file()
            self._file = opened.enter_context(
                tempfile.NamedTemporaryFile(  # which has mode 0600
                    dir=self._path.parent, prefix=f".{self._path.name}.", delete=False
                )
            )
            opened.callback(Path(self._file.name).unlink, missing_ok=True)
            self._key_log = opened.enter_context(tempfile.TemporaryFile())
            with Path(self.key_log).open("ab"):
                pass  # TLS will open it by this name
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    @property
    def key_log(self) -> str:
        """What to open in order to add to the key log, while the block lasts."""
        return f"/dev/fd/{self._key_log.fileno()}"

    def keep(self, takes: Sequence[Take]) -> None:
        """Write what passed, and give the file its name."""
        with self._in_words():
            self._key_log.seek(0)
            with self._file:
                self._file.write(record(takes, self._key_log.read()))
            self._refuse_what_is_no_file()
            Path(self._file.name).replace(self._path)

    def keep_run(self, question: Question, hops: Sequence[Hop]) -> None:
        """What was said at all doors, with what reading it again needs to judge it alike."""
        self.keep(
            [
                Take(
                    transcript, Run(hop.label, question.sslmode, question.identity, question.proves)
                )
                for hop in hops
                for told in hop.transcripts.values()
                for transcript in told
            ]
        )

    def _refuse_what_is_no_file(self) -> None:
        """A link or a device keeps its place: renaming would put a file there."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(self._path.lstat().st_mode):
                raise RecorderError(f"cannot write {str(self._path)!r}: it is not a plain file")

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RecorderError(f"cannot write {str(self._path)!r}: {error.strerror}") from error
