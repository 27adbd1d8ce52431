"""Tables of the documentation from benchmarks/results/. No torch.

    python benchmarks/tables.py          # print every table
    make reference                       # write every table into its page

A table is a function without arguments; a page calls it between `[[[cog tables.NAME()` and `[[[end]]]`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import dense_report
import pandas as pd

RESULTS = Path(__file__).parent / "results"
ARMS = {
    "default": "slimvit", "random": "random heads and neurons, same refit",
    "Torch-Pruning, refit": "Torch-Pruning Taylor, same refit", "Torch-Pruning": "Torch-Pruning Taylor",
}  # fmt: skip
METHODS = ("slimvit (residual)", "fisher", "taylor", "magnitude", "Torch-Pruning Taylor, global",
           "Torch-Pruning L2, global", "random heads")  # fmt: skip


def rows(name: str) -> pd.DataFrame:
    """The rows of results/NAME.jsonl."""
    return pd.DataFrame(map(json.loads, (RESULTS / f"{name}.jsonl").read_text().splitlines()))


def show(head: Iterable[str], lines: Iterable[Iterable[Any]]) -> None:
    """Print a Markdown table."""
    head = list(head)
    print("\n" + "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [head, ["---"] * len(head), *lines]))
    print()


def spread(values: pd.Series, digits: int) -> str:
    """The mean over seeds, with the sample standard deviation for two seeds or more."""
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std():.{digits}f}"


def recorded(name: str, first: int = 0, last: int | None = None, drop: Iterable[str] = ()) -> None:
    """Print the tables of results/NAME.md from `first` to `last`, without the columns in `drop`."""
    text = (RESULTS / f"{name}.md").read_text()
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    for block in blocks[first:last]:
        head, _, *lines = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in block)
        kept = [i for i, column in enumerate(head) if column not in drop]
        show([head[i] for i in kept], [[line[i] for i in kept if i < len(line)] for line in lines])


def budgets() -> None:
    """DINOv2 pruned to a share of its FLOPs without training: slimvit and, at half, its peers."""
    free = rows("budget").query("epochs == 0")
    lines = []
    for target, group in sorted(free.groupby("target"), reverse=True):
        for arm, name in ARMS.items():
            mine = group[group["arm"] == arm]
            if len(mine) > 1:
                figures = [spread(mine[k], d) for k, d in (("top1", 1), ("kept", 1), ("agreement", 1))]
                lines.append([f"{target:.0%}", name, *figures, spread(mine["feature_error"], 3)])
    show(["FLOPs left", "method", "top-1", "above chance kept (%)", "agreement (%)", "feature error"], lines)


def _peers(base: str, refit: bool, epochs: int, column: str, digits: int) -> None:
    runs = rows("peers").query("base == @base and refit == @refit and epochs == @epochs")
    ratios = sorted(runs["ratio"].unique())
    lines = []
    for method in METHODS:
        mine = runs[runs["method"] == method]
        lines.append([method, *(spread(mine.loc[mine["ratio"] == r, column], digits) for r in ratios)])
    show(["heads chosen by", *(f"{r:.0%} of the heads removed" for r in ratios)], lines)


def heads_cut() -> None:
    _peers("dinov2", False, 0, "top1", 1)


def heads_refit() -> None:
    _peers("dinov2", True, 0, "top1", 1)


def heads_agreement() -> None:
    _peers("dinov2", True, 0, "agreement", 1)


def heads_error() -> None:
    _peers("dinov2", True, 0, "feature_error", 3)


def heads_vit() -> None:
    _peers("vit_digits", True, 0, "top1", 1)


def heads_swin() -> None:
    _peers("swin_digits", True, 0, "top1", 1)


def trained_cut() -> None:
    _peers("dinov2", False, 3, "top1", 1)


def trained_refit() -> None:
    _peers("dinov2", True, 3, "top1", 1)


def calibration() -> None:
    """DINOv2 with heads chosen by `residual` on three calibration sets, or at random, with the same refit."""
    runs = rows("training_free").query("data == 'fashion' and target == 'stream' and test == 5000")
    lines = []
    for (removed, criterion), mine in runs.groupby(["removed", "criterion"], sort=False):
        figures = [spread(mine[k], d) for k, d in (("top1", 1), ("kept", 1), ("agreement", 1), ("feature_error", 2))]
        lines.append([removed.replace("/", " of "), f"`{criterion}`", len(mine), *figures])
    head = ["heads removed", "criterion", "seeds", "top-1", "above chance kept (%)", "agreement (%)", "feature error"]
    show(head, sorted(lines))


def dense_pretrained() -> None:
    """Gain of dense attention over plain fine-tuning of a cut and refitted network, paired by seed."""
    every = _dense()
    lines = []
    for cut in ("half", "two thirds", "one a block"):
        arms = {arm: mine.set_index("seed")["top1"] for arm, mine in every[every["cut"] == cut].groupby("arm")}
        added = [arms[mix] - arms["none"] if len(arms[mix]) > 1 else [] for mix in ("layer", "head")]
        gains = [dense_report.interval(a.to_numpy(), 2) if len(a) else "the same network" for a in added]
        lines.append(["all but one a block" if cut == "one a block" else cut, *gains])
    show(["heads cut", "`layer` adds to top-1", "`head` adds to top-1"], lines)


def dense_scratch() -> None:
    """Networks trained from scratch: three heads, and two heads with and without dense attention."""
    every = _dense().query("cut == 'scratch'")
    lines = [[arm, spread(mine["top1"], 2)] for arm, mine in every.groupby("arm", sort=False)]
    show(["network", "top-1"], lines)


def _dense() -> pd.DataFrame:
    """The rows at the best learning rate of their arm, without the tuning seed."""
    every = rows("dense_ablation")
    records = every.to_dict("records")
    best = [dense_report.best_rate(records, r["cut"], r["arm"]) in (None, r["lr"]) for r in records]
    return every[pd.Series(best) & (every["seed"] != dense_report.TUNING_SEED)]


def dense_overhead() -> None:
    recorded("dense_overhead", drop=("bar",))


def speed() -> None:
    recorded("speed_follows_macs", last=1, drop=("bar 0.8",))


def operators() -> None:
    recorded("speed_follows_macs", first=1)


def export_parity() -> None:
    recorded("export_parity")


def train_throughput() -> None:
    recorded("train_throughput")


def refit_cost() -> None:
    recorded("large_models", drop=("scores (passes)", "scores (GiB)"))


def startup() -> None:
    recorded("startup")


def end_to_end() -> None:
    recorded("end_to_end", last=1)


TABLES: tuple[Callable[[], None], ...] = (
    budgets, heads_cut, heads_refit, heads_agreement, heads_error, heads_vit, heads_swin, trained_cut, trained_refit,
    calibration, dense_pretrained, dense_scratch, dense_overhead, speed,
    operators, export_parity, train_throughput, refit_cost, startup, end_to_end,
)  # fmt: skip


if __name__ == "__main__":
    for table in TABLES:
        print(f"## {table.__name__}")
        table()
