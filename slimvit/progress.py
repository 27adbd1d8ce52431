"""Progress bars on stderr, silent when stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` under a progress bar titled ``what``; the bar vanishes when the loop ends."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description=what, total=total, console=Console(stderr=True), transient=True)


def say(text: str) -> None:
    """One line of narration on stderr (stdout belongs to the result)."""
    print(text, file=sys.stderr, flush=True)
