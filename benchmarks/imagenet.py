"""Top-1 kept on real ImageNet classifiers after pruning without training and without labels.

    python benchmarks/imagenet.py main                 # two networks, budgets of 0.723, 0.6 and 0.5 of the MACs
    python benchmarks/imagenet.py neurons knobs        # half of all neurons; one ingredient changed at a time
    python benchmarks/imagenet.py --render             # results/imagenet.md from all rows so far

DeiT-T/16 and ViT-T/16 (augreg) at 224 px. 1,000 images, one a class, are split by class: 500 calibrate and 500 test,
then the other way round. Figures are relative to the uncut network on the same images, since these may be training
images. The interval is the 95 % bootstrap interval over the test images. One thread. Rows are appended to
results/imagenet.jsonl; existing rows are not measured again. Weights and images are read from
.cache/real/{deit_tiny,vit_tiny,imagenet}.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform
from torch import Tensor

import slimvit
from slimvit.config.recipe import ModelSection
from slimvit.data.preprocessing import preprocessing_of
from slimvit.io.open import open_model
from slimvit.measure.accuracy import Outputs, compare, outputs_of
from slimvit.measure.flops.count import count_macs
from slimvit.prune.criteria.scores import Scores

HERE = Path(__file__).parent
REAL = HERE.parent / ".cache" / "real"
ROWS = HERE / "results" / "imagenet.jsonl"
NETWORKS = {"DeiT-T": ("deit_tiny_patch16_224", "deit_tiny"), "ViT-T": ("vit_tiny_patch16_224", "vit_tiny")}
BATCH = 50
DEFAULT = {
    "network": "DeiT-T", "budget": "target_macs=0.5", "parts": "heads,mlp,qk", "criterion": "residual",
    "ridge": "chosen", "class_token": 9.0, "images": 500,
}  # fmt: skip
SAMPLES = 2_000
"""Bootstrap samples of the interval."""


def rows_of(part: str) -> list[dict[str, Any]]:
    """The rows of a part, as differences from DEFAULT."""
    budgets = [f"target_macs={target}" for target in (0.723, 0.6, 0.5)]
    earlier = {"parts": "heads,mlp", "ridge": 0.1, "class_token": 1.0}
    return {
        "main": [
            {"network": network, "budget": budget} | settings
            for network in NETWORKS
            for budget in budgets
            for settings in ({}, earlier)
        ],
        "neurons": [{"network": n, "budget": "mlp_ratio=0.5", "parts": "mlp"} for n in NETWORKS],
        "knobs": [
            {"parts": "heads,mlp"}, {"ridge": 0.1}, {"ridge": 0.3}, {"class_token": 1.0}, {"images": 250},
            {"criterion": "magnitude"},
        ],
    }[part]  # fmt: skip


@cache
def model_of(network: str) -> Any:
    name, folder = NETWORKS[network]
    return open_model(ModelSection(name=name, weights=str(REAL / folder / "model.safetensors")))


@cache
def images_of(network: str, half: int) -> tuple[Tensor, Tensor]:
    """Images [500, 3, 224, 224] and labels [500] of the classes of even (0) or odd (1) place."""
    given = preprocessing_of(model_of(network))
    transform = create_transform(
        224, mean=given.mean, std=given.std, crop_pct=given.crop_pct, interpolation=given.interpolation
    )
    order, classes = ImageNetInfo().label_names(), sorted(p.name for p in (REAL / "imagenet").iterdir())[half::2]
    files = [next((REAL / "imagenet" / name).glob("*.jpg")) for name in classes]
    return torch.stack([transform(Image.open(f).convert("RGB")) for f in files]), torch.tensor(
        [order.index(name) for name in classes]
    )


def batches(network: str, half: int, images: int | None = None, labels: bool = False) -> list[tuple[Tensor, Tensor]]:
    x, y = images_of(network, half)
    x, y = x[:images], y[:images] if labels else torch.full_like(y[:images], -1)
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


@cache
def original_outputs(network: str, half: int) -> Outputs:
    return outputs_of(model_of(network), batches(network, half, labels=True))


@cache
def scored(network: str, half: int, images: int, criterion: str, parts: tuple[str, ...]) -> Scores:
    """The scores of the uncut network, which all budgets share."""
    return slimvit.score_parts(model_of(network), batches(network, half, images), criterion, parts=parts)


def measure(row: dict[str, Any]) -> dict[str, Any]:
    """One row: score, plan, cut, refit and test on each half of the classes."""
    model, parts = model_of(row["network"]), tuple(row["parts"].split(","))
    name, value = row["budget"].split("=")
    settings: dict[str, Any] = {name: float(value)}
    if name.startswith("target"):
        settings["parts"] = list(parts)
    hits, before, same, errors = [], [], [], []
    cost = 0.0
    for half in (0, 1):
        calibration = batches(row["network"], half, row["images"])
        scores = scored(row["network"], half, row["images"], row["criterion"], tuple({*parts, "heads"}))
        slim = slimvit.prune_model(model, slimvit.plan(scores, model, **settings))
        ridge = None if row["ridge"] == "chosen" else row["ridge"]
        slim = slimvit.refit(slim, model, calibration, ridge=ridge, class_token=row["class_token"])
        original, test = original_outputs(row["network"], 1 - half), batches(row["network"], 1 - half, labels=True)
        found = outputs_of(slim, test)
        assert found.logits is not None and original.logits is not None and original.labels is not None
        predicted, reference = found.logits.argmax(1), original.logits.argmax(1)
        hits.append(predicted == original.labels)
        before.append(reference == original.labels)
        same.append(predicted == reference)
        errors.append(compare(found, original).feature_error)
        cost = max(cost, count_macs(slim).total / count_macs(model).total)
    hit, was = torch.cat(hits).double(), torch.cat(before).double()
    drawn = torch.randint(len(hit), (SAMPLES, len(hit)), generator=torch.Generator().manual_seed(0))
    kept = 100 * hit[drawn].sum(1) / was[drawn].sum(1)
    return {
        "macs": cost, "kept": float(100 * hit.sum() / was.sum()), "low": float(kept.quantile(0.025)),
        "high": float(kept.quantile(0.975)), "agreement": float(100 * torch.cat(same).double().mean()),
        "feature_error": sum(errors) / 2, "original": float(100 * was.mean()),
    }  # fmt: skip


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in DEFAULT)


def read_rows() -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of the file by key."""
    return {key(row): row for row in map(json.loads, ROWS.read_text().splitlines())} if ROWS.exists() else {}


