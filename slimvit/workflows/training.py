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
from slimvit.models.registry import is_uncut_form
from slimvit.train.adapt import fit_head
from slimvit.train.checkpoint import Checkpoints
from slimvit.train.finetune import finetune
from slimvit.utils.progress import epoch_line, log
from slimvit.utils.seeds import seeded
from slimvit.workflows import cache, resume, run_folder
from slimvit.workflows.state import RunState

ADAPT_LR = 1e-5
HEAD_EPOCHS = 30
"""Epochs on the frozen features before the whole network is trained (`adapt: mode: all`)."""


def adapt(state: RunState) -> None:
    """Train what the run starts from, where that is asked for; this is the original from now on."""
    if state.recipe.adapt.epochs:
        cache.adapted(state, lambda: _adapt(state))
    state.original = state.model
    choose_teacher(state)


def _adapt(state: RunState) -> None:
    """Train a classifier on the frozen features, then (mode `all`) the whole network."""
    section, data, started = state.recipe.adapt, state.data, time.perf_counter()
    if state.interrupted != "adapt":
        _begin_adapting(state)
    if section.mode == "all":
        learn(state, "adapt", section, None, ADAPT_LR)
    state.model.class_names = data.class_names
    state.adapted, state.adapting = True, time.perf_counter() - started
    what = "classifier" if section.mode == "head" else "classifier, then the whole network,"
    state.notes.append(f"before the cut: {what} trained for {section.epochs} epochs on {len(data.train)} images")


def _begin_adapting(state: RunState) -> None:
    """A classifier for the data's classes."""
    section, data = state.recipe.adapt, state.data
    log(f"training a classifier for the {data.num_classes} classes of {data.name}")
    if (
        random_weights(state.recipe.model) and section.mode == "all"
    ):  # features that mean nothing: no head start in them
        with seeded(state.recipe.seed):
            state.model.reset_classifier(data.num_classes)
    else:
        _fit_head(state, section.epochs if section.mode == "head" else HEAD_EPOCHS)


def _fit_head(state: RunState, epochs: int) -> None:
    bare = copy.deepcopy(state.model)
    bare.reset_classifier(0)
    outputs = state.outputs(bare, state.data.train)
    assert outputs.labels is not None
    balanced, seed = state.recipe.adapt.sampler == "balanced", state.recipe.seed
    state.model = fit_head(
        state.model, outputs.features, outputs.labels, state.data.num_classes, epochs, seed, balanced
    )


def choose_teacher(state: RunState) -> None:
    """Where the run does not cut, a teacher that is the model's uncut form is the original too."""
    if state.teacher is not None and not state.recipe.changes_the_model and is_uncut_form(state.teacher, state.model):
        state.original, state.teacher = state.teacher, None


def learn(state: RunState, name: str, section: TrainSection, teacher: nn.Module | None, lr: float) -> Outputs | None:
    """Train the run's model: `adapt` or `finetune`, from its last saved state if it was interrupted.

    What the trained model gives on the validation images, where it was evaluated as it is now: compiled kernels round
    in another way, and an interrupted training may have had its last epoch behind it.
    """
    states = resume.checkpoints(state, name)
    rows = [] if states is None else states.history()
    state.engine.start_log(name)

    outputs: Outputs | None = None

    def after_epoch(model: nn.Module, row: dict[str, Any]) -> None:
        nonlocal outputs
        if row["epoch"] % section.eval_every == 0 or row["epoch"] == section.epochs:
            outputs = state.outputs(model, state.data.val)
            found = compare(outputs, state.reference)
            row.update(top1=found.top1, agreement=found.agreement, feature_error=found.feature_error)
        rows.append(row)
        log(epoch_line(name, row, section.epochs, first=len(rows) == 1))
        state.engine.log(row, row["epoch"])
        if states is not None and state.engine.is_main:
            states.put("history.csv", lambda path: run_folder.write_history(state.histories | {name: rows}, path))

    _train(state, name, section, teacher, lr, after_epoch=after_epoch, checkpoints=states)
    state.engine.end_log()
    if name == "finetune" and states is not None:
        _keep_best(state, states)
    return None if state.engine.compiles else outputs


def learn_between(state: RunState, name: str, epochs: int, teacher: nn.Module | None, lr: float) -> None:
    """A short training between two rounds of a cut; no state of it is kept, a run interrupted in it begins anew."""
    _train(state, name, state.recipe.finetune.model_copy(update={"epochs": epochs}), teacher, lr)


def _train(
    state: RunState, name: str, section: TrainSection, teacher: nn.Module | None, lr: float, **more: Any
) -> None:
    """The training itself: its network and history become the run's. ``more``: further arguments of `finetune`."""
    prep, seed = preprocessing_of(state.model), state.recipe.seed
    loader = train_loader(state.data.train, prep, section, state.recipe.data.batch_size, state.options.workers, seed)
    sees = converter(prep, prep if teacher is None else preprocessing_of(teacher))
    state.model, state.histories[name] = finetune(
        state.model, loader, section, teacher=teacher, teacher_sees=sees, labelled=state.data.labelled, lr=lr,
        engine=state.engine, seed=seed, mix_lr_scale=state.recipe.dense.lr_scale, what=name,
        in_order=state.in_order(state.data.train), **more,
    )  # fmt: skip


def _keep_best(state: RunState, states: Checkpoints) -> None:
    """The best epoch's network too, where it is not the last one's."""
    measured = [row for row in state.histories["finetune"] if row.get("top1") is not None]
    best = max(measured, key=lambda row: row["top1"], default=None)  # the first of equals
    if best is not None and best["top1"] > measured[-1]["top1"]:
        state.best = states.best()
        state.notes.append(
            f"best/ holds the network after epoch {best['epoch']} of the fine-tuning ({best['top1']:.1f} top-1 on "
            f"the validation images, {measured[-1]['top1']:.1f} after the last)"
        )
