"""Time and memory of scoring, planning and refitting; time in forward passes over the calibration images.

    python benchmarks/cost.py

DINOv2 ViT-S/14 at 112 px, half the heads. A forward pass and each step are timed in turn, several rounds in one
process; ratios are medians over rounds. The refit is timed with and without cached token streams. Without them memory
must not grow with the number of images, so peak memory is measured at two numbers, each in its own process.
Writes results/cost.md.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from memory import peak_gib

import slimvit
from slimvit.utils.device import resolve_device

HERE = Path(__file__).parent
IMAGES, BATCH, ROUNDS = 128, 64, 5


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_small_patch14_dinov2", img_size=112, num_classes=10, init_values=1.0).eval()


def batches(images: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    count = images // BATCH
    return [
        (torch.randn(BATCH, 3, 112, 112, generator=generator), torch.randint(10, (BATCH,), generator=generator))
        for _ in range(count)
    ]


class Stream:
    """Batches of the same random images at every iteration, drawn one by one so that memory does not grow."""

    def __init__(self, images: int, size: int = 112, batch: int = BATCH) -> None:
        self.images, self.size, self.batch = images, size, batch

    def __len__(self) -> int:
        return self.images // self.batch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(len(self)):
            images = torch.randn(self.batch, 3, self.size, self.size, generator=generator)
            yield images, torch.zeros(self.batch, dtype=torch.long)


def timed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[float, Any]:
    """Seconds and result of one call."""
    started = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - started, result


@torch.inference_mode()
def forward(model: torch.nn.Module, images: Any) -> None:
    for x, _ in images:
        model(x)


def rounds() -> dict[str, list[float]]:
    """Each step's time over the forward pass of the same round."""
    model, images = network(), batches(IMAGES)
    ratios: dict[str, list[float]] = {}
    forward(model, images)
    for number in range(ROUNDS):
        before, _ = timed(forward, model, images)
        score, scores = timed(slimvit.score_parts, model, images)
        plan, planned = timed(slimvit.plan_units, scores, ratio=0.5)
        slim = slimvit.prune_model(model, planned)
        cached, _ = timed(slimvit.refit, slim, model, images)
        figures = {"score": score, "plan": plan, "refit": cached, "score + plan + refit": score + plan + cached}
        if number == 0:  # takes longer than all the rest
            figures["refit without cache (one round)"], _ = timed(slimvit.refit, slim, model, images, cache=False)
        after, _ = timed(forward, model, images)
        for name, seconds in figures.items():
            ratios.setdefault(name, []).append(2 * seconds / (before + after))
    return ratios


def peak(images: int, cache: bool) -> float:
    """Peak memory (GiB) of a process that scores and refits."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import cost; cost.peak_here({images}, {cache})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def peak_here(images: int, cache: bool) -> None:
    model = network()
    stream = Stream(images)
    scores = slimvit.score_parts(model, stream)
    slim = slimvit.prune_model(model, slimvit.plan_units(scores, ratio=0.5))
    slimvit.refit(slim, model, stream, cache=cache)
    print(peak_gib())


def main() -> None:
    lines = [
        "# What scoring, planning and refitting cost", "",
        f"DINOv2 ViT-S/14 at 112 px, {IMAGES} calibration images, half of 72 heads; {resolve_device()}, "
        f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}, timm {timm.__version__}. "
        f"Forward passes over the calibration images, median of {ROUNDS} interleaved rounds (smallest, largest).", "",
        "| step | forward passes |", "| --- | --- |",
    ]  # fmt: skip
    for name, values in rounds().items():
        lines.append(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f}) |")
    lines += ["", "| peak memory, whole process (GiB) | 64 images | 128 images |", "| --- | --- | --- |"]
    for cache in (True, False):
        lines.append(f"| {'with' if cache else 'without'} cache | {peak(64, cache):.2f} | {peak(128, cache):.2f} |")
    text = "\n".join(lines) + "\n"
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "cost.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
