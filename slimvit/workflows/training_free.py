"""slimvit.plan and slimvit.prune: pruning without training, step by step or in one call."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from slimvit.config.recipe import Recipe
from slimvit.data.batches import CheckedBatches
from slimvit.data.open_batches import BatchSettings, open_batches, validation_batches
from slimvit.io.open import model_of
from slimvit.measure.accuracy import outputs_of
from slimvit.measure.flops.count import count_macs, input_size_of
from slimvit.measure.latency.interleave import InterleavedTimer
from slimvit.models.insert_dense import insert_dense_attention
from slimvit.models.modes import evaluating
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.prune.costs.budget import Target
from slimvit.prune.costs.registry import target_of
from slimvit.prune.criteria.registry import score_parts
from slimvit.prune.criteria.scores import Scores
from slimvit.prune.planner import decide, goal_of, read_plan, scored_parts
from slimvit.prune.refit import refit
from slimvit.prune.surgery import prune_model
from slimvit.report.record import Report, Stage
from slimvit.report.run.table import print_table
from slimvit.utils.errors import PlanError, RecipeError
from slimvit.workflows.evaluate import model_figures, warn_of_guessing

TIMING_ROUNDS = 20
"""Rounds of `latency=True`."""

CriterionFunction = Callable[..., Mapping[str, Any]]
"""`model, batches -> scores by part`, one number per unit, block by block."""


@dataclass(frozen=True)
class PruneResult:
    """A pruned model, its plan, and its figures beside those of the original."""

    model: nn.Module
    """The pruned timm model in eval mode."""
    plan: SlimPlan
    figures: dict[str, Stage]
    """`original` and `pruned`: `params`, `macs`, `units` by part, `top1`, `agreement`, `feature_error`, ..."""
    images: int
    """Images that the figures were measured on."""
    measured_on: str
    """`validation images` or `calibration images`."""

    def __repr__(self) -> str:
        text = io.StringIO()
        print_table(Report(model=self.plan.model, stages=list(self.figures.values())), file=text)
        return f"{self.plan.model}, measured on {self.images} {self.measured_on}\n{text.getvalue().rstrip()}"


def plan(scores: Scores, model: nn.Module, **settings: Any) -> SlimPlan:
    """Decide which units to keep so that a model meets a budget.

    Args:
        scores: From `slimvit.score_parts` for this model.
        model: The model that was scored.
        **settings: The budget and the settings of the `prune:` section of a recipe: one of `target_macs`,
            `target_params`, `target_latency` (fractions of the original, 0-1), `ratio` (fraction of the heads to
            remove), `heads` (to keep per block, or per stage), with or without `mlp_ratio`; `parts`, `scope`,
            `min_heads`, `neuron_group`, `latency_batch`; and `dense` if dense attention will be inserted.

    Returns:
        The plan, for `slimvit.prune_model`.

    Raises:
        RecipeError: A setting is unknown or has an impossible value.
        PlanError: The budget cannot be met, or the scores are of another model or lack a part.

    Example:
        >>> scores = slimvit.score_parts(model, batches, parts=("heads", "mlp"))
        >>> plan = slimvit.plan(scores, model, target_macs=0.6, parts=["heads", "mlp"])
        >>> small = slimvit.refit(slimvit.prune_model(model, plan), model, batches)
    """
    recipe = _recipe("slimvit.plan", settings)
    if scores.plan != plan_of(model):
        raise PlanError("the scores are of another model, or of this one before it was cut; score this model")
    goal = goal_of(recipe, model, model, target_of(recipe.prune, model))
    _check_scored(scores, scored_parts(recipe.prune, goal))
    return decide(scores, recipe, model, model, goal)


def prune(
    model: nn.Module | str | Path,
    images: Any,
    *,
    criterion: str | CriterionFunction = "residual",
    refit: str = "stream",
    dense: str | None = None,
    validation: Any = None,
    latency: bool = False,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    class_order: str | None = None,
    **settings: Any,
) -> PruneResult:
    """Prune a model to a budget without training: score, plan, cut, refit, and insert dense attention if asked.

    The model does not change; everything is computed on its device.

    Args:
        model: A timm model, or a name as commands take it: a run folder, an embedded model, a timm name, a Hub name.
        images: Calibration images: a DataLoader or list of batches, one tensor [N, C, H, W], or a data set in the form
            of `--data`. A batch is (images [B, C, H, W], labels [B]) or images alone. Of a data set 512 images of the
            training split are used.
        criterion: Name of a criterion, or a function `model, batches -> scores by part`.
        refit: Target of the closed-form repair: `stream`, `own`, `teacher` or `none`.
        dense: Insert dense attention: `layer` or `head`.
        validation: Images to measure on, in the same forms. By default the validation split of a data set, otherwise
            the calibration images.
        latency: Measure the latency of one image too; original and pruned model take turns.
        batch_size: Images per batch of a data set.
        workers: Processes that load images of a data set.
        seed: Random seed.
        class_order: Order of the classes of a model without class names: `natural`, `string`, or a file with one name
            per line.
        **settings: The budget and further settings, as `slimvit.plan` takes them; also `steps`, `calibration_images`
            and `plan` (a plan file).

    Raises:
        RecipeError: A setting is unknown or has an impossible value, or there is no budget.
        PlanError: The budget cannot be met.
        DataError: The images do not fit the model, there are none, or the data has other classes than the model.
        ModelError: The model is not supported, or a compiled or parallel wrapper.

    Example:
        >>> result = slimvit.prune(model, loader, target_macs=0.6)
        >>> print(result)
        >>> slimvit.save(result.model, "runs/small")
    """
    recipe = _recipe("slimvit.prune", settings | {"dense": dense, "refit": refit, "seed": seed}, criterion)
    original, batch_settings = model_of(model), BatchSettings(batch_size, workers, seed, class_order)
    calibration, own = open_batches(images, original, recipe.prune.calibration_images, batch_settings)
    slim = _slimmed(original, calibration, recipe, criterion)
    val = own if validation is None else validation_batches(_repeatable(validation), original, batch_settings)
    figures, count = _figures(original, slim, val or calibration)
    if latency:
        figures = _with_latency(figures, original, slim)
    measured_on = "calibration images" if val is None else "validation images"
    return PruneResult(slim, plan_of(slim), figures, count, measured_on)


def _slimmed(
    original: nn.Module, batches: CheckedBatches, recipe: Recipe, criterion: str | CriterionFunction
) -> nn.Module:
    """The original, cut and refitted in `steps` rounds, with dense attention inserted if asked."""
    section, model, target = recipe.prune, original, target_of(recipe.prune, original)
    for step in range(1, section.steps + 1):
        chosen = _plan_of_round(model, original, batches, recipe, criterion, target, step / section.steps)
        model = prune_model(model, chosen)
        if recipe.refit.target != "none":
            model = refit(model, original, batches, recipe.refit.target, recipe.refit.ridge, recipe.refit.class_token)
    mix = recipe.dense.mix
    return model if mix is None else insert_dense_attention(model, mix, recipe.dense.init, seed=recipe.seed)


def _plan_of_round(
    model: nn.Module,
    original: nn.Module,
    batches: CheckedBatches,
    recipe: Recipe,
    criterion: str | CriterionFunction,
    target: Target | None,
    share: float,
) -> SlimPlan:
    if recipe.prune.plan is not None:
        return read_plan(recipe.prune.plan, model)
    goal = goal_of(recipe, model, original, target, share)
    scores = score_parts(model, batches, criterion, recipe.seed, scored_parts(recipe.prune, goal))
    return decide(scores, recipe, model, original, goal, share)


def _recipe(name: str, settings: dict[str, Any], criterion: Any = "residual") -> Recipe:
    """The settings as a recipe, which validates them."""
    given = {k: v for k, v in settings.items() if v is not None}
    tree: dict[str, Any] = {"model": {"name": "given"}, "data": {"name": "given"}}
    tree |= {"dense": {"mix": given.pop("dense")}} if "dense" in given else {}
    tree |= {"refit": {"target": given.pop("refit")}} if "refit" in given else {}
    tree |= {"seed": given.pop("seed")} if "seed" in given else {}
    word = {"criterion": criterion} if isinstance(criterion, str) else {}
    recipe = Recipe.parse(tree | {"prune": given | word}, name)
    if not recipe.prune.wanted:
        raise RecipeError(f"{name}: no budget; give target_macs, target_params, target_latency, ratio or heads")
    if recipe.prune.step_epochs:
        raise RecipeError(f"{name}: step_epochs trains, but nothing is trained here; use slimvit.run")
    return recipe


def _check_scored(scores: Scores, parts: tuple[str, ...]) -> None:
    if missing := [part for part in parts if part not in scores.parts]:
        raise PlanError(
            f"this budget needs scores of {' and '.join(missing)}; score_parts(model, batches, parts={parts!r})"
        )


def _repeatable(images: Any) -> Any:
    """Batches that can be read once for each model; those of an iterator are collected in a list."""
    return list(images) if iter(images) is images else images


def _figures(original: nn.Module, slim: nn.Module, batches: CheckedBatches) -> tuple[dict[str, Stage], int]:
    reference = outputs_of(original, batches)
    figures = {
        "original": model_figures("original", original, count_macs(original), reference, reference),
        "pruned": model_figures("pruned", slim, count_macs(slim), outputs_of(slim, batches), reference),
    }
    warn_of_guessing(figures["original"], reference)
    return figures, len(reference.features)


def _with_latency(figures: dict[str, Stage], original: nn.Module, slim: nn.Module) -> dict[str, Stage]:
    models = dict(zip(figures, (original, slim), strict=True))
    with evaluating(original), evaluating(slim):
        timer = InterleavedTimer(models, {name: input_size_of(model) for name, model in models.items()})
        times = timer.times(1, TIMING_ROUNDS)
    return {
        name: stage.model_copy(update={"latency_ms": 1000 * median(sum(times[name], []))})
        for name, stage in figures.items()
    }
