"""Are large models done within the memory of an ordinary machine? Scores, search to half the MACs, cut, refit.

    python benchmarks/large_models.py                  # ViT-B/16 and ViT-L/16 at 224 px; about 20 minutes on one core
    python benchmarks/large_models.py --images 64 128

Random weights: memory and time do not depend on them. Each row in a process of its own. Memory grows by the same for
every calibration image (their token streams are kept), so two numbers of images tell what any number takes: the table
says what the default number would. Writes results/large_models.md.
"""

from __future__ import annotations

import argparse
import json
import platform
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
from slimvit.measure.macs import count_macs
from slimvit.models.costs import macs_costs
from slimvit.prune.budget import plan_budget
from slimvit.prune.criteria import score_parts
from slimvit.recipe import PruneSection

HERE = Path(__file__).parent
MODELS = {"ViT-B/16": "vit_base_patch16_224", "ViT-L/16": "vit_large_patch16_224"}
BATCH = 16


class Stream:
    """The same random images, made anew each time they are asked for."""

    def __init__(self, images: int) -> None:
        self.images = images

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.images // BATCH):
            yield torch.randn(BATCH, 3, 224, 224, generator=generator), torch.zeros(BATCH, dtype=torch.long)


def here(name: str, images: int) -> dict[str, Any]:
    """One row, in this process."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    stream, seconds = Stream(images), {}

    def timed(what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        found = function(*args, **kwargs)
        seconds[what] = round(time.process_time() - started, 1)
        return found

    with torch.inference_mode():
        timed("forward", lambda: [model(x) for x, _ in stream])
    scores = timed("score", score_parts, model, stream, "residual", 0, ("heads", "mlp"))
    total = count_macs(model).total
    plan = timed("plan", plan_budget, scores, macs_costs(model, total), total / 2, parts=("heads", "mlp"))
    scored = peak_gib()
    slim = timed("refit", slimvit.refit, slimvit.prune_model(model, plan), model, stream)
    params = sum(p.numel() for p in model.parameters())
    share = count_macs(slim).total / total
    return {"images": images, "params": params, "macs": share, "scored": scored, "peak": peak_gib()} | seconds


def row_of(name: str, images: int) -> dict[str, Any]:
    words = [sys.executable, __file__, "--here", name, "--images", str(images)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=int, default=[16, 32], metavar="N", help="two multiples of 16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--here", metavar="MODEL", help="only one row of a timm model, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.here:
        print(json.dumps(here(args.here, args.images[0])))
        return
    default = PruneSection().calibration_images
    lines = [
        "# Large models to half their MACs", "",
        f"224 px, heads and MLP neurons, default search and refit; cpu ({platform.machine()}, {args.threads} threads), "
        f"torch {torch.__version__}, timm {timm.__version__}. Time is CPU time, in forward passes over the calibration "
        f"images but for the search. With {default} images: what the two peaks make of it by a straight line.", "",
        f"| model | params (M) | images | MACs | score | search (s) | refit | peak after scores (GiB) | peak (GiB) | "
        f"peak with {default} images (GiB) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for title, name in MODELS.items():
        few, many = (row_of(name, n) for n in args.images[:2])
        slope = (many["peak"] - few["peak"]) / (many["images"] - few["images"])
        for row in (few, many):
            told = f"{row['peak'] + slope * (default - row['images']):.1f}" if row is many else ""
            lines.append(
                f"| {title} | {row['params'] / 1e6:.1f} | {row['images']} | {row['macs']:.4f} | "
                f"{row['score'] / row['forward']:.1f} | {row['plan']:.0f} | {row['refit'] / row['forward']:.1f} | "
                f"{row['scored']:.1f} | {row['peak']:.1f} | {told} |"
            )
    text = "\n".join(lines) + "\n"
    (HERE / "results" / "large_models.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