def render() -> str:
    """All rows as one Markdown table."""
    rows = list(read_rows().values())
    lines = ["| " + " | ".join([*DEFAULT, "MACs", "top-1 kept (%)", "95 %", "agreement (%)", "feature error"]) + " |"]
    lines.append("|" + " --- |" * (len(DEFAULT) + 5))
    for row in sorted(rows, key=lambda r: (r["network"], r["budget"], -r["kept"])):
        figures = [
            f"{row['macs']:.3f}", f"{row['kept']:.1f}", f"{row['low']:.1f} to {row['high']:.1f}",
            f"{row['agreement']:.1f}", f"{row['feature_error']:.3f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join([*(str(row[name]) for name in DEFAULT), *figures]) + " |")
    versions = pd.DataFrame(rows)["versions"].iloc[-1]
    return f"# ImageNet classifiers, pruned without training\n\n{versions}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["main", "neurons", "knobs", []])
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    versions = f"CPU ({platform.processor() or platform.machine()}), torch {torch.__version__}, timm {timm.__version__}"
    for part in args.parts:
        for change in rows_of(part):
            row = DEFAULT | change
            if key(row) in read_rows():
                continue
            started = time.perf_counter()
            row |= measure(row) | {"seconds": round(time.perf_counter() - started, 1), "versions": versions}
            with ROWS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({k: v for k, v in row.items() if k != "versions"}), flush=True)
    if args.render:
        (HERE / "results" / "imagenet.md").write_text(render())


if __name__ == "__main__":
    main()
