"""A comparison as a table of text cells, its legend, and the terminal output of `slimvit report`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TextIO

from slimvit.report.columns import LATENCY, NOT_MEASURED, THROUGHPUT, Column, legend_of, size_and_accuracy
from slimvit.report.compare.comparison import Comparison
from slimvit.report.compare.measurement import setting_text
from slimvit.report.compare.pick import Pick
from slimvit.report.compare.published import CLAIM_HEADER, claim_cells
from slimvit.report.compare.rows import ComparisonRow, Stat
from slimvit.report.text import print_cells
from slimvit.utils.escaping import in_line

EPOCHS = Column(key="epochs", header="epochs", format=".0f", fixed=True)
FRONT = "front"
ON_FRONT = "*"
PLUS_MINUS = " +-"
"""Sign between mean and spread at the terminal."""
TERMINAL_LEGEND = {"model", "latency (ms)", FRONT, "-", "+-"}
"""First words of the legend's lines at the terminal; files have all lines."""


@dataclass(frozen=True)
class Cells:
    """A text table, without empty columns and without texts that are the same in every row."""

    texts: tuple[str, ...]
    """Headings before the figures."""
    figures: tuple[Column, ...]
    ends: tuple[str, ...]
    """Headings after the figures."""
    rows: tuple[tuple[str, ...], ...]

    @property
    def header(self) -> tuple[str, ...]:
        """All headings."""
        return (*self.texts, *(c.header for c in self.figures), *self.ends)

    @property
    def has_gaps(self) -> bool:
        """Whether a figure is missing."""
        return any(NOT_MEASURED in row for row in self.rows)


def cells_of(comparison: Comparison, plus_minus: str = " ± ", in_terminal: bool = False) -> Cells:
    """Return the table of a comparison.

    Args:
        comparison: The runs.
        plus_minus: Sign between a mean and its spread.
        in_terminal: Leave out the columns that a terminal has no room for.
    """
    texts, ends = _texts(comparison), _ends(comparison)
    measured = {key for row in comparison.rows for key in row.stats}
    columns = tuple(c for c in figure_columns(comparison) if c.key in measured and (c.in_terminal or not in_terminal))
    spread = [c for c in columns if has_spread(c, comparison)]
    rows = []
    for row in comparison.rows:
        before = {"model": row.model, "name": name_of(row), "data": row.data}
        seeds = str(len(row.runs)) if row.runs else NOT_MEASURED
        after = {"seeds": seeds, FRONT: ON_FRONT * (row in comparison.front)}
        figures = (spread_text(c, row.stats.get(c.key), plus_minus if c in spread else None) for c in columns)
        rows.append((*(before[t] for t in texts), *figures, *(after[e] for e in ends)))
    return Cells(texts, columns, ends, tuple(rows))


def figure_columns(comparison: Comparison) -> list[Column]:
    """Return the columns of figures, measured or not; epochs only if some run trained."""
    trained = any(row.value(EPOCHS.key) for row in comparison.rows)
    return [*size_and_accuracy(comparison.parts), LATENCY, THROUGHPUT, *[EPOCHS] * trained]


def _texts(comparison: Comparison) -> tuple[str, ...]:
    mixed = len({row.data for row in comparison.rows}) > 1
    return ("model",) * (len(comparison.models) > 1) + ("name",) + ("data",) * mixed


def _ends(comparison: Comparison) -> tuple[str, ...]:
    several = any(len(row.runs) > 1 for row in comparison.rows)
    return ("seeds",) * several + (FRONT,) * (len(comparison.points) > 1)


def name_of(row: ComparisonRow) -> str:
    """Return the name of a row; references are marked."""
    return f"{row.name} (reference)" if row.kind == "reference" else row.name


def has_spread(column: Column, comparison: Comparison) -> bool:
    """Return whether a column shows spreads, including those of 0."""
    return not column.fixed or any(row.stats[column.key].std for row in comparison.rows if column.key in row.stats)


def spread_text(column: Column, stat: Stat | None, plus_minus: str | None) -> str:
    """Return `86.0 ± 0.3`; without the spread for one seed, or if `plus_minus` is None."""
    if stat is None:
        return NOT_MEASURED
    if stat.std is None or plus_minus is None:
        return column.text(stat.mean)
    return f"{column.text(stat.mean)}{plus_minus}{stat.std / column.unit:{column.format.lstrip('+')}}"


def legend(cells: Cells, comparison: Comparison) -> list[str]:
    """Return the legend's lines."""
    lines = [f"model: {comparison.models[0]}"] * (len(comparison.models) == 1)
    lines += legend_of(cells.figures, "original")
    if comparison.setting is not None:
        times = "latency (ms): one image; images/s: at the batch that fills the machine"
        lines.append(f"{times}; {setting_text(comparison.setting)}")
    if any(len(row.runs) > 1 for row in comparison.rows):
        lines.append("±: sample standard deviation over the seeds")
    if FRONT in cells.header:
        lines.append(
            f"{FRONT}: {ON_FRONT} not measurably beaten: no point of as few FLOPs is more accurate beyond ± of both "
            "(references do not compete)"
        )
    return lines + [f"{NOT_MEASURED}: not measured"] * cells.has_gaps


def print_comparison(comparison: Comparison, file: TextIO | None = None) -> None:
    """Print the table, its legend, published figures and picks.

    Args:
        comparison: The runs.
        file: Default: stdout.
    """
    file = file or sys.stdout
    cells = cells_of(comparison, PLUS_MINUS, in_terminal=True)
    print_cells(cells.header, cells.rows, len(cells.texts), file)
    lines = [in_line(line).replace("±", "+-") for line in legend(cells, comparison)]
    print("", *(line for line in lines if line.split(":")[0] in TERMINAL_LEGEND), sep="\n", file=file)
    if comparison.claims:
        print("", file=file)
        print_cells(CLAIM_HEADER, claim_cells(comparison.claims, PLUS_MINUS), 2, file)
    for pick in comparison.picks:
        print("", *map(in_line, _pick_lines(pick, comparison)), sep="\n", file=file)


def _pick_lines(pick: Pick, comparison: Comparison) -> list[str]:
    """The rule, the name and figures of the picked point, and the command that repeats its run."""
    row = pick.row
    columns = [c for c in figure_columns(comparison) if c.key in row.stats]
    signs = [PLUS_MINUS if has_spread(c, comparison) else None for c in columns]
    texts = [spread_text(c, row.stats[c.key], sign) for c, sign in zip(columns, signs, strict=True)]
    figures = [f"{c.header} {text}" for c, text in zip(columns, texts, strict=True)]
    return [
        f"pick {pick.rule.text} ({pick.rule.goal}): {row.name}",
        f"  {', '.join(figures)}",
        f"  {row.runs[0].command()}",
    ]
