"""One model measured on one data set."""

from __future__ import annotations

from typing import Any

from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.workflows.run import begun, measure


def evaluate_model(recipe: Recipe, options: Options) -> dict[str, Any]:
    """Accuracy, size and cost of a recipe's model on its data; None where nothing was measured."""
    with begun(recipe, options) as now:
        measure(now, "original", now.model)
    stage = now.stages[0].model_dump()
    beside = ("stage", "seconds", "agreement", "feature_error", "feature_cosine", "latency_ms", "throughput")
    for name in (*beside, "macs_by_part"):  # what compares with another model, and what `slimvit inspect` shows
        del stage[name]
    return {"model": now.recipe.model.name, "data": recipe.data.name, "images": len(now.data.val), **stage}
