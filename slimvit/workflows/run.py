"""One run: original -> adapt -> scores -> plan -> cut -> refit -> dense -> fine-tune -> check -> save.

Each stage takes the run's state and returns the next one. No other module replaces a state.
"""

from __future__ import annotations

import time
from dataclasses import replace

from slimvit.config.options import Options
from slimvit.config.recipe import BUDGETS, Recipe
from slimvit.measure.accuracy import Outputs
from slimvit.models.base import TimmModule
from slimvit.models.insert_dense import insert_dense_attention, mixes_in
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of
from slimvit.prune.costs.registry import target_of
from slimvit.prune.refit import refit
from slimvit.prune.surgery import prune_model
from slimvit.report.record import Stage
from slimvit.utils.errors import RecipeError
from slimvit.utils.progress import log
from slimvit.workflows import cache, plan, resume, run_folder, training
from slimvit.workflows.evaluate import stage_row
from slimvit.workflows.start import open_run
from slimvit.workflows.state import RunState
from slimvit.workflows.training import ADAPT_LR, FINETUNE_LR, Training

DEFAULTS = Options()
A_BUDGET = " or ".join(", ".join(f"--{key.replace('_', '-')}" for key in BUDGETS).rsplit(", ", 1))


def run(recipe: Recipe, options: Options = DEFAULTS) -> RunState:
    """Carry out a recipe.

    Args:
        recipe: What to compute.
        options: Where and how; the run folder `out`, if any, appears complete or not at all.

    Returns:
        The final state: `model`, `original`, `report`, `histories`, ...

    Raises:
        SlimvitError: Something in the recipe cannot be carried out here.
    """
    if not (recipe.changes_the_model or recipe.finetune.epochs or recipe.adapt.epochs):
        raise RecipeError(f"nothing to do: give {A_BUDGET}, or --dense, or epochs to train")
    with open_run(recipe, options) as state:
        if state.interrupted != "finetune":
            state = adapt(state)
            state = measure(state, "original", state.original)
            state = prune_and_refit(state)
            state = densify(state)
        state = tune(state)
        state = check(state)
        run_folder.save_run(state)
    return state


def adapt(state: RunState) -> RunState:
    """Train the model for the data's classes where the recipe asks for it; the result is the original."""
    if state.recipe.adapt.epochs:
        made = cache.adapted(state.context, lambda: _adapted(state), anew=state.interrupted == "adapt")
        state = replace(
            state,
            model=made.model,
            notes=state.notes + made.notes,
            histories=state.histories | made.histories,
            adapt_seconds=made.seconds,
            adapted=True,
            interrupted=None,
        )
    original, teacher = training.choose_teacher(state.recipe, state.model, state.model, state.teacher)
    target = target_of(state.recipe.prune, original, state.context.engine, state.target)
    return replace(state, original=original, teacher=teacher, target=target)


def _adapted(state: RunState) -> cache.Adapted:
    """A classifier trained on the frozen features, then (mode `all`) the whole network."""
    section, context, started = state.recipe.adapt, state.context, time.perf_counter()
    resumed = state.interrupted == "adapt"
    model = state.model if resumed else training.with_classifier(context, state.model)
    histories = {}
    if section.mode == "all":
        checkpoints = resume.checkpoints(replace(state, model=model, original=model), "adapt")
        trained = training.learn(context, model, Training("adapt", section, ADAPT_LR, checkpoints=checkpoints))
        model, histories = trained.model, {"adapt": trained.history}
    model.class_names = context.data.class_names
    what = "classifier" if section.mode == "head" else "classifier, then the whole network,"
    note = f"before the cut: {what} trained for {section.epochs} epochs on {len(context.data.train)} images"
    return cache.Adapted(model, [note], histories, time.perf_counter() - started)


def prune_and_refit(state: RunState) -> RunState:
    """Cut the network to the budget, in one round or several, and refit what is left."""
    section = state.recipe.prune
    if not section.wanted:  # a model that another run has cut
        return state if state.original is state.model else measure(state, "pruned", state.model)
    for step in range(1, section.steps):
        state = prune_round(state, step)
    return repair(cut(make_plan(state)))


def make_plan(state: RunState, share: float = 1.0) -> RunState:
    """Score the network and decide on the plan that reaches `share` of the budget's saving."""
    started = time.perf_counter()
    made, scores = plan.decide_plan(state.context, state.model, state.original, state.target, share)
    seconds = state.planning_seconds + time.perf_counter() - started
    return replace(state, plan=made, scores=scores, planning_seconds=seconds)


