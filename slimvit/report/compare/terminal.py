"""Many runs side by side, at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from slimvit.report.columns import Column
from slimvit.report.compare.cells import cells_of, figures_told, legend, spread_text
from slimvit.report.compare.comparison import Comparison
from slimvit.report.compare.formats import CLAIMED, claim_cells
from slimvit.report.compare.pick import Pick
from slimvit.report.terminal import print_cells

PLUS_MINUS = " +-"
IN_TERMINAL = {"model", "latency (ms)", "front", "-", "+-"}
"""Lines of the legend that a reader needs at once; the rest is in the written table."""


def print_comparison(comparison: Comparison, file: TextIO | None = None) -> None:
    file = file or sys.stdout
    cells = cells_of(comparison, PLUS_MINUS, in_terminal=True)
    print_cells(cells.header, cells.rows, len(cells.texts), file)
    lines = [line.replace("±", "+-") for line in legend(cells, comparison)]
    print("", *(line for line in lines if line.split(":")[0] in IN_TERMINAL), sep="\n", file=file)
    if comparison.claims:
        print("", file=file)
        print_cells(CLAIMED, claim_cells(comparison.claims, PLUS_MINUS), 2, file)
    for pick in comparison.picks:
        print("", *_picked(pick, figures_told(comparison)), sep="\n", file=file)


def _picked(pick: Pick, columns: Sequence[Column]) -> list[str]:
    """What was asked, the point and its figures, and the command that makes it."""
    row = pick.row
    figures = [f"{c.name} {spread_text(c, row.stats[c.key], PLUS_MINUS)}" for c in columns if c.key in row.stats]
    return [
        f"pick {pick.wish.text} ({pick.wish.goal}): {row.name}",
        f"  {', '.join(figures)}",
        f"  {row.runs[0].command()}",
    ]
