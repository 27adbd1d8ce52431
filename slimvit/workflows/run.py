"""run(recipe): original -> scores -> plan -> cut -> refit -> dense -> fine-tune -> save -> report, on one page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn

from slimvit.config.options import Options
from slimvit.config.recipe import BUDGETS, Recipe
from slimvit.data.sources import open_data
from slimvit.data.workers import worker_deaths
from slimvit.io.load import pinned
from slimvit.io.open import open_model
from slimvit.measure.accuracy import Outputs, compare
from slimvit.measure.flops.count import count_params
from slimvit.models.insert_dense import NOTHING_TO_MIX, can_mix, insert_dense_attention, mixes_in
from slimvit.models.parts.registry import PARTS
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import family_of, plan_of
from slimvit.prune.criteria.registry import Scores, score_parts
from slimvit.prune.planner import agree_on_prices, check_budget, decide, goal_of, read_plan, scored_parts
from slimvit.prune.refit import refit
from slimvit.prune.surgery import prune_model
from slimvit.report.columns import METRICS
from slimvit.report.record import Stage, units_of
from slimvit.utils.distributed import open_engine
from slimvit.utils.errors import ModelError, RecipeError
from slimvit.utils.lock import locked
from slimvit.utils.output import LOGS, UNFINISHED
from slimvit.utils.progress import is_main, log
from slimvit.utils.seeds import seeded
from slimvit.workflows import cache, resume, run_folder
from slimvit.workflows.latency_check import check_latency
from slimvit.workflows.preflight import (
    check_classes,
    check_dense,
    check_out,
    check_readable,
    check_teacher,
    check_training,
)
from slimvit.workflows.state import RunState
from slimvit.workflows.training import adapt, choose_teacher, learn, learn_between

DEFAULTS = Options()
FINETUNE_LR = 2e-5
A_BUDGET = " or ".join(", ".join(f"--{key.replace('_', '-')}" for key in BUDGETS).rsplit(", ", 1))


def run(recipe: Recipe, options: Options = DEFAULTS) -> RunState:
    """Carry out a recipe; the run folder, if one is asked for, appears complete or not at all."""
    if not (recipe.changes_the_model or recipe.finetune.epochs or recipe.adapt.epochs):
        raise RecipeError(f"nothing to do: give {A_BUDGET}, or --dense, or epochs to train")
    with open_run(recipe, options) as state:
        if state.interrupted != "finetune":
            slim(state)
        if recipe.finetune.epochs:
            tune(state)
        check_latency(state)
        if options.out is not None and state.engine.is_main:
            run_folder.write_run(state, options.out, options.force)
        state.engine.wait()
    return state


def slim(state: RunState) -> None:
    """Everything before the fine-tuning."""
    recipe = state.recipe
    adapt(state)
    measure(state, "original", state.original)
    if recipe.prune.wanted:
        for step in range(1, recipe.prune.steps):
            prune_round(state, step)
        cut(state, make_plan(state))
        repair(state)
    elif state.original is not state.model:
        measure(state, "pruned", state.model)
    if recipe.dense.mix:
        densify(state, recipe.dense.mix)


def dry_run(recipe: Recipe, options: Options = DEFAULTS) -> tuple[RunState, SlimPlan]:
    """Everything up to the plan; nothing is cut. With ``options.out`` the plan is written there."""
    if not recipe.prune.wanted:
        raise RecipeError(f"a dry run needs a budget: give {A_BUDGET}")
    with open_run(recipe, options) as state:
        adapt(state)
        plan = make_plan(state)
        if options.out is not None:
            run_folder.write_plan(plan, options.out, options.force)
    return state, plan


@contextmanager
def open_run(recipe: Recipe, options: Options) -> Iterator[RunState]:
    """:func:`start`, as the only one that writes to the run folder; what the machine does to the run meanwhile (a full
    disk, a dead process) is told in one line."""
    with locked(options.out) if options.out is not None and is_main() else nullcontext():
        state = start_run(recipe, options)
        with resume.going_on(state), worker_deaths(options.workers):
            yield state


def start_run(recipe: Recipe, options: Options) -> RunState:
    """Open model and data and check that they fit each other; with ``resume``, be where an interrupted run was."""
    if options.out is not None:
        check_out(recipe, options.out, options.force or options.resume)
    elif options.resume:
        raise RecipeError("--resume goes on with the training in a run folder; name it with --out")
    log_dir = None if options.out is None else options.out / UNFINISHED / LOGS
    engine = open_engine(options.device, options.precision, options.compile, options.log_with, log_dir)
    recipe = engine.agreed(pinned(recipe))
    with seeded(recipe.seed):  # weights that nothing brings are drawn
        model = open_model(recipe.model)
    family_of(model)
    model.to(engine.device)  # where a budget in milliseconds is measured
    agree_on_prices(recipe, model, engine)
    check_budget(recipe, model)
    check_dense(recipe.dense, model)
    teacher = None if recipe.finetune.teacher is None else open_model(recipe.finetune.teacher)
    data = open_data(recipe.data, recipe.seed)
    check_classes(recipe, data, model)
    check_training(recipe, data, model, options.compile)
    check_teacher(recipe, data, model, teacher)
    check_readable(recipe, data)
    state = RunState(recipe, options, engine, data, model, model)
    if teacher is not None:
        state.teacher = teacher.to(engine.device)
    if data.bad_images:
        state.notes.append(f"unreadable images left out (--skip-bad-images): {data.bad_images}")
    engine.wait()  # nobody writes before everybody has looked at the folder
    if options.resume:
        resume_run(state)
    return state


def resume_run(state: RunState) -> None:
    """Where the run folder holds an interrupted run, be where that one's training began."""
    resume.restore(state)
    if state.interrupted is None:
        log(f"{state.options.out}: holds no interrupted run; this one starts from the beginning")
    elif state.interrupted == "finetune":
        choose_teacher(state)
        state.reference = cache.original_outputs(state)


