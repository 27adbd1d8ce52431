"""Plans of a recipe: chooses the parts to cut and the search for the recipe's budget."""

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
from slimvit.models.insert_merging import check_merges
from slimvit.models.parts.base import Part
from slimvit.models.parts.registry import PARTS, everywhere, labels, limits_of, may_go
from slimvit.models.parts.tokens import TOKENS
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.budget_search import plan_budget, reachable
from slimvit.prune.costs.base import Costs
from slimvit.prune.costs.budget import Target
from slimvit.prune.criteria.registry import score_parts
from slimvit.prune.criteria.scores import Scores
from slimvit.prune.merging_schedules import merges_in
from slimvit.prune.ratio_search import plan_units
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import PlanError
from slimvit.utils.progress import log

ATTEMPTS = 4
"""Attempts of a search. Each lowers the target by the last finished model's excess over its estimate."""


@dataclass(frozen=True)
class Goal:
    """The target cost of one prune round, and the parts to cut."""

    target: Target
    costs: Costs
    """Costs of the present model's parts."""
    limit: float
    """Largest allowed cost of the finished model."""
    parts: tuple[str, ...]
    """The parts that may be cut."""
    remark: str | None = None
    """The choice of parts in words, if the recipe leaves it open."""


def check_budget(recipe: Recipe, model: nn.Module, target: Target | None) -> None:
    """Raise `PlanError` if the plan file does not fit the model, or the budget cannot be met with any scores."""
    section = recipe.prune
    if section.plan is not None:
        read_plan(section.plan, model)
    elif section.wanted:
        goal = goal_of(recipe, model, model, target)
        if goal is not None and goal.remark is not None:
            log(goal.remark)
        decide(score_parts(model, (), "random", parts=scored_parts(section, goal)), recipe, model, model, goal)


def read_plan(file: str, model: nn.Module) -> SlimPlan:
    """Read a plan file; raises `PlanError` if it does not fit the model or removes nothing."""
    current = plan_of(model)
    plan = SlimPlan.read(Path(file)).on(current)
    if plan.same_size(current):
        keys = " or ".join(PARTS[name].keys()[1] for name in current.parts)
        raise PlanError(f"{file}: removes nothing; take ids out of {keys}")
    check_merges(model, merges_in(plan))
    return plan


def scored_parts(section: PruneSection, goal: Goal | None) -> tuple[str, ...]:
    """Return the parts to score: those that the budget may cut, and for the pictures those that every block has."""
    return tuple(
        name
        for name, part in PARTS.items()
        if part.everywhere or (_has_budget(part, section) if goal is None else may_go(part, goal.parts))
    )


def _has_budget(part: Part, section: PruneSection) -> bool:
    """Whether a recipe has a ratio or a number of units to keep for this part."""
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
        share: Share of the whole cut that is done after this round, 0-1.
    """
    if goal is not None:
        return _to_target(scores, recipe, model, goal)
    plan, uncut = plan_of(model), plan_of(original)
    for part in PARTS.values():
        if _has_budget(part, recipe.prune):
            plan = _to_ratio(scores, recipe.prune, part, plan, uncut, model, share)
    return plan


def _to_ratio(
    scores: Scores, section: PruneSection, part: Part, plan: SlimPlan, uncut: SlimPlan, model: nn.Module, share: float
) -> SlimPlan:
    """Remove from a plan the units that the budget of one part removes."""
    ratio = _setting(section, part.ratio_key)
    if ratio is not None:
        ratio = _remaining_ratio(ratio * share, uncut.kept_of(part.name), scores.plan.kept_of(part.name))
    macs = [part.macs(view).unit for view in attention_blocks(model)] if part.ratio_per_mac else None
    return plan_units(
        scores, part=part.name, ratio=ratio, keep=_setting(section, part.keep_key), plan=plan, unit_macs=macs,
        scope=section.scope, limits=part.limits(section),
    )  # fmt: skip


def _remaining_ratio(ratio: float, uncut: int, kept: int) -> float:
    """Fraction of the `kept` units to remove, so that in total `ratio` of the `uncut` units are removed."""
    return ratio if kept == uncut else 1 - (1 - ratio) * uncut / max(1, kept)


def goal_of(
    recipe: Recipe, model: nn.Module, original: nn.Module, target: Target | None, share: float = 1.0
) -> Goal | None:
    """Compute the target cost of one prune round, and choose the parts to cut.

    Args:
        recipe: The recipe, with the limits of the cut.
        model: The model at the beginning of the round.
        original: The model before any round.
        target: The target of the recipe.
        share: Share of the whole cut that is done after this round, 0-1.

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
    limit = total * (1 - (1 - target.fraction) * share)
    parts, remark = tuple(section.parts or everywhere()), None
    if TOKENS.name in parts and costs.by_tokens is None:
        parts, remark = _without_tokens(parts, target)
    lowest = _lowest(section, plan, costs, parts)
    if section.parts is None:
        more = tuple(n for n, part in PARTS.items() if part.fallback and all(b.of(n).total for b in plan.blocks))
        remark = _remark(target, parts, more, lowest / total, lowest > limit)
        if lowest > limit and more:
            parts = (*parts, *more)
            lowest = _lowest(section, plan, costs, parts)
    if lowest > limit:
        raise PlanError(_unreachable(target, section, parts, lowest / total))
    return Goal(target, costs, limit, parts, remark)


