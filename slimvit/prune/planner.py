"""From a recipe's prune section and scores to a plan: what may go, how much has to, and the search that finds it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from slimvit.config.choices import PARTS
from slimvit.config.recipe import PruneSection, Recipe
from slimvit.measure.flops.count import count_macs
from slimvit.measure.flops.parts import count_params
from slimvit.models.insert_dense import can_mix, dense_mix, insert_dense_attention
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.budget_search import plan_budget, reachable
from slimvit.prune.costs.base import Costs, head_macs, macs_costs, params_costs
from slimvit.prune.costs.latency import latency_costs, share_table
from slimvit.prune.criteria.registry import Scores, score_parts
from slimvit.prune.ratio_search import plan_heads, plan_neurons
from slimvit.prune.surgery import prune_model
from slimvit.utils.distributed import Engine
from slimvit.utils.errors import PlanError
from slimvit.utils.progress import log

AGAIN = 4
"""Searches, each with room for what the finished model of the one before cost beyond its parts' prices."""


@dataclass(frozen=True)
class Goal:
    """A target in numbers."""

    name: str
    """The option it was given with."""
    fraction: float
    costs: Costs
    """Of the model as it is now."""
    wanted: float
    """What the model may cost in the end."""
    parts: tuple[str, ...]
    """What may go."""
    remark: str | None = None
    """What goes, and why, where that was not said."""


def agree_on_prices(recipe: Recipe, model: nn.Module, engine: Engine) -> None:
    """Prices that have to be measured are those of the main process, in every process."""
    if recipe.prune.target_latency is not None:
        share_table(model, recipe.prune.latency_batch, engine)


def check_budget(recipe: Recipe, model: nn.Module) -> None:
    """Raise :class:`PlanError` now if the plan file does not fit or the budget cannot be met, whatever the scores."""
    section = recipe.prune
    if section.plan is not None:
        read_plan(section.plan, model)
    elif section.wanted:
        goal = goal_of(recipe, model, model)
        if goal is not None and goal.remark is not None:
            log(goal.remark)
        decide(score_parts(model, (), "random", parts=scored_parts(section, goal)), recipe, model, model, goal)


def read_plan(file: str, model: nn.Module) -> SlimPlan:
    """A plan file that fits the model and removes something."""
    current = plan_of(model)
    plan = SlimPlan.read(Path(file)).on(current)
    if plan.same_size(current):
        raise PlanError(f"{file}: removes nothing; take ids out of kept_heads or kept_neurons")
    return plan


def scored_parts(section: PruneSection, goal: Goal | None) -> tuple[str, ...]:
    """The parts whose scores a budget needs; heads always, for the picture of them."""
    neurons = section.mlp_ratio is not None if goal is None else {"mlp", "branches"} & {*goal.parts}
    return ("heads", "mlp") if neurons else ("heads",)


def decide(
    scores: Scores, recipe: Recipe, model: nn.Module, original: nn.Module, goal: Goal | None, share: float = 1.0
) -> SlimPlan:
    """The plan that goes ``share`` of the way from the ``original`` to the budget, for ``model`` as it is now.

    ``goal``: what :func:`goal_of` gives for the same.
    """
    if goal is not None:
        return _to_target(scores, recipe, model, goal)
    section, now, uncut = recipe.prune, plan_of(model), plan_of(original)
    plan = now
    if section.heads is not None or section.ratio is not None:
        ratio = None if section.ratio is None else _further(section.ratio * share, uncut.kept, now.kept)
        macs = [head_macs(b) for b in attention_blocks(model)]
        plan = plan_heads(
            scores, ratio=ratio, heads=section.heads, head_macs=macs, scope=section.scope, min_heads=section.min_heads
        )
    if section.mlp_ratio is not None:
        ratio = _further(section.mlp_ratio * share, uncut.kept_neurons, now.kept_neurons)
        plan = plan_neurons(scores, plan, ratio, section.scope, section.neuron_group)
    return plan


