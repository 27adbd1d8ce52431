"""From a recipe and scores to a plan: choose the parts to cut, the budget and the search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from slimvit.config.choices import PARTS as PART_WORDS
from slimvit.config.recipe import PruneSection, Recipe
from slimvit.models.insert_dense import can_mix, dense_mix, insert_dense_attention
from slimvit.models.parts.base import Part
from slimvit.models.parts.registry import PARTS, everywhere, labels, limits_of, may_go
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.budget_search import plan_budget, reachable
from slimvit.prune.costs.base import Costs
from slimvit.prune.costs.budget import Target
from slimvit.prune.criteria.registry import score_parts
from slimvit.prune.criteria.scores import Scores
from slimvit.prune.ratio_search import plan_units
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import PlanError
from slimvit.utils.progress import log

ATTEMPTS = 4
"""Attempts of a search. Each leaves room for the cost that the last finished model had beyond its estimate."""


@dataclass(frozen=True)
class Goal:
    """A target in the unit of its budget, and the parts that are cut for it."""

    target: Target
    costs: Costs
    """Costs of the present model's parts."""
    wanted: float
    """The most that the finished model may cost."""
    parts: tuple[str, ...]
    """The parts that may be cut."""
    remark: str | None = None
    """The choice of parts in words, where the recipe leaves it open."""


def check_budget(recipe: Recipe, model: nn.Module, target: Target | None) -> None:
    """Raise `PlanError` if the plan file does not fit the model or no scores could meet the budget."""
    section = recipe.prune
    if section.plan is not None:
        read_plan(section.plan, model)
    elif section.wanted:
        goal = goal_of(recipe, model, model, target)
        if goal is not None and goal.remark is not None:
            log(goal.remark)
        decide(score_parts(model, (), "random", parts=scored_parts(section, goal)), recipe, model, model, goal)


def read_plan(file: str, model: nn.Module) -> SlimPlan:
    """Read a plan file; raises `PlanError` where it does not fit the model or removes nothing."""
    current = plan_of(model)
    plan = SlimPlan.read(Path(file)).on(current)
    if plan.same_size(current):
        keys = " or ".join(f"kept_{PARTS[name].units}" for name in current.parts)
        raise PlanError(f"{file}: removes nothing; take ids out of {keys}")
    return plan


def scored_parts(section: PruneSection, goal: Goal | None) -> tuple[str, ...]:
    """Return the parts to score: those that the budget may cut, and those that every block has, for the pictures."""
    return tuple(
        name
        for name, part in PARTS.items()
        if part.everywhere or (_asked(part, section) if goal is None else may_go(part, goal.parts))
    )


def _asked(part: Part, section: PruneSection) -> bool:
    """Whether a recipe has a budget for this part alone."""
    return _setting(section, part.ratio_key) is not None or _setting(section, part.keep_key) is not None


def _setting(section: PruneSection, key: str | None) -> Any:
    return None if key is None else getattr(section, key)


def decide(
    scores: Scores, recipe: Recipe, model: nn.Module, original: nn.Module, goal: Goal | None, share: float = 1.0
) -> SlimPlan:
    """Find the plan of one prune round.

    Args:
        scores: Scores of `model`.
        recipe: The recipe, with the budget.
        model: The model at the beginning of the round.
        original: The model before any round.
        goal: The result of `goal_of` for the same arguments.
        share: Share of the way from `original` to the budget that is covered after the round.
    """
    if goal is not None:
        return _to_target(scores, recipe, model, goal)
    plan, uncut = plan_of(model), plan_of(original)
    for part in PARTS.values():
        if _asked(part, recipe.prune):
            plan = _to_ratio(scores, recipe.prune, part, plan, uncut, model, share)
    return plan


def _to_ratio(
    scores: Scores, section: PruneSection, part: Part, plan: SlimPlan, uncut: SlimPlan, model: nn.Module, share: float
) -> SlimPlan:
    """The plan without the units that the budget of one part removes."""
    ratio = _setting(section, part.ratio_key)
    if ratio is not None:
        ratio = _further(ratio * share, uncut.kept_of(part.name), scores.plan.kept_of(part.name))
    macs = [part.macs(view).unit for view in attention_blocks(model)] if part.ratio_per_mac else None
    return plan_units(
        scores, part=part.name, ratio=ratio, keep=_setting(section, part.keep_key), plan=plan, unit_macs=macs,
        scope=section.scope, limits=part.limits(section),
    )  # fmt: skip


