"""One model measured on one data set."""

from __future__ import annotations

from typing import Any

from slimvit.options import Options
from slimvit.pipeline import measure, start
from slimvit.recipe import Recipe


def evaluate_model(recipe: Recipe, options: Options) -> dict[str, Any]:
    """Accuracy, size and cost of a recipe's model on its data; None where nothing was measured."""
    now = start(recipe, options)
    measure(now, "original", now.model)
    stage = now.stages[0].model_dump()
    for unknown in ("stage", "seconds", "agreement", "feature_error", "feature_cosine", "latency_ms", "throughput"):
        del stage[unknown]
    return {"model": recipe.model.name, "data": recipe.data.name, "images": len(now.data.val), **stage}
