"""Time and memory of dense attention: plain, slimvit's and the published form, side by side.

    python benchmarks/dense_overhead.py      # DeiT-S and Swin-T at 224, batches 1 and 32; an hour on one core
    python benchmarks/dense_overhead.py --models DeiT-S --passes forward --paths fused --threads 1

The published form follows the formula: one attention-times-values product for every earlier block. All three use the
same attention path (fused, or timm's unfused one). Rounds are interleaved, so that other work slows all alike. A row is
the median over rounds of the time relative to plain in the same round, with its 95 % interval (bootstrap of the
median). The published form is by far the slowest and gets a quarter of the rounds. On a busy machine give --threads 1,
since two threads wait for each other. Rows are appended to results/dense_overhead.jsonl; --render writes the table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from memory import peak_gib
from torch import Tensor, nn
from torch.nn import functional as F

import slimvit
from slimvit.measure.latency.timer import by_round, interleaved, median_ratio
from slimvit.models.base import Branch, State
from slimvit.models.families.swin import image_to_windows, windows_to_image
from slimvit.models.registry import attention_blocks, steps

HERE = Path(__file__).parent
ROWS = HERE / "results" / "dense_overhead.jsonl"
MODELS = {"DeiT-S": "deit_small_patch16_224", "Swin-T": "swin_tiny_patch4_window7_224"}
ARMS = ("plain", "ours", "published")
TURN = 5
"""Passes of one image per round, whose median counts: at the first, the caches still hold the previous model."""
BARS = {
    ("DeiT-S", "forward"): 1.05,
    ("DeiT-S", "training"): 1.10,
    ("Swin-T", "forward"): 1.10,
    ("Swin-T", "training"): 1.15,
}


class Published(nn.Module):
    """Dense attention by its formula, sum_i w_i A V_i with one product per earlier block, on a plain timm model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        blocks = attention_blocks(model)
        counts = [sum(b.stage == view.stage for b in blocks[:i]) for i, view in enumerate(blocks)]
        self.mixes = nn.ParameterList([nn.Parameter(torch.randn(n)) for n in counts])

    def forward(self, images: Tensor) -> Tensor:
        x, values, mixes = images, [], iter(self.mixes)
        views = iter(attention_blocks(self.model))
        for step in steps(self.model):
            if not isinstance(step, Branch):
                x, values = step.body(x), []
            elif step.attends:
                out, own = _attend(next(views), step.norm(x), values, next(mixes))
                x = x + step.scale(out)
                values.append(own)
            else:
                x = step.apply(State(x)).stream
        return self.model.forward_head(self.model.norm(x))


def _attend(view: Any, x: Tensor, earlier: list[Tensor], mix: Tensor) -> tuple[Tensor, Tensor]:
    """Output of the attention branch and values of the block, both in the layout of the stream."""
    attn, block, swin = view.attn, view.block, hasattr(view.block, "window_size")
    inner = image_to_windows(block, x) if swin else x
    values = [image_to_windows(block, v) if swin else v for v in earlier]
    q, k, own = attn.qkv(inner).chunk(3, -1)
    heads = (*inner.shape[:2], attn.num_heads, view.head_dim)
    q, k, v = (t.reshape(heads).transpose(1, 2) for t in (q, k, own))
    values = [t.reshape(heads).transpose(1, 2) for t in values]
    bias = _bias(attn, block.attn_mask, len(inner)) if swin else None
    if attn.fused_attn:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        for w, t in zip(mix, values, strict=True):
            out = out + w * F.scaled_dot_product_attention(q, k, t, attn_mask=bias)
    else:
        scores = (q * attn.scale) @ k.transpose(-2, -1)
        weights = (scores if bias is None else scores + bias).softmax(-1)
        out = weights @ v
        for w, t in zip(mix, values, strict=True):
            out = out + w * (weights @ t)
    out = attn.proj(out.transpose(1, 2).reshape(*inner.shape[:2], -1))
    size = tuple(x.shape[1:3])
    return (windows_to_image(block, out, size), windows_to_image(block, own, size)) if swin else (out, own)


