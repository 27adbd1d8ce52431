"""Checkpoints of a training: the last state, the best network, and a stop that saves the state first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from slimvit.utils.errors import DiskError, SlimvitError, StoreError
from slimvit.utils.files import disk_error, replacing
from slimvit.utils.output import STATE

LAST, BEST = STATE, "best.pt"


class Interrupted(SlimvitError):
    """A signal stopped the training; its state is saved."""

    exit_code = 130
    """Exit status of an interrupted command by the convention of shells."""


@dataclass
class Checkpoints:
    """Checkpoint files of one training in an existing folder."""

    folder: Path
    resume_command: str = ""
    """Command that resumes the training, for messages."""
    minutes: float = 10.0
    """Minutes between two saved states within an epoch."""
    writes: bool = True
    """Whether this process writes the files."""
    saved_at: float = field(default_factory=time.monotonic)
    position: str = ""
    """Epochs and steps of the last state, in words."""

    @property
    def due(self) -> bool:
        """Whether the last state is older than `minutes`."""
        return time.monotonic() - self.saved_at > 60 * self.minutes

    def save(self, state: dict[str, Any]) -> None:
        """Replace the last state."""
        self._write(state, LAST)
        self.saved_at = time.monotonic()
        self.position = _position(state)

    def describe(self) -> str | None:
        """Return file and position of the last state in words, or None."""
        return f"{self.folder / LAST} ({self.position})" if self.position else None

    def save_best(self, weights: dict[str, Any]) -> None:
        """Replace the weights of the best epoch."""
        self._write(weights, BEST)

    def last(self) -> dict[str, Any] | None:
        """Load the last state; None if there is none."""
        state = _read(self.folder / LAST)
        self.position = "" if state is None else _position(state)
        return state

    def history(self) -> list[dict[str, Any]]:
        """Load the history rows of the last state."""
        state = self.last()
        return [] if state is None else state["history"]

    def best(self) -> dict[str, Any] | None:
        """Load the weights of the best epoch; None if none was evaluated."""
        return _read(self.folder / BEST)

    def _write(self, content: dict[str, Any], name: str) -> None:
        def write(path: Path) -> None:
            with path.open("wb") as file:
                torch.save(content, file)

        self.put(name, write)

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Replace a file in the folder atomically; `write` writes the new content to the path that it gets."""
        if not self.writes:
            return
        try:
            with replacing(self.folder / name) as partial:
                write(partial)
        except (OSError, RuntimeError) as error:
            cause = error.__context__ if isinstance(error, RuntimeError) else error
            if not isinstance(cause, OSError):  # torch raises a RuntimeError over the disk's OSError
                raise
            raise DiskError(
                f"{disk_error(self.folder / name, cause)}. The state before it is intact; then go on with: "
                f"{self.resume_command}"
            ) from None


def _position(state: dict[str, Any]) -> str:
    return f"{state['epoch']} epochs and {state['batch']} steps"


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make torch raise any error
        reason = " ".join(str(error).split())[:200]
        raise StoreError(f"{path}: damaged, so it cannot be resumed from ({reason}); begin anew with --force") from None


class StopFlag:
    """Whether a signal asked the training to stop."""

    def __init__(self) -> None:
        self.is_set = False


@contextmanager
def stop_flag(enabled: bool) -> Iterator[StopFlag]:
    """Let the first SIGINT or SIGTERM in the block set a flag; later ones act as usual.

    Without `enabled`, and outside the main thread, no handler is installed.
    """
    flag = StopFlag()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield flag
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def set_flag(*_: Any) -> None:
        flag.is_set = True
        restore()

    for number in handlers:
        signal.signal(number, set_flag)
    try:
        yield flag
    finally:
        restore()
