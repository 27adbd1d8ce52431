"""What dense attention wins back after a cut: the same network, cut, refit and fine-tuned with and without it.

    python benchmarks/dense_ablation.py --setting digits-vit
    python benchmarks/dense_ablation.py --setting fashion --epochs 10      # DINOv2 ViT-S at 112 px; wants a GPU
    python benchmarks/dense_ablation.py --render

For every cut (half of the heads, two thirds, all but one a block) and every seed, one network is scored, cut and refit
on calibration images drawn with the seed; the arms `none`, `layer` and `head` start from that same network and are
fine-tuned with self-distillation on the same batches. Each arm's learning rate is the best of the same grid on a seed
of its own. A row a run goes to results/dense_ablation.jsonl; a row that is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch

import slimvit
from slimvit.data.loaders import draw, eval_loader, preprocessing_of, train_loader
from slimvit.data.sources import open_data
from slimvit.measure.accuracy import compare, outputs_of
from slimvit.options import Options
from slimvit.recipe import DataSection, FinetuneSection, ModelSection
from slimvit.sources import open_model
from slimvit.train.adapt import fit_head

HERE = Path(__file__).parent
REAL = HERE.parent / ".cache" / "real"
ROWS = HERE / "results" / "dense_ablation.jsonl"
DINOV2 = ModelSection(name="vit_small_patch14_dinov2", weights=str(REAL / "dinov2/model.safetensors"), img_size=112)
SETTINGS = {
    "digits-vit": (ModelSection(name="vit_digits"), DataSection(name="digits"), (1e-4, 3e-4, 1e-3)),
    "digits-swin": (ModelSection(name="swin_digits"), DataSection(name="digits"), (1e-4, 3e-4, 1e-3)),
    "fashion": (
        DINOV2,
        DataSection(
            name="torch/fashion_mnist", root=str(REAL / "fashion"), train_images=10_000, eval_images=5_000
        ),
        (1e-6, 3e-6, 1e-5),
    ),
}  # fmt: skip
"""Model, data, learning rates tried."""
ARMS = ("none", "layer", "head")
CUTS: dict[str, dict[str, Any]] = {"half": {"ratio": 0.5}, "two thirds": {"ratio": 2 / 3}, "one a block": {"heads": 1}}
TUNING_SEED = 100


class Bench:
    """One setting's model and data, and what its uncut network says of the validation images."""

    def __init__(self, setting: str, epochs: int, lr_scale: float) -> None:
        section, data_section, self.rates = SETTINGS[setting]
        self.epochs, self.lr_scale, self.device = epochs, lr_scale, Options().torch_device()
        self.data = open_data(data_section)
        model: Any = open_model(section).to(self.device)
        self.prep = preprocessing_of(model)
        if model.num_classes == 0:
            train = outputs_of(model, self.loader(self.data.train), self.device)
            model = fit_head(model, train.features, train.labels, self.data.num_classes, 100, 0)  # type: ignore[arg-type]
        self.model = model.to(self.device)
        self.original = outputs_of(self.model, self.loader(self.data.val), self.device)
        self.cuts: dict[tuple[str, int], Any] = {}

    def loader(self, images: Any) -> Any:
        return eval_loader(images, self.prep, 64)

    def refitted(self, cut: str, seed: int) -> Any:
        """Scored, cut and refit on the calibration images of the seed."""
        if (cut, seed) not in self.cuts:
            images = self.loader(draw(self.data.train, 512, seed))
            plan = slimvit.plan_heads(slimvit.score_heads(self.model, images, "residual", seed), **CUTS[cut])
            self.cuts[cut, seed] = slimvit.refit(slimvit.prune_heads(self.model, plan), self.model, images)
        return self.cuts[cut, seed]

    def trained(self, cut: str, seed: int, arm: str, lr: float) -> dict[str, Any]:
        """Top-1 after every epoch, agreement and the mixes at the end."""
        model = self.refitted(cut, seed)
        before = compare(outputs_of(model, self.loader(self.data.val), self.device), self.original)
        if arm != "none":
            model = slimvit.insert_dense_attention(model, arm)
        section = FinetuneSection(epochs=self.epochs, crop_scale=1, hflip=0)
        batches = train_loader(self.data.train, self.prep, section, 64, 0, seed)
        curve: list[float] = []

        def look(model: Any, row: dict[str, Any]) -> None:
            found = compare(outputs_of(model, self.loader(self.data.val), self.device), self.original)
            curve.append(round(found.top1 or 0.0, 4))
            row["agreement"] = found.agreement

        tuned, history = slimvit.finetune(
            model, batches, section, teacher=self.model, lr=lr, device=self.device, seed=seed,
            mix_lr_scale=self.lr_scale, after_epoch=look,
        )  # fmt: skip
        mixes = [p.detach().flatten().tolist() for name, p in tuned.named_parameters() if name.endswith("attn.mix")]
        return {
            "refit": before.top1, "top1": curve[-1], "curve": curve, "agreement": history[-1]["agreement"],
            "mixes": [[round(w, 4) for w in ws] for ws in mixes],
        }  # fmt: skip


