"""What a planned cut would save and how long the run would take, before anything is cut."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from slimvit.measure.flops.count import count_macs, count_params
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.prune.costs.latency import latency_costs
from slimvit.prune.surgery import prune_model
from slimvit.utils.ranges import count_ranges

if TYPE_CHECKING:
    from slimvit.workflows.state import RunState

REFIT_PASSES = 5.0
"""Forward passes over the calibration images that a refit costs (measured: benchmarks/cost.py)."""
LONGEST = 40
"""Characters of a block's neurons by range; the terminal is spared longer ones."""
TRAIN_PASSES = 3.0
"""A training step in forward passes; distillation adds one."""


def estimate(state: RunState, plan: SlimPlan) -> dict[str, Any]:
    """The plan with heads, neurons, params and MACs before and after, and the seconds each part of a run would take."""
    after = prune_model(state.model, plan)
    figures = {
        "heads": [plan_of(state.model).kept, plan.kept],
        "neurons": [plan_of(state.model).kept_neurons, plan.kept_neurons],
        "params": [count_params(state.model), count_params(after)],
        "macs": [count_macs(state.model).total, count_macs(after).total],
    }
    return {"plan": plan.to_json(), **figures, **_promised(state, plan), "seconds": _seconds(state)}


def _promised(state: RunState, plan: SlimPlan) -> dict[str, Any]:
    """Milliseconds a batch, where the budget is in them."""
    section = state.recipe.prune
    if section.target_latency is None:
        return {}
    costs = latency_costs(state.original, section.latency_batch)
    return {"latency_ms": [costs.total(plan_of(state.model)), costs.total(plan)]}


def _seconds(state: RunState) -> dict[str, float]:
    """From the time of one batch; adapting and scoring have been done and were timed."""
    recipe = state.recipe
    image = _seconds_an_image(state)
    refitting, epochs = recipe.refit.target != "none", recipe.finetune.epochs
    stages = 2 + refitting + (epochs > 0)
    passes = TRAIN_PASSES + recipe.finetune.distill
    calibration = min(recipe.prune.calibration_images, len(state.data.train))
    parts = {
        "adapt": state.adapting,
        "scores": state.spent,
        "refit": REFIT_PASSES * calibration * image * refitting,
        "finetune": epochs * (passes * len(state.data.train) + len(state.data.val)) * image,
        "evaluation": stages * len(state.data.val) * image,
    }
    return {k: round(v, 1) for k, v in parts.items()} | {"total": round(sum(parts.values()), 1)}


@torch.inference_mode()
def _seconds_an_image(state: RunState) -> float:
    batches = iter(state.in_order(state.data.val))
    images = next(batches)[0].to(state.device)
    state.model(images)
    started = time.perf_counter()
    state.model(next(batches, (images,))[0].to(state.device))  # loading a batch counts too
    if state.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / len(images)


def estimate_text(forecast: dict[str, Any]) -> str:
    """The forecast for people."""
    (h0, h1), (n0, n1), (p0, p1), (m0, m1) = (forecast[k] for k in ("heads", "neurons", "params", "macs"))
    lines = [f"{b['block']}: {_left(b, n1 < n0)}" for b in forecast["plan"]["blocks"]]
    lines += [
        "",
        f"heads      {h0} -> {h1}  ({_change(h0, h1)})",
        *([f"neurons    {n0:,} -> {n1:,}  ({_change(n0, n1)})"] if n1 < n0 else []),
        f"params (M) {p0 / 1e6:.2f} -> {p1 / 1e6:.2f}  ({_change(p0, p1)})",
        f"FLOPs (G)  {m0 / 1e9:.3f} -> {m1 / 1e9:.3f}  ({_change(m0, m1)}, 1 multiply-add = 1)",
        *_latency_lines(forecast),
        "",
        "estimated time (s): " + ", ".join(f"{k} {v:g}" for k, v in forecast["seconds"].items() if v),
        "nothing was cut (dry run)",
    ]
    return "\n".join(lines)


def _left(block: dict[str, Any], with_neurons: bool) -> str:
    """`keeps 0,2 of 6 heads, 24 of 288 neurons (0-7,16-31); ...`: what a block keeps, and what is gone from it."""
    neurons = count_ranges(block["kept_neurons"]) if with_neurons and block.get("neurons") else None
    kept = [f"{','.join(map(str, block['kept_heads']))} of {block['heads']} heads"] if block["kept_heads"] else []
    kept += [_neurons(block, neurons)] if neurons else []
    gone = ["its attention"] * (not block["kept_heads"]) + ["its MLP"] * (neurons == 0)
    told = [f"keeps {', '.join(kept)}"] * bool(kept)
    told += [f"{' and '.join(gone)} {'are' if len(gone) > 1 else 'is'} gone"] * bool(gone)
    return "; ".join(told)


def _neurons(block: dict[str, Any], kept: int) -> str:
    """With their ids where those are few ranges; the plan has them all."""
    total, ids = block["neurons"], block["kept_neurons"]
    if kept == total:
        return f"all {total:,} neurons"
    return f"{kept:,} of {total:,} neurons" + (f" ({ids})" if len(ids) <= LONGEST else "")


def _latency_lines(forecast: dict[str, Any]) -> list[str]:
    if "latency_ms" not in forecast:
        return []
    before, after = forecast["latency_ms"]
    return [f"latency (ms) {before:.3g} -> {after:.3g}  ({_change(before, after)}, promised for this device)"]


def _change(before: int, after: int) -> str:
    return f"{100 * (after / before - 1):+.1f} %"
