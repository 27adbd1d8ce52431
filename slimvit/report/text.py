"""Tables for Markdown and the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from slimvit.utils.escaping import in_line, in_markdown, in_terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NAMED = 3
"""Names that `listed` shows at most."""
SPLIT = {"agreement": "agree-\nment"}
"""Headings hyphenated for the terminal; others break at spaces."""


def listed(names: Sequence[str]) -> str:
    """Return `a, b, c and 4 more`."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Return a Markdown table whose columns also line up as plain text.

    Args:
        header: Headings.
        rows: Cells, which are escaped.
        texts: Number of columns aligned left; the rest is aligned right.
    """
    lines = [list(header), *([in_markdown(cell) for cell in row] for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * w if i < texts else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    aligned = [
        [cell.ljust(w) if i < texts else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [aligned[0], rule, *aligned[1:]])


def print_cells(
    header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1, file: TextIO | None = None, gap: int = 2
) -> None:
    """Print a table without truncation, plain ASCII in a file or a pipe.

    Args:
        header: Headings, with line breaks.
        rows: Cells.
        texts: Number of columns aligned left; the rest is aligned right.
        file: Default: stdout.
        gap: Spaces between two columns.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file or sys.stdout, highlight=False)
    table = _empty_table(console, gap)
    for i, name in enumerate(header):
        head = in_terminal(SPLIT.get(name, name if "\n" in name else name.replace(" ", "\n")))
        table.add_column(head, justify="left" if i < texts else "right", no_wrap=True, vertical="bottom")
    for row in rows:
        table.add_row(*(Text(in_line(cell)) for cell in row))
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1000)).maximum)
    console.print(table, crop=False)


def _empty_table(console: Console, gap: int) -> Table:
    from rich import box
    from rich.table import Table

    style = box.SIMPLE_HEAD if console.is_terminal else box.Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)
    return Table(box=style, padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False)
