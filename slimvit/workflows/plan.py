"""The plan of a run: read from a file, or decided from scores and a budget."""

from __future__ import annotations

from slimvit.models.base import TimmModule
from slimvit.models.insert_dense import NOTHING_TO_MIX, can_mix
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.prune.costs.budget import Target
from slimvit.prune.criteria.registry import score_parts
from slimvit.prune.criteria.scores import Scores
from slimvit.prune.planner import decide, goal_of, read_plan, scored_parts
from slimvit.utils.errors import ModelError
from slimvit.workflows import cache
from slimvit.workflows.state import RunContext

Planned = tuple[SlimPlan, list[list[float | None]] | None]
"""The plan, and the score of every head by block where heads were scored."""


def decide_plan(
    context: RunContext, model: TimmModule, original: TimmModule, target: Target | None, share: float = 1.0
) -> Planned:
    """Decide on the units to keep.

    Args:
        context: The run.
        model: The network to cut.
        original: The network that the budget is a share of.
        target: The recipe's target, if its budget is one.
        share: Share of the budget's saving to reach with this plan.

    Raises:
        ModelError: The plan leaves no blocks for the dense attention of the recipe.
        PlanError: The budget or the plan file does not fit the model.
    """
    file, mix = context.recipe.prune.plan, context.recipe.dense.mix
    plan, scores = (
        _scored_plan(context, model, original, target, share) if file is None else (read_plan(file, model), None)
    )
    if mix and not can_mix(plan):
        raise ModelError(f"--dense {mix}: {NOTHING_TO_MIX} in this plan")
    return plan, scores


def _scored_plan(
    context: RunContext, model: TimmModule, original: TimmModule, target: Target | None, share: float
) -> Planned:
    recipe = context.recipe
    goal = goal_of(recipe, model, original, target, share)
    parts = scored_parts(recipe.prune, goal)

    def score() -> Scores:
        return score_parts(model, context.calibration(), recipe.prune.criterion, recipe.seed, parts)

    uncut = model is original  # other runs start from it too
    scores = context.engine.broadcast(cache.scores(context, parts, plan_of(model), score) if uncut else score())
    return decide(scores, recipe, model, original, goal, share), scores.table()
