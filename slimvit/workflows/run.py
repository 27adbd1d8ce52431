"""One run: original -> adapt -> prune and refit -> dense -> fine-tune -> check -> save.

Each stage takes the state of the run and returns the next one.
"""

from __future__ import annotations

import time
from dataclasses import replace

from slimvit.config.options import Options
from slimvit.config.recipe import BUDGETS, Recipe
from slimvit.models.insert_dense import insert_dense_attention, mixes_in
from slimvit.prune.costs.registry import target_of
from slimvit.report.record import Stage
from slimvit.utils.errors import RecipeError
from slimvit.utils.progress import log
from slimvit.workflows import cache, resume, run_folder, training
from slimvit.workflows.evaluate import measure
from slimvit.workflows.pruning import prune_and_refit
from slimvit.workflows.start import open_run
from slimvit.workflows.state import RunState
from slimvit.workflows.training import ADAPT_LR, FINETUNE_LR, Training

DEFAULTS = Options()
A_BUDGET = " or ".join(", ".join(f"--{key.replace('_', '-')}" for key in BUDGETS).rsplit(", ", 1))
"""The budget options, for messages."""


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
    """Train the original for the classes of the data where the recipe asks for it."""
    if state.recipe.adapt.epochs:
        adapted = cache.adapted(state.context, lambda: _adapted(state), recompute=state.interrupted == "adapt")
        state = replace(
            state,
            model=adapted.model,
            notes=state.notes + adapted.notes,
            histories=state.histories | adapted.histories,
            adapt_seconds=adapted.seconds,
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


def densify(state: RunState) -> RunState:
    """Insert dense attention where the recipe asks for it."""
    section, started = state.recipe.dense, time.perf_counter()
    if section.mix is None:
        return state
    model = insert_dense_attention(state.model, section.mix, section.init, seed=state.recipe.seed)
    log(f"inserted dense attention: {mixes_in(model)} mixes")
    return measure(replace(state, model=model), "dense", model, started)


def tune(state: RunState) -> RunState:
    """Fine-tune where the recipe asks for it."""
    section = state.recipe.finetune
    if not section.epochs:
        return state
    checkpoints, teacher = resume.checkpoints(state, "finetune"), training.teacher_of(state)
    job = Training("finetune", section, FINETUNE_LR, teacher, state.reference, checkpoints, state.histories)
    trained = training.learn(state.context, state.model, job)
    histories = state.histories | {"finetune": trained.history}
    notes = [*state.notes, *trained.notes]
    state = replace(state, model=trained.model, histories=histories, best=trained.best, notes=notes, interrupted=None)
    seconds = sum(row["seconds"] for row in trained.history)  # includes the epochs before an interruption
    return measure(state, "finetuned", state.model, time.perf_counter() - seconds, trained.outputs)


def check(state: RunState) -> RunState:
    """Check the finished model against its budget, such as the measured against the planned latency."""
    target, context = state.target, state.context
    if target is None:
        return state
    checked = target.budget.check(state.original, state.model, target, state.recipe.prune, context.engine)
    if checked is None:
        return state
    log(checked.note)
    stages = list(state.stages)
    for name, figures in checked.figures.items():
        for place, figure in zip((0, -1), figures, strict=True):
            stages[place] = stages[place].model_copy(update={name: figure} if name in Stage.model_fields else {})
    return replace(state, stages=stages).with_note(checked.note)
