"""The share of the neurons that every block keeps, as bars beside the grid of ``head_map``."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from slimvit.models.plan import BlockPlan, SlimPlan
from slimvit.report.plot_style import BLUE, EDGE, INK, MUTED, PALE, RED

BEFORE, LONGEST = 0.7, 4.5
"""Space before the bars and length of a whole one, in squares of the grid."""
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
