"""A table for people at a terminal: never cut, plain ASCII where it goes into a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

SPLIT = {"agreement": "agree-\nment"}


def print_cells(
    header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1, file: TextIO | None = None
) -> None:
    """The first ``texts`` columns are aligned left, figures right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file or sys.stdout, highlight=False)
    style = box.SIMPLE_HEAD if console.is_terminal else box.Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)
    drawn = Table(box=style, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for i, name in enumerate(header):
        head = SPLIT.get(name, name.replace(" ", "\n"))
        drawn.add_column(head, justify="left" if i < texts else "right", no_wrap=True, vertical="bottom")
    for row in rows:
        drawn.add_row(*(Text(_harmless(cell)) for cell in row))
    console.width = max(console.width, console.measure(drawn, options=console.options.update(max_width=1000)).maximum)
    console.print(drawn, crop=False)


def _harmless(cell: str) -> str:
    """Names come out of files too: characters that a terminal takes for orders are shown as question marks."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in cell)
