"""Files of a training under way (its last state, its best network), and stopping it without losing them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from slimvit.utils.errors import DiskError, SlimvitError, StoreError
from slimvit.utils.files import disk_error

LAST, BEST = "last.pt", "best.pt"


class Interrupted(SlimvitError):
    """The user, or whoever runs the machine, asked the training to stop; its state is saved."""

    exit_code = 130
    """What a shell expects of a command that an interrupt ended."""


@dataclass
class Checkpoints:
    """The files of one training in `folder`, which must exist."""

    folder: Path
    go_on: str = ""
    """The command that goes on with the training, for messages."""
    minutes: float = 10.0
    """A state is due when this much has passed since the last one."""
    writes: bool = True
    """Whether this is the process that writes."""
    saved: float = field(default_factory=time.monotonic)
    place: str = ""
    """Where in the training the last state was taken."""

    @property
    def due(self) -> bool:
        """Whether more than `minutes` have passed since the last state was saved."""
        return time.monotonic() - self.saved > 60 * self.minutes

    def save(self, state: dict[str, Any]) -> None:
        """Replace the last state."""
        self._write(state, LAST)
        self.saved = time.monotonic()
        self.place = _place(state)

    def describe(self) -> str | None:
        """The last state in words; None before the first."""
        return f"{self.folder / LAST} ({self.place})" if self.place else None

    def save_best(self, weights: dict[str, Any]) -> None:
        """Replace the best network so far."""
        self._write(weights, BEST)

    def last(self) -> dict[str, Any] | None:
        """The last state; None before the first."""
        state = _read(self.folder / LAST)
        self.place = "" if state is None else _place(state)
        return state

    def history(self) -> list[dict[str, Any]]:
        """The rows of the epochs that the last state has behind it."""
        state = self.last()
        return [] if state is None else state["history"]

    def best(self) -> dict[str, Any] | None:
        """The weights of the best epoch; None where none was measured."""
        return _read(self.folder / BEST)

    def _write(self, content: dict[str, Any], name: str) -> None:
        def write(path: Path) -> None:
            with path.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())

        self.put(name, write)

    def put(self, name: str, write: Callable[[Path], None]) -> None:
        """Replace a file beside the states by what `write` writes to the path that it is given."""
        if not self.writes:
            return
        partial = self.folder / f".{name}.partial"
        try:
            write(partial)
            os.replace(partial, self.folder / name)
        except (OSError, RuntimeError) as error:
            reason = error.__context__ if isinstance(error, RuntimeError) else error
            if not isinstance(reason, OSError):  # torch, closing its file, buries the disk's own complaint
                raise
            with suppress(OSError):
                partial.unlink()
            raise DiskError(
                f"{disk_error(self.folder / name, reason)}. The state before it is intact; then go on with: "
                f"{self.go_on}"
            ) from None


def _place(state: dict[str, Any]) -> str:
    return f"{state['epoch']} epochs and {state['batch']} steps"


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        reason = " ".join(str(error).split())[:200]
        raise StoreError(f"{path}: damaged, so it cannot be resumed from ({reason}); begin anew with --force") from None


class StopFlag:
    """Whether the user or the system asked the training to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def stop_flag(listens: bool) -> Iterator[StopFlag]:
    """Catch the first SIGINT or SIGTERM in the block: it sets the flag, and the next one acts as usual.

    Signals are left alone where `listens` is false, and outside the main thread, where Python allows no handlers.
    """
    flag = StopFlag()
    if not listens or threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(*_: Any) -> None:
        flag.asked = True
        give_back()

    for number in before:
        signal.signal(number, ask)
    try:
        yield flag
    finally:
        give_back()
