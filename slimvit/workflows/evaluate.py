"""Accuracy, size and cost of a model: rows of a run's report, and `slimvit evaluate`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.data.open_batches import BatchSettings, validation_batches
from slimvit.io.open import model_of, random_weights
from slimvit.measure.accuracy import Outputs, compare, is_guessing, outputs_of
from slimvit.measure.flops.count import MacCount, count_macs
from slimvit.measure.flops.parts import count_params
from slimvit.models.base import Family, TimmModule
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import family_or_reason, names_of, plan_of
from slimvit.report.columns import METRICS
from slimvit.report.record import Stage, units_of
from slimvit.utils.progress import log
from slimvit.workflows import cache
from slimvit.workflows.start import open_run
from slimvit.workflows.state import RunContext, RunState


def measure(
    state: RunState, stage: str, model: TimmModule, started: float | None = None, outputs: Outputs | None = None
) -> RunState:
    """Add a row to the report: accuracy, size and cost of a model.

    Args:
        state: The run.
        stage: Name of the row.
        model: The network to measure.
        started: Start of the stage, by `time.perf_counter`.
        outputs: The network's outputs for the validation images, if already computed.
    """
    seconds, context = None if started is None else round(time.perf_counter() - started, 2), state.context
    reference = state.reference or cache.original_outputs(context, state.original)
    if outputs is None:
        outputs = reference if state.reference is None else context.outputs(model, context.data.val)
    row, notes = stage_row(context, stage, model, outputs, reference)
    if stage == "original":
        notes += warn_of_guessing(row, outputs, random_weights(state.recipe.model) and not state.adapted)
    stages = [*state.stages, row.model_copy(update={"seconds": seconds})]
    return replace(state, reference=reference, stages=stages, notes=state.notes + notes)


def stage_row(
    context: RunContext, stage: str, model: TimmModule, outputs: Outputs, reference: Outputs
) -> tuple[Stage, list[str]]:
    """The row of a stage, and notes on it.

    Args:
        context: The run.
        stage: Name of the stage.
        model: The network after the stage.
        outputs: Its outputs for the validation images.
        reference: Outputs of the original for the same images.
    """
    macs = context.macs_of(model)
    row = model_figures(stage, model, macs, outputs, reference)
    disagreement = macs.disagreement()
    return row, [] if disagreement is None else [f"{stage}: {disagreement}"]


CAUSES = "the order of the classes (--class-order), --mean and --std, the weights that were taken (--weights-key)"
"""Why a trained network may guess."""


def warn_of_guessing(row: Stage, outputs: Outputs, random: bool = False) -> list[str]:
    """Log and return a line where the accuracy of an original is that of guessing; nothing elsewhere.

    Args:
        row: The figures of the original.
        outputs: Its outputs for the same images.
        random: Whether its weights are random on purpose.
    """
    top1, images = row.accuracy.get("top1"), len(outputs.features)
    if top1 is None or outputs.logits is None or not is_guessing(top1, outputs.logits.shape[1], images):
        return []
    chance = 100 / outputs.logits.shape[1]
    cause = "its weights are random" if random else f"check {CAUSES}"
    line = f"WARNING: top-1 is {top1:.1f} % of {images} images, no better than guessing ({chance:.1f} %): {cause}"
    log(line)
    return [line]


def evaluate_model(recipe: Recipe, options: Options) -> dict[str, Any]:
    """Accuracy, size and cost of a recipe's model on its data; None for a figure that was not measured."""
    with open_run(recipe, options) as state:
        context = state.context
        outputs = context.outputs(state.model, context.data.val)
        row, _ = stage_row(context, "original", state.model, outputs, outputs)
        warn_of_guessing(row, outputs, random_weights(context.recipe.model))
    keys = [*(part.units for part in PARTS.values()), "params", "macs", *row.accuracy]
    keys = [key for key in keys if key not in METRICS or not METRICS[key].against_original]
    settings = {"model": context.recipe.model.name, "data": recipe.data.name, "images": len(context.data.val)}
    return settings | {key: row.figure(key) for key in keys}


def evaluate(
    model: nn.Module | str | Path,
    images: Any,
    original: nn.Module | Outputs | None = None,
    *,
    batch_size: int = 64,
    workers: int = 0,
    class_order: str | None = None,
) -> Stage:
    """Measure accuracy, size and cost of a model, as `slimvit evaluate` does.

    Args:
        model: A timm model, or a name as commands take it: a run folder, an embedded model, a timm name, a Hub name.
        images: A data set in the form of `--data`, or batches of images [B, C, H, W] with or without labels [B].
            Of a data set the validation split is used, else `test/`, else all images.
        original: The model to compare with, or its outputs for the same images.
        batch_size: Images per batch of a data set.
        workers: Processes that load images of a data set.
        class_order: Order of the classes of a model without class names: `natural`, `string`, or a file with one name
            per line.

    Returns:
        `top1`, `top5` and `agreement` in per cent, `loss` in nats, `feature_error` (squared distance over variance),
        `params`, `macs` of one image, `units` left by part. A figure that cannot be measured is None.

    Raises:
        DataError: The images do not fit the model, there are none, or the data has other classes than the model.
        ModelError: The model is unknown, or a compiled or parallel wrapper.

    Example:
        >>> slimvit.evaluate("vit_digits", "digits").top1
    """
    net, settings = model_of(model), BatchSettings(batch_size, workers, class_order=class_order)
    reference = None if isinstance(original, nn.Module) else original
    if isinstance(original, nn.Module):
        images = images if isinstance(images, str | Path) else list(images)
        reference = _in_order_of(net, original, outputs_of(original, validation_batches(images, original, settings)))
    outputs = outputs_of(net, validation_batches(images, net, settings))
    row = model_figures("evaluated", net, count_macs(net), outputs, reference)
    warn_of_guessing(row, outputs)
    return row


def _in_order_of(model: TimmModule, other: TimmModule, outputs: Outputs) -> Outputs:
    """The outputs of `other` with its classes in the order of `model`, where both name the same ones."""
    names, theirs = names_of(model), names_of(other)
    if outputs.logits is None or names == theirs or not names or sorted(names) != sorted(theirs):
        return outputs
    return replace(outputs, logits=outputs.logits[:, [theirs.index(name) for name in names]])


def model_figures(
    stage: str, model: nn.Module, macs: MacCount, outputs: Outputs, reference: Outputs | None = None
) -> Stage:
    """Accuracy, size and cost of a model from its MACs and outputs."""
    supported = isinstance(family_or_reason(model), Family)
    units = {part: kept for part, (_, kept) in units_of(plan_of(model)).items()} if supported else {}
    return Stage(
        stage=stage,
        units=units,
        params=count_params(model),
        macs=macs.total,
        macs_by_part=macs.by_part,
        **compare(outputs, reference).figures,
    )
