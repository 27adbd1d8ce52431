"""Draw the README's picture from results/training_free.jsonl.

python benchmarks/picture.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

HERE = Path(__file__).parent
BLUE, ORANGE, GREY = "#2f6db5", "#dd8a2e", "#8a94a3"


def main() -> None:
    rows = pd.DataFrame(
        [json.loads(line) for line in (HERE / "results" / "training_free.jsonl").read_text().splitlines()]
    )
    rows = rows[(rows["data"] == "fashion") & (rows["scope"] == "global") & (rows["ridge"] == 0.3)]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _curve(left, rows[rows["test"] == 5_000])
    _bars(right, rows[(rows["test"] == 1_000) & (rows["images"] == 256) & rows["target"].isin(["none", "stream"])])
    figure.suptitle("DINOv2 ViT-S/14, Fashion-MNIST, no training after the cut", fontsize=12, fontweight="bold")
    figure.savefig(HERE.parent / "docs" / "tradeoff.png", dpi=110)


def _curve(axes, rows: pd.DataFrame) -> None:
    ours = rows[(rows["criterion"] == "residual") & (rows["target"] == "stream")]
    drawn = rows[rows["criterion"] == "random"]
    original = ours["original"].iloc[0]
    axes.axhline(original, color=GREY, linestyle="--", linewidth=1)
    axes.annotate("uncut", (10, original), textcoords="offset points", xytext=(0, 4), color=GREY)
    mean = ours.groupby(100 * ours["ratio"])["top1"].agg(["mean", "min", "max"])
    spread = [mean["mean"] - mean["min"], mean["max"] - mean["mean"]]
    axes.errorbar(mean.index, mean["mean"], yerr=spread, color=BLUE, marker="o", capsize=3, label="residual + refit")
    axes.errorbar(
        [50], [drawn["top1"].mean()], yerr=[[drawn["top1"].mean() - drawn["top1"].min()],
        [drawn["top1"].max() - drawn["top1"].mean()]], color=ORANGE, marker="s", capsize=3, linestyle="none",
        label="random heads + refit",
    )  # fmt: skip
    axes.set(xlabel="heads removed (%)", ylabel="top-1 (%)", xlim=(0, 80))
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)


def _bars(axes, rows: pd.DataFrame) -> None:
    table = rows.groupby(["criterion", "target"])["top1"].mean().unstack()
    order = table["stream"].fillna(0).sort_values().index
    for offset, target, color, label in ((0.19, "stream", BLUE, "with refit"), (-0.19, "none", ORANGE, "cut alone")):
        values = table.loc[order, target].fillna(0)
        places = [i + offset for i in range(len(order))]
        axes.barh(places, values, height=0.36, color=color, label=label)
        for place, value in zip(places, values, strict=True):
            axes.annotate(f"{value:.1f}", (value, place), textcoords="offset points", xytext=(3, -3), fontsize=8)
    axes.set_yticks(range(len(order)), order)
    axes.set(xlabel="top-1 (%) with half the heads, 1,000 images", xlim=(0, 100))
    axes.axvline(rows["original"].iloc[0], color=GREY, linestyle="--", linewidth=1)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
