"""Accuracy, size and cost of a model: a row of a run's report, or the answer of `slimvit evaluate`."""

from __future__ import annotations

from typing import Any

from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.measure.accuracy import Outputs, compare
from slimvit.measure.flops.count import count_params
from slimvit.models.base import TimmModule
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import plan_of
from slimvit.report.columns import METRICS
from slimvit.report.record import Stage, units_of
from slimvit.workflows.start import open_run
from slimvit.workflows.state import RunContext


def stage_row(
    context: RunContext, stage: str, model: TimmModule, outputs: Outputs, reference: Outputs
) -> tuple[Stage, list[str]]:
    """The report's row of a stage, and notes on it.

    Args:
        context: The run.
        stage: Name of the stage.
        model: The network after the stage.
        outputs: Its outputs for the validation images.
        reference: Outputs of the original for the same images.
    """
    macs = context.macs_of(model)
    row = Stage(
        stage=stage,
        units={part: kept for part, (_, kept) in units_of(plan_of(model)).items()},
        params=count_params(model),
        macs=macs.total,
        macs_by_part=macs.by_part,
        **compare(outputs, reference).figures,
    )
    doubt = macs.disagreement()
    return row, [] if doubt is None else [f"{stage}: {doubt}"]


def evaluate_model(recipe: Recipe, options: Options) -> dict[str, Any]:
    """Accuracy, size and cost of a recipe's model on its data; None where nothing was measured."""
    with open_run(recipe, options) as state:
        context = state.context
        outputs = context.outputs(state.model, context.data.val)
        row, _ = stage_row(context, "original", state.model, outputs, outputs)
    shown = [*(part.units for part in PARTS.values()), "params", "macs", *row.accuracy]
    shown = [key for key in shown if key not in METRICS or not METRICS[key].against_original]
    about = {"model": context.recipe.model.name, "data": recipe.data.name, "images": len(context.data.val)}
    return about | {key: row.figure(key) for key in shown}
