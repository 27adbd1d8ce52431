"""run(recipe): original -> scores -> plan -> cut -> refit -> dense -> fine-tune -> save -> report, on one page."""

from __future__ import annotations

import copy
import time
from typing import Any

from torch import nn

from slimvit import rundir
from slimvit.checks import (
    budget_of,
    check_budget,
    check_classes,
    check_dense,
    check_out,
    check_readable,
    check_teacher,
    check_training,
    read_plan,
)
from slimvit.data.loaders import preprocessing_of, seeded, train_loader
from slimvit.data.preprocessing import converter
from slimvit.data.sources import open_data
from slimvit.dense.insert import NOTHING_TO_MIX, can_mix, insert_dense_attention, mixes_in
from slimvit.errors import ModelError, RecipeError
from slimvit.measure.accuracy import compare, outputs_of
from slimvit.measure.macs import count_macs, count_params
from slimvit.models.family import family_of, is_uncut_form, plan_of
from slimvit.options import Options
from slimvit.plan import SlimPlan
from slimvit.progress import say
from slimvit.prune.criteria import score_heads
from slimvit.prune.refit import refit
from slimvit.prune.search import plan_heads
from slimvit.prune.surgery import prune_heads
from slimvit.recipe import Recipe, TrainSection
from slimvit.report.record import Stage
from slimvit.runstate import Run
from slimvit.sources import open_model, random_weights
from slimvit.train.adapt import fit_head
from slimvit.train.finetune import finetune

DEFAULTS = Options()
ADAPT_LR = 1e-5
FINETUNE_LR = 2e-5
HEAD_EPOCHS = 30
"""Epochs on the frozen features before the whole network is trained (`adapt: mode: all`)."""


def run(recipe: Recipe, options: Options = DEFAULTS) -> Run:
    """Carry out a recipe; the run folder, if one is asked for, appears complete or not at all."""
    if not (recipe.changes_the_model or recipe.finetune.epochs or recipe.adapt.epochs):
        raise RecipeError("nothing to do: give --ratio, --heads, --target-macs or --plan, --dense, or epochs to train")
    now = start(recipe, options)
    measure(now, "original", now.original)
    if recipe.prune.wanted:
        cut(now, make_plan(now))
        repair(now)
    elif now.original is not now.model:
        measure(now, "pruned", now.model)
    if recipe.dense.mix:
        densify(now, recipe.dense.mix)
    if recipe.finetune.epochs:
        tune(now)
    if options.out is not None:
        rundir.write(now, options.out, options.force)
    return now


def dry_run(recipe: Recipe, options: Options = DEFAULTS) -> tuple[Run, SlimPlan]:
    """Everything up to the plan; nothing is cut. With ``options.out`` the plan is written there."""
    if not recipe.prune.wanted:
        raise RecipeError("a dry run needs a budget: give --ratio, --heads, --target-macs or --plan")
    now = start(recipe, options)
    plan = make_plan(now)
    if options.out is not None:
        rundir.write_plan(plan, options.out, options.force)
    return now, plan


def start(recipe: Recipe, options: Options) -> Run:
    """Open model and data, check that they fit each other, and train a classifier if one is asked for."""
    if options.out is not None:
        check_out(recipe, options.out, options.force)
    device = options.torch_device()
    with seeded(recipe.seed):  # weights that nothing brings are drawn
        model = open_model(recipe.model)
    family_of(model)
    check_budget(recipe.prune, model)
    check_dense(recipe.dense, model)
    teacher = None if recipe.finetune.teacher is None else open_model(recipe.finetune.teacher)
    data = open_data(recipe.data, recipe.seed)
    check_classes(recipe, data, model)
    check_training(recipe, data, model)
    check_teacher(recipe, data, model, teacher)
    check_readable(recipe, data)
    now = Run(recipe, options, data, model.to(device), model)
    if data.bad_images:
        now.notes.append(f"unreadable images left out (--skip-bad-images): {data.bad_images}")
    if recipe.adapt.epochs:
        adapt(now)
    now.original = now.model
    if teacher is not None:
        _seat(now, teacher.to(device))
    return now


def _seat(now: Run, teacher: nn.Module) -> None:
    """Where the run does not cut, a teacher that is the model's uncut form is the original too."""
    if now.recipe.changes_the_model or not is_uncut_form(teacher, now.model):
        now.teacher = teacher
    else:
        now.original = teacher


def adapt(now: Run) -> None:
    """Train a classifier on the frozen features, then (mode `all`) the whole network."""
    section, data, started = now.recipe.adapt, now.data, time.perf_counter()
    say(f"training a classifier for the {data.num_classes} classes of {data.name}")
    if random_weights(now.recipe.model) and section.mode == "all":  # features that mean nothing: no head start in them
        with seeded(now.recipe.seed):
            now.model.reset_classifier(data.num_classes)
    else:
        _fit_head(now, section.epochs if section.mode == "head" else HEAD_EPOCHS)
    if section.mode == "all":
        _train(now, "adapt", section, None, ADAPT_LR)
    now.model.class_names = data.class_names
    now.adapted, now.adapting = True, time.perf_counter() - started
    what = "classifier" if section.mode == "head" else "classifier, then the whole network,"
    now.notes.append(f"before the cut: {what} trained for {section.epochs} epochs on {len(data.train)} images")


