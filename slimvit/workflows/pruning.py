"""The pruning of a run: score, plan, cut and refit, in one round or several."""

from __future__ import annotations

import time
from dataclasses import replace

from slimvit.models.base import TimmModule
from slimvit.models.insert_dense import NOTHING_TO_MIX, can_mix
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.prune.criteria.registry import score_parts
from slimvit.prune.criteria.scores import Scores
from slimvit.prune.planner import decide, goal_of, read_plan, scored_parts
from slimvit.prune.refit import refit
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import ModelError
from slimvit.utils.progress import log
from slimvit.workflows import cache, training
from slimvit.workflows.evaluate import measure
from slimvit.workflows.state import RunState
from slimvit.workflows.training import FINETUNE_LR, Training


def prune_and_refit(state: RunState) -> RunState:
    """Cut the network to the budget in one round or several, and refit it."""
    section = state.recipe.prune
    if not section.wanted:  # the recipe starts from a model that an earlier run has cut
        return state if state.original is state.model else measure(state, "pruned", state.model)
    for step in range(1, section.steps):
        state = prune_round(state, step)
    return repair(cut(make_plan(state)))


def make_plan(state: RunState, share: float = 1.0) -> RunState:
    """Score the network and decide on the units to keep.

    Args:
        state: The run.
        share: Share of the budget's saving that the plan reaches, 0-1.

    Raises:
        ModelError: The plan leaves no blocks for the dense attention of the recipe.
        PlanError: The budget or the plan file does not fit the model.
    """
    started, file, mix = time.perf_counter(), state.recipe.prune.plan, state.recipe.dense.mix
    plan, scores = _scored_plan(state, share) if file is None else (read_plan(file, state.model), None)
    if mix and not can_mix(plan):
        raise ModelError(f"--dense {mix}: {NOTHING_TO_MIX} in this plan")
    tables = None if scores is None else {part: scores.table(part) for part in scores.parts}
    seconds = state.planning_seconds + time.perf_counter() - started
    return replace(state, plan=plan, scores=tables, planning_seconds=seconds)


def _scored_plan(state: RunState, share: float) -> tuple[SlimPlan, Scores]:
    context, recipe, model, original = state.context, state.recipe, state.model, state.original
    goal = goal_of(recipe, model, original, state.target, share)
    parts = scored_parts(recipe.prune, goal)

    def score() -> Scores:
        return score_parts(model, context.calibration(), recipe.prune.criterion, recipe.seed, parts)

    uncut = model is original  # only the scores of the original are cached
    scores = context.engine.broadcast(cache.scores(context, parts, plan_of(model), score) if uncut else score())
    return decide(scores, recipe, model, original, goal, share), scores


def prune_round(state: RunState, step: int) -> RunState:
    """Plan, cut and refit one round before the last, and train after it where the recipe asks for it."""
    section = state.recipe.prune
    state, started = make_plan(state, step / section.steps), time.perf_counter()
    plan = _plan(state)
    if not plan.same_size(plan_of(state.model)):
        state = replace(state, model=_refitted(state, prune_model(state.model, plan)))
    log(f"round {step} of {section.steps}: {plan.kept_words()} left")
    state = replace(state, planning_seconds=state.planning_seconds + time.perf_counter() - started)
    return _trained_between(state, f"round {step}") if section.step_epochs else state


def _trained_between(state: RunState, name: str) -> RunState:
    """Train between two rounds, without checkpoints: a run interrupted here starts again from the beginning."""
    section = state.recipe.finetune.model_copy(update={"epochs": state.recipe.prune.step_epochs})
    job = Training(name, section, FINETUNE_LR, training.teacher_of(state))
    model, history = training.train_model(state.context, state.model, job)
    return replace(state, model=model, histories=state.histories | {name: history})


def cut(state: RunState) -> RunState:
    """Carry out the plan on a copy of the network."""
    started, plan, before = time.perf_counter() - state.planning_seconds, _plan(state), plan_of(state.model)
    state = replace(state, model=prune_model(state.model, plan))
    log(f"cut {plan.removed_words(plan_of(state.original))}")
    if plan.same_size(before):
        state = state.with_note("the last round of the cut removed nothing more")
    state = measure(state, "pruned", state.model, started)
    before_macs, macs = state.stages[0].macs, state.stages[-1].macs
    if before_macs and macs:
        log(f"{macs / before_macs:.3f} of the original's MACs are left")
    return state


def _plan(state: RunState) -> SlimPlan:
    assert state.plan is not None
    return state.plan


def repair(state: RunState) -> RunState:
    """Refit the remaining weights in closed form, unless the recipe says `none`."""
    if state.recipe.refit.target == "none":
        return state
    started = time.perf_counter()
    state = replace(state, model=_refitted(state, state.model))
    return measure(state, "refit", state.model, started)


def _refitted(state: RunState, model: TimmModule) -> TimmModule:
    section = state.recipe.refit
    if section.target == "none":
        return model
    return refit(model, state.original, state.context.calibration(), section.target, section.ridge, section.class_token)
