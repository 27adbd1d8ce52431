"""Draw the README's picture from results/peers.jsonl.

    python benchmarks/picture.py

Top-1 against FLOPs without training: DINOv2 on Fashion-MNIST and the embedded models on digits; every method, cut
alone and refitted.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
BASES = {"dinov2": "DINOv2 ViT-S", "vit_digits": "embedded ViT", "swin_digits": "embedded Swin"}
COLORS = {
    "slimvit (residual)": "#2f6db5", "fisher": "#3f9e6e", "taylor": "#8e6bbf", "magnitude": "#c9a227",
    "Torch-Pruning Taylor, global": "#d1495b", "Torch-Pruning L2, global": "#b5651d", "random heads": "#8a94a3",
}  # fmt: skip


def main() -> None:
    lines = (HERE / "results" / "peers.jsonl").read_text().splitlines()
    rows = pd.DataFrame([json.loads(line) for line in lines])
    rows = rows[rows["epochs"] == 0]
    shown = [base for base in BASES if base in set(rows["base"])]
    figure = Figure(figsize=(9.5, 0.6 + 3.6 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 2, sharey="row", squeeze=False)
    for (cut, refitted), base in zip(grid, shown, strict=True):
        mine = rows[rows["base"] == base]
        _curves(cut, mine[~mine["refit"]], f"{BASES[base]}: cut alone")
        _curves(refitted, mine[mine["refit"]], f"{BASES[base]}: cut, then refit")
        cut.set_ylabel("top-1 (%), mean of 3 seeds")
    for axes in grid[-1]:
        axes.set_xlabel("FLOPs left (%)")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("Heads removed, no training after the cut", fontweight="bold")
    figure.savefig(HERE.parent / "docs" / "tradeoff.png", dpi=110)


def _curves(axes: Axes, rows: pd.DataFrame, title: str) -> None:
    original = rows.drop_duplicates("seed")["original"].mean()  # classifiers of other seeds are a little different
    full = rows["original_macs"].iloc[0]
    for method, color in COLORS.items():
        mean = rows[rows["method"] == method].groupby("ratio")[["macs", "top1"]].mean().sort_index()
        axes.plot(
            [100, *(100 * mean["macs"] / full)], [original, *mean["top1"]], color=color, marker="o", markersize=4,
            label=method, zorder=3 if method.startswith("slimvit") else 2,
        )  # fmt: skip
    axes.axhline(original, color="#8a94a3", linestyle="--", linewidth=1)
    axes.set_title(title, fontsize=10)
    axes.invert_xaxis()
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
