"""Memory and time of large models: scores, search to half the MACs, cut, refit.

    python benchmarks/large_models.py                  # ViT-B/16 and ViT-L/16 at 224 px; about half an hour on one core

Weights are random, which changes neither memory nor time. Scores are computed in batches of 64 as in runs, split if
memory is short; their memory does not grow with the number of images, so one batch is measured. The refit keeps the
streams of all images, so its memory is measured at two numbers of images and extrapolated to the default. Every figure
is measured in its own process. Writes results/large_models.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from cost import Stream
from memory import peak_gib

import slimvit
from slimvit.config.recipe import PruneSection
from slimvit.measure.flops.count import count_macs
from slimvit.prune.budget_search import plan_budget
from slimvit.prune.costs.macs import macs_costs
from slimvit.prune.criteria.registry import score_parts

HERE = Path(__file__).parent
MODELS = {"ViT-B/16": "vit_base_patch16_224", "ViT-L/16": "vit_large_patch16_224"}
BATCH, FEW, MANY = 64, 32, 64
"""Images of the scored batch, and of the two refits."""

WHAT = f"""{{where}}, timm {{timm}}

224 px, heads and MLP neurons. Peak memory of a process that only scores a batch of {BATCH} images, and of one that only
refits {FEW} and {MANY}; with {{default}}: what those two make of it by a straight line. Time is CPU time, in forward
passes over the same images, that of the search in seconds."""


def here(name: str, part: str, images: int) -> dict[str, Any]:
    """Time and peak memory of one part in this process: `scores` of a batch, or the `refit` of a plan by magnitude."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    stream = Stream(images, 224, BATCH if part == "scores" else 16)
    total = count_macs(model).total
    with torch.inference_mode():
        forward, _ = timed(lambda: [model(x) for x, _ in stream])
    criterion = "residual" if part == "scores" else "magnitude"
    score, scores = timed(score_parts, model, stream, criterion, 0, ("heads", "mlp"))
    search, plan = timed(plan_budget, scores, macs_costs(model, total), total / 2, parts=("heads", "mlp"))
    slim = slimvit.prune_model(model, plan)
    figures = {"params": sum(p.numel() for p in model.parameters()), "macs": count_macs(slim).total / total}
    figures |= {"passes": score / forward, "search": search}
    if part == "refit":
        seconds, _ = timed(slimvit.refit, slim, model, stream)
        figures["passes"] = seconds / forward
    return figures | {"peak": peak_gib()}


def timed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[float, Any]:
    """CPU seconds and result of one call."""
    started = time.process_time()
    result = function(*args, **kwargs)
    return time.process_time() - started, result


def measured(name: str, part: str, images: int, threads: int) -> dict[str, Any]:
    words = [sys.executable, __file__, "--here", name, part, str(images), "--threads", str(threads)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    print(name, part, images, done.stdout.splitlines()[-1], flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--here", nargs=3, metavar=("MODEL", "PART", "IMAGES"), help="one figure of a timm model, as JSON"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.here:
        name, part, images = args.here
        print(json.dumps(here(name, part, int(images))))
        return
    default = PruneSection().calibration_images
    where = f"cpu ({platform.machine()}, {args.threads} threads, {memory_gib():.0f} GiB), torch {torch.__version__}"
    what = WHAT.format(where=where, timm=timm.__version__, default=default)
    head = ["model", "params (M)", "MACs", "scores (passes)", "search (s)", "refit (passes)", "scores (GiB)"]
    head += [f"refit, {n} (GiB)" for n in (FEW, MANY, default)]
    lines = ["# Large models to half their MACs", "", what, "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for title, name in MODELS.items():
        scores, few, many = (
            measured(name, *what, args.threads) for what in (("scores", BATCH), ("refit", FEW), ("refit", MANY))
        )
        most = many["peak"] + (default - MANY) * (many["peak"] - few["peak"]) / (MANY - FEW)
        lines.append(
            f"| {title} | {scores['params'] / 1e6:.1f} | {scores['macs']:.4f} | {scores['passes']:.1f} | "
            f"{scores['search']:.1f} | {many['passes']:.1f} | {scores['peak']:.1f} | {few['peak']:.1f} | "
            f"{many['peak']:.1f} | {most:.1f} |"
        )
    text = "\n".join(lines) + "\n"
    (HERE / "results" / "large_models.md").write_text(text)
    print(text)


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


if __name__ == "__main__":
    main()
