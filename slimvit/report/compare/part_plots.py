"""Pictures of several runs: FLOPs by part of the network, and accuracy by epoch of the fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slimvit.report.columns import METRICS
from slimvit.report.compare.comparison import Comparison
from slimvit.report.compare.rows import ComparisonRow
from slimvit.report.compare.tradeoff_plots import COLOURED
from slimvit.report.plot_style import (
    BLUE,
    FLOPS_AXIS,
    GRID,
    INK,
    MUTED,
    ORANGE,
    SERIES,
    TITLE,
    plain_axes,
    save_figure,
    short,
)

PLOTTED_PARTS = {"qkv": BLUE, "attention": ORANGE, "proj": "#3a9a6e", "mlp": "#9aa5b1"}
REST = "rest"
BARS = 40
"""Rows up to which all get a bar; with more, only originals, references and points on the front."""
LONGEST = 46
"""Characters of a row's name."""
Curve = tuple[list[int], list[float]]


def rows_with_parts(comparison: Comparison) -> list[ComparisonRow]:
    """Return the rows that get a bar."""
    rows = [row for row in comparison.rows if row.parts is not None]
    return rows if len(rows) <= BARS else [r for r in rows if r.kind != "point" or r in comparison.front][:BARS]


def flops_by_part(comparison: Comparison, path: Path) -> None:
    """Draw one bar per row, originals on top."""
    rows = rows_with_parts(comparison)
    fig = Figure(figsize=(7.6, 1.3 + 0.27 * len(rows)), layout="constrained")
    axes = plain_axes(fig)
    left = [0.0] * len(rows)
    for part, colour in (PLOTTED_PARTS | {REST: GRID}).items():
        widths = [_part(row, part) / 1e9 for row in rows]
        axes.barh(range(len(rows)), widths, 0.72, left=left, color=colour, label=part, zorder=2)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [short(comparison.label(row), LONGEST) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(FLOPS_AXIS, color=INK)
    axes.set_title("FLOPs by part of the network", **TITLE)
    fig.legend(loc="outside lower center", ncols=len(PLOTTED_PARTS) + 1, frameon=False, fontsize=8, labelcolor=INK)
    save_figure(fig, path)


def _part(row: ComparisonRow, part: str) -> float:
    parts = row.parts or {}
    return sum(v for k, v in parts.items() if k not in PLOTTED_PARTS) if part == REST else parts.get(part, 0.0)


def curve_key(comparison: Comparison) -> str | None:
    """Return the key of the accuracy to draw by epoch: top-1 if some run measured it, or agreement, or None."""
    histories = [run.history for row in comparison.rows for run in row.runs]
    return next((k for k in ("top1", "agreement") if any(k in line for h in histories for line in h)), None)


def fine_tuning(comparison: Comparison, key: str, path: Path) -> None:
    """Draw one curve per row, the mean over its seeds; with many rows, those of a series share a colour.

    Args:
        comparison: The runs.
        key: Key of the figure.
        path: The picture.
    """
    fig = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = plain_axes(fig)
    rows = [(row, curve) for row in comparison.rows if (curve := _curve(row, key)) is not None]
    seen: set[str] = set()
    styles = _styles([row for row, _ in rows], comparison)
    for (_, curve), (label, colour) in zip(rows, styles, strict=True):
        shown = None if label in seen or not label else short(label, LONGEST)
        axes.plot(*curve, "o-", color=colour, markersize=3, linewidth=1.3, alpha=0.9, label=shown)
        seen.add(label)
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel(METRICS[key].label, color=INK)
    axes.set_title("Fine-tuning: validation images, epoch by epoch", **TITLE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if any(seen):
        fig.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, labelcolor=INK)
    save_figure(fig, path)


def _styles(rows: Sequence[ComparisonRow], comparison: Comparison) -> list[tuple[str, str]]:
    """Label and colour of every row: its own, that of its series, or with many series grey but for the front."""
    front = [row.name for row in comparison.front][: len(SERIES)]
    if len(rows) <= len(SERIES):
        return [(comparison.label(row), SERIES[i]) for i, row in enumerate(rows)]
    if len(comparison.series) > COLOURED:
        return [(row.name, SERIES[front.index(row.name)]) if row.name in front else ("", MUTED) for row in rows]
    number = {row.name: i for i, series in enumerate(comparison.series) for row in series.rows}
    return [
        (comparison.series[number[r.name]].label, SERIES[number[r.name]]) if r.name in number else (r.name, INK)
        for r in rows
    ]


def _curve(row: ComparisonRow, key: str) -> Curve | None:
    """The measured epochs, and the mean figure over the seeds."""
    values: dict[int, list[float]] = {}
    for run in row.runs:
        for line in run.history:
            if key in line:
                values.setdefault(line["epoch"], []).append(line[key])
    return (sorted(values), [mean(values[epoch]) for epoch in sorted(values)]) if values else None
