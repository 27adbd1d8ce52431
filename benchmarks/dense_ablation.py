"""Effect of dense attention: the same network cut, refitted and fine-tuned with and without it, and from scratch.

    python benchmarks/dense_ablation.py --parts pruned scratch         # the comparison: hours on one CPU core
    python benchmarks/dense_ablation.py --parts variants --seeds 1     # other alignments, starts and rates
    python benchmarks/dense_ablation.py --render                       # table and picture from all rows so far

`pruned`: for every cut (half of the heads, two thirds, all but one per block) and every seed, one pretrained network
(small_vit.py) is scored, cut and refitted on 512 calibration images drawn with the seed. All arms start from that
network and see the same batches. `scratch`: DeiT-T's proportions at width 48 with 8 blocks, with three heads, two, or
two and dense attention initialised at zero or N(0, 1). Each arm's learning rate is the best of a grid on a tuning seed
and held-out training images; test images choose nothing. `variants` (dense_variants.py) use the rate of `layer`.
One row per run is appended to results/dense_ablation.jsonl; existing rows are not measured again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from dense_report import TUNING_SEED, best_rate, draw, render
from dense_variants import Arm
from small_vit import build, calibration, images, outputs, pretrained, soft_targets, train

import slimvit
from slimvit.measure.accuracy import Accuracy, Outputs, compare
from slimvit.models.insert_dense import dense_mix, mixes_of

HERE = Path(__file__).parent
ROWS = HERE / "results" / "dense_ablation.jsonl"

CUTS: dict[str, dict[str, Any]] = {"one a block": {"keep": 1}, "two thirds": {"ratio": 2 / 3}, "half": {"ratio": 0.5}}
ARMS = {"none": Arm(mix=None), "layer": Arm(), "head": Arm(mix="head")}
VARIANTS = {
    "slot": Arm(align="slot"),
    "map": Arm("head", align="map"),
    "linear": Arm(align="linear"),
    "slot, lr x1": Arm(align="slot", lr_scale=1),
    "slot, lr x100": Arm(align="slot", lr_scale=100),
    "slot, first block": Arm(align="slot", first=True),
    "slot, constant": Arm(align="slot", start="constant"),
    "slot, normal, refit": Arm(align="slot", start="normal, refit"),
    "slot, solved": Arm(align="slot", start="solved"),
    "none, refit": Arm(mix=None, start="refit"),
}
WHERE = {"one a block": tuple(v for v in VARIANTS if v != "map"), "two thirds": ("slot", "map")}
"""Variants by cut. With one head per block, `map` is the same network as `slot`."""
DEIT = {"patch_size": 7, "embed_dim": 48, "depth": 8, "num_heads": 3}
"""DeiT-T's widths over 4, and 8 of its 12 blocks."""
SCRATCH: dict[str, dict[str, Any]] = {
    "3 heads": {}, "2 heads": {"heads": 2}, "2 heads, dense, zero": {"heads": 2, "dense": "layer"},
    "2 heads, dense, normal": {"heads": 2, "dense": "layer", "init": "normal"},
}  # fmt: skip

COMPARED = {"one a block": ("none", "layer"), "two thirds": tuple(ARMS), "half": tuple(ARMS), "scratch": tuple(SCRATCH)}
"""Arms compared over all seeds, by cut. With one head per block, `head` is the same network as `layer`."""

RATES: dict[str, tuple[float, ...]] = dict.fromkeys(CUTS, (4e-4, 1e-3, 2.5e-3)) | {"scratch": (1e-3, 2.5e-3, 5e-3)}
TUNED = ("pruned", "scratch")
"""Parts whose arms have a tuned learning rate."""
EPOCHS = 8
LENGTH = {"one a block": 5_120, "two thirds": 2_560, "half": 2_560, "scratch": 5_120}
"""Images per epoch by cut; epochs go through the 57,500 training images in turn. Smaller cuts train less."""
PICTURE = ("one a block", "slot")
"""Cut and arm whose mixes are drawn."""


@cache
def refitted(cut: str, seed: int) -> Any:
    """The pretrained network, scored, cut and refitted on the calibration images of the seed."""
    model, batches = pretrained(), calibration(512, seed)
    plan = slimvit.plan_units(slimvit.score_parts(model, batches, "residual", seed), **CUTS[cut])
    return slimvit.refit(slimvit.prune_model(model, plan), model, batches)


