"""The trainings of a run: adapting the original, and fine-tuning between rounds and at the end."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from slimvit.config.recipe import Recipe
from slimvit.config.training import TrainSection
from slimvit.data.loaders import train_loader
from slimvit.data.preprocessing import converter, preprocessing_of
from slimvit.io.open import random_weights
from slimvit.measure.accuracy import Outputs, compare
from slimvit.models.base import TimmModule
from slimvit.models.registry import is_uncut_form
from slimvit.train.adapt import fit_head
from slimvit.train.checkpoint import Checkpoints
from slimvit.train.finetune import finetune
from slimvit.train.loop import AfterEpoch, TrainOptions
from slimvit.train.state import History
from slimvit.train.teacher import Teacher
from slimvit.utils.progress import epoch_line, log
from slimvit.utils.seeds import seeded
from slimvit.workflows import run_folder
from slimvit.workflows.state import RunContext, RunState

ADAPT_LR = 1e-5
FINETUNE_LR = 2e-5
"""Default peak learning rates."""
HEAD_EPOCHS = 30
"""Epochs on the frozen features before the whole network is trained (`adapt: mode: all`)."""


@dataclass(frozen=True)
class Training:
    """One training of a run.

    Attributes:
        name: `adapt`, `finetune` or `round 2`.
        section: Settings of the recipe.
        lr: Peak learning rate if the section names none.
        teacher: The network to distill from, if any.
        reference: Outputs of the original for the validation images, for the agreement.
        checkpoints: Where the training state is saved; None saves nothing.
        earlier: Histories of the earlier trainings of the run.
    """

    name: str
    section: TrainSection
    lr: float
    teacher: TimmModule | None = None
    reference: Outputs | None = None
    checkpoints: Checkpoints | None = None
    earlier: Mapping[str, History] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        model: The trained network.
        history: One row per epoch.
        outputs: Outputs of `model` for the validation images; None after a compiled training, whose kernels round
            differently, or if no epoch was left to train.
        best: Weights of the best epoch on the validation images; None where that is the last one.
        notes: Remarks for the report.
    """

    model: TimmModule
    history: History
    outputs: Outputs | None = None
    best: dict[str, Tensor] | None = None
    notes: tuple[str, ...] = ()


def with_classifier(context: RunContext, model: TimmModule) -> TimmModule:
    """The model with a classifier for the data's classes, trained on its frozen features."""
    section, data, seed = context.recipe.adapt, context.data, context.recipe.seed
    log(f"training a classifier for the {data.num_classes} classes of {data.name}")
    if random_weights(context.recipe.model) and section.mode == "all":  # random features are no use to a classifier
        with seeded(seed):
            model = copy.deepcopy(model)
            model.reset_classifier(data.num_classes)
        return model
    epochs = section.epochs if section.mode == "head" else HEAD_EPOCHS
    bare = copy.deepcopy(model)
    bare.reset_classifier(0)
    outputs = context.outputs(bare, data.train)
    assert outputs.labels is not None
    balanced = section.sampler == "balanced"
    return fit_head(model, outputs.features, outputs.labels, data.num_classes, epochs, seed, balanced)


def choose_teacher(
    recipe: Recipe, model: TimmModule, original: TimmModule, teacher: TimmModule | None
) -> tuple[TimmModule, TimmModule | None]:
    """Return original and teacher; in a run that changes nothing, a teacher that is the uncut model is the original."""
    if teacher is not None and not recipe.changes_the_model and is_uncut_form(teacher, model):
        return teacher, None
    return original, teacher


def teacher_of(state: RunState) -> TimmModule | None:
    """The recipe's teacher, or the original of a changed network; None where there is nothing to distill from."""
    return state.teacher or (state.original if state.original is not state.model else None)


