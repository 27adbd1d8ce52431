"""Speed-up against saved MACs: DeiT-S and Swin-T with all and with half of their heads, timed in one run.

    python benchmarks/speed_follows_macs.py --threads 1                       # both at 224; some minutes on one core
    python benchmarks/speed_follows_macs.py --threads 1 --batch 32 --keep-memory
    python benchmarks/speed_follows_macs.py --models DeiT-S --pairs 40 --threads 1 --compile

`uniform` removes half the heads of every block. `random` removes half the heads of the network at random, so that
blocks differ in width. Weights are random, which does not change the time. Rounds are interleaved, and every second
round is reversed, so that other work slows all models alike.

A row holds the median over rounds of the speed-up (plain time over cut time in the same round). It also holds the share
of the promised gain, (speed-up - 1) / (promised - 1), where `promised` is the ratio of MACs. Both have 95 % intervals
(bootstrap of the median). The bar of 0.8 is for the lower end of the share.

Further columns: the time of both models by kind of operator (torch's profiler, uncompiled); `allowed`, the speed-up if
only matrix products shrink with the MACs; `system`, the share of time spent on memory allocation.

Without --batch the batch size is the one that `slimvit bench` finds. --keep-memory keeps freed memory, as the commands
of slimvit do. On a busy machine give --threads 1, since two threads wait for each other.
Rows are appended to results/speed_follows_macs.jsonl; --render writes the table.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from torch import nn

import slimvit
from slimvit.measure.latency.batch_size import find_batch_size
from slimvit.measure.latency.interleave import InterleavedTimer, compiling
from slimvit.measure.latency.machine import device_words
from slimvit.measure.latency.profile import MATRIX, amdahl, time_shares
from slimvit.measure.latency.timer import by_round, images_for, interleaved, median_ratio
from slimvit.models.parts.heads import HEADS
from slimvit.models.registry import attention_blocks
from slimvit.utils.allocator import keep_freed_memory

HERE = Path(__file__).parent
ROWS = HERE / "results" / "speed_follows_macs.jsonl"
MODELS = {"DeiT-S": "deit_small_patch16_224", "Swin-T": "swin_tiny_patch4_window7_224"}
CUTS = {"uniform": "uniform", "random": "global"}
"""Name of the cut -> scope of its plan; scores are random in both."""
SIZE = (3, 224, 224)
BAR = 0.8


def build(name: str, cut: str | None) -> nn.Module:
    torch.manual_seed(0)
    model: Any = timm.create_model(MODELS[name]).eval()
    if cut is None:
        return model
    scores = slimvit.score_parts(model, (), "random")
    plan = slimvit.plan_units(
        scores, ratio=0.5, scope=CUTS[cut], unit_macs=[HEADS.macs(b).unit for b in attention_blocks(model)]
    )
    return slimvit.prune_model(model, plan)


def compared(
    name: str, batch: int | None, pairs: int, device: str, dtype: torch.dtype, compiled: bool
) -> list[dict[str, Any]]:
    """One row per cut; the plain model and both cuts are timed in the same rounds."""
    models = {arm: build(name, arm).to(device, dtype) for arm in (None, *CUTS)}
    arms = {arm or "plain": model for arm, model in models.items()}
    with torch.inference_mode(), compiling() if compiled else nullcontext():
        timer = InterleavedTimer(arms, dict.fromkeys(arms, SIZE), compiled)
        batch = batch or find_batch_size(timer.calls).best
        calls = timer.calls(batch)
        system, started = system_seconds(), time.perf_counter()
        times = {arm: by_round(turns) for arm, turns in interleaved(calls, range(pairs)).items()}
        system = (system_seconds() - system) / (time.perf_counter() - started)
    macs = {arm: slimvit.count_macs(model).total for arm, model in arms.items()}
    spent = {arm: milliseconds(model, batch, times[arm]) for arm, model in arms.items()}
    rows = []
    for cut in CUTS:
        speedup, promised = median_ratio(times["plain"], times[cut]), macs["plain"] / macs[cut]
        matrix = spent["plain"].get(MATRIX, 0) / sum(spent["plain"].values())
        row = {"model": name, "cut": cut, "batch": batch, "compiled": compiled, "dtype": str(dtype).split(".")[1]}
        row |= {"pairs": pairs, "promised": promised, "allowed": amdahl(matrix, promised), "system": system}
        row |= {"speedup": vars(speedup), "share": vars(speedup.of_the_gain(promised))}
        rows.append(row | {"plain_ms": spent["plain"], "cut_ms": spent[cut]})
    return rows


def system_seconds() -> float:
    """CPU seconds that the system spent for this process, mostly on memory allocation."""
    return os.times().system


def milliseconds(model: nn.Module, batch: int, seconds: list[float]) -> dict[str, float]:
    """The median time of a pass by kind of operator, in the profiler's proportions."""
    middle = 1000 * float(np.median(seconds))
    return {kind: middle * share for kind, share in time_shares(model, images_for(model, SIZE, batch)).items()}


