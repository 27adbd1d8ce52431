"""What a planned cut would save and how long the run would take, before anything is cut."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from slimvit.measure.macs import count_macs, count_params
from slimvit.models.family import plan_of
from slimvit.plan import SlimPlan
from slimvit.prune.surgery import prune_heads

if TYPE_CHECKING:
    from slimvit.runstate import Run

REFIT_PASSES = 5.0
"""Forward passes over the calibration images that a refit costs (measured: benchmarks/cost.py)."""
TRAIN_PASSES = 3.0
"""A training step in forward passes; distillation adds one."""


def forecast_of(now: Run, plan: SlimPlan) -> dict[str, Any]:
    """The plan with heads, params and MACs before and after, and the seconds each part of a run would take."""
    after = prune_heads(now.model, plan)
    figures = {
        "heads": [plan_of(now.model).kept, plan.kept],
        "params": [count_params(now.model), count_params(after)],
        "macs": [count_macs(now.model).total, count_macs(after).total],
    }
    return {"plan": plan.to_json(), **figures, "seconds": _seconds(now)}


def _seconds(now: Run) -> dict[str, float]:
    """From the time of one batch; adapting and scoring have been done and were timed."""
    recipe = now.recipe
    image = _seconds_an_image(now)
    refitting, epochs = recipe.refit.target != "none", recipe.finetune.epochs
    stages = 2 + refitting + (epochs > 0)
    passes = TRAIN_PASSES + recipe.finetune.distill
    calibration = min(recipe.prune.calibration_images, len(now.data.train))
    parts = {
        "adapt": now.adapting,
        "scores": now.spent,
        "refit": REFIT_PASSES * calibration * image * refitting,
        "finetune": epochs * (passes * len(now.data.train) + len(now.data.val)) * image,
        "evaluation": stages * len(now.data.val) * image,
    }
    return {k: round(v, 1) for k, v in parts.items()} | {"total": round(sum(parts.values()), 1)}


@torch.inference_mode()
def _seconds_an_image(now: Run) -> float:
    batches = iter(now.in_order(now.data.val))
    images = next(batches)[0].to(now.device)
    now.model(images)
    started = time.perf_counter()
    now.model(next(batches, (images,))[0].to(now.device))  # loading a batch counts too
    if now.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / len(images)


def forecast_text(forecast: dict[str, Any]) -> str:
    """The forecast for people."""
    lines = [f"{b['block']}: keeps {_ids(b['kept_heads'])} of {b['heads']} heads" for b in forecast["plan"]["blocks"]]
    (h0, h1), (p0, p1), (m0, m1) = forecast["heads"], forecast["params"], forecast["macs"]
    lines += [
        "",
        f"heads      {h0} -> {h1}  ({_change(h0, h1)})",
        f"params (M) {p0 / 1e6:.2f} -> {p1 / 1e6:.2f}  ({_change(p0, p1)})",
        f"FLOPs (G)  {m0 / 1e9:.3f} -> {m1 / 1e9:.3f}  ({_change(m0, m1)}, 1 multiply-add = 1)",
        "",
        "estimated time (s): " + ", ".join(f"{k} {v:g}" for k, v in forecast["seconds"].items() if v),
        "nothing was cut (dry run)",
    ]
    return "\n".join(lines)


def _ids(kept: list[int]) -> str:
    return ",".join(map(str, kept)) if kept else "none"


def _change(before: int, after: int) -> str:
    return f"{100 * (after / before - 1):+.1f} %"