def learn(context: RunContext, model: TimmModule, training: Training) -> Trained:
    """Train the model, or resume its training; measure and log every epoch."""
    checkpoints = training.checkpoints
    epoch_log = _EpochLog(context, training, [] if checkpoints is None else checkpoints.history())
    context.engine.start_log(training.name)
    model, history = train_model(context, model, training, epoch_log, epoch_log.write)
    context.engine.end_log()
    best, notes = _best(checkpoints, history) if training.name == "finetune" else (None, ())
    return Trained(model, history, None if context.engine.compiles else epoch_log.outputs, best, notes)


class _EpochLog:
    """Callback after an epoch: measures the network and logs the row of the epoch. `write` writes history.csv."""

    def __init__(self, context: RunContext, training: Training, rows: History) -> None:
        self.context, self.training, self.rows = context, training, rows
        self.outputs: Outputs | None = None
        """Outputs after the last measured epoch."""

    def __call__(self, model: nn.Module, row: dict[str, Any]) -> None:
        context, training = self.context, self.training
        name, epochs = training.name, training.section.epochs
        if row["epoch"] % training.section.eval_every == 0 or row["epoch"] == epochs:
            self.outputs = context.outputs(model, context.data.val)
            accuracy = compare(self.outputs, training.reference)
            row.update(top1=accuracy.top1, agreement=accuracy.agreement, feature_error=accuracy.feature_error)
        self.rows.append(row)
        for line in epoch_line(name, row, epochs, first=len(self.rows) == 1).splitlines():
            log(line)
        context.engine.log(row, row["epoch"])

    def write(self) -> None:
        """Write the epochs to history.csv: after the state, so that the file names no epoch that no state holds."""
        checkpoints = self.training.checkpoints
        if checkpoints is not None and self.context.engine.is_main:
            histories = {**self.training.earlier, self.training.name: self.rows}
            checkpoints.put("history.csv", lambda path: run_folder.write_history(histories, path))


def train_model(
    context: RunContext,
    model: TimmModule,
    training: Training,
    after_epoch: AfterEpoch = lambda model, row: None,
    after_save: Callable[[], None] = lambda: None,
) -> tuple[TimmModule, History]:
    """The trained network, and one row per epoch."""
    section, seed, data = training.section, context.recipe.seed, context.data
    options = TrainOptions(
        lr=training.lr,
        mix_lr_scale=context.recipe.dense.lr_scale,
        seed=seed,
        engine=context.engine,
        name=training.name,
        after_epoch=after_epoch,
        after_save=after_save,
        checkpoints=training.checkpoints,
    )
    teacher = _teacher(context, model, training)
    batch_size, workers = context.recipe.data.batch_size, context.options.workers
    loader = train_loader(data.train, context.preprocessing, section, batch_size, workers, seed)
    return finetune(model, loader, section, teacher=teacher, labelled=data.labelled, options=options)


def _teacher(context: RunContext, model: TimmModule, training: Training) -> Teacher | None:
    """The teacher with its conversion of the student's images, and its cached answers if the section asks for them."""
    if training.teacher is None:
        return None
    teacher = Teacher(training.teacher, converter(context.preprocessing, preprocessing_of(training.teacher)))
    if model.num_classes and training.section.numbered:
        return teacher.with_answers(context.in_order(context.data.train), context.device)
    return teacher


def _best(checkpoints: Checkpoints | None, history: History) -> tuple[dict[str, Tensor] | None, tuple[str, ...]]:
    """Weights of the best epoch and a note on it; None and no note where the last measured epoch is the best."""
    measured = [row for row in history if row.get("top1") is not None]
    best = max(measured, key=lambda row: row["top1"], default=None)  # the first among equals
    if checkpoints is None or best is None or best["top1"] <= measured[-1]["top1"]:
        return None, ()
    note = (
        f"best/ holds the network after epoch {best['epoch']} of the fine-tuning ({best['top1']:.1f} top-1 on "
        f"the validation images, {measured[-1]['top1']:.1f} after the last)"
    )
    return checkpoints.best(), (note,)
