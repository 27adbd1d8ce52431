"""Pictures of one run, as .svg or .png by the file's suffix. No global matplotlib state is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slimvit.models.plan import SlimPlan
from slimvit.report.plot_style import INK, MUTED, SERIES, TITLE, plain_axes, save_figure
from slimvit.report.record import Report
from slimvit.report.run.head_map import bars_width, draw_heads

Figures = Sequence[Sequence[float | None]]


def head_map(plan: SlimPlan, scores: Figures | None, path: Path) -> None:
    """Blocks down, original heads across: kept, or removed (crossed out); shaded by score, one list a block.

    Scores are shown relative to the largest, on a logarithmic scale where they span more than a factor of 30; None
    is a head without a score. Where neurons are gone, bars show the share that each block keeps.
    """
    widest = max((b.heads for b in plan.blocks), default=1)
    name = plan.model or "heads"
    across = 2.2 + 0.31 * (widest + bars_width(plan))
    size = max(across, 0.6 + 0.092 * len(name)), 1.75 + 0.31 * len(plan.blocks)
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.add_subplot()
    draw_heads(axes, plan, scores)
    fig.suptitle(name, color=INK, fontsize=11, fontweight="bold")
    axes.set_title(f"{plan.kept} of {plan.total} heads kept", color=MUTED, fontsize=9)
    axes.set_xlabel("head", color=INK)
    axes.set_ylabel("block", color=INK)
    save_figure(fig, path)


def stage_accuracy(report: Report, path: Path) -> None:
    """Bars of top-1 and agreement after each stage; of the feature error where no top-1 was measured."""
    by_name = {"top-1 (%)": [s.top1 for s in report.stages], "agreement (%)": [s.agreement for s in report.stages]}
    series = {name: values for name, values in by_name.items() if any(v is not None for v in values)}
    style = ".1f"
    if "top-1 (%)" not in series:
        series, style = {"feature error": [s.feature_error for s in report.stages]}, ".3f"
    fig = Figure(figsize=(max(4.5, 1.8 + 1.15 * len(report.stages)), 3.6), layout="constrained")
    axes = plain_axes(fig)
    width = 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        at = np.arange(len(values)) + (i - (len(series) - 1) / 2) * width
        heights = np.array([np.nan if v is None else v for v in values], dtype=float)
        bars = axes.bar(at, heights, 0.94 * width, color=SERIES[i], label=name, zorder=2)
        texts = ["" if v is None else format(v, style) for v in values]
        axes.bar_label(bars, texts, padding=2, fontsize=8, color=INK)
    axes.set_xticks(range(len(report.stages)), [s.stage for s in report.stages])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    if style == ".1f":
        axes.set_ylim(0, 109)
        axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("per cent of the images" if len(series) > 1 else next(iter(series)), color=INK)
    axes.set_title(report.model, **TITLE)
    if len(series) > 1:
        fig.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
    save_figure(fig, path)


def curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """The loss, and top-1 and agreement on the validation images where they were measured, epoch by epoch."""
    known = [k for k in ("top1", "agreement") if any(r.get(k) is not None for rows in histories.values() for r in rows)]
    panels = ["loss", "per cent of the validation images"] if known else ["loss"]
    fig = Figure(figsize=(1.2 + 3.6 * len(panels), 3.4), layout="constrained")
    for i, panel in enumerate(panels):
        axes = plain_axes(fig, (1, len(panels), i + 1))
        keys = ["loss"] if panel == "loss" else known
        lines = [(name, key) for name in histories for key in keys]
        for (name, key), colour in zip(lines, cycle(SERIES), strict=False):
            points = [(row["epoch"], row[key]) for row in histories[name] if row.get(key) is not None]
            label = " ".join(([name] if len(histories) > 1 else []) + ([] if key == "loss" else [key]))
            axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3, linewidth=1.4, label=label)
        axes.set_xlabel("epoch", color=INK)
        axes.set_title(panel, **TITLE)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    save_figure(fig, path)


def mix_map(names: Sequence[str], mixes: Mapping[tuple[str, str, int], float], path: Path) -> None:
    """The triangle of mixes: blocks that mix down, earlier blocks whose values they add across; the mean over heads.

    ``names``: the blocks in forward order. ``mixes``: weight by (block, earlier block, head). White pairs do not mix.
    """
    size = len(names)
    sums, counts = np.zeros((size, size)), np.zeros((size, size))
    for (block, earlier, _), value in mixes.items():
        at = names.index(block), names.index(earlier)
        sums[at] += value
        counts[at] += 1
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    largest = np.nanmax(np.abs(means)) or 1.0
    fig = Figure(figsize=(1.9 + 0.36 * size, 1.3 + 0.36 * size), layout="constrained")
    axes = fig.add_subplot()
    image = axes.imshow(means, cmap="RdBu_r", vmin=-largest, vmax=largest)
    short = [name.replace("blocks.", "").replace("layers.", "") for name in names]
    axes.set_xticks(range(size), short, rotation=90 if max(map(len, short)) > 2 else 0)
    axes.set_yticks(range(size), short)
    axes.tick_params(colors=MUTED, labelsize=8, labelcolor=INK, length=0)
    axes.spines[:].set_visible(False)
    if size <= 12:
        digits = 2 if largest >= 0.1 else 3
        for (row, column), value in np.ndenumerate(means):
            if not np.isnan(value):
                colour = "white" if abs(value) > 0.6 * largest else INK
                axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", fontsize=6, color=colour)
    axes.set_xlabel("earlier block whose values are added", color=INK)
    axes.set_ylabel("block that mixes", color=INK)
    axes.set_title("Dense attention: learned mixes", **TITLE)
    fig.colorbar(image, ax=axes, fraction=0.046).outline.set_visible(False)
    save_figure(fig, path)
