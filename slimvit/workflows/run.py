"""run(recipe): original -> scores -> plan -> cut -> refit -> dense -> fine-tune -> save -> report, on one page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn

from slimvit.config.options import Options
from slimvit.config.recipe import BUDGETS, Recipe
from slimvit.data.sources import open_data
from slimvit.data.workers import worker_deaths
from slimvit.io.load import pinned
from slimvit.io.open import open_model
from slimvit.measure.accuracy import Outputs, compare
from slimvit.measure.flops.count import count_params
from slimvit.models.base import family_of, plan_of
from slimvit.models.insert_dense import NOTHING_TO_MIX, can_mix, insert_dense_attention, mixes_in
from slimvit.models.plan import SlimPlan
from slimvit.prune.criteria.registry import Scores, score_parts
from slimvit.prune.planner import agree_on_prices, check_budget, decide, goal_of, read_plan, scored_parts
from slimvit.prune.refit import refit
from slimvit.prune.surgery import prune_model
from slimvit.report.record import Stage
from slimvit.utils.distributed import open_engine
from slimvit.utils.errors import ModelError, RecipeError
from slimvit.utils.lock import claimed
from slimvit.utils.progress import is_main, say
from slimvit.utils.seeds import seeded
from slimvit.workflows import cache, resume, run_folder
from slimvit.workflows.latency_check import check_promise
from slimvit.workflows.preflight import (
    check_classes,
    check_dense,
    check_out,
    check_readable,
    check_teacher,
    check_training,
)
from slimvit.workflows.state import Run
from slimvit.workflows.training import adapt, learn, learn_between, seat_teacher

DEFAULTS = Options()
FINETUNE_LR = 2e-5
A_BUDGET = " or ".join(", ".join(f"--{key.replace('_', '-')}" for key in BUDGETS).rsplit(", ", 1))


def run(recipe: Recipe, options: Options = DEFAULTS) -> Run:
    """Carry out a recipe; the run folder, if one is asked for, appears complete or not at all."""
    if not (recipe.changes_the_model or recipe.finetune.epochs or recipe.adapt.epochs):
        raise RecipeError(f"nothing to do: give {A_BUDGET}, or --dense, or epochs to train")
    with begun(recipe, options) as now:
        if now.interrupted != "finetune":
            slim(now)
        if recipe.finetune.epochs:
            tune(now)
        check_promise(now)
        if options.out is not None and now.engine.is_main:
            run_folder.write(now, options.out, options.force)
        now.engine.wait()
    return now


def slim(now: Run) -> None:
    """Everything before the fine-tuning."""
    recipe = now.recipe
    adapt(now)
    measure(now, "original", now.original)
    if recipe.prune.wanted:
        for step in range(1, recipe.prune.steps):
            approach(now, step)
        cut(now, make_plan(now))
        repair(now)
    elif now.original is not now.model:
        measure(now, "pruned", now.model)
    if recipe.dense.mix:
        densify(now, recipe.dense.mix)


def dry_run(recipe: Recipe, options: Options = DEFAULTS) -> tuple[Run, SlimPlan]:
    """Everything up to the plan; nothing is cut. With ``options.out`` the plan is written there."""
    if not recipe.prune.wanted:
        raise RecipeError(f"a dry run needs a budget: give {A_BUDGET}")
    with begun(recipe, options) as now:
        adapt(now)
        plan = make_plan(now)
        if options.out is not None:
            run_folder.write_plan(plan, options.out, options.force)
    return now, plan


@contextmanager
def begun(recipe: Recipe, options: Options) -> Iterator[Run]:
    """:func:`start`, as the only one that writes to the run folder; what the machine does to the run meanwhile (a full
    disk, a dead process) is told in one line."""
    with claimed(options.out) if options.out is not None and is_main() else nullcontext():
        now = start(recipe, options)
        with resume.going_on(now), worker_deaths(options.workers):
            yield now


def start(recipe: Recipe, options: Options) -> Run:
    """Open model and data and check that they fit each other; with ``resume``, be where an interrupted run was."""
    if options.out is not None:
        check_out(recipe, options.out, options.force or options.resume)
    elif options.resume:
        raise RecipeError("--resume goes on with the training in a run folder; name it with --out")
    engine = open_engine(options)
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
    now = Run(recipe, options, engine, data, model, model)
    if teacher is not None:
        now.teacher = teacher.to(engine.device)
    if data.bad_images:
        now.notes.append(f"unreadable images left out (--skip-bad-images): {data.bad_images}")
    engine.wait()  # nobody writes before everybody has looked at the folder
    if options.resume:
        pick_up(now)
    return now


def pick_up(now: Run) -> None:
    """Where the run folder holds an interrupted run, be where that one's training began."""
    resume.restore(now)
    if now.interrupted is None:
        say(f"{now.options.out}: holds no interrupted run; this one starts from the beginning")
    elif now.interrupted == "finetune":
        seat_teacher(now)
        now.reference = cache.original_outputs(now)


