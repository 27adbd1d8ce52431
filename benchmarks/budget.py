"""Pruning to a budget in MACs: heads and MLP neurons together, compared with other parts and with Torch-Pruning.

    python benchmarks/budget.py default random                 # arms, all budgets and seeds
    python benchmarks/budget.py Torch-Pruning --targets 0.5 --seeds 0
    python benchmarks/budget.py default Torch-Pruning --epochs 5 --targets 0.5 --seeds 0
    python benchmarks/budget.py --rank 50                      # predicted against true rise of the loss, random plans
    python benchmarks/budget.py --render                       # results/budget.md from all rows so far

DINOv2 ViT-S/14 at 112 px with a linear classifier, Fashion-MNIST, 5,000 test images. Model and data are read from
.cache/real/{dinov2,fashion}. A seed draws the calibration images, the same for every arm. Arms named `cut alone` have
no refit. Scores and refit are computed in float32, training and evaluation in --precision. On a CPU without AMX,
bfloat16 autocast is four times slower than float32. Rows are appended to results/budget.jsonl.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from peers import cell
from recovery import first, hits, interval, packed, table, unpacked
from setting import loader, outputs, setting, test_images
from torch import nn
from torch.utils.data import Subset

import slimvit
from slimvit.config.recipe import FinetuneSection
from slimvit.data.loaders import train_loader
from slimvit.data.preprocessing import preprocessing_of
from slimvit.data.subsets import draw
from slimvit.measure.accuracy import compare
from slimvit.measure.flops.count import count_macs
from slimvit.prune.budget_search import plan_budget
from slimvit.prune.costs.base import Costs
from slimvit.prune.costs.macs import macs_costs
from slimvit.prune.criteria.registry import score_parts
from slimvit.prune.criteria.scores import Scores
from slimvit.train.loop import TrainOptions
from slimvit.utils.errors import PlanError

HERE = Path(__file__).parent
ROWS, RANKS = HERE / "results" / "budget.jsonl", HERE / "results" / "budget_rank.json"
BOTH = ("heads", "mlp")
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "default, cut alone": {"refit": False},
    "whole branches too": {"parts": (*BOTH, "branches")},
    "uniform": {"scope": "uniform"},
    "heads alone": {"parts": ("heads", "branches"), "only": "heads"},
    "MLP alone": {"parts": ("mlp",)},
    "depth alone": {"parts": ("branches",)},
    "two rounds": {"steps": 2},
    "four rounds": {"steps": 4},
    "fisher": {"criterion": "fisher"},
    "random": {"criterion": "random"},
    "Torch-Pruning": {"criterion": "tp-taylor", "refit": False},
    "Torch-Pruning, refit": {"criterion": "tp-taylor"},
}
TARGETS = (0.75, 0.5, 0.35, 0.3)


class Bench:
    """The uncut network, and the scores of it that several rows share."""

    def __init__(self, test: int, precision: str) -> None:
        self.model, self.data, whole = setting("fashion", 20_000, precision)
        self.precision = precision
        self.test = min(test, len(whole.features))
        self.original = first(whole, self.test)
        self.total = count_macs(self.model).total
        self.cached: dict[tuple[str, int], tuple[Scores, float]] = {}
        """(Scores, seconds) by criterion and seed."""

    def images(self, seed: int, n: int = 512) -> Any:
        return loader(self.model, draw(self.data.train, n, seed))

    def scores(self, criterion: str, seed: int) -> tuple[Scores, float]:
        if (criterion, seed) not in self.cached:
            started = time.process_time()
            scores = score_parts(self.model, self.images(seed), criterion, seed, BOTH)
            self.cached[criterion, seed] = scores, time.process_time() - started
        return self.cached[criterion, seed]

    def forward(self, seed: int) -> float:
        """Seconds of a pass over the calibration images."""
        started = time.process_time()
        with torch.inference_mode():
            for images, _ in self.images(seed):
                self.model(images)
        return time.process_time() - started

    def measure(self, row: dict[str, Any]) -> dict[str, Any]:
        """One row: score, plan, cut, refit, train if asked, evaluate."""
        slim, fields = self.cut(row)
        if row["epochs"]:
            slim, trained = self.trained(row, slim)
            fields |= trained
        after = outputs(slim, Subset(test_images(self.data), range(self.test)), self.precision)
        accuracy, full = compare(after, self.original), compare(self.original).top1
        chance = 100 / self.model.num_classes
        assert full is not None and accuracy.top1 is not None
        return row | fields | {
            "macs": count_macs(slim).total / self.total, "top1": accuracy.top1, "original": full,
            "kept": 100 * (accuracy.top1 - chance) / (full - chance), "agreement": accuracy.agreement,
            "feature_error": accuracy.feature_error, "test": self.test, "hits": packed(hits(after)),
            "hits_original": packed(hits(self.original)),
        }  # fmt: skip

    def cut(self, row: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
        arm, seed = ARMS[row["arm"]], row["seed"]
        criterion, steps = arm.get("criterion", "residual"), arm.get("steps", 1)
        slim, spent = self.model, 0.0
        for step in range(1, steps + 1):
            scores, seconds = self.scores(criterion, seed)
            if step > 1:
                started = time.process_time()
                scores = score_parts(slim, self.images(seed), criterion, seed, BOTH)
                seconds = time.process_time() - started
            started = time.process_time()
            wanted = (1 - (1 - row["target"]) * step / steps) * self.total
            plan = plan_budget(scores, self.costs(slim, arm), wanted, parts=arm.get("parts", BOTH),
                               scope=arm.get("scope", "global"))  # fmt: skip
            slim = slimvit.prune_model(slim, plan)
            if arm.get("refit", True):
                slim = slimvit.refit(slim, self.model, self.images(seed))
            spent += seconds + time.process_time() - started
        counts = [[len(b.kept_heads), len(b.kept_neurons)] for b in plan.blocks]
        passes = round(spent / self.forward(seed), 2)
        return slim, {"plan": counts, "passes": passes}

    def costs(self, model: nn.Module, arm: dict[str, Any]) -> Costs:
        """With `only`, removing neurons saves nothing, so that the search keeps them."""
        costs = macs_costs(model, count_macs(model).total)
        if "only" not in arm:
            return costs
        whole = tuple(lambda _, p=p: p(1536) for p in costs.of("mlp"))
        return Costs(costs.unit, costs.rest, {**costs.prices, "mlp": whole})

    def trained(self, row: dict[str, Any], slim: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        section = FinetuneSection(epochs=row["epochs"], crop_scale=1, hflip=0)
        images = draw(self.data.train, row["images"], row["seed"])
        batches = train_loader(images, preprocessing_of(slim), section, 32, 0, row["seed"])
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16", cache_enabled=False):
            options = TrainOptions(lr=row["lr"], seed=row["seed"])
            tuned, history = slimvit.finetune(slim, batches, section, teacher=self.model, options=options)
        return tuned, {"losses": [round(epoch["loss"], 4) for epoch in history]}

    def rank(self, plans: int) -> dict[str, Any]:
        """Predicted and true rise of the loss of random plans that remove units in the order of the scores."""
        scores, _ = self.scores("residual", 0)
        images, rng = self.images(0, 256), np.random.default_rng(0)
        test = Subset(test_images(self.data), range(1000))
        before = compare(first(self.original, 1000)).loss
        rows = []
        for _ in range(plans):
            most, predicted, heads, neurons = rng.uniform(0.1, 0.9), 0.0, [], []
            for block, of_heads, of_mlp in zip(scores.plan.blocks, scores.of("heads"), scores.of("mlp"), strict=True):
                h, n = int(rng.uniform(0, most) * block.heads), 8 * int(rng.uniform(0, most) * block.neurons / 8)
                heads.append(of_heads.order[h:])
                neurons.append(of_mlp.order[n:])
                predicted += sum(of_heads.costs[:h]) + sum(of_mlp.costs[:n])
            slim = slimvit.prune_model(self.model, scores.plan.keeping(heads=heads, neurons=neurons))
            pair = [outputs(m, test, self.precision) for m in (slim, slimvit.refit(slim, self.model, images))]
            after = [compare(o, first(self.original, 1000)) for o in pair]
            row = {"predicted": predicted, "macs": count_macs(slim).total / self.total}
            row |= {k: a.loss - before for k, a in zip(("loss_cut", "loss_refit"), after, strict=True)}
            row |= {"feature_error": after[1].feature_error}
            rows.append(row)
            print(json.dumps(row), flush=True)
        frame = pd.DataFrame(rows)
        wanted = ("loss_refit", "loss_cut", "feature_error")
        spearman = {k: round(float(frame["predicted"].rank().corr(frame[k].rank())), 3) for k in wanted}
        by_size = float((-frame["macs"]).rank().corr(frame["loss_refit"].rank()))
        return {"plans": plans, "spearman": spearman, "spearman_of_macs_alone": round(by_size, 3), "rows": rows}


def render() -> str:
    rows = pd.DataFrame([json.loads(line) for line in ROWS.read_text().splitlines()])
    precisions = ", ".join(f"{n} rows in {name}" for name, n in rows["precision"].value_counts().items())
    text = ["# To a budget in MACs", f"{rows['versions'].iloc[-1]}; {precisions}", WHAT]
    for (target, epochs, images), group in rows.groupby(["target", "epochs", "images"], sort=False):
        trained = f", then {epochs} epochs on {images:,} images" if epochs else ", no training"
        text.append(f"## {target:.0%} of the MACs{trained}")
        lines = [["arm", "seeds", "MACs", "top-1", "above chance kept (%)", "against the original", "agreement (%)",
                  "feature error", "passes"]]  # fmt: skip
        for arm in ARMS:
            if len(mine := group[group["arm"] == arm]):
                lines.append(_line(arm, mine))
        text.append(table(lines))
    if RANKS.exists():
        rank = json.loads(RANKS.read_text())
        text.append("## Predicted against true rise of the loss")
        text.append(RANKED.format(**rank, **rank["spearman"]))
    return "\n\n".join(text) + "\n"


def _line(arm: str, rows: pd.DataFrame) -> list[Any]:
    paired = [unpacked(r["hits"], r["test"]) - unpacked(r["hits_original"], r["test"]) for r in rows.to_dict("records")]
    spread = [cell(rows[k], d) for k, d in (("top1", 2), ("kept", 2), ("agreement", 2), ("feature_error", 3))]
    passes = f"{rows['passes'].mean():.1f}"
    share = f"{rows['macs'].mean():.4f}"
    return [arm, len(rows), share, spread[0], spread[1], interval(np.stack(paired)), spread[2], spread[3], passes]


WHAT = """DINOv2 ViT-S/14 at 112 px, Fashion-MNIST, a linear classifier of 20,000 images, 5,000 test images, 512
calibration images; mean ± sample standard deviation over seeds. `above chance kept`: of the original's top-1. `against
the original`: difference of top-1 in points on the same images, with its 95 % interval (bootstrap over images and
seeds; of one seed, over images alone). `passes`: scoring, search and refit, in forward passes over the calibration
images. Torch-Pruning: its group Taylor importance of heads and of MLP neurons, picked anywhere (its normalisation by
the mean of a group), in the same groups of 8. Every arm but it and `cut alone` is given the same refit."""
RANKED = """{plans} random plans along the order of the scores. Spearman's rank correlation of the predicted rise with
the true one after the refit {loss_refit}, after the cut alone {loss_cut}, with the feature error {feature_error}; of
the MACs alone with the true rise {spearman_of_macs_alone}."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", choices=[*ARMS, []])
    parser.add_argument("--targets", nargs="+", type=float, default=list(TARGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--images", type=int, default=1000, help="training images, with --epochs")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rank", type=int, default=0, metavar="PLANS")
    parser.add_argument("--render", action="store_true", help="only write the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    versions = f"CPU ({platform.machine()}, {args.threads} threads), torch {torch.__version__}, timm {timm.__version__}"
    if not args.render:
        bench = Bench(args.test, args.precision)
        training = {"precision": args.precision, "epochs": args.epochs, "lr": args.lr}
        training |= {"images": args.images if args.epochs else 0}
        for seed in args.seeds if args.arms else []:
            for target in args.targets:
                for arm in args.arms:
                    try:
                        row = bench.measure({"arm": arm, "target": target, "seed": seed} | training)
                    except PlanError as error:  # heads alone reach no half
                        print(f"{arm}, {target}: {error}", flush=True)
                        continue
                    with ROWS.open("a") as file:
                        file.write(json.dumps(row | {"versions": versions}) + "\n")
                    shown = ("arm", "target", "seed", "top1", "kept", "agreement", "feature_error", "passes")
                    print({k: row[k] for k in shown}, flush=True)
        if args.rank:
            RANKS.write_text(json.dumps(bench.rank(args.rank) | {"versions": versions}) + "\n")
    (HERE / "results" / "budget.md").write_text(render())


if __name__ == "__main__":
    main()
