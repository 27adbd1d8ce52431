"""A dry run: the plan, its savings and an estimate of the run time, without cutting."""

from __future__ import annotations

import time
from typing import Any

import torch

from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.measure.flops.count import count_macs
from slimvit.measure.flops.parts import count_params
from slimvit.models.parts.registry import PARTS
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.prune.criteria.registry import criterion_of
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import RecipeError
from slimvit.utils.progress import log
from slimvit.workflows import run_folder
from slimvit.workflows.pruning import make_plan
from slimvit.workflows.run import A_BUDGET, DEFAULTS, adapt
from slimvit.workflows.start import open_run
from slimvit.workflows.state import RunState

SCORE_PASSES = 2.3
"""Time of scoring, in forward passes over the calibration images (measured by benchmarks/cost.py)."""
REFIT_PASSES = 5.0
"""Time of a refit, in forward passes over the calibration images (measured by benchmarks/cost.py)."""
TRAIN_PASSES = 3.0
"""Time of a training step, in forward passes over its batch; distillation adds one."""


def dry_run(recipe: Recipe, options: Options = DEFAULTS) -> tuple[RunState, SlimPlan]:
    """Carry out a recipe up to its plan, without cutting.

    Args:
        recipe: The run to plan; it needs a budget.
        options: Where and how; the plan is written to the folder `out`, if any.

    Raises:
        RecipeError: The recipe has no budget.
    """
    if not recipe.prune.wanted:
        raise RecipeError(f"a dry run needs a budget: give {A_BUDGET}")
    with open_run(recipe, options) as state:
        state = adapt(state)
        announce(state)
        state = make_plan(state)
        plan = state.plan
        assert plan is not None
        if options.out is not None:
            run_folder.write_plan(plan, options.out, options.force)
    return state, plan


def announce(state: RunState) -> None:
    """Log the expected time of scoring, if the plan needs scores."""
    section, train = state.recipe.prune, state.context.data.train
    if section.plan is not None or not criterion_of(section.criterion).needs_images:
        return
    images = min(section.calibration_images, len(train))
    seconds = SCORE_PASSES * images * _seconds_an_image(state)
    log(f"scoring {images} images by {section.criterion}: {SCORE_PASSES:g} forward passes over them, {seconds:.0f} s")


def estimate(state: RunState, plan: SlimPlan) -> dict[str, Any]:
    """The plan, the units, parameters and MACs before and after it, and the estimated seconds of each stage."""
    before, after = plan_of(state.model), prune_model(state.model, plan)
    figures = {part.units: [before.kept_of(name), plan.kept_of(name)] for name, part in PARTS.items()}
    figures |= {
        "params": [count_params(state.model), count_params(after)],
        "macs": [count_macs(state.model).total, count_macs(after).total],
    }
    return {"plan": plan.to_json(), **figures, **_budget_figure(state, plan), "seconds": _seconds(state)}


def _budget_figure(state: RunState, plan: SlimPlan) -> dict[str, Any]:
    """The cost that the budget counts before and after, unless it is parameters or MACs."""
    target = state.target
    if target is None:
        return {}
    costs = target.costs(state.model, state.original)
    return target.budget.forecast(costs, plan_of(state.model), plan)


def _seconds(state: RunState) -> dict[str, float]:
    """Seconds of each stage: measured for adapting and scoring, estimated from one batch for the others."""
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
    """Seconds of a forward pass per image, loading included."""
    context = state.context
    batches = iter(context.in_order(context.data.val))
    images = next(batches)[0].to(context.device)
    state.model(images)
    started = time.perf_counter()
    state.model(next(batches, (images,))[0].to(context.device))  # loading a batch counts too
    if context.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / len(images)
