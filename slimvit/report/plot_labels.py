"""Text labels beside points, moved up or down until none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

LINE = 12.0
"""Height of a line of text, points."""

CHARACTER = 5.0
"""Width of a character, points."""


def spread_labels(fig: Figure, axes: Axes, labels: Sequence[tuple[float, float, str]], **style: Any) -> None:
    """Write each (x, y, text) beside its point, on the left in the right half; a moved label gets a thin line."""
    fig.draw_without_rendering()
    to_points = 72.0 / fig.dpi
    left, right = axes.get_xlim()
    taken: list[tuple[float, float, float]] = []
    for x, y, text in sorted(labels, key=lambda label: label[1]):
        before = x > (left + right) / 2
        px, py = axes.transData.transform((x, y)) * to_points
        start = px - 9 - CHARACTER * len(text) if before else px + 9
        height = _free_height(py, start, start + CHARACTER * len(text), taken)
        taken.append((start, start + CHARACTER * len(text), height))
        moved = abs(height - py) > LINE / 2
        axes.annotate(
            text,
            (x, y),
            xytext=(-9 if before else 9, height - py),
            textcoords="offset points",
            ha="right" if before else "left",
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#9aa5b1", "linewidth": 0.7} if moved else None,
            **style,
        )


def _free_height(wanted: float, start: float, end: float, taken: list[tuple[float, float, float]]) -> float:
    """The lowest height from ``wanted`` up at which [start, end] touches no label (start, end, height)."""
    beside = sorted(height for s, e, height in taken if s < end and start < e)
    height = wanted
    for other in beside:
        if abs(other - height) < LINE:
            height = other + LINE
    return height
