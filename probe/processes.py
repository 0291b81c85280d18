"""Processes that read side by side: how many are of use, and a pool of them.

Takes a number; gives an :class:`~concurrent.futures.Executor`, or :class:`NoProcesses` where there
can be none (no semaphores, no memory, too many processes): whoever asked then does it alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Executor

USEFUL = 8  # one of them has to join what all of them read


class NoProcesses(Exception):  # noqa: N818 - what is the matter
    """None could be started, or one of them died."""


def useful() -> int:
    """How many can work at a time here, up to ``USEFUL``."""
    if hasattr(os, "sched_getaffinity"):
        return min(USEFUL, len(os.sched_getaffinity(0)))
    return min(USEFUL, os.cpu_count() or 1)


@contextmanager
def pool(count: int) -> Iterator[Executor]:
    """So many processes. Whatever the system denies in the body raises :class:`NoProcesses`."""
    try:
        from concurrent.futures import BrokenExecutor, ProcessPoolExecutor  # slow to import
    except ImportError as error:
        raise NoProcesses from error
    try:
        with ProcessPoolExecutor(count) as processes:
            yield processes
    except (OSError, ImportError, NotImplementedError, BrokenExecutor) as error:
        raise NoProcesses from error
