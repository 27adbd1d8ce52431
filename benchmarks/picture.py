"""Draw the README's picture from results/training_free.jsonl.

    python benchmarks/picture.py

Top-1 against FLOPs of the embedded ViT on digits, without training: every criterion, cut alone and refitted.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
COLORS = {
    "residual": "#2f6db5", "fisher": "#3f9e6e", "taylor": "#8e6bbf", "magnitude": "#c9a227", "tp-magnitude": "#b5651d",
    "tp-taylor": "#d1495b", "random": "#8a94a3",
}  # fmt: skip


def main() -> None:
    lines = (HERE / "results" / "training_free.jsonl").read_text().splitlines()
    rows = pd.DataFrame([json.loads(line) for line in lines])
    rows = rows[rows["data"] == "digits"]
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    cut, refitted = figure.subplots(1, 2, sharey=True)
    _curves(cut, rows[rows["target"] == "none"], "cut alone")
    _curves(refitted, rows[rows["target"] == "stream"], "cut, then refit")
    cut.set_ylabel("top-1 (%), mean of 3 seeds")
    figure.legend(*cut.get_legend_handles_labels(), loc="outside lower center", ncols=len(COLORS), frameon=False)
    figure.suptitle("Embedded ViT on digits, no training after the cut", fontweight="bold")
    figure.savefig(HERE.parent / "docs" / "tradeoff.png", dpi=110)


def _curves(axes: Axes, rows: pd.DataFrame, title: str) -> None:
    original = rows["original"].iloc[0]
    for criterion, color in COLORS.items():
        mean = rows[rows["criterion"] == criterion].groupby("macs")["top1"].mean().sort_index(ascending=False)
        full = rows["original_macs"].iloc[0]
        share = [100.0, *(100 * mean.index / full)]
        axes.plot(share, [original, *mean], color=color, marker="o", markersize=4, label=criterion)
    axes.axhline(original, color="#8a94a3", linestyle="--", linewidth=1)
    axes.set(title=title, xlabel="FLOPs left (%)")
    axes.invert_xaxis()
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
