"""The trainings of a run: what it starts from is adapted to the data, what is left of it is fine-tuned."""

from __future__ import annotations

import copy
import time
from typing import Any

from torch import nn

from slimvit.config.recipe import TrainSection
from slimvit.data.loaders import preprocessing_of, train_loader
from slimvit.data.preprocessing import converter
from slimvit.io.open import random_weights
from slimvit.measure.accuracy import Outputs, compare
from slimvit.models.base import is_uncut_form
from slimvit.train.adapt import fit_head
from slimvit.train.checkpoint import Checkpoints
from slimvit.train.finetune import finetune
from slimvit.utils.progress import epoch_line, say
from slimvit.utils.seeds import seeded
from slimvit.workflows import cache, resume, run_folder
from slimvit.workflows.state import Run

ADAPT_LR = 1e-5
HEAD_EPOCHS = 30
"""Epochs on the frozen features before the whole network is trained (`adapt: mode: all`)."""


def adapt(now: Run) -> None:
    """Train what the run starts from, where that is asked for; this is the original from now on."""
    if now.recipe.adapt.epochs:
        cache.adapted(now, lambda: _adapt(now))
    now.original = now.model
    seat_teacher(now)


def _adapt(now: Run) -> None:
    """Train a classifier on the frozen features, then (mode `all`) the whole network."""
    section, data, started = now.recipe.adapt, now.data, time.perf_counter()
    if now.interrupted != "adapt":
        _begin_adapting(now)
    if section.mode == "all":
        learn(now, "adapt", section, None, ADAPT_LR)
    now.model.class_names = data.class_names
    now.adapted, now.adapting = True, time.perf_counter() - started
    what = "classifier" if section.mode == "head" else "classifier, then the whole network,"
    now.notes.append(f"before the cut: {what} trained for {section.epochs} epochs on {len(data.train)} images")


def _begin_adapting(now: Run) -> None:
    """A classifier for the data's classes."""
    section, data = now.recipe.adapt, now.data
    say(f"training a classifier for the {data.num_classes} classes of {data.name}")
    if random_weights(now.recipe.model) and section.mode == "all":  # features that mean nothing: no head start in them
        with seeded(now.recipe.seed):
            now.model.reset_classifier(data.num_classes)
    else:
        _fit_head(now, section.epochs if section.mode == "head" else HEAD_EPOCHS)


def _fit_head(now: Run, epochs: int) -> None:
    bare = copy.deepcopy(now.model)
    bare.reset_classifier(0)
    outputs = now.outputs(bare, now.data.train)
    assert outputs.labels is not None
    balanced, seed = now.recipe.adapt.sampler == "balanced", now.recipe.seed
    now.model = fit_head(now.model, outputs.features, outputs.labels, now.data.num_classes, epochs, seed, balanced)


def seat_teacher(now: Run) -> None:
    """Where the run does not cut, a teacher that is the model's uncut form is the original too."""
    if now.teacher is not None and not now.recipe.changes_the_model and is_uncut_form(now.teacher, now.model):
        now.original, now.teacher = now.teacher, None


def learn(now: Run, name: str, section: TrainSection, teacher: nn.Module | None, lr: float) -> Outputs | None:
    """Train the run's model: `adapt` or `finetune`, from its last saved state if it was interrupted.

    What the trained model gives on the validation images, where it was evaluated as it is now: compiled kernels round
    in another way, and an interrupted training may have had its last epoch behind it.
    """
    states = resume.checkpoints(now, name)
    rows = [] if states is None else states.history()
    now.engine.start_log(name)

    outputs: Outputs | None = None

    def after_epoch(model: nn.Module, row: dict[str, Any]) -> None:
        nonlocal outputs
        if row["epoch"] % section.eval_every == 0 or row["epoch"] == section.epochs:
            outputs = now.outputs(model, now.data.val)
            found = compare(outputs, now.reference)
            row.update(top1=found.top1, agreement=found.agreement, feature_error=found.feature_error)
        rows.append(row)
        say(epoch_line(name, row, section.epochs, first=len(rows) == 1))
        now.engine.log(row, row["epoch"])
        if states is not None and now.engine.is_main:
            states.put("history.csv", lambda path: run_folder.write_history(now.histories | {name: rows}, path))

    _train(now, name, section, teacher, lr, after_epoch=after_epoch, checkpoints=states)
    now.engine.end_log()
    if name == "finetune" and states is not None:
        _keep_best(now, states)
    return None if now.engine.compiles else outputs


def learn_between(now: Run, name: str, epochs: int, teacher: nn.Module | None, lr: float) -> None:
    """A short training between two rounds of a cut; no state of it is kept, a run interrupted in it begins anew."""
    _train(now, name, now.recipe.finetune.model_copy(update={"epochs": epochs}), teacher, lr)


def _train(now: Run, name: str, section: TrainSection, teacher: nn.Module | None, lr: float, **more: Any) -> None:
    """The training itself: its network and history become the run's. ``more``: further arguments of `finetune`."""
    prep, seed = preprocessing_of(now.model), now.recipe.seed
    loader = train_loader(now.data.train, prep, section, now.recipe.data.batch_size, now.options.workers, seed)
    sees = converter(prep, prep if teacher is None else preprocessing_of(teacher))
    now.model, now.histories[name] = finetune(
        now.model, loader, section, teacher=teacher, teacher_sees=sees, labelled=now.data.labelled, lr=lr,
        engine=now.engine, seed=seed, mix_lr_scale=now.recipe.dense.lr_scale, what=name,
        in_order=now.in_order(now.data.train), **more,
    )  # fmt: skip


def _keep_best(now: Run, states: Checkpoints) -> None:
    """The best epoch's network too, where it is not the last one's."""
    measured = [row for row in now.histories["finetune"] if row.get("top1") is not None]
    best = max(measured, key=lambda row: row["top1"], default=None)  # the first of equals
    if best is not None and best["top1"] > measured[-1]["top1"]:
        now.best = states.best()
        now.notes.append(
            f"best/ holds the network after epoch {best['epoch']} of the fine-tuning ({best['top1']:.1f} top-1 on "
            f"the validation images, {measured[-1]['top1']:.1f} after the last)"
        )
