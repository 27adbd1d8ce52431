"""Pictures of one run: accuracy by stage, training curves, learned mixes; .svg or .png by the suffix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from slimvit.report.columns import METRICS, Metric
from slimvit.report.plot_style import INK, MUTED, SERIES, TITLE, plain_axes, save_figure
from slimvit.report.record import Report
from slimvit.utils.escaping import in_picture

PERCENTAGES = ("top1", "agreement")
"""Keys of the figures on the axis in per cent."""
WITHOUT_TOP1 = "feature_error"
DASHES = {"top1": "-", "agreement": "--"}
PHASES = {"adapt": "adapting the classifier", "finetune": "fine-tuning"}
"""Title of a training by its name in history.csv; other names are shown as they are."""
HEADROOM = 0.12
"""Space above the highest bar, as a share of the axis."""


def stage_accuracy(report: Report, path: Path) -> None:
    """Draw bars of top-1 and agreement after each stage, or of the feature error if no top-1 was measured.

    The axis starts near the lowest bar; its label states the start.
    """
    keys = [key for key in PERCENTAGES if any(s.figure(key) is not None for s in report.stages)]
    keys = keys if PERCENTAGES[0] in keys else [WITHOUT_TOP1]
    fig = Figure(figsize=(max(4.5, 1.8 + 1.15 * len(report.stages)), 3.6), layout="constrained")
    axes = plain_axes(fig)
    for i, key in enumerate(keys):
        values = [s.figure(key) for s in report.stages]
        _draw_bars(axes, METRICS[key], values, i, len(keys))
    axes.set_xticks(range(len(report.stages)), [s.stage for s in report.stages])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    drawn = [value for key in keys for s in report.stages if (value := s.figure(key)) is not None]
    unit = METRICS[keys[0]].label if len(keys) == 1 else "per cent of the images"
    start = _set_limits(axes, drawn)
    axes.set_ylabel(unit if start == 0 else f"{unit}; axis starts at {start:g}", color=INK)
    axes.set_title(in_picture(report.model), **TITLE)
    if len(keys) > 1:
        fig.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
    save_figure(fig, path)


def _draw_bars(axes: Axes, metric: Metric, values: Sequence[float | None], place: int, places: int) -> None:
    """One bar per stage with its figure on top, at position `place` of `places` side by side."""
    width = 0.8 / places
    at = np.arange(len(values)) + (place - (places - 1) / 2) * width
    heights = np.array([np.nan if v is None else v for v in values], dtype=float)
    bars = axes.bar(at, heights, 0.94 * width, color=SERIES[place], label=f"{metric.header} (%)", zorder=2)
    texts = ["" if v is None else metric.text(v) for v in values]
    axes.bar_label(bars, texts, padding=2, fontsize=8, color=INK)


def _set_limits(axes: Axes, values: Sequence[float]) -> float:
    """Limit the axis to the range in which bars differ; return its start, a round number of at least 0."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    span = max(high - low, abs(high) / 50) or 1.0
    step = 10.0 ** floor(np.log10(span))
    start = max(0.0, step * floor((low - span) / step))
    axes.set_ylim(start, (high - start * HEADROOM) / (1 - HEADROOM) or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_yticks([tick for tick in axes.get_yticks() if start <= tick <= high + step / 1000])
    return start


def curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw training loss by epoch, and accuracy on the validation images if measured.

    Args:
        histories: Rows of history.csv by training: `adapt`, `round 1`, ..., `finetune`.
        path: The picture.
    """
    histories = {name: rows for name, rows in histories.items() if rows}
    measured = [k for k in PERCENTAGES if any(r.get(k) is not None for rows in histories.values() for r in rows)]
    panels = {"training loss": ["loss"]}
    panels |= {f"validation images: {', '.join(METRICS[k].header for k in measured)} (%)": measured} if measured else {}
    fig = Figure(figsize=(1.2 + 3.6 * len(panels), 3.9), layout="constrained")
    for i, (title, keys) in enumerate(panels.items()):
        axes = plain_axes(fig, (1, len(panels), i + 1))
        _draw_curves(axes, histories, keys)
        axes.set_xlabel("epoch", color=INK)
        axes.set_title(title, **TITLE)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [
        _line(colour, "-", PHASES.get(name, name)) for name, colour in zip(histories, cycle(SERIES), strict=False)
    ]
    handles += [_line(INK, DASHES[key], METRICS[key].header) for key in measured] if len(measured) > 1 else []
    fig.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8, labelcolor=INK)
    save_figure(fig, path)


def _draw_curves(axes: Axes, histories: Mapping[str, Sequence[Mapping[str, Any]]], keys: Sequence[str]) -> None:
    """One line per training and figure, coloured by training and dashed by figure."""
    for (name, rows), colour in zip(histories.items(), cycle(SERIES), strict=False):
        for key in keys:
            points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                style: dict[str, Any] = {"color": colour, "linestyle": DASHES.get(key, "-"), "gid": f"{name} {key}"}
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.4, **style)


def _line(colour: str, dashes: Any, label: str) -> Line2D:
    return Line2D([], [], color=colour, linestyle=dashes, linewidth=1.4, label=label)


def mix_map(names: Sequence[str], mixes: Mapping[tuple[str, str, int], float], path: Path) -> None:
    """Draw the learned mixes of dense attention: rows are blocks, columns the earlier blocks whose values they add.

    Args:
        names: The blocks in forward order.
        mixes: Weight by (block, earlier block, head); the mean over heads is drawn. Pairs without a mix are white.
        path: The picture.
    """
    means = _mean_mixes(names, mixes)
    size, largest = len(names), np.nanmax(np.abs(means)) or 1.0
    fig = Figure(figsize=(1.9 + 0.36 * size, 1.3 + 0.36 * size), layout="constrained")
    axes = fig.add_subplot()
    image = axes.imshow(means, cmap="RdBu_r", vmin=-largest, vmax=largest)
    short = [name.replace("blocks.", "").replace("layers.", "") for name in names]
    axes.set_xticks(range(size), short, rotation=90 if max(map(len, short)) > 2 else 0)
    axes.set_yticks(range(size), short)
    axes.tick_params(colors=MUTED, labelsize=8, labelcolor=INK, length=0)
    axes.spines[:].set_visible(False)
    if size <= 12:
        _write_mixes(axes, means, largest)
    axes.set_xlabel("earlier block whose values are added", color=INK)
    axes.set_ylabel("block that mixes", color=INK)
    axes.set_title("Dense attention: learned mixes", **TITLE)
    fig.colorbar(image, ax=axes, fraction=0.046).outline.set_visible(False)
    save_figure(fig, path)


def _mean_mixes(names: Sequence[str], mixes: Mapping[tuple[str, str, int], float]) -> np.ndarray:
    """[blocks, blocks]: the mean over heads, NaN where two blocks do not mix."""
    sums, counts = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
    for (block, earlier, _), value in mixes.items():
        at = names.index(block), names.index(earlier)
        sums[at] += value
        counts[at] += 1
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _write_mixes(axes: Axes, means: np.ndarray, largest: float) -> None:
    digits = 2 if largest >= 0.1 else 3
    for (row, column), value in np.ndenumerate(means):
        if not np.isnan(value):
            colour = "white" if abs(value) > 0.6 * largest else INK
            axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", fontsize=6, color=colour)
