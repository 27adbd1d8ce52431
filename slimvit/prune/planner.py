"""From a recipe's prune section and scores to a plan: what may go, how much has to, and the search that finds it."""

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

AGAIN = 4
"""Searches, each with room for what the finished model of the one before cost beyond its parts' prices."""


@dataclass(frozen=True)
class Goal:
    """A target in numbers."""

    target: Target
    costs: Costs
    """Of the model as it is now."""
    wanted: float
    """What the model may cost in the end."""
    parts: tuple[str, ...]
    """What may go."""
    remark: str | None = None
    """What goes, and why, where that was not said."""


def check_budget(recipe: Recipe, model: nn.Module, target: Target | None) -> None:
    """Raise `PlanError` now if the plan file does not fit or the budget cannot be met, whatever the scores."""
    section = recipe.prune
    if section.plan is not None:
        read_plan(section.plan, model)
    elif section.wanted:
        goal = goal_of(recipe, model, model, target)
        if goal is not None and goal.remark is not None:
            log(goal.remark)
        decide(score_parts(model, (), "random", parts=scored_parts(section, goal)), recipe, model, model, goal)


def read_plan(file: str, model: nn.Module) -> SlimPlan:
    """A plan file that fits the model and removes something."""
    current = plan_of(model)
    plan = SlimPlan.read(Path(file)).on(current)
    if plan.same_size(current):
        keys = " or ".join(f"kept_{PARTS[name].units}" for name in current.parts)
        raise PlanError(f"{file}: removes nothing; take ids out of {keys}")
    return plan


def scored_parts(section: PruneSection, goal: Goal | None) -> tuple[str, ...]:
    """The parts whose scores a budget needs, and always those that every block has, for the picture of them."""
    return tuple(
        name
        for name, part in PARTS.items()
        if part.everywhere or (_asked(part, section) if goal is None else may_go(part, goal.parts))
    )


def _asked(part: Part, section: PruneSection) -> bool:
    """Whether a recipe has a budget of the part's own."""
    return _setting(section, part.ratio_key) is not None or _setting(section, part.keep_key) is not None


def _setting(section: PruneSection, key: str | None) -> Any:
    return None if key is None else getattr(section, key)


def decide(
    scores: Scores, recipe: Recipe, model: nn.Module, original: nn.Module, goal: Goal | None, share: float = 1.0
) -> SlimPlan:
    """The plan that goes `share` of the way from the `original` to the budget, for `model` as it is now.

    `goal`: what `goal_of` gives for the same.
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
    """`plan` with the units of one part gone that its own budget asks for."""
    ratio = _setting(section, part.ratio_key)
    if ratio is not None:
        ratio = _further(ratio * share, uncut.kept_of(part.name), scores.plan.kept_of(part.name))
    macs = [part.macs(view).unit for view in attention_blocks(model)] if part.ratio_per_mac else None
    return plan_units(
        scores, part=part.name, ratio=ratio, keep=_setting(section, part.keep_key), plan=plan, unit_macs=macs,
        scope=section.scope, limits=part.limits(section),
    )  # fmt: skip


def _further(ratio: float, uncut: int, now: int) -> float:
    """The share of what is there `now` that has to go, for `ratio` of what there was to be gone."""
    return ratio if now == uncut else 1 - (1 - ratio) * uncut / max(1, now)


def goal_of(
    recipe: Recipe, model: nn.Module, original: nn.Module, target: Target | None, share: float = 1.0
) -> Goal | None:
    """What `model` has to come down to, `share` of the way from the `original` to the target; None where the
    budget is no target. Raises `PlanError` when it cannot be reached."""
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
    """What goes where the recipe does not say it."""
    if needed:
        return f"{target.name}: {labels(parts)} alone reach {least:.3f} at the least, so {labels(more)} go too"
    both = ",".join([*parts, *(name for name, part in PARTS.items() if part.fallback)])
    return (
        f"{target.name}: {labels(parts)} alone can meet it, so only {labels(parts)} go; with --parts {both} often less "
        "is lost"
    )


def _out_of_reach(target: Target, section: PruneSection, parts: Sequence[str], least: float) -> str:
    keys = [PARTS[name].limit_key for name in parts if name in PARTS]
    limits = ", ".join(f"{key} {getattr(section, key)}" for key in keys if key is not None)
    missing = [word for word in PART_WORDS if word not in parts]
    more = f", or let more go: --parts {','.join([*parts, *missing])}" if missing else ""
    return (
        f"{target.name}: {labels(parts)} alone reach {math.ceil(least * 1000) / 1000} of the {target.budget.noun} at "
        f"the least{f' ({limits})' if limits else ''}; give a larger target{more}"
    )


def _least(section: PruneSection, plan: SlimPlan, costs: Costs, parts: Sequence[str]) -> float:
    return reachable(plan, costs, parts, limits_of(section))


def _to_target(scores: Scores, recipe: Recipe, model: nn.Module, goal: Goal) -> SlimPlan:
    """Search, look at what the finished model would cost beyond the prices of its parts, and leave room for that."""
    section, beyond = recipe.prune, 0.0
    for _ in range(AGAIN):
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
    """The model when the plan is carried out, with its dense attention."""
    slim = prune_model(model, plan)
    mix = recipe.dense.mix
    if mix is not None and dense_mix(slim) is None and can_mix(plan):
        return insert_dense_attention(slim, mix)
    return slim
