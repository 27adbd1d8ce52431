"""run(recipe): original -> scores -> plan -> cut -> refit -> fine-tune -> save -> report, readable on one page."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

from torch import nn

from slimvit import rundir
from slimvit.data.images import Images
from slimvit.data.loaders import check_images, draw, preprocessing_of, train_loader
from slimvit.data.preprocessing import train_transform
from slimvit.data.sources import Data, open_data
from slimvit.errors import DataError, PlanError, RecipeError, StoreError
from slimvit.folders import check_free
from slimvit.measure.accuracy import compare, outputs_of
from slimvit.measure.macs import count_macs, count_params
from slimvit.models.family import TimmModule, family_of, head_macs, plan_of
from slimvit.options import Options
from slimvit.plan import SlimPlan
from slimvit.progress import say
from slimvit.prune.criteria import NEEDS_CLASSIFIER, score_heads
from slimvit.prune.refit import refit
from slimvit.prune.search import plan_heads
from slimvit.prune.surgery import prune_heads
from slimvit.recipe import PruneSection, Recipe, TrainSection
from slimvit.report.record import Stage
from slimvit.runstate import Run
from slimvit.sources import open_model, random_weights
from slimvit.train.adapt import fit_head
from slimvit.train.distill import training_loss
from slimvit.train.finetune import finetune
from slimvit.train.loop import check_mixing

DEFAULTS = Options()
ADAPT_LR = 5e-5
FINETUNE_LR = 5e-5
HEAD_EPOCHS = 30
"""Epochs on the frozen features before the whole network is trained (`adapt: mode: all`)."""


def run(recipe: Recipe, options: Options = DEFAULTS) -> Run:
    """Carry out a recipe; the run folder, if one is asked for, appears complete or not at all."""
    if not recipe.prune.wanted and recipe.finetune.epochs == 0 and recipe.adapt.epochs == 0:
        raise RecipeError("nothing to do: give --ratio, --heads, --target-macs or --plan, or epochs to train")
    now = start(recipe, options)
    measure(now, "original", now.original)
    if recipe.prune.wanted:
        cut(now, make_plan(now))
        repair(now)
    elif now.original is not now.model:
        measure(now, "pruned", now.model)
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
        _check_out(recipe, options.out, options.force)
    device = options.torch_device()
    model = open_model(recipe.model)
    family_of(model)
    check_budget(recipe.prune, model)
    teacher = None if recipe.finetune.teacher is None else open_model(recipe.finetune.teacher)
    data = open_data(recipe.data, recipe.seed)
    _check_classes(recipe, data, model)
    _check_training(recipe, data, model)
    if not recipe.data.skip_bad_images:  # open_data has looked already where bad ones are to be left out
        check_images(_images_in_use(recipe, data), "training", skip=False)
        check_images(data.val, "validation", skip=False)
    now = Run(recipe, options, data, model.to(device), model)
    if data.bad_images:
        now.notes.append(f"unreadable images left out (--skip-bad-images): {data.bad_images}")
    if recipe.adapt.epochs:
        adapt(now)
    now.original = now.model if teacher is None else teacher.to(device)
    return now


def _check_out(recipe: Recipe, out: Path, force: bool) -> None:
    """The output folder must be free, and none that this recipe reads its models from."""
    check_free(out, force)
    for section in (recipe.model, recipe.finetune.teacher):
        if section is not None and Path(section.name).resolve().is_relative_to(out.resolve()):
            raise StoreError(f"{out}: this run reads {section.name}, so it cannot write there; name another --out")


def _images_in_use(recipe: Recipe, data: Data) -> Images:
    """The training images that the run will read."""
    if recipe.adapt.epochs or recipe.finetune.epochs:
        return data.train
    return draw(data.train, recipe.prune.calibration_images if recipe.prune.wanted else 0, recipe.seed)


def _check_training(recipe: Recipe, data: Data, model: TimmModule) -> None:
    """What would stop a training that comes late stops the run now."""
    sections: tuple[TrainSection, ...] = (recipe.adapt, recipe.finetune)
    for section in sections:
        if section.epochs:
            train_transform(preprocessing_of(model), section)
            check_mixing(section, min(recipe.data.batch_size, len(data.train)))
    if recipe.finetune.epochs:
        teacher = model if recipe.prune.wanted or recipe.finetune.teacher else None
        training_loss(recipe.finetune, teacher, data.labelled, bool(model.num_classes or recipe.adapt.epochs))


def _check_classes(recipe: Recipe, data: Data, model: TimmModule) -> None:
    """The model's classes must be the data's, or be trained first."""
    name, how = recipe.model.name, "train a classifier for the data first: --adapt-epochs 20 (--adapt head or all)"
    if recipe.adapt.epochs:
        if not data.labelled:
            raise DataError(f"{data.name}: has no labels, so no classifier can be trained; drop --adapt-epochs")
        return
    if model.num_classes and data.labelled and model.num_classes != data.num_classes:
        raise DataError(f"{name} knows {model.num_classes} classes, but {data.name} has {data.num_classes}; {how}")
    if getattr(model, "untrained_classifier", False):
        raise DataError(f"{name}: its weights bring no classifier for {model.num_classes} classes; {how}")
    scoring = recipe.prune.wanted and recipe.prune.plan is None
    if scoring and recipe.prune.criterion in NEEDS_CLASSIFIER and not (model.num_classes and data.labelled):
        what = f"{data.name} has no labels" if model.num_classes else f"{name} has no classifier"
        way_out = f"use residual, or {how}" if data.labelled else "use residual"
        raise DataError(f"criterion {recipe.prune.criterion} needs labels and a classifier, but {what}; {way_out}")


def adapt(now: Run) -> None:
    """Train a classifier on the frozen features, then (mode `all`) the whole network."""
    section, data = now.recipe.adapt, now.data
    say(f"training a classifier for the {data.num_classes} classes of {data.name}")
    if random_weights(now.recipe.model) and section.mode == "all":  # features that mean nothing: no head start in them
        now.model.reset_classifier(data.num_classes)
    else:
        _fit_head(now, section.epochs if section.mode == "head" else HEAD_EPOCHS)
    if section.mode == "all":
        _train(now, "adapt", section, None, ADAPT_LR)
    now.model.class_names = data.class_names
    now.adapted = True
    what = "classifier" if section.mode == "head" else "classifier, then the whole network,"
    now.notes.append(f"before the cut: {what} trained for {section.epochs} epochs on {len(data.train)} images")


def _fit_head(now: Run, epochs: int) -> None:
    bare = copy.deepcopy(now.model)
    bare.reset_classifier(0)
    outputs = outputs_of(bare, now.in_order(now.data.train), now.device)
    assert outputs.labels is not None
    now.model = fit_head(now.model, outputs.features, outputs.labels, now.data.num_classes, epochs, now.recipe.seed)


def make_plan(now: Run) -> SlimPlan:
    """From a plan file, or from scores and a budget."""
    section, model = now.recipe.prune, now.model
    if section.plan is not None:
        return _read_plan(section.plan, model)
    started = time.perf_counter()
    now.scores = score_heads(model, now.calibration(), section.criterion, now.recipe.seed)
    plan = plan_heads(now.scores, **_budget(section, model))
    now.spent = time.perf_counter() - started
    return plan


def check_budget(section: PruneSection, model: nn.Module) -> None:
    """Raise :class:`PlanError` now if the plan file does not fit or the budget cannot be met, whatever the scores."""
    if section.plan is not None:
        _read_plan(section.plan, model)
    elif section.wanted:
        plan_heads(score_heads(model, (), "random"), **_budget(section, model))


def _budget(section: PruneSection, model: nn.Module) -> dict[str, Any]:
    return {
        "ratio": section.ratio,
        "heads": section.heads,
        "macs_to_save": _macs_to_save(section.target_macs, model, section.min_heads),
        "head_macs": head_macs(model),
        "scope": section.scope,
        "min_heads": section.min_heads,
    }


def _read_plan(file: str, model: nn.Module) -> SlimPlan:
    plan = SlimPlan.read(Path(file))
    plan.check_against(plan_of(model))
    if plan.kept == plan_of(model).kept:
        raise PlanError(f"{file}: removes nothing; take ids out of kept_heads")
    return plan


def _macs_to_save(target: float | None, model: nn.Module, min_heads: int) -> int | None:
    """MACs that have to go for a target fraction; raises :class:`PlanError` when heads alone cannot save them."""
    if target is None:
        return None
    total = count_macs(model).total
    wanted = round(total * (1 - target))
    counts = [max(0, len(b.kept_heads) - min_heads) for b in plan_of(model).blocks]
    most = sum(n * macs for n, macs in zip(counts, head_macs(model), strict=True))
    if wanted > most:
        least = math.ceil((total - most) / total * 1000) / 1000
        raise PlanError(
            f"target-macs {target}: heads alone reach {least} of the MACs at the least (min_heads {min_heads}); "
            "give a larger target"
        )
    return wanted


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


def tune(now: Run) -> None:
    """Fine-tune, learning from the uncut network too unless told otherwise."""
    started = time.perf_counter()
    teacher = now.original if now.original is not now.model else None
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

    now.model, now.histories[name] = finetune(
        now.model, loader, section, teacher=teacher, labelled=now.data.labelled, lr=lr, device=now.device, seed=seed,
        what=name, after_epoch=validate,
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