def _bias(attn: Any, mask: Tensor | None, windows: int) -> Tensor:
    bias, area = attn._get_rel_pos_bias(), attn.window_area
    if mask is None:
        return bias
    shape = (windows // len(mask), -1, attn.num_heads, -1, -1)
    return bias + mask[None, :, None].expand(shape).reshape(-1, attn.num_heads, area, area)


def build(name: str, arm: str, fused: bool) -> nn.Module:
    torch.manual_seed(0)
    model: Any = timm.create_model(MODELS[name], drop_path_rate=0.0)
    if arm == "ours":
        model = slimvit.insert_dense_attention(model, "layer", "normal")
    for view in attention_blocks(model):
        view.attn.fused_attn = fused
    return (Published(model) if arm == "published" else model).eval()


def once(model: nn.Module, images: Tensor, training: bool) -> float:
    """Seconds of one forward pass, or of one forward and backward."""
    cuda = images.is_cuda
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.set_grad_enabled(training):
        out = model(images)
        if training:
            out.square().mean().backward()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    return seconds


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    batch: int
    training: bool
    fused: bool
    pairs: int
    device: str
    compiled: bool
    threads: int


def compared(case: Case) -> dict[str, Any]:
    """Times of the arms relative to plain.

    The published form runs in its own process: memory that it frees goes back to the system, which would slow the next
    model.
    """
    row = beside_plain(case, "ours")
    alone = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, alone) as process:
        published = process.submit(beside_plain, replace(case, pairs=max(5, case.pairs // 4)), "published").result()
    return published | row


def beside_plain(case: Case, arm: str) -> dict[str, Any]:
    """Time of `arm` relative to plain, timed in the same rounds."""
    torch.set_num_threads(case.threads)
    models = {a: build(case.name, a, case.fused).to(case.device) for a in ("plain", arm)}
    if case.compiled:
        models = {a: torch.compile(model) for a, model in models.items()}  # type: ignore[misc]
    images = torch.randn(case.batch, 3, 224, 224, device=case.device)
    for model in models.values():
        once(model, images, case.training)
    calls = {a: partial(once, model, images, case.training) for a, model in models.items()}
    times = interleaved(calls, range(case.pairs), TURN if case.batch == 1 else 1)
    plain = by_round(times["plain"])
    ratio = median_ratio(by_round(times[arm]), plain)
    return {
        "plain_ms": 1000 * float(np.median(plain)),
        arm: ratio.middle,
        f"{arm}_low": ratio.low,
        f"{arm}_high": ratio.high,
    }


def peak(name: str, arm: str, batch: int, training: bool, fused: bool, device: str) -> float:
    """Peak memory (GiB) of one pass in its own process."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import dense_overhead as d; "
    code += f"d.peak_here({name!r}, {arm!r}, {batch}, {training}, {fused}, {device!r})"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def peak_here(name: str, arm: str, batch: int, training: bool, fused: bool, device: str) -> None:
    once(build(name, arm, fused).to(device), torch.randn(batch, 3, 224, 224, device=device), training)
    print(peak_gib())


def render() -> str:
    """All rows as one Markdown table."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    lines = ["# What dense attention costs", ""]
    for versions, group in pd.DataFrame(rows).groupby("versions", sort=False):
        lines += [
            str(versions),
            "",
            "Time and peak memory relative to the plain model of the same round; bars for ours.",
            "",
        ]
        lines += ["| model | pass | batch | attention | compiled | plain (ms) | ours (95 %) | bar | published (95 %) "
                  "| pairs | memory plain (GiB) | ours | published |", "|" + " --- |" * 13]  # fmt: skip
        for r in group.to_dict("records"):
            ratios = {arm: f"{r[arm]:.3f} ({r[arm + '_low']:.3f}-{r[arm + '_high']:.3f})" for arm in ARMS[1:]}
            memory = [f"{r['memory_' + arm]:.2f}" if pd.notna(r.get("memory_" + arm)) else "-" for arm in ARMS]
            cells = [r["model"], r["pass"], r["batch"], "fused" if r["fused"] else "unfused"]
            cells += [
                "yes" if r["compiled"] else "no",
                f"{r['plain_ms']:.0f}",
                ratios["ours"],
                BARS[r["model"], r["pass"]],
            ]
            cells += [ratios["published"], r["pairs"], *memory]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--passes", nargs="+", choices=("forward", "training"), default=["forward", "training"])
    parser.add_argument("--paths", nargs="+", choices=("fused", "unfused"), default=["fused", "unfused"])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, help="of torch on a CPU; all cores where it is not given")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--render", action="store_true", help="only write the table")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    )
    versions = f"{where}, torch {torch.__version__}, timm {timm.__version__}"
    ROWS.parent.mkdir(exist_ok=True)
    cases = [(m, b, p, path) for m in args.models for b in args.batches for p in args.passes for path in args.paths]
    for model, batch, kind, path in [] if args.render else cases:
        training, fused = kind == "training", path == "fused"
        row: dict[str, Any] = {"model": model, "pass": kind, "batch": batch, "fused": fused, "compiled": args.compile}
        case = Case(model, batch, training, fused, args.pairs, device, args.compile, torch.get_num_threads())
        row |= compared(case) | {"pairs": args.pairs}
        if not args.no_memory:
            row |= {f"memory_{arm}": peak(model, arm, batch, training, fused, device) for arm in ARMS}
        with ROWS.open("a") as file:
            file.write(json.dumps(row | {"versions": versions}) + "\n")
        print(json.dumps(row), flush=True)
    (HERE / "results" / "dense_overhead.md").write_text(render())


if __name__ == "__main__":
    main()
