"""Colours, axes, labels and files of all pictures, without Matplotlib's global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slimvit.utils.errors import StoreError
from slimvit.utils.escaping import in_picture
from slimvit.utils.files import replacing

INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
BLUE, ORANGE, RED = "#2f6db5", "#e08a2e", "#c0392b"
PALE, EDGE = "#eef1f4", "#cbd2d9"
"""Fill and outline of empty shapes."""
SERIES = (BLUE, ORANGE, "#3a9a6e", "#b5485d", "#7a5fb0", "#8c6d46")
LINE, CHARACTER = 12.0, 5.0
"""Height of a line and width of a character of a label, points."""
FLOPS_AXIS = "FLOPs (G), 1 multiply-add = 1"
TITLE: dict[str, Any] = {"color": INK, "fontsize": 11, "fontweight": "bold", "loc": "left"}


def plain_axes(fig: Figure, place: tuple[int, int, int] = (1, 1, 1)) -> Axes:
    """Add axes with light grid lines and no frame but the lower edge.

    Args:
        fig: The figure.
        place: Number of rows and columns, and which of them (from 1).
    """
    axes = fig.add_subplot(*place)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(color=GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9, labelcolor=INK)
    axes.tick_params(axis="y", length=0)
    return axes


def short(name: str, longest: int) -> str:
    """Return a name for a picture, shortened at its start: the end tells the points of a sweep apart.

    It is escaped for Matplotlib, which reads dollar signs as formulas and leaves a label with a leading underscore out
    of the legend.

    Args:
        name: Any text.
        longest: Characters at most.
    """
    text = name if len(name) <= longest else "…" + name[1 - longest :]
    return in_picture(" " * text.startswith("_") + text)


def spread_labels(fig: Figure, axes: Axes, labels: Sequence[tuple[float, float, str]], **style: Any) -> None:
    """Write labels beside their points without overlap; a label that is moved up gets a thin line to its point.

    A label is on the right of its point, or on the left in the right half of the axes.

    Args:
        fig: The figure.
        axes: Axes with their final limits.
        labels: (x, y, text) of each point.
        **style: Text properties.
    """
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
    """The lowest free height from `wanted` up for a label from `start` to `end`; `taken` holds the other labels."""
    beside = sorted(height for s, e, height in taken if s < end and start < e)
    height = wanted
    for other in beside:
        if abs(other - height) < LINE:
            height = other + LINE
    return height


def save_figure(fig: Figure, path: Path) -> None:
    """Save a figure by the file's suffix; the same figure gives the same bytes.

    Raises:
        StoreError: The suffix is neither .svg nor .png.
    """
    if path.suffix not in (".svg", ".png"):
        raise StoreError(f"{path}: a picture is saved as .svg or .png, not as {path.suffix or 'a file without suffix'}")
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with rc_context({"svg.hashsalt": "slimvit"}), replacing(path) as partial:
        fig.savefig(partial, dpi=160, facecolor="white", bbox_inches="tight", pad_inches=0.12, metadata=metadata)
