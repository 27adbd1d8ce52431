"""Ctrl-C and a polite kill during a training: let the step under way end, then save."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopFlag:
    """Whether somebody asked the training to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def stop_flag(listens: bool) -> Iterator[StopFlag]:
    """While the block runs, the first SIGINT or SIGTERM only sets the flag, and the next does what it always does.

    Nothing is changed when ``listens`` is off, or outside the main thread, where Python allows no handlers.
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
