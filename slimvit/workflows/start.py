"""Start a run: open and check its model and data, or restore an interrupted run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.data.loaders import worker_deaths
from slimvit.data.preprocessing import preprocessing_of
from slimvit.data.sources import open_data
from slimvit.io.load import pinned
from slimvit.io.open import open_model
from slimvit.io.saved_model import checked_source
from slimvit.models.registry import family_of
from slimvit.prune.costs.registry import target_of
from slimvit.prune.planner import check_budget
from slimvit.utils.distributed import Engine, open_engine
from slimvit.utils.errors import RecipeError
from slimvit.utils.files import check_no_link
from slimvit.utils.lock import locked
from slimvit.utils.output import LOGS, UNFINISHED
from slimvit.utils.progress import is_main, log
from slimvit.utils.seeds import seeded
from slimvit.workflows import cache, resume
from slimvit.workflows.preflight import (
    check_classes,
    check_dense,
    check_out,
    check_readable,
    check_teacher,
    check_training,
    match_classes,
    match_teacher,
)
from slimvit.workflows.state import RunContext, RunState
from slimvit.workflows.training import choose_teacher


@contextmanager
def open_run(recipe: Recipe, options: Options, labels: bool = True) -> Iterator[RunState]:
    """Lock the run folder, start the run, and add the resume command to disk and worker errors in the block."""
    with locked(options.out) if options.out is not None and is_main() else nullcontext():
        state = start_run(recipe, options, labels)
        with resume.resume_hints(state.context), worker_deaths(options.workers):
            yield state


def start_run(recipe: Recipe, options: Options, labels: bool = True) -> RunState:
    """Open model and data, check that they fit each other, and restore an interrupted run with `options.resume`.

    Args:
        recipe: What to compute.
        options: Where and how.
        labels: Whether the labels are used, so that the classes of model and data must match.

    Raises:
        SlimvitError: Something in the recipe cannot be carried out here.
    """
    _check_folder(recipe, options)
    engine = _open_engine(options)
    recipe = engine.broadcast(pinned(recipe))
    with seeded(recipe.seed):  # random initial weights follow the seed
        model = open_model(recipe.model)
    family_of(model)
    if options.out is not None:
        checked_source(model)
    model.to(engine.device)  # a latency budget is measured on this device
    target = target_of(recipe.prune, model, engine)
    check_budget(recipe, model, target)
    check_dense(recipe.dense, model)
    teacher = None if recipe.finetune.teacher is None else open_model(recipe.finetune.teacher)
    opened = open_data(recipe.data, recipe.seed, training=recipe.reads_training_images)
    check_classes(recipe, opened, model)
    data = match_classes(recipe, opened, model) if labels else opened
    check_training(recipe, data, model, options.compile)
    check_teacher(recipe, data, model, teacher)
    match_teacher(recipe, opened, data, teacher)
    check_readable(recipe, data)
    notes = [f"unreadable images left out (--skip-bad-images): {data.bad_images}"] if data.bad_images else []
    context = RunContext(recipe, options, engine, data, preprocessing_of(model))
    if teacher is not None:
        teacher.to(engine.device)
    engine.wait()  # no process writes before every process has checked the folder
    state = RunState(context, model, model, teacher=teacher, target=target, notes=notes)
    return resumed(state) if options.resume else state


def resumed(state: RunState) -> RunState:
    """The state at the start of the interrupted training in the run folder; `state` itself where there is none."""
    context, saved = state.context, resume.read_saved(state.context)
    if saved is None:
        log(f"{context.options.out}: holds no interrupted run; this one starts from the beginning")
        return state
    original, teacher, reference = saved.original, state.teacher, None
    if saved.training == "finetune":
        original, teacher = choose_teacher(context.recipe, saved.model, original, teacher)
        reference = cache.original_outputs(context, original)
    return RunState(
        context,
        saved.model,
        original,
        teacher=teacher,
        target=target_of(context.recipe.prune, original, context.engine, state.target),
        reference=reference,
        interrupted=saved.training,
        **saved.values,
    )


def _check_folder(recipe: Recipe, options: Options) -> None:
    if options.out is not None:
        unfinished = options.out / UNFINISHED
        check_no_link(unfinished, unfinished / LOGS, *(unfinished / LOGS).rglob("*"))
        check_out(recipe, options.out, options.force or options.resume)
    elif options.resume:
        raise RecipeError("--resume continues the training in a run folder; name it with --out")


def _open_engine(options: Options) -> Engine:
    log_dir = None if options.out is None else options.out / UNFINISHED / LOGS
    return open_engine(options.device, options.precision, options.compile, options.log_with, log_dir)
