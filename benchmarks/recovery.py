"""Recovery by fine-tuning after two thirds of the heads are removed, and the effect of scores, refit and distillation.

    python benchmarks/recovery.py tune                    # learning rates, judged on training images held out
    python benchmarks/recovery.py default controls        # three seeds each
    python benchmarks/recovery.py textile
    python benchmarks/recovery.py --render                # results/recovery.md from all rows so far

DINOv2 ViT-S/14 at 112 px with a linear classifier on frozen features loses 48 of 72 heads. `default`: heads chosen by
`residual`, `proj` and `fc2` refitted to the original's stream, then training on labels with distillation from the uncut
network. The controls have the same images, epochs and learning rate: random heads with the same refit, no refit, no
distillation. A seed draws the training images, their order and the random heads; the first training images are also
the calibration images. A row holds one bit per test image (correct or not), from which the intervals are computed.

One row per run is appended to results/recovery.jsonl; existing rows are not measured again. Cut and trained networks
are kept in .cache/bench/recovery, so that an interrupted call continues with the last of them.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from setting import KEPT, SETS, loader, outputs, setting, test_images
from torch import Tensor, nn
from torch.utils.data import Subset

import slimvit
from slimvit.config.recipe import FinetuneSection
from slimvit.data.loaders import train_loader
from slimvit.data.preprocessing import preprocessing_of
from slimvit.data.sources import open_data
from slimvit.data.subsets import draw
from slimvit.measure.accuracy import Outputs, compare
from slimvit.models.registry import plan_of
from slimvit.train.loop import TrainOptions

ROWS = Path(__file__).parent / "results" / "recovery.jsonl"
SEEN = {"fashion": 6_000, "textile": None}
"""Training images of the original's classifier, from which those of the fine-tuning are drawn."""
HELD_OUT = 1_000
"""Further training images, to choose the learning rate."""
PRECISION = "bfloat16"
"""Autocast precision of training and evaluation; scores and refit are float32."""
BEFORE = 1_000
"""Test images of the cut network before training."""
DEFAULT: dict[str, Any] = {
    "data": "fashion", "arm": "default", "seed": 0, "on": "test", "images": 1_000, "epochs": 2, "batch": 32,
    "lr": 1e-5, "augment": False, "calibration": 512, "test": 5_000,
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "default": {"criterion": "residual", "refit": True, "distill": True},
    "random heads": {"criterion": "random", "refit": True, "distill": True},
    "no refit": {"criterion": "residual", "refit": False, "distill": True},
    "no distillation": {"criterion": "residual", "refit": True, "distill": False},
}
BUDGET = ["data", "images", "epochs", "batch", "lr", "augment"]


def parts() -> dict[str, list[dict[str, Any]]]:
    """The rows of each part, as differences from DEFAULT."""
    tried: list[dict[str, Any]] = [{"lr": 3e-6}, {"lr": 1e-5}]
    return {
        "tune": [{"on": "held out"} | change for change in tried],
        "default": [{"seed": seed} for seed in range(3)],
        "controls": [{"seed": seed, "arm": arm} for seed in range(3) for arm in list(ARMS)[1:]],
        "textile": [{"data": "textile", "seed": seed} for seed in range(3)],
    }


