"""The table and the picture of dense_ablation.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from slimvit.report.run.plots import mix_map

TUNING_SEED = 100
CONTROLS = {"scratch": "2 heads"}
"""Control arm by cut; `none` for the others."""
INTRO = """# What dense attention gives

{versions}, one core; Fashion-MNIST, {test:,} test images; settings, cuts and arms are those at the top of
`dense_ablation.py` and `dense_variants.py`. Images: how many the training saw, repeats included. Pairs: blocks that
mix with an earlier one. ±: standard deviation over seeds. Differences: paired by seed, with their 95 % interval
(Student's t over the seeds: of calibration images, order of the batches and, from scratch, weights). Last gain: what
the last eighth of the training gave on the 2,500 held-out images; above 0, the curve still rose.
"""
COLUMNS = {
    "arm": "arm", "lr": "lr", "seeds": "seeds", "images": "images", "pairs": "pairs", "start": "before training",
    "top1": "top-1", "difference": "against {control}", "loss": "loss against {control}", "agreement": "agreement",
    "gain": "last gain",
}  # fmt: skip


def best_rate(rows: list[dict[str, Any]], cut: str, arm: str) -> float | None:
    """The learning rate with the best accuracy on held-out images at the tuning seed; None before it was tuned."""
    tried = [r for r in rows if (r["cut"], r["arm"], r["seed"]) == (cut, arm, TUNING_SEED)]
    return max(tried, key=lambda r: r["curve"][-1])["lr"] if tried else None


def interval(differences: np.ndarray, digits: int) -> str:
    """Mean of paired differences, and its 95 % interval."""
    n, mean = len(differences), differences.mean()
    if n < 2:
        return f"{mean:+.{digits}f}" if n else "-"
    reach = student.ppf(0.975, n - 1) * differences.std(ddof=1) / n**0.5
    return f"{mean:+.{digits}f} ({mean - reach:+.{digits}f} to {mean + reach:+.{digits}f})"


def last_gain(curve: list[float]) -> float:
    return curve[-1] - curve[-1 - len(curve) // 8]


def _line(name: Any, runs: pd.DataFrame, control: pd.DataFrame) -> dict[str, str]:
    runs = runs.set_index("seed")
    paired = runs.join(control.set_index("seed"), rsuffix="_control", how="inner")
    same = name == control["arm"].iloc[0]

    def against(column: str, digits: int) -> str:
        return "-" if same else interval((paired[column] - paired[f"{column}_control"]).to_numpy(), digits)

    def mean(column: str, digits: int, spread: bool = False) -> str:
        if runs[column].isna().all():
            return "-"
        text = f"{runs[column].mean():.{digits}f}"
        return f"{text} ± {runs[column].std():.{digits}f}" if spread and len(runs) > 1 else text

    return {
        "arm": name, "lr": f"{runs['lr'].iloc[0]:g}", "seeds": str(len(runs)), "images": f"{runs['images'].iloc[0]:,}",
        "pairs": mean("pairs", 0), "start": mean("start", 2), "top1": mean("top1", 2, spread=True),
        "difference": against("top1", 2), "loss": against("loss", 4), "agreement": mean("agreement", 1),
        "gain": f"{runs['curve'].map(last_gain).mean():+.2f}",
    }  # fmt: skip


def _table(rows: pd.DataFrame, control: str) -> list[str]:
    """The lines of a Markdown table, one per arm, grouped by number of epochs."""
    lines = []
    for _, budget in rows.groupby("epochs"):
        against = budget[budget["arm"] == control]
        lines += [_line(arm, runs, against) for arm, runs in budget.groupby("arm", sort=False)]
    used = {k: v.format(control=control) for k, v in COLUMNS.items() if any(line[k] != "-" for line in lines)}
    head = ["| " + " | ".join(used.values()) + " |", "|" + " --- |" * len(used)]
    return head + ["| " + " | ".join(line[k] for k in used) + " |" for line in lines]


def render(rows: list[dict[str, Any]]) -> str:
    """All rows as Markdown, one table per cut."""
    # drop runs at a rate that a later tuning run has beaten
    rows = [r for r in rows if r["seed"] == TUNING_SEED or best_rate(rows, r["cut"], r["arm"]) in (None, r["lr"])]
    frame = pd.DataFrame(rows)
    frame["pairs"] = frame["mixes"].map(len, na_action="ignore")
    tuning = frame["seed"] == TUNING_SEED
    parts = [INTRO.format(versions=frame["versions"].iloc[-1], test=10_000)]
    for cut, group in frame[~tuning].groupby("cut", sort=False):
        title = "From scratch" if cut == "scratch" else f"Pretrained, heads cut: {cut}"
        rates = sorted(frame.loc[tuning & (frame["cut"] == cut), "lr"].unique())
        note = f"Learning rates tried for every arm: {', '.join(f'{lr:g}' for lr in rates)}."
        if cut != "scratch":
            note = f"The uncut network: {group['original'].iloc[0]:.2f}. {note}"
            note += " Arms with a name of their own (`slot` ...) take that of `layer`."
        parts += [f"## {title}", "", note, "", *_table(group, CONTROLS.get(str(cut), "none")), ""]
    return "\n".join(parts)


def draw(rows: list[dict[str, Any]], cut: str, arm: str, path: Path) -> None:
    """Draw the learned mixes, averaged over seeds."""
    means: dict[tuple[str, str, int], float] = {}
    runs = [r["mixes"] for r in rows if (r["cut"], r["arm"]) == (cut, arm) and r["seed"] != TUNING_SEED]
    pairs = {pair for mixes in runs for pair in mixes}
    for pair in pairs:
        block, earlier = pair.split(" < ")
        means[block, earlier, 0] = float(np.mean([mixes[pair] for mixes in runs if pair in mixes]))
    names = sorted({name for block, earlier, _ in means for name in (block, earlier)}, key=lambda n: int(n[7:]))
    mix_map(names, means, path)
