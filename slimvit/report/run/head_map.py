"""Picture of a plan: the kept and removed units of every block, part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from slimvit.models.parts.base import Part
from slimvit.models.plan import BlockPlan, SlimPlan
from slimvit.report.columns import parts_shown
from slimvit.report.plot_style import BLUE, EDGE, INK, MUTED, PALE, RED, save_figure
from slimvit.report.record import units_of
from slimvit.report.run.shading import Colour, Shading, UnitScores, draw_scale
from slimvit.utils.escaping import in_picture

FEW = 48
"""Units per block up to which a part is drawn as a grid; a part with more is drawn as bars."""
BAR, GAP = 4.5, 1.2
"""Length of a full bar, and space between two panels, in squares."""
CHARACTER = 0.19
"""Width of a character of a count or a title, in squares."""
SQUARE = 0.31
"""Side of a square, inches."""
SHADED = "#9cbfe2"
"""Colour of kept units in the legend of a shaded map."""


@dataclass(frozen=True)
class Panel:
    """The place of one part in the map."""

    part: Part
    left: float
    """Left edge, in squares."""
    width: float
    total: int
    """Units of the original in all blocks."""
    kept: int
    widest: int
    """Units of the widest block."""

    @property
    def is_grid(self) -> bool:
        """Whether each unit has a square."""
        return self.widest <= FEW and not self.part.counted

    @property
    def title(self) -> str:
        """`18 of 36 heads kept`, `16 tokens merged`."""
        return self.part.count_words(self.kept, self.total) + (" kept" if not self.part.counts_removed else "")


def head_map(plan: SlimPlan, scores: Mapping[str, UnitScores], path: Path) -> None:
    """Draw the units that every block keeps: one row per block, one panel per part.

    A part with few units per block is a grid, with removed units crossed out and units shaded by score. A part with
    many units is one bar per block, drawn only if some of its units are removed.

    Args:
        plan: The plan.
        scores: Scores of the units of a part, [blocks][units]; a part without scores is not shaded.
        path: The picture.
    """
    name, places = plan.model or "plan", panels(plan)
    across = 2.2 + SQUARE * (places[-1].left + places[-1].width) if places else 2.2
    fig = Figure(figsize=(max(across, 0.6 + 0.092 * len(name)), 1.9 + SQUARE * len(plan.blocks)), layout="constrained")
    axes = fig.add_subplot()
    draw_units(axes, plan, scores)
    fig.suptitle(in_picture(name), color=INK, fontsize=11, fontweight="bold")
    save_figure(fig, path)


def panels(plan: SlimPlan) -> list[Panel]:
    """Return the panels of a plan from left to right."""
    places: list[Panel] = []
    counts = units_of(plan)
    for part in parts_shown(lambda part: part.name in counts and counts[part.name][1] < counts[part.name][0]):
        if part.name in counts:
            left = places[-1].left + places[-1].width + GAP if places else 0.0
            places.append(_panel(plan, part, left, *counts[part.name]))
    return places


def _panel(plan: SlimPlan, part: Part, left: float, total: int, kept: int) -> Panel:
    """A panel wide enough for its title and for its grid or its bars with their counts."""
    widest = max(_units(block, part)[0] for block in plan.blocks)
    panel = Panel(part, left, 0.0, total, kept, widest)
    content = widest if panel.is_grid else BAR + CHARACTER * (1 + max(len(_count(b, part)) for b in plan.blocks))
    return replace(panel, width=max(content, CHARACTER * len(panel.title)))


def draw_units(axes: Axes, plan: SlimPlan, scores: Mapping[str, UnitScores]) -> None:
    """Draw the panels of a plan into axes whose unit is one square."""
    places = panels(plan)
    grids = {place.part.name for place in places if place.is_grid}
    shading = Shading({part: rows for part, rows in scores.items() if part in grids})
    _frame(axes, plan, places)
    for place in places:
        for row, block in enumerate(plan.blocks):
            if place.is_grid:
                _draw_row(axes, place, row, block, shading)
            else:
                _draw_bar(axes, place, row, block)
        _label_panel(axes, place, len(plan.blocks))
    if shading.shares:
        draw_scale(axes, shading)
    _draw_legend(axes, places, SHADED if shading.shares else BLUE)


def _units(block: BlockPlan, part: Part) -> tuple[int, tuple[int, ...]]:
    """Number of units in the original block, and the ids of those it keeps."""
    return getattr(block, part.units), getattr(block, f"kept_{part.units}")


def _draw_row(axes: Axes, place: Panel, row: int, block: BlockPlan, shading: Shading) -> None:
    total, kept = _units(block, place.part)
    for unit in range(total):
        shade = shading.colour(place.part.name, row, unit)
        colour = (BLUE if unit in kept else "white") if shade is None else shade
        _draw_square(axes, row, place.left + unit, colour, unit in kept)


def _draw_square(axes: Axes, row: int, at: float, colour: Colour, kept: bool) -> None:
    axes.add_patch(Rectangle((at - 0.44, row - 0.44), 0.88, 0.88, facecolor=colour, edgecolor=EDGE, linewidth=0.6))
    if not kept:
        for rise in (1, -1):
            ends = [at - 0.3, at + 0.3], [row - 0.3 * rise, row + 0.3 * rise]
            axes.plot(*ends, color="white", linewidth=3.0, solid_capstyle="round")
            axes.plot(*ends, color=RED, linewidth=1.4, solid_capstyle="round")


def _draw_bar(axes: Axes, place: Panel, row: int, block: BlockPlan) -> None:
    """A bar filled by the share of kept units; a block without any gets a red dashed outline."""
    total, kept = _units(block, place.part)
    left, is_empty = place.left - 0.5, bool(total) and not kept and not place.part.counts_removed
    if total:
        corner, edge, style = (left, row - 0.27), RED if is_empty else EDGE, "--" if is_empty else "-"
        axes.add_patch(Rectangle(corner, BAR, 0.54, facecolor=PALE, edgecolor=edge, linestyle=style))
        axes.add_patch(Rectangle(corner, BAR * len(kept) / total, 0.54, facecolor=BLUE))
    text = _count(block, place.part)
    axes.text(left + BAR + CHARACTER, row, text, color=RED if is_empty else INK, fontsize=8, va="center")


def _count(block: BlockPlan, part: Part) -> str:
    total, kept = _units(block, part)
    if not total:
        return "not cut"
    if part.counts_removed:
        return f"{total - len(kept):,} {part.counts_removed}"
    return f"{len(kept):,} of {total:,}" if kept else "none left"


def _frame(axes: Axes, plan: SlimPlan, places: Sequence[Panel]) -> None:
    """Axis limits, ticks and lines between stages."""
    right = places[-1].left + places[-1].width if places else 1.0
    axes.set(xlim=(-0.6, right - 0.4), ylim=(len(plan.blocks) - 0.4, -0.6), aspect="equal")
    grids = [place for place in places if place.is_grid]
    ticks = [(p.left + unit, str(unit)) for p in grids for unit in range(0, p.widest, 1 if p.widest <= 16 else 4)]
    axes.set_xticks([at for at, _ in ticks], [text for _, text in ticks])
    axes.set_yticks(range(len(plan.blocks)))
    axes.set_ylabel("block", color=INK)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    axes.spines[:].set_visible(False)
    for row, (above, below) in enumerate(zip(plan.blocks, plan.blocks[1:], strict=False)):
        if above.stage != below.stage:
            axes.axhline(row + 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))


def _label_panel(axes: Axes, place: Panel, blocks: int) -> None:
    """The counts above a panel, and its unit below."""
    axes.text(place.left - 0.5, -0.85, place.title, color=MUTED, fontsize=9, va="bottom")
    middle = place.left - 0.5 + (place.widest if place.is_grid else BAR) / 2
    name = place.part.unit if place.is_grid else place.part.units
    axes.text(middle, blocks + 0.35, name, color=INK, fontsize=10, ha="center", va="top")


def _draw_legend(axes: Axes, places: Sequence[Panel], kept_colour: str) -> None:
    if any(place.kept < place.total for place in places if place.is_grid):
        cross = axes.scatter([], [], marker="x", s=30, color=RED, linewidth=1.4, label="removed")
        kept = Patch(facecolor=kept_colour, edgecolor=EDGE, label="kept")
        axes.figure.legend(handles=[kept, cross], loc="outside lower center", ncols=2, frameon=False, fontsize=8)