def prune_round(state: RunState, step: int) -> RunState:
    """One of several rounds on the way to the budget: plan, cut, refit, and train where the recipe asks for it."""
    section = state.recipe.prune
    state, started = make_plan(state, step / section.steps), time.perf_counter()
    plan = _plan(state)
    if not plan.same_size(plan_of(state.model)):
        state = replace(state, model=_refitted(state, prune_model(state.model, plan)))
    log(f"round {step} of {section.steps}: {plan.kept_words()} left")
    state = replace(state, planning_seconds=state.planning_seconds + time.perf_counter() - started)
    return _trained_between(state, f"round {step}") if section.step_epochs else state


def _trained_between(state: RunState, name: str) -> RunState:
    """A short training between two rounds. It has no checkpoints: a run interrupted in it begins anew."""
    section = state.recipe.finetune.model_copy(update={"epochs": state.recipe.prune.step_epochs})
    job = Training(name, section, FINETUNE_LR, teacher_of(state))
    model, history = training.train_model(state.context, state.model, job)
    return replace(state, model=model, histories=state.histories | {name: history})


def cut(state: RunState) -> RunState:
    """Carry out the plan on a copy of the network."""
    started, plan, before = time.perf_counter() - state.planning_seconds, _plan(state), plan_of(state.model)
    state = replace(state, model=prune_model(state.model, plan))
    log(f"cut {plan.removed_words(plan_of(state.original))}")
    if plan.same_size(before):
        state = _noted(state, "the last round of the cut removed nothing more")
    return measure(state, "pruned", state.model, started)


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
    return refit(model, state.original, state.context.calibration(), section.target, section.ridge)


def densify(state: RunState) -> RunState:
    """Let every attention block also attend over the values of earlier blocks, where the recipe asks for it."""
    section, started = state.recipe.dense, time.perf_counter()
    if section.mix is None:
        return state
    model = insert_dense_attention(state.model, section.mix, section.init, seed=state.recipe.seed)
    log(f"inserted dense attention: {mixes_in(model)} mixes")
    return measure(replace(state, model=model), "dense", model, started)


def tune(state: RunState) -> RunState:
    """Fine-tune where the recipe asks for it, with its teacher or the original as the teacher."""
    section = state.recipe.finetune
    if not section.epochs:
        return state
    checkpoints = resume.checkpoints(state, "finetune")
    job = Training("finetune", section, FINETUNE_LR, teacher_of(state), state.reference, checkpoints, state.histories)
    trained = training.learn(state.context, state.model, job)
    histories = state.histories | {"finetune": trained.history}
    notes = [*state.notes, *trained.notes]
    state = replace(state, model=trained.model, histories=histories, best=trained.best, notes=notes, interrupted=None)
    seconds = sum(row["seconds"] for row in trained.history)  # those of interrupted processes included
    return measure(state, "finetuned", state.model, time.perf_counter() - seconds, trained.outputs)


def teacher_of(state: RunState) -> TimmModule | None:
    """The recipe's teacher, or the original where the network was changed."""
    return state.teacher or (state.original if state.original is not state.model else None)


def check(state: RunState) -> RunState:
    """Let the kind of budget look at the finished model, such as compare planned and measured latency."""
    target, context = state.target, state.context
    if target is None:
        return state
    found = target.budget.check(state.original, state.model, target, state.recipe.prune, context.engine)
    if found is None:
        return state
    log(found.note)
    stages = list(state.stages)
    for name, figures in found.figures.items():
        for place, figure in zip((0, -1), figures, strict=True):
            stages[place] = stages[place].model_copy(update={name: figure} if name in Stage.model_fields else {})
    return _noted(replace(state, stages=stages), found.note)


def measure(
    state: RunState, stage: str, model: TimmModule, started: float | None = None, outputs: Outputs | None = None
) -> RunState:
    """Add a row to the report: accuracy, size and cost of a model.

    Args:
        state: The run.
        stage: Name of the row.
        model: The network to measure.
        started: When the stage's own work began, by `time.perf_counter`.
        outputs: The network's outputs for the validation images, where they are known.
    """
    seconds, context = None if started is None else round(time.perf_counter() - started, 2), state.context
    reference = state.reference or cache.original_outputs(context, state.original)
    if outputs is None:
        outputs = reference if state.reference is None else context.outputs(model, context.data.val)
    row, notes = stage_row(context, stage, model, outputs, reference)
    stages = [*state.stages, row.model_copy(update={"seconds": seconds})]
    return replace(state, reference=reference, stages=stages, notes=state.notes + notes)


def _noted(state: RunState, note: str) -> RunState:
    return replace(state, notes=[*state.notes, note])