class CachedTeacher(nn.Module):
    """A teacher whose logits are cached by image: without augmentation, all epochs and arms use the same images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.logits: dict[bytes, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        keys = [hashlib.sha1(image.numpy().tobytes()).digest() for image in images]
        new = [i for i, key in enumerate(keys) if key not in self.logits]
        if new:
            self.logits.update(zip([keys[i] for i in new], self.model(images[new]).float(), strict=True))
        return torch.stack([self.logits[key] for key in keys])


class Bench:
    """The original of one data set, and the networks cut from it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model, self.data, self.original = setting(name, SEEN[name], PRECISION)
        self.teacher = CachedTeacher(self.model)
        self.before: dict[str, Outputs] = {}

    def measure(self, row: dict[str, Any]) -> dict[str, Any]:
        """One row: cut, train, evaluate."""
        folder, slim, timing = self.cut(row)
        tuned, trained = self.trained(row, folder, slim)
        row = row | timing | trained
        if row["on"] == "held out":
            if f"{folder} held out" not in self.before:
                self.before[f"{folder} held out"] = outputs(slim, self.held_out(), PRECISION)
            before = compare(self.before[f"{folder} held out"])
            accuracy = compare(outputs(tuned, self.held_out(), PRECISION))
            return row | {
                "top1": accuracy.top1, "loss": accuracy.loss, "top1_before": before.top1, "loss_before": before.loss,
            }  # fmt: skip
        test, n = test_images(self.data), min(row["test"], len(self.original.features))
        if folder not in self.before:
            self.before[folder] = outputs(slim, Subset(test, range(min(BEFORE, n))), PRECISION)
        after = outputs(tuned, Subset(test, range(n)), PRECISION)
        accuracy = compare(after, first(self.original, n))
        return row | {
            "top1": accuracy.top1, "agreement": accuracy.agreement, "feature_error": accuracy.feature_error,
            "hits_before": packed(hits(self.before[folder])), "before": len(self.before[folder].features),
            "hits": packed(hits(after)), "hits_original": packed(hits(first(self.original, n))), "test": n,
        }  # fmt: skip

    def images(self, row: dict[str, Any]) -> Any:
        return draw(self.data.train, row["images"], row["seed"])

    def held_out(self) -> Any:
        """Training images that neither the classifier nor the fine-tuning uses."""
        seen = SEEN[self.name]
        assert seen is not None
        more = open_data(SETS[self.name][1].model_copy(update={"train_images": seen + HELD_OUT})).train
        return Subset(more, range(seen, seen + HELD_OUT))

    def cut(self, row: dict[str, Any]) -> tuple[str, nn.Module, dict[str, Any]]:
        """The network cut on the calibration images of the seed, and refitted if the arm has a refit."""
        arm = ARMS[row["arm"]]

        def make() -> tuple[nn.Module, dict[str, Any]]:
            if not arm["refit"]:  # the same heads as with the refit
                return slimvit.prune_model(self.model, plan_of(self.cut(row | {"arm": "default"})[1])), {}
            images = loader(self.model, Subset(self.images(row), range(row["calibration"])))
            started = time.process_time()
            scores = slimvit.score_parts(self.model, images, arm["criterion"], row["seed"])
            plan = slimvit.plan_units(scores, ratio=2 / 3)
            slim = slimvit.refit(slimvit.prune_model(self.model, plan), self.model, images)
            return slim, {"cut_seconds": round(time.process_time() - started, 1)}

        of = [row[k] for k in ("data", "images", "calibration", "seed")]
        name = "-".join(map(str, ["cut", *of, arm["criterion"], "refit" if arm["refit"] else "none"]))
        return name, *kept(name, make)

    def trained(self, row: dict[str, Any], folder: str, slim: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        distill = ARMS[row["arm"]]["distill"]

        def make() -> tuple[nn.Module, dict[str, Any]]:
            plain: dict[str, Any] = {} if row["augment"] else {"crop_scale": 1, "hflip": 0}
            section = FinetuneSection(epochs=row["epochs"], distill=distill, **plain)
            batches = train_loader(self.images(row), preprocessing_of(slim), section, row["batch"], 0, row["seed"])
            teacher = self.model if row["augment"] else self.teacher
            started = time.process_time()
            low = getattr(torch, PRECISION)
            # autocast's cache would keep the weights of the first step
            with torch.autocast("cpu", low, enabled=low != torch.float32, cache_enabled=False):
                tuned, history = slimvit.finetune(
                    slim,
                    batches,
                    section,
                    teacher=teacher if distill else None,
                    options=TrainOptions(lr=row["lr"], seed=row["seed"]),
                )
            seconds = round(time.process_time() - started, 1)
            return tuned, {"train_seconds": seconds, "losses": [round(epoch["loss"], 4) for epoch in history]}

        of = [row[k] for k in ("epochs", "batch", "lr", "augment")]
        return kept("-".join(map(str, ["trained", folder, "taught" if distill else "labels", *of])), make)


def kept(name: str, make: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> tuple[nn.Module, dict[str, Any]]:
    """A network and its fields of a row, from the cache or computed by `make`."""
    folder = KEPT / "recovery" / name
    record = folder.with_name(f"{name}.json")
    if not record.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        model, fields = make()
        slimvit.save(model, folder, force=True)
        record.write_text(json.dumps(fields))
    return slimvit.load(folder), json.loads(record.read_text())


def first(outputs: Outputs, n: int) -> Outputs:
    assert outputs.logits is not None and outputs.labels is not None
    return Outputs(outputs.logits[:n], outputs.features[:n], outputs.labels[:n])


def hits(outputs: Outputs) -> np.ndarray:
    """[n]: whether each image is classified correctly."""
    assert outputs.logits is not None and outputs.labels is not None
    return (outputs.logits.argmax(1) == outputs.labels).numpy()


def packed(bits: np.ndarray) -> str:
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpacked(text: str, n: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=n).astype(float)


def interval(paired: np.ndarray, draws: int = 10_000) -> str:
    """Mean of differences [seeds, images] in points, with its 95 % bootstrap interval over seeds and images."""
    seeds, images = paired.shape
    rng = np.random.default_rng(0)
    means = []
    for _ in range(draws // 500):
        by_image = rng.multinomial(images, np.full(images, 1 / images), 500) @ paired.T / images
        by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), 500) / seeds
        means.append((by_image * by_seed).sum(1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return f"{100 * paired.mean():+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def table(lines: list[list[Any]]) -> str:
    head, *body = lines
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, ["---"] * len(head), *body)) + "\n"


def render() -> str:
    """One table per training setting, and one of the learning rates."""
    rows = pd.DataFrame([json.loads(line) for line in ROWS.read_text().splitlines()])
    text = ["# Recovery after two thirds of the heads", str(rows["versions"].iloc[-1]), EXPLAINED]
    tested = rows[rows["on"] == "test"].sort_values("test", kind="stable")
    tested = tested.drop_duplicates([*BUDGET, "arm", "seed"], keep="last")  # the most test images
    for budget, runs in tested.groupby(BUDGET, sort=False):
        data, images, epochs, batch, lr, augment = budget
        text.append(
            f"## {data}: {images:,} training images, epochs: {epochs}, batch {batch}, lr {lr:g}, "
            f"{'default augmentation' if augment else 'no augmentation'}"
        )
        text.append(table([HEAD, *(_line(arm, runs) for arm in ARMS if arm in set(runs["arm"]))]))
    tried = rows[rows["on"] == "held out"]
    if len(tried):
        text.append(f"## Learning rates, judged on {HELD_OUT} training images held out")
        shown = ["seed", *BUDGET, "losses", "loss_before", "loss", "top1_before", "top1", "note"]
        tried = tried.reindex(columns=shown).fillna("")
        lines = [[f"{v:.4g}" if isinstance(v, float) else v for v in line] for line in tried.to_numpy().tolist()]
        named = ["training losses", "loss before", "loss", "top-1 before", "top-1", "note"]
        text.append(table([shown[: -len(named)] + named, *lines]))
    return "\n\n".join(text)


EXPLAINED = f"""DINOv2 ViT-S/14 at 112 px, 48 of 72 heads removed, 512 calibration images. The original is the uncut
network with a linear classifier on frozen features (Fashion-MNIST: {SEEN["fashion"]:,} images; textile: all of its
training images). On Fashion-MNIST it is weaker than the original of training_free.md, whose classifier saw 20,000
images, and it was never trained as a whole, as the cut network is: a difference above zero is no gift of the cut.

Training and evaluation under {PRECISION} autocast (the classifier in float32), the original's too; scores and refit in
float32. Differences are paired with the original (or, `to the default`, with that arm) on the same test images, in
points, with 95 % intervals: bootstrap over images and seeds; of one seed, over images alone. Top-1 after the cut, with
its difference, is of the first {BEFORE:,} test images and before training; agreement means the same prediction as the
original's. Seconds are CPU seconds of one thread; without augmentation the teacher is asked once about an image, by the
first arm that needs it."""
HEAD = [
    "arm", "seeds", "test images", "original", "top-1 after the cut", "difference", "top-1 trained", "difference",
    "to the default", "agreement (%)", "score and refit (s)", "training (s)",
]  # fmt: skip


def _line(arm: str, every: pd.DataFrame) -> list[Any]:
    """The cells of one arm."""
    default = every[every["arm"] == "default"].set_index("seed")
    runs = every[every["arm"] == arm].sort_values("seed")
    n, before = int(runs["test"].min()), int(runs["before"].min())
    original, trained = of(runs["hits_original"], n), of(runs["hits"], n)
    cut = of(runs["hits_before"], before)
    cells = [arm, ", ".join(map(str, runs["seed"])), n, f"{100 * original.mean():.2f}"]
    cells += [f"{100 * cut.mean():.2f}", interval(cut - original[:, :before])]
    cells += [" / ".join(f"{100 * one.mean():.2f}" for one in trained), interval(trained - original)]
    if arm == "default" or not set(runs["seed"]) <= set(default.index):
        cells.append("-")
    else:
        cells.append(interval(trained - of(default["hits"][runs["seed"]], n)))
    cut_seconds = runs["cut_seconds"].mean()
    cells += [f"{runs['agreement'].mean():.1f}", "-" if pd.isna(cut_seconds) else f"{cut_seconds:.0f}"]
    return [*cells, f"{runs['train_seconds'].mean():.0f}"]


def of(texts: pd.Series, n: int) -> np.ndarray:
    """[seeds, n]: whether each image is classified correctly."""
    return np.stack([unpacked(text, n) for text in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts(), []])
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    parser.add_argument("--images", type=int, help="training images")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--test", type=int, help="test images")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    given = {k: v for k in ("images", "epochs", "lr", "test") if (v := getattr(args, k)) is not None}
    ROWS.parent.mkdir(exist_ok=True)
    ROWS.touch()
    bench = cache(Bench)
    versions = f"CPU ({platform.processor() or platform.machine()}), torch {torch.__version__}, timm {timm.__version__}"
    for change in [change for part in args.parts for change in parts()[part]]:
        row = DEFAULT | change | given
        done = map(json.loads, ROWS.read_text().splitlines())
        if (args.seeds and row["seed"] not in args.seeds) or any(all(r[k] == row[k] for k in DEFAULT) for r in done):
            continue
        row = bench(row["data"]).measure(row) | {"versions": versions}
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({k: v for k, v in row.items() if k != "versions" and "hits" not in k}), flush=True)
    if args.render:
        (ROWS.parent / "recovery.md").write_text(render())


if __name__ == "__main__":
    main()
