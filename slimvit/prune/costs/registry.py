"""The kinds of budget that come along, and the target that a recipe names."""

from __future__ import annotations

from torch import nn

from slimvit.config.recipe import PruneSection
from slimvit.prune.costs import latency, macs, params
from slimvit.prune.costs.budget import BUDGETS, Target, budget_of
from slimvit.utils.distributed import Engine

BUILT_IN = (macs, params, latency)
"""Modules that register the kinds of budget that come along."""

__all__ = ["BUDGETS", "BUILT_IN", "target_of"]


def target_of(
    section: PruneSection, original: nn.Module, engine: Engine | None = None, before: Target | None = None
) -> Target | None:
    """The target of a recipe, with what its prices need to have measured; None where the budget is none.

    Args:
        section: The recipe's.
        original: The model before any cut, on the device that counts.
        engine: Of the processes that run this, if they are several.
        before: The target that an earlier call gave in this run.
    """
    if section.budget is None:
        return None
    budget = budget_of(section.budget.kind)
    earlier = None if before is None else before.prepared
    return Target(budget, section.budget.fraction, budget.prepare(original, section, engine, earlier))