@cache
def original() -> Outputs:
    """Outputs of the uncut network for the test images."""
    return outputs(pretrained(), "test")


def from_cut(row: dict[str, Any]) -> dict[str, Any]:
    """Figures of one arm on one cut network, before and after fine-tuning."""
    arm, seed = (ARMS | VARIANTS)[row["arm"]], row["seed"]
    model = arm.insert(refitted(row["cut"], seed), pretrained(), calibration(512, seed), seed)
    before = refit_accuracy(row["cut"], seed) if arm.start == "zero" else compare(outputs(model, "test"), original())
    tuned, curve = train(model, soft_targets(), row["epochs"], LENGTH[row["cut"]], row["lr"], seed, arm.lr_scale)
    after = compare(outputs(tuned, "test"), original())
    started = {"original": compare(original()).top1, "start": before.top1, "start_error": before.feature_error}
    ended = {"top1": after.top1, "loss": after.loss, "agreement": after.agreement, "curve": curve}
    learnt = weights(tuned) if arm.align in ("id", "slot") else {}  # others have several weights per head and pair
    return {"images": row["epochs"] * LENGTH[row["cut"]]} | started | ended | learnt


@cache
def refit_accuracy(cut: str, seed: int) -> Accuracy:
    """Accuracy of the refitted network, also with dense attention at zero mixes, which changes nothing."""
    return compare(outputs(refitted(cut, seed), "test"), original())


def from_scratch(row: dict[str, Any]) -> dict[str, Any]:
    model = build(row["seed"], DEIT, **SCRATCH[row["arm"]])
    tuned, curve = train(model, images("train")[1], row["epochs"], LENGTH["scratch"], row["lr"], row["seed"])
    after = compare(outputs(tuned, "test"))
    seen = row["epochs"] * LENGTH["scratch"]
    return {"images": seen, "top1": after.top1, "loss": after.loss, "curve": curve} | weights(tuned)


def weights(model: Any) -> dict[str, Any]:
    """The learned mix of every pair of blocks, averaged over heads."""
    if dense_mix(model) is None:
        return {}
    pairs: dict[str, list[float]] = {}
    for (block, earlier, _), value in mixes_of(model).items():
        pairs.setdefault(f"{block} < {earlier}", []).append(value)
    return {"mixes": {pair: round(sum(values) / len(values), 4) for pair, values in pairs.items()}}


def wanted(part: str, cuts: list[str], seeds: int, done: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The runs of one part; the tuning runs of an arm come before its seeds."""
    for cut in ["scratch"] if part == "scratch" else cuts:
        if part in TUNED:
            for arm in COMPARED[cut]:
                runs = {"cut": cut, "arm": arm, "epochs": EPOCHS, "seed": TUNING_SEED}
                yield from (runs | {"lr": lr} for lr in RATES[cut])
        arms = WHERE.get(cut, ()) if part == "variants" else COMPARED[cut]
        for seed in range(seeds):
            for arm in arms:
                rate = best_rate(done, cut, arm if arm in COMPARED[cut] else "layer")
                yield {"cut": cut, "arm": arm, "epochs": EPOCHS, "seed": seed, "lr": rate}


def measure(args: argparse.Namespace) -> None:
    done = [json.loads(line) for line in ROWS.read_text().splitlines()]
    versions = f"CPU ({platform.machine()}), torch {torch.__version__}, timm {timm.__version__}"
    for part in args.parts:
        for row in wanted(part, args.cuts, args.seeds, done):
            if (
                args.arms
                and row["arm"] not in args.arms
                or any(row.items() <= r.items() for r in done if r["cut"] == row["cut"])
            ):
                continue
            started = time.perf_counter()
            row |= from_scratch(row) if part == "scratch" else from_cut(row)
            row |= {"seconds": round(time.perf_counter() - started, 1), "versions": versions}
            done.append(row)
            with ROWS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({k: v for k, v in row.items() if k not in ("versions", "mixes")}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("pruned", "scratch", "variants"), default=[])
    parser.add_argument("--cuts", nargs="+", choices=CUTS, default=list(CUTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--render", action="store_true", help="write results/dense_ablation.md and docs/mixes.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ROWS.touch()
    measure(args)
    if args.render:
        rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
        (HERE / "results" / "dense_ablation.md").write_text(render(rows))
        draw(rows, *PICTURE, HERE.parent / "docs" / "mixes.png")


if __name__ == "__main__":
    main()
