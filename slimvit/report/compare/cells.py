"""The table of many runs as text cells: which columns it has, how a figure with its spread is written, its legend."""

from __future__ import annotations

from dataclasses import dataclass

from slimvit.report.columns import ACCURACY, LEGEND, NEURONS, NOT_MEASURED, SIZE, Column
from slimvit.report.compare.comparison import Comparison
from slimvit.report.compare.rows import ComparisonRow, Stat
from slimvit.report.compare.timing_setting import setting_said

SPEED = (Column("latency (ms)", "latency_ms", ".2f"), Column("images/s", "throughput", ".0f", in_terminal=False))
EPOCHS = Column("epochs", "epochs", ".0f")
FIGURES = (*SIZE, *ACCURACY, *SPEED, EPOCHS)
"""Every figure of a row, in order."""
FRONT = "front"
ON_FRONT = "*"


@dataclass(frozen=True)
class Cells:
    """A table for people. Columns that nobody measured, and texts that are the same in every row, are left out."""

    texts: tuple[str, ...]
    """Names of the columns before the figures."""
    figures: tuple[Column, ...]
    ends: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def header(self) -> tuple[str, ...]:
        return (*self.texts, *(c.name for c in self.figures), *self.ends)

    @property
    def has_gaps(self) -> bool:
        return any(NOT_MEASURED in row for row in self.rows)


def cells_of(comparison: Comparison, plus_minus: str = " ± ", in_terminal: bool = False) -> Cells:
    texts = _texts(comparison)
    measured = {key for row in comparison.rows for key in row.stats}
    wanted = [c for c in figures_told(comparison) if c.in_terminal or not in_terminal]
    figures = tuple(c for c in wanted if c.key in measured and _shown(c, comparison))
    ends = _ends(comparison)
    rows = []
    for row in comparison.rows:
        named = {"model": row.model, "name": name_of(row), "data": row.data}
        last = {"seeds": str(len(row.runs)) if row.runs else NOT_MEASURED, FRONT: ON_FRONT * (row in comparison.front)}
        numbers = (spread_text(c, row.stats.get(c.key), plus_minus) for c in figures)
        rows.append((*(named[t] for t in texts), *numbers, *(last[e] for e in ends)))
    return Cells(texts, figures, ends, tuple(rows))


def _texts(comparison: Comparison) -> tuple[str, ...]:
    mixed = len({row.data for row in comparison.rows}) > 1
    return ("model",) * (len(comparison.models) > 1) + ("name",) + ("data",) * mixed


def figures_told(comparison: Comparison) -> tuple[Column, ...]:
    """:data:`FIGURES`, with the neurons where a row has fewer than its original."""
    shares = [row.value("neurons_share") for row in comparison.rows]
    fewer = any(share is not None and share < 1 for share in shares)
    return tuple(c for c in FIGURES if c is not NEURONS or fewer)


def _shown(column: Column, comparison: Comparison) -> bool:
    """Epochs are shown where something was trained."""
    return column is not EPOCHS or any(row.value("epochs") for row in comparison.rows)


def _ends(comparison: Comparison) -> tuple[str, ...]:
    several = any(len(row.runs) > 1 for row in comparison.rows)
    return ("seeds",) * several + (FRONT,) * (len(comparison.points) > 1)


def name_of(row: ComparisonRow) -> str:
    return f"{row.name} (reference)" if row.kind == "reference" else row.name


def spread_text(column: Column, stat: Stat | None, plus_minus: str) -> str:
    """``86.0 ± 0.3``; without the spread where it would read 0."""
    if stat is None:
        return NOT_MEASURED
    std = format((stat.std or 0.0) / column.unit, column.style.lstrip("+"))
    return column.text(stat.mean) + (plus_minus + std) * (float(std) > 0)


def legend(cells: Cells, comparison: Comparison) -> list[str]:
    """What the columns mean, a line each."""
    lines = [text.format(reference="original") for name, text in LEGEND.items() if name in cells.header]
    if len(comparison.models) == 1:
        lines.insert(0, f"model: {comparison.models[0]}")
    if comparison.setting is not None:
        times = "latency (ms): one image; images/s: at the batch that fills the machine"
        lines.append(f"{times}; {setting_said(comparison.setting)}")
    if any(stat.std for row in comparison.rows for stat in row.stats.values()):
        lines.append("±: sample standard deviation over the seeds")
    if FRONT in cells.header:
        lines.append(
            f"{FRONT}: {ON_FRONT} no other point has as few FLOPs and is as accurate (references do not compete)"
        )
    return lines + [f"{NOT_MEASURED}: not measured"] * cells.has_gaps
