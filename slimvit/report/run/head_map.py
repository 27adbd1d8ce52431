"""The grid of blocks and heads inside ``head_map``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Patch, Rectangle

from slimvit.models.plan import BlockPlan, SlimPlan
from slimvit.report.plot_style import BLUE, EDGE, INK, MUTED, PALE, RED

BEFORE, LONGEST = 0.7, 4.5
"""Space before the bars and length of a whole one, in squares of the grid."""
KEPT, SHADED, UNSCORED, GONE, CROSS = BLUE, "#9cbfe2", PALE, "#ffffff", RED
LOG_FROM = 30.0
"""Scores that span more than this factor are shaded on a logarithmic scale."""

Shades = list[list[float | None]]


def draw_heads(axes: Axes, plan: SlimPlan, scores: Sequence[Sequence[float | None]] | None) -> None:
    """One square a head: shaded by its share of the largest score, crossed out in red when it is removed.

    Beside them stands how many neurons the blocks keep, where some are gone.
    """
    shades = _shares(scores)
    norm = _norm(shades)
    for row, block in enumerate(plan.blocks):
        for head in range(block.heads):
            kept = head in block.kept_heads
            colour: Any = KEPT if kept else GONE
            if shades is not None:
                colour = _colour(norm, shades[row][head])
            _draw_head(axes, row, head, colour, kept)
    _finish(axes, plan, KEPT if shades is None else SHADED)
    if shows_neurons(plan):
        draw_neurons(axes, plan)
    if shades is not None:
        across = axes.get_xlim()[1] - axes.get_xlim()[0]
        beside = axes.inset_axes((1 + (0.5 + bars_width(plan)) / across, 0.0, 0.45 / across, 1.0))
        bar = axes.figure.colorbar(ScalarMappable(norm, _map()), cax=beside)
        of_heads = "score of the heads" if shows_neurons(plan) else "score"
        bar.set_label(f"{of_heads}, share of the largest", color=INK)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, colors=MUTED)


def _shares(scores: Sequence[Sequence[float | None]] | None) -> Shades | None:
    """Scores divided by the largest of the figure; None where there is none."""
    if scores is None:
        return None
    known = [s for row in scores for s in row if s is not None and np.isfinite(s)]
    largest = max(known, default=0.0) or 1.0
    return [[None if s is None or not np.isfinite(s) else s / largest for s in row] for row in scores]


def _norm(shades: Shades | None) -> Normalize:
    known: list[float] = [s for row in shades or [] for s in row if s is not None]
    positive = [s for s in known if s > 0]
    if positive and max(known) / min(positive) > LOG_FROM:
        return LogNorm(min(positive), max(known))
    return Normalize(min([0.0, *known]), max([1.0, *known]))


def _map() -> Any:
    return colormaps["Blues"]


def _colour(norm: Normalize, share: float | None) -> Any:
    return UNSCORED if share is None else _map()(float(norm(max(share, norm.vmin or 0.0))))


def _draw_head(axes: Axes, row: int, head: int, colour: Any, kept: bool) -> None:
    corner = (head - 0.44, row - 0.44)
    axes.add_patch(Rectangle(corner, 0.88, 0.88, facecolor=colour, edgecolor=EDGE, linewidth=0.6))
    if not kept:
        for rise in (1, -1):
            ends = [head - 0.3, head + 0.3], [row - 0.3 * rise, row + 0.3 * rise]
            axes.plot(*ends, color="white", linewidth=3.0, solid_capstyle="round")
            axes.plot(*ends, color=CROSS, linewidth=1.4, solid_capstyle="round")


def _finish(axes: Axes, plan: SlimPlan, kept_colour: str) -> None:
    """Axis limits, ticks, lines between stages and the legend."""
    widest = max((b.heads for b in plan.blocks), default=1)
    axes.set(xlim=(-0.6, widest - 0.4), ylim=(len(plan.blocks) - 0.4, -0.6), aspect="equal")
    axes.set_xticks(range(0, widest, 1 if widest <= 16 else 4))
    axes.set_yticks(range(len(plan.blocks)))
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    axes.spines[:].set_visible(False)
    for row, (above, below) in enumerate(zip(plan.blocks, plan.blocks[1:], strict=False)):
        if above.stage != below.stage:
            axes.axhline(row + 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    if plan.removed:
        cross = axes.scatter([], [], marker="x", s=30, color=CROSS, linewidth=1.4, label="removed")
        kept = Patch(facecolor=kept_colour, edgecolor=EDGE, label="kept")
        axes.figure.legend(handles=[kept, cross], loc="outside lower center", ncols=2, frameon=False, fontsize=8)


CHARACTER = 0.17
"""Width of a character of a count, in squares."""


def shows_neurons(plan: SlimPlan) -> bool:
    return plan.kept_neurons < plan.neurons


def bars_width(plan: SlimPlan) -> float:
    """Squares of the grid that bars and counts take; 0 where no neuron is gone."""
    if not shows_neurons(plan):
        return 0.0
    return BEFORE + LONGEST + CHARACTER * (1 + max(len(_count(b)) for b in plan.blocks))


def draw_neurons(grid: Axes, plan: SlimPlan) -> None:
    """A bar a row to the right of the grid, full where all neurons stay; a block without its MLP has none but a red
    outline."""
    across, width = grid.get_xlim()[1] - grid.get_xlim()[0], bars_width(plan) - BEFORE
    axes = grid.inset_axes((1 + BEFORE / across, 0.0, width / across, 1.0))
    axes.set(xlim=(0, width), ylim=grid.get_ylim(), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)
    for row, block in enumerate(plan.blocks):
        _draw_bar(axes, row, block)
    axes.set_title(f"{plan.kept_neurons:,} of {plan.neurons:,} neurons kept", color=MUTED, fontsize=9, loc="left")
    axes.set_xlabel("MLP neurons", color=INK, x=LONGEST / width / 2)


def _draw_bar(axes: Axes, row: int, block: BlockPlan) -> None:
    kept, gone = len(block.kept_neurons), bool(block.neurons) and not block.kept_neurons
    corner, height = (0.0, row - 0.27), 0.54
    if block.neurons:
        edge, style = (RED, "--") if gone else (EDGE, "-")
        axes.add_patch(
            Rectangle(corner, LONGEST, height, facecolor=PALE, edgecolor=edge, linestyle=style, clip_on=False)
        )
        axes.add_patch(Rectangle(corner, LONGEST * kept / block.neurons, height, facecolor=BLUE))
    axes.text(LONGEST + CHARACTER, row, _count(block), color=RED if gone else INK, fontsize=8, va="center")


def _count(block: BlockPlan) -> str:
    if not block.neurons:
        return "not cut"
    kept = len(block.kept_neurons)
    return f"{kept:,} of {block.neurons:,}" if kept else "MLP gone"
