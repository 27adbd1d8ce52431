"""Colours of units in the head map: the score of a unit relative to the largest of its part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize

from slimvit.report.plot_style import INK, MUTED, PALE

LOG_FROM = 30.0
"""Scores that span more than this factor are shaded on a logarithmic scale."""

UnitScores = Sequence[Sequence[float | None]]
"""One score per unit, [blocks][units]; None for a unit without one."""
Colour = Any
"""A colour of Matplotlib."""


class Shading:
    """The colours of scored units, on one scale for all parts.

    Attributes:
        shares: Scores by part, relative to the largest of the part.
        norm: Maps a share to the range of the colour map.
    """

    def __init__(self, scores: Mapping[str, UnitScores]) -> None:
        self.shares = {part: _shares(rows) for part, rows in scores.items()}
        self.norm = _norm([s for rows in self.shares.values() for row in rows for s in row if s is not None])

    def colour(self, part: str, block: int, unit: int) -> Colour | None:
        """Return the colour of a unit; None for a part without scores."""
        if part not in self.shares:
            return None
        share = self.shares[part][block][unit]
        return PALE if share is None else colormaps["Blues"](float(self.norm(max(share, self.norm.vmin or 0.0))))


def _shares(rows: UnitScores) -> UnitScores:
    finite = [s for row in rows for s in row if s is not None and np.isfinite(s)]
    largest = max(finite, default=0.0) or 1.0
    return [[None if s is None or not np.isfinite(s) else s / largest for s in row] for row in rows]


def _norm(shares: Sequence[float]) -> Normalize:
    positive = [s for s in shares if s > 0]
    if positive and max(shares) / min(positive) > LOG_FROM:
        return LogNorm(min(positive), max(shares))
    return Normalize(min([0.0, *shares]), max([1.0, *shares]))


def draw_scale(axes: Axes, shading: Shading) -> None:
    """Draw the colour scale on the right of axes whose unit is one square."""
    left, right = axes.get_xlim()
    beside = axes.inset_axes((1 + 0.5 / (right - left), 0.0, 0.45 / (right - left), 1.0))
    bar = axes.figure.colorbar(ScalarMappable(shading.norm, colormaps["Blues"]), cax=beside)
    bar.set_label("share of the\nlargest score", fontsize=9)
    bar.ax.yaxis.label.set_color(INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=MUTED)