def make_plan(now: Run, share: float = 1.0) -> SlimPlan:
    """From a plan file, or from scores and a budget, of which ``share`` is to be met."""
    file = now.recipe.prune.plan
    plan = read_plan(file, now.model) if file is not None else _scored_plan(now, share)
    if now.recipe.dense.mix and not can_mix(plan):
        raise ModelError(f"--dense {now.recipe.dense.mix}: {NOTHING_TO_MIX} in this plan")
    return plan


def _scored_plan(now: Run, share: float) -> SlimPlan:
    recipe, started = now.recipe, time.perf_counter()
    agree_on_prices(recipe, now.original, now.engine)
    goal = goal_of(recipe, now.model, now.original, share)
    parts = scored_parts(recipe.prune, goal)

    def score() -> Scores:
        return score_parts(now.model, now.calibration(), recipe.prune.criterion, recipe.seed, parts)

    uncut = now.model is now.original  # what other runs start from too
    scores = now.engine.agreed(cache.scores(now, parts, score) if uncut else score())
    now.scores = scores.table()
    plan = decide(scores, recipe, now.model, now.original, goal, share)
    now.spent += time.perf_counter() - started
    return plan


def approach(now: Run, step: int) -> None:
    """One round of several on the way to the budget: cut, refit, and train if that was asked for."""
    section, started = now.recipe.prune, time.perf_counter() - now.spent
    plan = make_plan(now, step / section.steps)
    if not plan.same_size(plan_of(now.model)):
        now.model = _refitted(now, prune_model(now.model, plan))
    say(f"round {step} of {section.steps}: {_told(plan)} left")
    now.spent = time.perf_counter() - started
    if section.step_epochs:
        learn_between(now, f"round {step}", section.step_epochs, teacher_of(now), FINETUNE_LR)


def cut(now: Run, plan: SlimPlan) -> None:
    """Decide, then cut: the plan is carried out on a copy."""
    started = time.perf_counter() - now.spent
    before = plan_of(now.model)
    now.model = prune_model(now.model, plan)
    say(f"cut {_gone(plan, plan_of(now.original))}")
    if plan.same_size(before):
        now.notes.append("the last round of the cut removed nothing more")
    measure(now, "pruned", now.model, started)


def _gone(plan: SlimPlan, before: SlimPlan) -> str:
    """`18 of 36 heads (50.0%)`, and neurons where some are gone."""
    counts = [(before.kept, plan.kept, "heads"), (before.kept_neurons, plan.kept_neurons, "neurons")]
    told = [f"{was - left:,} of {was:,} {what} ({(was - left) / was:.1%})" for was, left, what in counts if was > left]
    return " and ".join(told) or "nothing"


def _told(plan: SlimPlan) -> str:
    return f"{plan.kept} heads and {plan.kept_neurons:,} neurons"


def repair(now: Run) -> None:
    """Refit what is left in closed form."""
    if now.recipe.refit.target == "none":
        return
    started = time.perf_counter()
    now.model = _refitted(now, now.model)
    measure(now, "refit", now.model, started)


def _refitted(now: Run, model: nn.Module) -> nn.Module:
    section = now.recipe.refit
    if section.target == "none":
        return model
    return refit(model, now.original, now.calibration(), section.target, section.ridge)


def densify(now: Run, mix: str) -> None:
    """Let every attention block also attend over the values of the earlier blocks of its stage."""
    started, section = time.perf_counter(), now.recipe.dense
    now.model = insert_dense_attention(now.model, mix, section.init, seed=now.recipe.seed)
    say(f"inserted dense attention: {mixes_in(now.model)} mixes")
    measure(now, "dense", now.model, started)


def tune(now: Run) -> None:
    """Fine-tune, learning from the teacher that the recipe names, or from the uncut network, unless told otherwise."""
    outputs = learn(now, "finetune", now.recipe.finetune, teacher_of(now), FINETUNE_LR)
    seconds = sum(row["seconds"] for row in now.histories["finetune"])  # those of interrupted processes included
    measure(now, "finetuned", now.model, time.perf_counter() - seconds, outputs)


def teacher_of(now: Run) -> nn.Module | None:
    return now.teacher or (now.original if now.original is not now.model else None)


def measure(
    now: Run, stage: str, model: nn.Module, started: float | None = None, outputs: Outputs | None = None
) -> None:
    """Accuracy, size and cost of a model; ``started``: when the stage's own work began; ``outputs``: what the model
    gives on the validation images, where that is known."""
    seconds = None if started is None else round(time.perf_counter() - started, 2)
    if outputs is None:
        outputs = cache.original_outputs(now) if now.reference is None else now.outputs(model, now.data.val)
    now.reference = now.reference or outputs
    found = {k: v for k, v in vars(compare(outputs, now.reference)).items() if k in Stage.model_fields}
    macs = now.macs_of(model)
    if (doubt := macs.disagreement()) is not None:
        now.notes.append(f"{stage}: {doubt}")
    plan = plan_of(model)
    size = {
        "heads": plan.kept,
        "neurons": plan.kept_neurons
        if any(b.neurons for b in plan.blocks)
        else None,  # none that could go: not a figure
        "params": count_params(model),
        "macs": macs.total,
    }
    now.stages.append(Stage(stage=stage, seconds=seconds, macs_by_part=macs.by_part, **size, **found))
