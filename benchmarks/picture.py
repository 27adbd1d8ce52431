"""Draw the README's picture from results/peers.jsonl.

    python benchmarks/picture.py

Top-1 against FLOPs without training: DINOv2 on Fashion-MNIST and the embedded models on digits; every method, cut
alone and refitted, with one standard deviation over the seeds.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slimvit.report.plot_style import INK, MUTED, TITLE, plain_axes, save_figure

HERE = Path(__file__).parent
BASES = {"dinov2": "DINOv2 ViT-S", "vit_digits": "embedded ViT", "swin_digits": "embedded Swin"}
COLORS = {
    "slimvit (residual)": "#2f6db5", "fisher": "#3f9e6e", "taylor": "#8e6bbf", "magnitude": "#c9a227",
    "Torch-Pruning Taylor, global": "#d1495b", "Torch-Pruning L2, global": "#b5651d", "random heads": "#8a94a3",
}  # fmt: skip


def main() -> None:
    """Draw one row per network, cut alone on the left and refitted on the right."""
    lines = (HERE / "results" / "peers.jsonl").read_text().splitlines()
    rows = pd.DataFrame([json.loads(line) for line in lines])
    rows = rows[rows["epochs"] == 0]
    shown = [base for base in BASES if base in set(rows["base"])]
    figure = Figure(figsize=(9.5, 0.6 + 3.6 * len(shown)), layout="constrained")
    for i, base in enumerate(shown):
        mine = rows[rows["base"] == base]
        cut, refitted = (plain_axes(figure, (len(shown), 2, 2 * i + column)) for column in (1, 2))
        _curves(cut, mine[~mine["refit"]], f"{BASES[base]}: cut alone")
        _curves(refitted, mine[mine["refit"]], f"{BASES[base]}: cut, then refit")
        refitted.sharey(cut)
        cut.set_ylabel(f"top-1 (%), mean and std of {mine['seed'].nunique()} seeds", color=INK)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("Heads removed, no training after the cut", color=INK, fontweight="bold")
    save_figure(figure, HERE.parent / "docs" / "tradeoff.png")


def _curves(axes: Axes, rows: pd.DataFrame, title: str) -> None:
    original = rows.drop_duplicates("seed")["original"].mean()  # every seed trained its own classifier
    full = rows["original_macs"].iloc[0]
    for method, color in COLORS.items():
        groups = rows[rows["method"] == method].groupby("ratio")[["macs", "top1"]]
        mean, spread = groups.mean().sort_index(), groups.std().sort_index()["top1"].fillna(0.0)
        x, y = [100, *(100 * mean["macs"] / full)], [original, *mean["top1"]]
        style = {"markersize": 4, "linewidth": 1.5, "elinewidth": 0.9, "capsize": 2}
        front = 3 if method.startswith("slimvit") else 2
        axes.errorbar(x, y, [0.0, *spread], fmt="o-", color=color, label=method, zorder=front, **style)
    axes.axhline(original, color=MUTED, linestyle="--", linewidth=1)
    axes.set_title(title, **TITLE)
    axes.set_xlabel("FLOPs left (%)", color=INK)
    axes.invert_xaxis()


if __name__ == "__main__":
    main()
