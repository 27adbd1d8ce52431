"""Checkpoints of a training: the last state, the best network, and a stop that saves the state first."""

from __future__ import annotations

import math
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimvit.utils.errors import DiskError, SlimvitError, StoreError
from slimvit.utils.files import disk_error, replacing
from slimvit.utils.output import STATE
from slimvit.utils.progress import COLUMNS

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
        with self.content_errors():
            self.position = "" if state is None else _position(state)
        return state

    def history(self) -> list[dict[str, Any]]:
        """Load the history rows of the last state."""
        state = self.last()
        with self.content_errors():
            return [] if state is None else checked_history(state)

    @contextmanager
    def content_errors(self) -> Iterator[None]:
        """Raise `StoreError` where the block finds that the last state is not of this training."""
        try:
            yield
        except SlimvitError:
            raise
        except Exception as error:  # torch raises any error for a state of another network
            raise _damaged(self.folder / LAST, error) from None

    def best(self) -> dict[str, Any] | None:
        """Load the weights of the best epoch; None if none was evaluated."""
        return _read(self.folder / BEST)

    def check_best(self, network: nn.Module) -> None:
        """Raise `StoreError` for weights of the best epoch that are not of this network."""
        weights, best = network.state_dict(), self.best()
        if best is not None and _shapes(best) != _shapes(weights):
            raise _damaged(self.folder / BEST, ValueError("it is of another network"))

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


def checked_history(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the history rows of a state; raises `ValueError` unless there is one of numbers for every epoch."""
    rows = state["history"]
    if not isinstance(rows, list) or len(rows) != state["epoch"]:
        raise ValueError(f"its history has not one row for each of {state['epoch']} epochs")
    for epoch, row in enumerate(rows, 1):
        if row["epoch"] != epoch or not all(is_number(row[name]) for name in ("loss", "lr", "seconds")):
            raise ValueError(f"row {epoch} of its history is none of a training")
        if not all(row.get(name) is None or is_number(row[name]) for name in COLUMNS):
            raise ValueError(f"row {epoch} of its history holds figures that are no numbers")
    return rows


def is_number(value: Any) -> bool:
    """Whether a value is a finite number and no truth value."""
    return type(value) in (int, float) and math.isfinite(value)


def _shapes(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in weights.items()}


def _position(state: dict[str, Any]) -> str:
    return f"{state['epoch']} epochs and {state['batch']} steps"


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as file:  # torch does not compare the checksums that it writes
            if (record := file.testzip()) is not None:
                raise ValueError(f"the checksum of {record} is another one")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError("it holds no training")
        return content
    except Exception as error:  # a damaged file can make torch raise any error
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> StoreError:
    reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
    return StoreError(f"{path}: damaged, so it cannot be resumed from ({reason}); begin anew with --force")


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