def make_plan(state: RunState, share: float = 1.0) -> SlimPlan:
    """From a plan file, or from scores and a budget, of which ``share`` is to be met."""
    file = state.recipe.prune.plan
    plan = read_plan(file, state.model) if file is not None else _scored_plan(state, share)
    if state.recipe.dense.mix and not can_mix(plan):
        raise ModelError(f"--dense {state.recipe.dense.mix}: {NOTHING_TO_MIX} in this plan")
    return plan


def _scored_plan(state: RunState, share: float) -> SlimPlan:
    recipe, started = state.recipe, time.perf_counter()
    agree_on_prices(recipe, state.original, state.engine)
    goal = goal_of(recipe, state.model, state.original, share)
    parts = scored_parts(recipe.prune, goal)

    def score() -> Scores:
        return score_parts(state.model, state.calibration(), recipe.prune.criterion, recipe.seed, parts)

    uncut = state.model is state.original  # what other runs start from too
    scores = state.engine.agreed(cache.scores(state, parts, score) if uncut else score())
    state.scores = scores.table()
    plan = decide(scores, recipe, state.model, state.original, goal, share)
    state.spent += time.perf_counter() - started
    return plan


def prune_round(state: RunState, step: int) -> None:
    """One round of several on the way to the budget: cut, refit, and train if that was asked for."""
    section, started = state.recipe.prune, time.perf_counter() - state.spent
    plan = make_plan(state, step / section.steps)
    if not plan.same_size(plan_of(state.model)):
        state.model = _refitted(state, prune_model(state.model, plan))
    log(f"round {step} of {section.steps}: {_told(plan)} left")
    state.spent = time.perf_counter() - started
    if section.step_epochs:
        learn_between(state, f"round {step}", section.step_epochs, teacher_of(state), FINETUNE_LR)


