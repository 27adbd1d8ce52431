"""Progress and messages on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from typing import Any, TypeVar

from slimvit.utils.escaping import in_line

T = TypeVar("T")

EVERY = 12.0
"""Seconds between two progress lines without a terminal."""


def track(items: Iterable[T], what: str, total: int | None = None, unit: str = "batches") -> Iterator[T]:
    """Yield `items` and show the progress of the loop over them, from the main process alone.

    A terminal shows a bar that vanishes when the loop ends; elsewhere a long loop prints lines (`progress_lines`).

    Args:
        items: The items of the loop.
        what: Title, such as `scoring heads`.
        total: Number of items; None takes their length where they have one.
        unit: Plural noun for the items.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    if not is_main():
        yield from items
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as rich_track

        yield from rich_track(items, description=what, total=total, console=Console(stderr=True), transient=True)
    else:
        yield from progress_lines(items, what, total, unit)


def progress_lines(
    items: Iterable[T], what: str, total: int | None, unit: str, clock: Callable[[], float] = time.monotonic
) -> Iterator[T]:
    """Yield `items` and log `scoring heads: 12 of 32 batches, 41 s left` every `EVERY` seconds."""
    started = last = clock()
    for done, item in enumerate(items):
        now = clock()
        if done and now - last >= EVERY:
            rest = "" if total is None else f", {(now - started) / done * (total - done):.0f} s left"
            log(f"{what}: {done} {'' if total is None else f'of {total} '}{unit}{rest}")
            last = now
        yield item


def log(text: str) -> None:
    """Print one line on stderr, from the main process alone; stdout is for results.

    A line that cannot be printed, such as on a full disk, stops nothing.
    """
    if is_main():
        with suppress(OSError):
            print(in_line(text), file=sys.stderr, flush=True)


COLUMNS = {"loss": ".4f", "lr": ".2e", "top1": ".2f", "agreement": ".2f", "feature_error": ".4f", "seconds": ".1f"}
"""Columns of the table of epochs, with their formats."""


def epoch_line(what: str, row: dict[str, Any], epochs: int, first: bool) -> str:
    """Return a row of the table of epochs, below the table's header for the `first` one."""
    cells = [f"{row['epoch']}/{epochs}"]
    cells += ["-" if row.get(name) is None else format(row[name], style) for name, style in COLUMNS.items()]
    line = "".join(f"{cell:>14}" for cell in cells)
    header = "".join(f"{name:>14}" for name in (f"{what} epoch", *(name.replace("_", " ") for name in COLUMNS)))
    return f"{header}\n{line}" if first else line


def is_main() -> bool:
    """Whether this is the main process; launchers number their processes in RANK."""
    return os.environ.get("RANK", "0") == "0"
