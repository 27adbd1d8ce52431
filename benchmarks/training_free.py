"""Accuracy after pruning without training, by criterion, refit and calibration images.

    python benchmarks/training_free.py main            # the default, three budgets, three calibration seeds
    python benchmarks/training_free.py random criteria targets knobs textile digits
    python benchmarks/training_free.py --render        # results/training_free.md from all rows so far

DINOv2 ViT-S/14 at 112 px with a linear classifier on frozen features. A row holds the removed heads of 72 (or 36),
top-1, its share above chance, agreement with the uncut network and feature error. Rows are appended to
results/training_free.jsonl; existing rows are not measured again. Model and data are read from
.cache/real/{dinov2,fashion,textile}: a pretrained ViT-S, Fashion-MNIST, textile photographs.
"""

from __future__ import annotations

import argparse
import json
import platform
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from setting import TEST, loader, setting, test_images

import slimvit
from slimvit.data.subsets import draw
from slimvit.measure.accuracy import Outputs, compare, outputs_of
from slimvit.measure.flops.count import count_macs
from slimvit.models.registry import plan_of
from slimvit.prune.criteria.scores import Scores

HERE = Path(__file__).parent
ROWS = HERE / "results" / "training_free.jsonl"
DEFAULT = {
    "data": "fashion", "ratio": 0.5, "criterion": "residual", "target": "stream", "ridge": 0.3, "images": 512,
    "seed": 0, "test": TEST, "scope": "global",
}  # fmt: skip


def parts() -> dict[str, list[dict[str, Any]]]:
    """The rows of each part, as differences from DEFAULT; all but `main` and `random` may use fewer images."""
    third, half, two_thirds = 1 / 3, 0.5, 2 / 3
    criteria = ("residual", "fisher", "taylor", "magnitude", "tp-magnitude", "tp-taylor")
    small: dict[str, Any] = {"test": 1_000, "images": 256}
    return {
        "main": [{"ratio": r, "seed": s} for r in (half, third, two_thirds) for s in range(3)],
        "random": [{"criterion": "random", "seed": s} for s in range(5)],
        "criteria": [small | {"criterion": c, "target": t} for c in criteria for t in ("none", "stream")]
        + [small | {"criterion": "random", "target": "none"}],
        "targets": [small | {"target": t} for t in ("own", "teacher")] + [small | {"scope": "uniform"}],
        "knobs": [small | {"ridge": r} for r in (0.03, 0.1, 1.0)]
        + [small | {"images": n} for n in (64, 128, 512, 1024)],
        "textile": [
            {"data": "textile", "ratio": r, "criterion": c, "target": t}
            for r in (third, half)
            for c, t in (("residual", "stream"), ("residual", "none"), ("random", "stream"))
        ],
        "digits": [
            {"data": "digits", "ratio": r, "criterion": c, "target": t, "seed": s}
            for r in (third, half, two_thirds)
            for c in (*criteria, "random")
            for t in ("none", "stream")
            for s in range(3)
        ],
    }  # fmt: skip


def of(name: str) -> tuple[Any, Any, Outputs]:
    return setting(name, 20_000 if name == "fashion" else None)


def calibration(data: str, images: int, seed: int) -> Any:
    model, source, _ = of(data)
    return loader(model, draw(source.train, images, seed))


@cache
def scored(data: str, images: int, seed: int, criterion: str) -> Scores:
    """The scores of the uncut network, which all budgets share."""
    return slimvit.score_parts(of(data)[0], calibration(data, images, seed), criterion, seed)


def measure(row: dict[str, Any]) -> dict[str, Any]:
    """One row: score, plan, cut, refit, evaluate."""
    model, data, original = of(row["data"])
    n = min(row["test"], len(original.features))
    original = Outputs(original.logits[:n], original.features[:n], original.labels[:n])
    drawn = row["data"], row["images"], row["seed"]
    scores = scored(*drawn, row["criterion"])
    plan = slimvit.plan_units(scores, ratio=row["ratio"], scope=row["scope"])
    slim = slimvit.prune_model(model, plan)
    if row["target"] != "none":
        slim = slimvit.refit(slim, model, calibration(*drawn), row["target"], row["ridge"])
    val = test_images(data)
    accuracy = compare(outputs_of(slim, loader(slim, torch.utils.data.Subset(val, range(n)))), original)
    full, chance = compare(original, original).top1, 100 / model.num_classes
    return {
        "removed": f"{plan.removed_heads}/{plan_of(model).heads}", "original": full, "top1": accuracy.top1,
        "kept": 100 * (accuracy.top1 - chance) / (full - chance), "agreement": accuracy.agreement,
        "feature_error": accuracy.feature_error, "test": n, "macs": count_macs(slim).total,
        "original_macs": count_macs(model).total,
    }  # fmt: skip


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[k] for k in DEFAULT if k != "test") + (row["test"],)


def read_rows() -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of the file by key; the last among rows of the same key."""
    return {key(row): row for row in map(json.loads, ROWS.read_text().splitlines())}


def render() -> str:
    """All rows as one Markdown table, seeds averaged (spread as the standard deviation)."""
    rows = pd.DataFrame(read_rows().values())
    versions = rows.pop("versions").iloc[-1]
    by = ["data", "removed", "scope", "criterion", "target", "ridge", "images", "test"]
    grouped = rows.groupby(by, sort=False)
    table = grouped[["original", "top1", "kept", "agreement", "feature_error"]].mean()
    for column in ("kept", "agreement"):
        spread = grouped[column].std()
        table[column] = [
            f"{m:.1f}" + ("" if pd.isna(s) else f" ± {s:.1f}") for m, s in zip(table[column], spread, strict=True)
        ]
    table["seeds"] = grouped.size()
    table = table.reset_index().sort_values(
        ["data", "removed", "test", "feature_error"], ascending=[True, True, False, True]
    )
    table = table.rename(columns={"kept": "above chance kept (%)", "agreement": "agreement (%)", "target": "refit"})
    for column, digits in (("original", 2), ("top1", 2), ("feature_error", 3)):
        table[column] = table[column].map(f"{{:.{digits}f}}".format)
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return f"# Training-free pruning\n\n{versions}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts(), []])
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    ROWS.parent.mkdir(exist_ok=True)
    ROWS.touch()
    done = set(read_rows())
    versions = f"CPU ({platform.processor() or platform.machine()}), torch {torch.__version__}, timm {timm.__version__}"
    for part in args.parts:
        for change in parts()[part]:
            row = DEFAULT | change
            row["test"] = min(row["test"], len(of(row["data"])[2].features))
            if key(row) in done:
                continue
            row |= measure(row) | {"versions": versions}
            with ROWS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({k: v for k, v in row.items() if k != "versions"}), flush=True)
    if args.render:
        (HERE / "results" / "training_free.md").write_text(render())


if __name__ == "__main__":
    main()