def _fit_head(now: Run, epochs: int) -> None:
    bare = copy.deepcopy(now.model)
    bare.reset_classifier(0)
    outputs = outputs_of(bare, now.in_order(now.data.train), now.device)
    assert outputs.labels is not None
    balanced, seed = now.recipe.adapt.sampler == "balanced", now.recipe.seed
    now.model = fit_head(now.model, outputs.features, outputs.labels, now.data.num_classes, epochs, seed, balanced)


def make_plan(now: Run) -> SlimPlan:
    """From a plan file, or from scores and a budget."""
    file = now.recipe.prune.plan
    plan = read_plan(file, now.model) if file is not None else _scored_plan(now)
    if now.recipe.dense.mix and not can_mix(plan):
        raise ModelError(f"--dense {now.recipe.dense.mix}: {NOTHING_TO_MIX} in this plan")
    return plan


def _scored_plan(now: Run) -> SlimPlan:
    section, started = now.recipe.prune, time.perf_counter()
    now.scores = score_heads(now.model, now.calibration(), section.criterion, now.recipe.seed)
    plan = plan_heads(now.scores, **budget_of(section, now.model))
    now.spent = time.perf_counter() - started
    return plan


def cut(now: Run, plan: SlimPlan) -> None:
    """Decide, then cut: the plan is carried out on a copy."""
    started = time.perf_counter() - now.spent
    before = plan_of(now.model).kept
    now.model = prune_heads(now.model, plan)
    gone = before - plan.kept
    say(f"cut {gone} of {before} heads ({gone / before:.1%})")
    measure(now, "pruned", now.model, started)


def repair(now: Run) -> None:
    """Refit what is left in closed form."""
    section = now.recipe.refit
    if section.target == "none":
        return
    started = time.perf_counter()
    now.model = refit(
        now.model, now.original, now.calibration(), section.target, section.ridge, cache=now.options.cache
    )
    measure(now, "refit", now.model, started)


def densify(now: Run, mix: str) -> None:
    """Let every attention block also attend over the values of the earlier blocks of its stage."""
    started, section = time.perf_counter(), now.recipe.dense
    now.model = insert_dense_attention(now.model, mix, section.init, seed=now.recipe.seed)
    say(f"inserted dense attention: {mixes_in(now.model)} mixes")
    measure(now, "dense", now.model, started)


def tune(now: Run) -> None:
    """Fine-tune, learning from the teacher that the recipe names, or from the uncut network, unless told otherwise."""
    started = time.perf_counter()
    teacher = now.teacher or (now.original if now.original is not now.model else None)
    _train(now, "finetune", now.recipe.finetune, teacher, FINETUNE_LR)
    measure(now, "finetuned", now.model, started)


def _train(now: Run, name: str, section: TrainSection, teacher: nn.Module | None, lr: float) -> None:
    prep, seed = preprocessing_of(now.model), now.recipe.seed
    loader = train_loader(now.data.train, prep, section, now.recipe.data.batch_size, now.options.workers, seed)

    def validate(model: nn.Module, row: dict[str, Any]) -> None:
        found = compare(outputs_of(model, now.in_order(now.data.val), now.device), now.reference)
        row.update(top1=found.top1, agreement=found.agreement, feature_error=found.feature_error)
        figures = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if v is not None and k != "epoch")
        say(f"{name} epoch {row['epoch']}/{section.epochs}: {figures}")

    sees = converter(prep, prep if teacher is None else preprocessing_of(teacher))
    now.model, now.histories[name] = finetune(
        now.model, loader, section, teacher=teacher, teacher_sees=sees, labelled=now.data.labelled, lr=lr,
        device=now.device, seed=seed, mix_lr_scale=now.recipe.dense.lr_scale, what=name, after_epoch=validate,
    )  # fmt: skip


def measure(now: Run, stage: str, model: nn.Module, started: float | None = None) -> None:
    """Accuracy, size and cost of a model; ``started``: when the stage's own work began."""
    seconds = None if started is None else round(time.perf_counter() - started, 2)
    outputs = outputs_of(model, now.in_order(now.data.val), now.device)
    now.reference = now.reference or outputs
    found = {k: v for k, v in vars(compare(outputs, now.reference)).items() if k in Stage.model_fields}
    macs = count_macs(model)
    if (doubt := macs.disagreement()) is not None:
        now.notes.append(f"{stage}: {doubt}")
    size = {"heads": plan_of(model).kept, "params": count_params(model), "macs": macs.total}
    now.stages.append(Stage(stage=stage, seconds=seconds, **size, **found))