def _further(ratio: float, uncut: int, now: int) -> float:
    """The share of the `now` units to remove, so that `ratio` of the `uncut` units are removed in all."""
    return ratio if now == uncut else 1 - (1 - ratio) * uncut / max(1, now)


def goal_of(
    recipe: Recipe, model: nn.Module, original: nn.Module, target: Target | None, share: float = 1.0
) -> Goal | None:
    """Compute the cost to reach in one prune round, and choose the parts to cut.

    Args:
        recipe: The recipe, with the limits of the cut.
        model: The model at the beginning of the round.
        original: The model before any round.
        target: The target of the recipe.
        share: Share of the way from `original` to the target that is covered after the round.

    Returns:
        The goal; None without a target.

    Raises:
        PlanError: The target cannot be reached.
    """
    if target is None:
        return None
    section, plan = recipe.prune, plan_of(model)
    costs = target.costs(model, original)
    total = (costs if original is model else target.costs(original, original)).total(plan_of(original))
    wanted = total * (1 - (1 - target.fraction) * share)
    parts, remark = tuple(section.parts or everywhere()), None
    least = _least(section, plan, costs, parts)
    if section.parts is None:
        more = tuple(n for n, part in PARTS.items() if part.fallback and all(b.of(n).total for b in plan.blocks))
        remark = _remark(target, parts, more, least / total, least > wanted)
        if least > wanted and more:
            parts = (*parts, *more)
            least = _least(section, plan, costs, parts)
    if least > wanted:
        raise PlanError(_out_of_reach(target, section, parts, least / total))
    return Goal(target, costs, wanted, parts, remark)


def _remark(target: Target, parts: tuple[str, ...], more: tuple[str, ...], least: float, needed: bool) -> str:
    """The choice of parts in words."""
    if needed:
        return f"{target.name}: {labels(parts)} alone reach {least:.3f} at the least, so {labels(more)} are cut too"
    both = ",".join([*parts, *(name for name, part in PARTS.items() if part.fallback)])
    return (
        f"{target.name}: {labels(parts)} alone can meet it, so only {labels(parts)} are cut; --parts {both} often "
        "loses less accuracy"
    )


def _out_of_reach(target: Target, section: PruneSection, parts: Sequence[str], least: float) -> str:
    keys = [PARTS[name].limit_key for name in parts if name in PARTS]
    limits = ", ".join(f"{key} {getattr(section, key)}" for key in keys if key is not None)
    missing = [word for word in PART_WORDS if word not in parts]
    more = f", or cut more parts: --parts {','.join([*parts, *missing])}" if missing else ""
    return (
        f"{target.name}: {labels(parts)} alone reach {math.ceil(least * 1000) / 1000} of the {target.budget.noun} at "
        f"the least{f' ({limits})' if limits else ''}; give a larger target{more}"
    )


def _least(section: PruneSection, plan: SlimPlan, costs: Costs, parts: Sequence[str]) -> float:
    return reachable(plan, costs, parts, limits_of(section))


def _to_target(scores: Scores, recipe: Recipe, model: nn.Module, goal: Goal) -> SlimPlan:
    """Search, compute the true cost of the finished model, and search again with room for the difference."""
    section, beyond = recipe.prune, 0.0
    for _ in range(ATTEMPTS):
        plan = plan_budget(
            scores, goal.costs, goal.wanted - beyond, parts=goal.parts, scope=section.scope, limits=limits_of(section)
        )
        promised = goal.costs.total(plan)
        cost = goal.target.budget.true_cost(partial(_finished, recipe, model, plan), promised)
        if cost <= goal.wanted:
            return plan
        beyond = max(beyond, cost - promised)
    raise PlanError(f"{goal.target.name}: no plan was found that meets it; give a slightly larger target")


def _finished(recipe: Recipe, model: nn.Module, plan: SlimPlan) -> nn.Module:
    """The model cut to the plan, with its dense attention."""
    slim = prune_model(model, plan)
    mix = recipe.dense.mix
    if mix is not None and dense_mix(slim) is None and can_mix(plan):
        return insert_dense_attention(slim, mix)
    return slim