def render() -> str:
    """All rows as Markdown: a table of speed-ups, and a table of time by kind of operator."""
    lines = ["# Does the time fall as the MACs do?", ""]
    for versions, group in pd.DataFrame(map(json.loads, ROWS.read_text().splitlines())).groupby("versions", sort=False):
        rows = group.to_dict("records")
        lines += [str(versions), "", *speedups(rows), "", "Milliseconds of a pass by kind of operator:", ""]
        lines += [*profiles(rows), ""]
    return "\n".join(lines)


def speedups(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| model | cut | batch | memory | weights | compiled | pairs | system | promised by MACs "
             f"| allowed by Amdahl | speed-up (95 %) | share of the gain (95 %) | bar {BAR} |",
             "|" + " --- |" * 13]  # fmt: skip
    for r in rows:
        ratios = ["{middle:.3f} ({low:.3f}-{high:.3f})".format(**r[key]) for key in ("speedup", "share")]
        met = "met" if r["share"]["low"] >= BAR else "missed"
        cells = [r["model"], r["cut"], r["batch"], r["memory"], r["dtype"], "yes" if r["compiled"] else "no"]
        cells += [r["pairs"], "-" if pd.isna(r["system"]) else f"{r['system']:.1%}"]
        cells += [f"{r['promised']:.3f}", f"{r['allowed']:.3f}", *ratios, met]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def profiles(rows: list[dict[str, Any]]) -> list[str]:
    """Milliseconds plain -> cut, one column per kind of operator; compiled models are left out."""
    eager = [r for r in rows if not r["compiled"]]
    kinds = list(dict.fromkeys(kind for r in eager for kind in (*r["plain_ms"], *r["cut_ms"])))
    lines = ["| " + " | ".join(("model", "cut", "batch", "memory", *kinds)) + " |", "|" + " --- |" * (4 + len(kinds))]
    for r in eager:
        cells = [f"{r['plain_ms'].get(kind, 0):.1f} -> {r['cut_ms'].get(kind, 0):.1f}" for kind in kinds]
        lines.append("| " + " | ".join(map(str, (r["model"], r["cut"], r["batch"], r["memory"], *cells))) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch", type=int, help="images of a pass; without it, as many as fill the machine")
    parser.add_argument("--keep-memory", action="store_true", help="do not return freed memory to the system")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, help="of torch on a CPU; all cores where it is not given")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--render", action="store_true", help="only write the table")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    versions = f"{device_words(torch.device(device))}, torch {torch.__version__}, timm {timm.__version__}"
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    ROWS.parent.mkdir(exist_ok=True)
    memory = {"memory": "kept" if args.keep_memory and keep_freed_memory() else "returned"}
    for name in [] if args.render else args.models:
        for row in compared(name, args.batch, args.pairs, device, dtype, args.compile):
            with ROWS.open("a") as file:
                file.write(json.dumps(row | memory | {"versions": versions}) + "\n")
            print(json.dumps(row), flush=True)
    ROWS.with_suffix(".md").write_text(render())


if __name__ == "__main__":
    main()
