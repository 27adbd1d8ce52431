"""What becomes of the processes that load images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from slimvit.utils.errors import WorkerError

DEAD = "DataLoader worker (pid"
"""How torch begins to tell of one, wherever in the main process it learns of it."""


@contextmanager
def worker_deaths(workers: int) -> Iterator[None]:
    """Raise `WorkerError` where one of `workers` processes has died."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(DEAD):
            raise
        how = "was killed" if "killed by signal" in str(error) else "ended"
        why = (
            "the memory that it shares with this one (/dev/shm) is too small"
            if "Bus error" in str(error)
            else "mostly that is a machine out of memory"
        )
        raise WorkerError(
            f"--workers {workers}: a process that loads images {how}; {why}: give fewer workers, or 0"
        ) from None