def wanted(
    cuts: list[str], seeds: int, rates: tuple[float, ...], done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Tuning runs first; then each arm's seeds at its best learning rate."""
    for cut in cuts:
        for arm in ARMS:
            yield from ({"cut": cut, "arm": arm, "seed": TUNING_SEED, "lr": lr} for lr in rates)
            tried = [r for r in done if (r["cut"], r["arm"], r["seed"]) == (cut, arm, TUNING_SEED)]
            best = max(tried, key=lambda r: r["top1"])["lr"]
            yield from ({"cut": cut, "arm": arm, "seed": seed, "lr": best} for seed in range(seeds))


def render() -> str:
    """Mean top-1 of each arm, and the paired difference to `none` with its 95 % interval (bootstrap over seeds)."""
    rows = pd.DataFrame([json.loads(line) for line in ROWS.read_text().splitlines()])
    rows = rows[rows["seed"] != TUNING_SEED]
    lines = ["# What dense attention wins back", "", str(rows["versions"].iloc[-1]), ""]
    lines += [
        "| setting | cut | epochs | lr of mixes | arm | lr | seeds | refit | top-1 | against none (95 %) | agreement |"
    ]
    lines += ["|" + " --- |" * 11]
    for (setting, cut, epochs, scale), group in rows.groupby(["setting", "cut", "epochs", "lr_scale"], sort=False):
        none = group[group["arm"] == "none"].set_index("seed")["top1"]
        for arm, runs in group.groupby("arm", sort=False):
            paired = (runs.set_index("seed")["top1"] - none).dropna().to_numpy()
            draws = np.random.default_rng(0).choice(paired, (5000, len(paired))).mean(1)
            low, high = np.quantile(draws, (0.025, 0.975))
            told = "-" if arm == "none" else f"{paired.mean():+.2f} ({low:+.2f} to {high:+.2f})"
            cells = [setting, cut, epochs, f"x{scale:g}", arm, f"{runs['lr'].iloc[0]:g}", len(runs)]
            cells += [f"{runs['refit'].mean():.2f}", f"{runs['top1'].mean():.2f} ± {runs['top1'].std():.2f}", told]
            lines.append("| " + " | ".join(map(str, [*cells, f"{runs['agreement'].mean():.1f}"])) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS)
    parser.add_argument("--cuts", nargs="+", choices=CUTS, default=list(CUTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr-scale", type=float, default=10.0, help="learning rate of the mixes, times the others'")
    parser.add_argument("--render", action="store_true", help="only write the table")
    args = parser.parse_args()
    ROWS.parent.mkdir(exist_ok=True)
    ROWS.touch()
    if args.setting and not args.render:
        measure(args)
    (HERE / "results" / "dense_ablation.md").write_text(render())


def measure(args: argparse.Namespace) -> None:
    bench = Bench(args.setting, args.epochs, args.lr_scale)
    same = {"setting": args.setting, "epochs": args.epochs, "lr_scale": args.lr_scale}
    done = [r for r in map(json.loads, ROWS.read_text().splitlines()) if all(r[k] == v for k, v in same.items())]
    where = torch.cuda.get_device_name() if bench.device.type == "cuda" else f"CPU ({platform.machine()})"
    versions = f"{where}, torch {torch.__version__}, timm {timm.__version__}"
    for row in wanted(args.cuts, args.seeds, bench.rates, done):
        if any(all(r[k] == v for k, v in row.items()) for r in done):
            continue
        found = same | row | bench.trained(row["cut"], row["seed"], row["arm"], row["lr"]) | {"versions": versions}
        done.append(found)
        with ROWS.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(json.dumps({k: v for k, v in found.items() if k not in ("versions", "mixes")}), flush=True)


if __name__ == "__main__":
    main()