def _without_tokens(parts: Sequence[str], target: Target) -> tuple[tuple[str, ...], str]:
    """The parts and a remark where merging tokens saves nothing."""
    others = tuple(name for name in parts if name != TOKENS.name)
    saves = f"{target.name}: merging tokens saves no {target.budget.noun}"
    if not others:
        raise PlanError(f"{saves}; cut other parts: --parts {','.join(everywhere())}")
    return others, f"{saves}, so no tokens are merged"


def _remark(target: Target, parts: tuple[str, ...], more: tuple[str, ...], lowest: float, needed: bool) -> str:
    """The choice of parts in words; `lowest` is the fraction that `parts` alone can reach."""
    if needed:
        return f"{target.name}: {labels(parts)} alone cannot go below {lowest:.3f}, so {labels(more)} are cut too"
    both = ",".join([*parts, *(name for name, part in PARTS.items() if part.fallback)])
    return (
        f"{target.name}: {labels(parts)} alone can meet it, so only {labels(parts)} are cut; --parts {both} often "
        "loses less accuracy"
    )


def _unreachable(target: Target, section: PruneSection, parts: Sequence[str], lowest: float) -> str:
    """The message for a target below the lowest reachable fraction."""
    keys = [PARTS[name].limit_key for name in parts if name in PARTS]
    limits = ", ".join(f"{key} {getattr(section, key)}" for key in keys if key is not None)
    missing = [word for word in PART_WORDS if word not in parts]
    more = f", or cut more parts: --parts {','.join([*parts, *missing])}" if missing else ""
    return (
        f"{target.name}: {labels(parts)} alone cannot go below {math.ceil(lowest * 1000) / 1000} of the "
        f"{target.budget.noun}{f' ({limits})' if limits else ''}; give a larger target{more}"
    )


def _lowest(section: PruneSection, plan: SlimPlan, costs: Costs, parts: Sequence[str]) -> float:
    return reachable(plan, costs, parts, limits_of(section))


def _to_target(scores: Scores, recipe: Recipe, model: nn.Module, goal: Goal) -> SlimPlan:
    """Search for a plan; if the finished model costs too much, search again with a lower target."""
    section, excess = recipe.prune, 0.0
    for _ in range(ATTEMPTS):
        plan = plan_budget(
            scores, goal.costs, goal.limit - excess, parts=goal.parts, scope=section.scope, limits=limits_of(section)
        )
        estimate = goal.costs.total(plan)
        cost = goal.target.budget.true_cost(partial(_finished, recipe, model, plan), estimate)
        if cost <= goal.limit:
            return plan
        excess = max(excess, cost - estimate)
    raise PlanError(f"{goal.target.name}: no plan was found that meets it; give a slightly larger target")


def _finished(recipe: Recipe, model: nn.Module, plan: SlimPlan) -> nn.Module:
    """The model cut to the plan, with the recipe's dense attention."""
    slim = prune_model(model, plan)
    mix = recipe.dense.mix
    if mix is not None and dense_mix(slim) is None and can_mix(plan):
        return insert_dense_attention(slim, mix)
    return slim
