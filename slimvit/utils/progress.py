"""Progress bars on stderr, silent when stderr is no terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` under a progress bar titled ``what``; the bar vanishes when the loop ends."""
    if not (sys.stderr.isatty() and is_main()):
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description=what, total=total, console=Console(stderr=True), transient=True)


def log(text: str) -> None:
    """One line of narration on stderr (stdout belongs to the result), from the main process alone."""
    if is_main():
        print(text, file=sys.stderr, flush=True)


COLUMNS = {"loss": ".4f", "lr": ".2e", "top1": ".2f", "agreement": ".2f", "feature_error": ".4f", "seconds": ".1f"}
"""Of the table of epochs: what is shown, and how."""


def epoch_line(what: str, row: dict[str, Any], epochs: int, first: bool) -> str:
    """A row of the table of epochs; the ``first`` one comes with the head of the table."""
    shown = [f"{row['epoch']}/{epochs}"]
    shown += ["-" if row.get(name) is None else format(row[name], style) for name, style in COLUMNS.items()]
    line = "".join(f"{cell:>14}" for cell in shown)
    head = "".join(f"{name:>14}" for name in (f"{what} epoch", *(name.replace("_", " ") for name in COLUMNS)))
    return f"{head}\n{line}" if first else line


def is_main() -> bool:
    """Launchers of several processes number them in RANK."""
    return os.environ.get("RANK", "0") == "0"
