"""The built-in kinds of budget, and the target of a recipe."""

from __future__ import annotations

from torch import nn

from slimvit.config.recipe import PruneSection
from slimvit.prune.costs import latency, macs, params
from slimvit.prune.costs.budget import BUDGETS, Target, budget_of
from slimvit.utils.distributed import Engine

BUILT_IN = (macs, params, latency)
"""The modules that register the built-in kinds."""

__all__ = ["BUDGETS", "BUILT_IN", "target_of"]


def target_of(
    section: PruneSection, original: nn.Module, engine: Engine | None = None, before: Target | None = None
) -> Target | None:
    """Return the target of a recipe, with the measurements for its prices; None without a target.

    Args:
        section: The prune section of the recipe.
        original: The model before any cut, on the device to measure.
        engine: The engine of the run; None for a single process.
        before: The result of an earlier call in this run, to reuse its measurements if they fit.
    """
    if section.budget is None:
        return None
    budget = budget_of(section.budget.kind)
    earlier = None if before is None else before.prepared
    return Target(budget, section.budget.fraction, budget.prepare(original, section, engine, earlier))
