"""Pictures of many runs: accuracy against FLOPs or latency, with the points that no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slimvit.report.comparison import Comparison
from slimvit.report.labels import spread_labels
from slimvit.report.rows import Row
from slimvit.report.series import Series, front, words
from slimvit.report.style import INK, MUTED, SERIES, TITLE, plain_axes, save

LABELLED = 12
"""With more points than this, none is named in the picture but those on the front."""
COLOURED = 10
"""With more lines than this, all are grey and none is in the legend."""
LONGEST = 34
"""Characters of a label."""
MARKERS = "osD^vP"
COSTS = {
    "macs": ("FLOPs (G), 1 multiply-add = 1", 1e9, "FLOPs"),
    "latency_ms": ("latency of one image (ms)", 1.0, "latency"),
}
"""Cost -> label of its axis, unit, its name in the title."""
GAINS = {"top1": "top-1 (%)", "agreement": "same prediction as the original (%)", "feature_error": "feature error"}


def accuracy_against(comparison: Comparison, cost: str, path: Path) -> None:
    """Points with their spread over the seeds, joined where they differ only in how much is cut."""
    gain = comparison.gain
    assert gain is not None
    fig = Figure(figsize=(7.6, 5.0), layout="constrained")
    axes = plain_axes(fig)
    axes.margins(x=0.14, y=0.14)
    grey = len(comparison.series) > COLOURED
    for i, series in enumerate(comparison.series):
        _draw_series(
            axes,
            series,
            cost,
            gain,
            MUTED if grey else SERIES[i % len(SERIES)],
            MARKERS[i // len(SERIES)] if not grey else "o",
            not grey,
        )
    best = front(comparison.points, cost, gain)
    _draw_front(axes, best, cost, gain)
    _draw_fixed(axes, comparison, cost, gain)
    axes.set_xlabel(COSTS[cost][0], color=INK)
    axes.set_ylabel(GAINS[gain], color=INK)
    axes.set_title(f"{GAINS[gain].removesuffix(' (%)').capitalize()} against {COSTS[cost][2]}", **TITLE)
    fig.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, labelcolor=INK)
    spread_labels(fig, axes, _labels(comparison, best, cost, gain), color=INK, fontsize=8)
    save(fig, path)


def _at(row: Row, cost: str, gain: str) -> tuple[float, float] | None:
    x, y = row.value(cost), row.value(gain)
    return None if x is None or y is None else (x / COSTS[cost][1], y)


def _draw_series(axes: Axes, series: Series, cost: str, gain: str, colour: str, marker: str, named: bool) -> None:
    """One line, from the cheapest point on, with error bars of one standard deviation."""
    known = sorted((at, row.stats[gain].std or 0.0) for row in series.rows if (at := _at(row, cost, gain)) is not None)
    if not known:
        return
    x, y = zip(*(at for at, _ in known), strict=True)
    spreads = [std for _, std in known]
    label = _short(series.label) if named and series.label else None
    bars: dict[str, Any] = {"yerr": spreads, "capsize": 2.5, "elinewidth": 1.0} if any(spreads) else {}
    style: dict[str, Any] = {
        "color": colour,
        "marker": marker,
        "markersize": 6,
        "markeredgecolor": "white",
        "linewidth": 1.3,
        "zorder": 3,
    }
    axes.errorbar(x, y, label=label, **style, **bars)


def _draw_front(axes: Axes, best: Sequence[Row], cost: str, gain: str) -> None:
    """A ring around every point that no other beats."""
    if best and (at := [a for row in best if (a := _at(row, cost, gain)) is not None]):
        ring: dict[str, Any] = {"s": 95, "facecolors": "none", "edgecolors": INK, "linewidths": 1.1, "zorder": 4}
        axes.scatter(*zip(*at, strict=True), label="no other point is cheaper and as good", **ring)


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


def _labels(comparison: Comparison, best: Sequence[Row], cost: str, gain: str) -> list[tuple[float, float, str]]:
    """What is written beside the points: all of a few, of many those on the front where no legend tells lines apart."""
    rows = [row for row in comparison.rows if _at(row, cost, gain) is not None]
    if len(rows) > LABELLED:
        named = list(best) if len(comparison.series) > COLOURED and len(best) <= LABELLED else []
        rows = [row for row in rows if row.kind != "point"] + named
        rows = rows if len(rows) <= LABELLED else []
    found = []
    for row in rows:
        at = _at(row, cost, gain)
        text = _beside(row, comparison)
        if at is not None and text:
            found.append((*at, _short(text)))
    return found


def _beside(row: Row, comparison: Comparison) -> str:
    """The name, without what the legend says; of a folder its last part."""
    if row.kind == "original":
        return comparison.label(row) if len(comparison.models) > 1 else ""
    series = next((s for s in comparison.series if row in s.rows), None)
    if series is not None and len(series.rows) == 1 and series.label and len(comparison.series) <= COLOURED:
        return ""
    told = set() if series is None or len(comparison.series) > COLOURED else set(series.label.split(", "))
    return ", ".join(w for w in words(row) if w not in told) if row.runs[0].sweep else Path(row.name).name


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