def _further(ratio: float, uncut: int, now: int) -> float:
    """The share of what is there ``now`` that has to go, for ``ratio`` of what there was to be gone."""
    return ratio if now == uncut else 1 - (1 - ratio) * uncut / max(1, now)


def goal_of(recipe: Recipe, model: nn.Module, original: nn.Module, share: float = 1.0) -> Goal | None:
    """What ``model`` has to come down to, ``share`` of the way from the ``original`` to the target; None where the
    budget is no target. Raises :class:`PlanError` when it cannot be reached."""
    section = recipe.prune
    if section.target is None:
        return None
    name, fraction = section.target
    costs = _costs(section, model, original)
    total = (costs if original is model else _costs(section, original, original)).total(plan_of(original))
    wanted, remark = total * (1 - (1 - fraction) * share), None
    parts = tuple(section.parts or ("heads",))
    least = _least(section, plan_of(model), costs, parts)
    if section.parts is None and least > wanted and all(b.neurons for b in plan_of(model).blocks):
        remark = f"{name} {fraction:g}: heads alone reach {least / total:.3f} at the least, so MLP neurons go too"
        parts = ("heads", "mlp")
        least = _least(section, plan_of(model), costs, parts)
    elif section.parts is None:
        remark = (
            f"{name} {fraction:g}: heads alone can meet it, so only heads go; with --parts heads,mlp often less is lost"
        )
    if least > wanted:
        told, what = math.ceil(least / total * 1000) / 1000, "time" if costs.unit == "ms" else costs.unit
        raise PlanError(
            f"{name} {fraction:g}: {_and(parts)} alone reach {told} of the {what} at the least "
            f"(min_heads {section.min_heads}); give a larger target{_more(parts)}"
        )
    return Goal(name, fraction, costs, wanted, parts, remark)


def _costs(section: PruneSection, model: nn.Module, original: nn.Module) -> Costs:
    assert section.target is not None
    kind = section.target[0]
    if kind == "target-params":
        return params_costs(model)
    if kind == "target-latency":
        return latency_costs(original, section.latency_batch)  # its prices hold for what was cut out of it
    return macs_costs(model, count_macs(model).total)


def _least(section: PruneSection, plan: SlimPlan, costs: Costs, parts: Sequence[str]) -> float:
    return reachable(plan, costs, parts, section.min_heads, section.neuron_group)


def _to_target(scores: Scores, recipe: Recipe, model: nn.Module, goal: Goal) -> SlimPlan:
    """Search, look at what the finished model would cost beyond the prices of its parts, and leave room for that."""
    section, beyond = recipe.prune, 0.0
    for _ in range(AGAIN):
        plan = plan_budget(
            scores, goal.costs, goal.wanted - beyond, parts=goal.parts, scope=section.scope,
            min_heads=section.min_heads, neuron_group=section.neuron_group,
        )  # fmt: skip
        cost = _true_cost(goal, recipe, model, plan)
        if cost <= goal.wanted:
            return plan
        beyond = max(beyond, cost - goal.costs.total(plan))
    raise PlanError(f"{goal.name} {goal.fraction:g}: no plan was found that meets it; give a slightly larger target")


def _true_cost(goal: Goal, recipe: Recipe, model: nn.Module, plan: SlimPlan) -> float:
    """What the model costs when the plan is carried out, with its dense attention; milliseconds are known when it is
    finished and not before."""
    if goal.costs.unit == "ms":
        return goal.costs.total(plan)
    slim: Any = prune_model(model, plan)
    mix = recipe.dense.mix
    if mix is not None and dense_mix(slim) is None and can_mix(plan):
        slim = insert_dense_attention(slim, mix)
    return count_params(slim) if goal.costs.unit == "parameters" else count_macs(slim).total


def _and(parts: Sequence[str]) -> str:
    return " and ".join({"mlp": "MLP neurons"}.get(p, p) for p in parts)


def _more(parts: Sequence[str]) -> str:
    missing = [p for p in PARTS if p not in parts]
    return f", or let more go: --parts {','.join([*parts, *missing])}" if missing else ""
