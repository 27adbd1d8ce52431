"""Training speed of slimvit's loop and of a loop after timm's train.py, timed in one run.

    python benchmarks/train_throughput.py --threads 1      # DeiT-T at 112 px on a CPU
    python benchmarks/train_throughput.py --model deit_small_patch16_224 --size 224 --batch 256 --workers 12 --bf16

Both train the same network on the same JPEG files with RandAugment, random erasing, mixup, cutmix and a clipped
gradient norm. A round is one epoch of each, in alternating order. The result is the median over rounds of the ratio of
images per second, slimvit to timm, with its 95 % interval (bootstrap of the median). Peak memory is measured in
processes that run one loop alone. On a GPU, the share of time without a running kernel is printed too.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from memory import peak_gib
from PIL import Image
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import dispatch_clip_grad
from torch.nn import functional as F

from slimvit.config.recipe import DataSection
from slimvit.config.training import TrainSection
from slimvit.data.loaders import train_loader
from slimvit.data.preprocessing import preprocessing_of
from slimvit.data.sources import open_data
from slimvit.measure.latency.timer import median_ratio
from slimvit.train.loop import TrainOptions, train
from slimvit.utils.distributed import open_engine

HERE = Path(__file__).parent
CLASSES = 10
AUGMENT = "rand-m5-mstd0.5-inc1"
"""m9 fails in timm's loader with a newer Pillow: posterize gets 0 bits."""
SECTION = TrainSection(
    epochs=1, lr=1e-4, crop_scale=0.08, auto_augment=AUGMENT, random_erasing=0.25, mixup=0.8, cutmix=1.0
)


def make_images(root: Path, count: int) -> None:
    """Write random JPEG files of about the size of ImageNet's."""
    rng = np.random.default_rng(0)
    for i in range(count + CLASSES):
        path = root / ("train" if i < count else "val") / f"class{i % CLASSES}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


def build(args: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    return timm.create_model(args.model, img_size=args.size, num_classes=CLASSES)


class Ours:
    """slimvit's loop."""

    def __init__(self, root: Path, args: argparse.Namespace) -> None:
        self.model = build(args)
        data = open_data(DataSection(name=str(root)))
        self.loader = train_loader(data.train, preprocessing_of(self.model), SECTION, args.batch, args.workers)
        self.precision = "bf16" if args.bf16 else "fp32"

    def epoch(self) -> float:
        """Seconds of one epoch, without the copy of the model and the new optimizer before it."""
        _, history = train(
            self.model,
            self.loader,
            _labels,
            SECTION,
            TrainOptions(lr=1e-4, engine=open_engine(precision=self.precision)),
        )
        return history[0]["seconds"]


def _labels(model: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(images), targets)


class Timms:
    """A loop of timm's reader, loader, mixup, loss, optimizer, schedule and clipping, in the order of its train.py."""

    def __init__(self, root: Path, args: argparse.Namespace) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = build(args).to(self.device)
        self.bf16 = args.bf16
        prep = preprocessing_of(self.model)
        self.loader = create_loader(
            create_dataset("", root=str(root / "train")), (3, args.size, args.size), args.batch, is_training=True,
            use_prefetcher=self.device.type == "cuda", re_prob=0.25, re_mode="pixel", scale=(0.08, 1.0), hflip=0.5,
            auto_augment=AUGMENT, interpolation=prep.interpolation, mean=prep.mean, std=prep.std,
            num_workers=args.workers, device=self.device, persistent_workers=args.workers > 0,
        )  # fmt: skip
        self.mixup = Mixup(0.8, 1.0, label_smoothing=0.0, num_classes=CLASSES)
        self.loss = SoftTargetCrossEntropy()
        self.optimizer = create_optimizer_v2(self.model, "adamw", lr=1e-4, weight_decay=0.05)
        self.schedule = CosineLRScheduler(self.optimizer, t_initial=10_000, t_in_epochs=False)
        self.updates = 0

    def epoch(self) -> float:
        self.model.train()
        started, total = time.perf_counter(), 0.0
        for images, targets in self.loader:
            images, targets = self.mixup(images.to(self.device), targets.to(self.device))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = self.loss(self.model(images), targets)
            loss.backward()
            dispatch_clip_grad(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.updates += 1
            self.schedule.step_update(self.updates)
            total += loss.item() if self.device.type == "cpu" else 0.0
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started


ARMS: dict[str, Any] = {"slimvit": Ours, "timm": Timms}


def compared(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    arms = {name: kind(root, args) for name, kind in ARMS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for name in arms:
        arms[name].epoch()
    for i in range(args.rounds):
        for name in ARMS if i % 2 == 0 else list(ARMS)[::-1]:
            seconds[name].append(arms[name].epoch())
    ratio = median_ratio(seconds["timm"], seconds["slimvit"])
    speed = {f"{name}_images_per_second": args.images / float(np.median(s)) for name, s in seconds.items()}
    return speed | {"ratio": ratio.middle, "low": ratio.low, "high": ratio.high}


def peak(name: str, root: Path, args: argparse.Namespace) -> float:
    """Peak memory (GiB) of a process that runs one loop alone."""
    words = [sys.executable, __file__, *sys.argv[1:], "--alone", name, "--root", str(root)]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def idle_share(arm: Any) -> float:
    """Share of an epoch in which the GPU runs no kernel."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds = arm.epoch()
    busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    return max(0.0, 1 - busy / seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--alone", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.alone:
        ARMS[args.alone](args.root, args).epoch()
        print(peak_gib())
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_images(root, args.images)
        row = {k: v for k, v in vars(args).items() if k not in ("alone", "root")} | compared(root, args)
        row |= {f"{name}_gib": peak(name, root, args) for name in ARMS}
        cuda = torch.cuda.is_available()
        if cuda:
            row |= {f"{name}_idle": idle_share(kind(root, args)) for name, kind in ARMS.items()}
    where = torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})"
    row["versions"] = f"{where}, torch {torch.__version__}, timm {timm.__version__}"
    print(json.dumps(row, indent=1))
    results = HERE / "results" / "train_throughput.jsonl"
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    (HERE / "results" / "train_throughput.md").write_text(render(results))


def render(results: Path) -> str:
    """All rows as one Markdown table."""
    lines = ["# Training speed against a loop of timm's pieces", ""]
    lines += ["Images per second, slimvit's over the other's in the same round (bar: 0.97 at the lower end).", ""]
    lines += ["| device | model | px | batch | workers | bf16 | slimvit (images/s) | timm | ratio (95 %) | rounds "
              "| peak GiB slimvit | timm | GPU idle slimvit | timm |", "|" + " --- |" * 14]  # fmt: skip
    for r in map(json.loads, results.read_text().splitlines()):
        speed = [f"{r[f'{name}_images_per_second']:.1f}" for name in ARMS]
        memory = [f"{r[f'{name}_gib']:.2f}" if f"{name}_gib" in r else "-" for name in ARMS]
        idle = [f"{r[f'{name}_idle']:.0%}" if f"{name}_idle" in r else "-" for name in ARMS]
        ratio = f"{r['ratio']:.3f} ({r['low']:.3f}-{r['high']:.3f})"
        cells = [r["versions"], r["model"], r["size"], r["batch"], r["workers"], "yes" if r["bf16"] else "no", *speed]
        cells += [ratio, r["rounds"], *memory, *idle]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
