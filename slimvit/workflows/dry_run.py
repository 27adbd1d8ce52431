"""What a planned cut would save and how long the run would take, before anything is cut."""

from __future__ import annotations

import time
from typing import Any

import torch

from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.measure.flops.count import count_macs, count_params
from slimvit.models.parts.registry import PARTS
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import RecipeError
from slimvit.workflows import run_folder
from slimvit.workflows.run import A_BUDGET, DEFAULTS, adapt, make_plan
from slimvit.workflows.start import open_run
from slimvit.workflows.state import RunState

REFIT_PASSES = 5.0
"""Forward passes over the calibration images that a refit costs (measured: benchmarks/cost.py)."""
TRAIN_PASSES = 3.0
"""A training step in forward passes; distillation adds one."""


def dry_run(recipe: Recipe, options: Options = DEFAULTS) -> tuple[RunState, SlimPlan]:
    """Everything up to the plan; nothing is cut. With `options.out` the plan is written there."""
    if not recipe.prune.wanted:
        raise RecipeError(f"a dry run needs a budget: give {A_BUDGET}")
    with open_run(recipe, options) as state:
        state = make_plan(adapt(state))
        plan = state.plan
        assert plan is not None
        if options.out is not None:
            run_folder.write_plan(plan, options.out, options.force)
    return state, plan


def estimate(state: RunState, plan: SlimPlan) -> dict[str, Any]:
    """The plan with units, params and MACs before and after, and the seconds each part of a run would take."""
    before, after = plan_of(state.model), prune_model(state.model, plan)
    figures = {part.units: [before.kept_of(name), plan.kept_of(name)] for name, part in PARTS.items()}
    figures |= {
        "params": [count_params(state.model), count_params(after)],
        "macs": [count_macs(state.model).total, count_macs(after).total],
    }
    return {"plan": plan.to_json(), **figures, **_promised(state, plan), "seconds": _seconds(state)}


def _promised(state: RunState, plan: SlimPlan) -> dict[str, Any]:
    """The figure of the budget, where it is none of those that a dry run shows anyway."""
    target = state.target
    if target is None:
        return {}
    costs = target.costs(state.model, state.original)
    return target.budget.forecast(costs, plan_of(state.model), plan)


def _seconds(state: RunState) -> dict[str, float]:
    """From the time of one batch; adapting and scoring have been done and were timed."""
    recipe = state.recipe
    image = _seconds_an_image(state)
    refitting, epochs = recipe.refit.target != "none", recipe.finetune.epochs
    stages = 2 + refitting + (epochs > 0)
    passes = TRAIN_PASSES + recipe.finetune.distill
    train, val = len(state.context.data.train), len(state.context.data.val)
    calibration = min(recipe.prune.calibration_images, train)
    parts = {
        "adapt": state.adapt_seconds,
        "scores": state.planning_seconds,
        "refit": REFIT_PASSES * calibration * image * refitting,
        "finetune": epochs * (passes * train + val) * image,
        "evaluation": stages * val * image,
    }
    return {k: round(v, 1) for k, v in parts.items()} | {"total": round(sum(parts.values()), 1)}


@torch.inference_mode()
def _seconds_an_image(state: RunState) -> float:
    context = state.context
    batches = iter(context.in_order(context.data.val))
    images = next(batches)[0].to(context.device)
    state.model(images)
    started = time.perf_counter()
    state.model(next(batches, (images,))[0].to(context.device))  # loading a batch counts too
    if context.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / len(images)