def cut(state: RunState, plan: SlimPlan) -> None:
    """Decide, then cut: the plan is carried out on a copy."""
    started = time.perf_counter() - state.spent
    before = plan_of(state.model)
    state.model = prune_model(state.model, plan)
    log(f"cut {_gone(plan, plan_of(state.original))}")
    if plan.same_size(before):
        state.notes.append("the last round of the cut removed nothing more")
    measure(state, "pruned", state.model, started)


def _gone(plan: SlimPlan, before: SlimPlan) -> str:
    """`18 of 36 heads (50.0%)`, and neurons where some are gone."""
    counts = [(before.kept, plan.kept, "heads"), (before.kept_neurons, plan.kept_neurons, "neurons")]
    told = [f"{was - left:,} of {was:,} {what} ({(was - left) / was:.1%})" for was, left, what in counts if was > left]
    return " and ".join(told) or "nothing"


def _told(plan: SlimPlan) -> str:
    return f"{plan.kept} heads and {plan.kept_neurons:,} neurons"


def repair(state: RunState) -> None:
    """Refit what is left in closed form."""
    if state.recipe.refit.target == "none":
        return
    started = time.perf_counter()
    state.model = _refitted(state, state.model)
    measure(state, "refit", state.model, started)


def _refitted(state: RunState, model: nn.Module) -> nn.Module:
    section = state.recipe.refit
    if section.target == "none":
        return model
    return refit(model, state.original, state.calibration(), section.target, section.ridge)


def densify(state: RunState, mix: str) -> None:
    """Let every attention block also attend over the values of the earlier blocks of its stage."""
    started, section = time.perf_counter(), state.recipe.dense
    state.model = insert_dense_attention(state.model, mix, section.init, seed=state.recipe.seed)
    log(f"inserted dense attention: {mixes_in(state.model)} mixes")
    measure(state, "dense", state.model, started)


def tune(state: RunState) -> None:
    """Fine-tune, learning from the teacher that the recipe names, or from the uncut network, unless told otherwise."""
    outputs = learn(state, "finetune", state.recipe.finetune, teacher_of(state), FINETUNE_LR)
    seconds = sum(row["seconds"] for row in state.histories["finetune"])  # those of interrupted processes included
    measure(state, "finetuned", state.model, time.perf_counter() - seconds, outputs)


def teacher_of(state: RunState) -> nn.Module | None:
    return state.teacher or (state.original if state.original is not state.model else None)


def measure(
    state: RunState, stage: str, model: nn.Module, started: float | None = None, outputs: Outputs | None = None
) -> None:
    """Accuracy, size and cost of a model; ``started``: when the stage's own work began; ``outputs``: what the model
    gives on the validation images, where that is known."""
    seconds = None if started is None else round(time.perf_counter() - started, 2)
    if outputs is None:
        outputs = cache.original_outputs(state) if state.reference is None else state.outputs(model, state.data.val)
    state.reference = state.reference or outputs
    accuracy = compare(outputs, state.reference).figures
    macs = state.macs_of(model)
    if (doubt := macs.disagreement()) is not None:
        state.notes.append(f"{stage}: {doubt}")
    units = {part: kept for part, (_, kept) in units_of(plan_of(model)).items()}
    size = {"units": units, "params": count_params(model), "macs": macs.total}
    state.stages.append(Stage(stage=stage, seconds=seconds, macs_by_part=macs.by_part, **size, **accuracy))


def evaluate_model(recipe: Recipe, options: Options) -> dict[str, Any]:
    """Accuracy, size and cost of a recipe's model on its data; None where nothing was measured."""
    with open_run(recipe, options) as state:
        measure(state, "original", state.model)
    stage = state.stages[0]
    shown = [*(part.units for part in PARTS.values()), "params", "macs", *stage.accuracy]
    shown = [key for key in shown if key not in METRICS or not METRICS[key].against_original]
    about = {"model": state.recipe.model.name, "data": recipe.data.name, "images": len(state.data.val)}
    return about | {key: stage.figure(key) for key in shown}
