"""How every picture looks and is saved. No global matplotlib state is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slimvit.utils.errors import StoreError

INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
BLUE, ORANGE, RED = "#2f6db5", "#e08a2e", "#c0392b"
PALE, EDGE = "#eef1f4", "#cbd2d9"
"""Of what is empty, and the lines around it."""
SERIES = (BLUE, ORANGE, "#3a9a6e", "#b5485d", "#7a5fb0", "#8c6d46")
TITLE: dict[str, Any] = {"color": INK, "fontsize": 11, "fontweight": "bold", "loc": "left"}


def plain_axes(fig: Figure, place: tuple[int, int, int] = (1, 1, 1)) -> Axes:
    """White, light horizontal lines, no frame but the lower edge. ``place``: rows, columns, which (from 1)."""
    axes = fig.add_subplot(*place)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(color=GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9, labelcolor=INK)
    axes.tick_params(axis="y", length=0)
    return axes


def short(name: str, longest: int) -> str:
    """At most ``longest`` characters; the end tells points of a sweep apart, so the beginning goes.

    Matplotlib takes dollars for formulas, and leaves what begins with an underscore out of a legend.
    """
    text = name if len(name) <= longest else "…" + name[1 - longest :]
    return (" " * text.startswith("_") + text).replace("$", r"\$")


def save_figure(fig: Figure, path: Path) -> None:
    """As .svg or .png by the suffix; the same figure gives the same bytes."""
    if path.suffix not in (".svg", ".png"):
        raise StoreError(f"{path}: a picture is saved as .svg or .png, not as {path.suffix or 'a file without suffix'}")
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with rc_context({"svg.hashsalt": "slimvit"}):
        fig.savefig(path, dpi=160, facecolor="white", bbox_inches="tight", pad_inches=0.12, metadata=metadata)
