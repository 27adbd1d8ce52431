"""Pictures of several runs: accuracy against FLOPs or latency, with the front of points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slimvit.report.columns import METRICS
from slimvit.report.compare.comparison import Comparison
from slimvit.report.compare.rows import ComparisonRow
from slimvit.report.compare.series import Series, front, key_words
from slimvit.report.plot_style import (
    FLOPS_AXIS,
    INK,
    MUTED,
    SERIES,
    TITLE,
    plain_axes,
    save_figure,
    short,
    spread_labels,
)

LABELLED = 12
"""Rows up to which points are named in the picture."""
COLOURED = len(SERIES)
"""Series up to which each has a colour; with more, all are grey and points on the front are numbered."""
LONGEST = 40
"""Characters of a label."""
BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
"""Background of a label, so that lines do not cross it."""
COSTS = {"macs": (FLOPS_AXIS, 1e9, "FLOPs"), "latency_ms": ("latency of one image (ms)", 1.0, "latency")}
"""Cost -> (axis label, unit, name in the title)."""


def accuracy_against(comparison: Comparison, cost: str, path: Path) -> None:
    """Draw points with their spread over the seeds, one line per series, with a ring around points on the front.

    Args:
        comparison: The runs.
        cost: Key of `COSTS`.
        path: The picture.
    """
    gain = comparison.gain
    assert gain is not None
    fig = Figure(figsize=(7.6, 5.0), layout="constrained")
    axes = plain_axes(fig)
    axes.margins(x=0.14, y=0.14)
    for i, series in enumerate(comparison.series):
        _draw_series(axes, series, cost, gain, _colour(i, comparison))
    best = front(comparison.points, cost, gain) if len(comparison.points) > 1 else []
    _draw_front(axes, best, cost, gain)
    _draw_fixed(axes, comparison, cost, gain)
    if _is_grey(comparison):
        _number(axes, best, cost, gain)
    label = METRICS[gain].label
    axes.set_xlabel(COSTS[cost][0], color=INK)
    axes.set_ylabel(label, color=INK)
    axes.set_title(f"{label.removesuffix(' (%)').capitalize()} against {COSTS[cost][2]}", **TITLE)
    fig.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, labelcolor=INK)
    named = [] if _is_grey(comparison) else _names(comparison)
    placed = [(*at, text) for row, text in named if (at := _at(row, cost, gain)) is not None]
    spread_labels(fig, axes, placed, color=INK, fontsize=8, bbox=BEHIND, zorder=6)
    save_figure(fig, path)


def _at(row: ComparisonRow, cost: str, gain: str) -> tuple[float, float] | None:
    x, y = row.value(cost), row.value(gain)
    return None if x is None or y is None else (x / COSTS[cost][1], y)


def _is_grey(comparison: Comparison) -> bool:
    return len(comparison.series) > COLOURED


def _colour(number: int, comparison: Comparison) -> str:
    return MUTED if _is_grey(comparison) else SERIES[number]


def _draw_series(axes: Axes, series: Series, cost: str, gain: str, colour: str) -> None:
    """One line in order of cost, with error bars of one standard deviation."""
    points = sorted((at, row.stats[gain].std or 0.0) for row in series.rows if (at := _at(row, cost, gain)) is not None)
    if not points:
        return
    x, y = zip(*(at for at, _ in points), strict=True)
    spreads = [std for _, std in points]
    label = short(series.label, LONGEST) if colour != MUTED and series.label else None
    bars: dict[str, Any] = {"yerr": spreads, "capsize": 2.5, "elinewidth": 1.0} if any(spreads) else {}
    style: dict[str, Any] = {"markersize": 6, "markeredgecolor": "white", "linewidth": 1.3, "zorder": 3}
    axes.errorbar(x, y, fmt="o-", color=colour, label=label, **style, **bars)


def _draw_front(axes: Axes, best: Sequence[ComparisonRow], cost: str, gain: str) -> None:
    """A ring around every point that no other measurably beats."""
    if best and (at := [a for row in best if (a := _at(row, cost, gain)) is not None]):
        ring: dict[str, Any] = {"s": 95, "facecolors": "none", "edgecolors": INK, "linewidths": 1.1, "zorder": 4}
        axes.scatter(*zip(*at, strict=True), label="not measurably beaten (one standard deviation)", **ring)


def _draw_fixed(axes: Axes, comparison: Comparison, cost: str, gain: str) -> None:
    """Originals as stars, references as squares."""
    for kind, marker, size in (("original", "*", 170), ("reference", "s", 48)):
        at = [a for row in comparison.rows if row.kind == kind and (a := _at(row, cost, gain)) is not None]
        if at:
            style: dict[str, Any] = {
                "s": size,
                "marker": marker,
                "color": INK,
                "edgecolors": "white",
                "linewidths": 0.8,
                "zorder": 5,
            }
            axes.scatter(*zip(*at, strict=True), label=kind, **style)


def _names(comparison: Comparison) -> list[tuple[ComparisonRow, str]]:
    """The labels of points; none if there are many."""
    if len(comparison.rows) > LABELLED:
        return []
    return [(row, short(text, LONGEST)) for row in comparison.rows if (text := _beside(row, comparison))]


def _number(axes: Axes, best: Sequence[ComparisonRow], cost: str, gain: str) -> None:
    """Number the points on the front in order of cost; the legend names them.

    A number is on the cheaper and more accurate side of its point, where few other points are.
    """
    above = 9 if METRICS[gain].higher_is_better else -9
    points = sorted(((at, row) for row in best if (at := _at(row, cost, gain)) is not None), key=lambda pair: pair[0])
    for i, (at, row) in enumerate(points[:LABELLED], start=1):
        style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 8}
        axes.annotate(str(i), at, xytext=(-8, above), color=INK, zorder=6, **style)
        size = 4.0 + 3.0 * len(str(i))
        axes.plot([], [], linestyle="", color=INK, marker=f"${i}$", markersize=size, label=short(row.name, LONGEST))


def _beside(row: ComparisonRow, comparison: Comparison) -> str:
    """The label of a point: its name without the words of the legend, or the last part of a folder."""
    if row.kind == "original":
        return comparison.label(row) if len(comparison.models) > 1 else ""
    series = next((s for s in comparison.series if row in s.rows), None)
    in_legend = set() if series is None else set(key_words(series.label))
    words = [word for word in key_words(row.name) if word not in in_legend]
    return ", ".join(words) if row.runs[0].sweep else ", ".join(Path(word).name for word in words)
