"""The training loop: batches in, optimizer steps out, one row an epoch.

No random state is carried from step to step. An image's augmentation is drawn from (seed, epoch, index); mixing,
drop-path and dropout of a batch from (seed, epoch, batch, process). A training resumed from a checkpoint therefore ends
where an unbroken one would have: bit for bit on a CPU, on a GPU as far as its kernels are deterministic.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import skip_first_batches
from torch import nn
from torch.utils.data import DataLoader

from slimvit.config.training import TrainSection
from slimvit.models.base import TimmModule
from slimvit.models.modes import device_of
from slimvit.train.checkpoint import Checkpoints, Interrupted, StopFlag, stop_flag
from slimvit.train.distill import Loss
from slimvit.train.optimizer import rate_of
from slimvit.train.state import History, TrainState, begin, finish, training_mode
from slimvit.train.step import Losses, Mix, ModelWithLoss, mixing
from slimvit.utils.distributed import Engine, open_engine
from slimvit.utils.progress import track
from slimvit.utils.seeds import seed_step, seeded

AfterEpoch = Callable[[nn.Module, dict[str, Any]], None]
"""(network in eval mode, row of the epoch) -> None; may add figures to the row."""


@dataclass(frozen=True)
class TrainOptions:
    """How a training is carried out, beside its section of the recipe.

    Attributes:
        lr: Peak learning rate where the section names none.
        mix_lr_scale: Learning rate of the mixes of dense attention, in units of the others'.
        seed: Seed of mixing, drop-path and dropout.
        engine: Device, precision and processes; None takes one process on the model's device, in fp32.
        name: Name of the training in messages.
        after_epoch: Called after each epoch, before its row is kept.
        checkpoints: Where the state is saved. A state found there is resumed from.
    """

    lr: float = 2e-5
    mix_lr_scale: float = 1.0
    seed: int = 0
    engine: Engine | None = None
    name: str = "fine-tuning"
    after_epoch: AfterEpoch = lambda model, row: None
    checkpoints: Checkpoints | None = None

    def engine_for(self, model: nn.Module) -> Engine:
        """The engine, or a new one on the model's device."""
        return self.engine or open_engine(str(device_of(model)))


DEFAULTS = TrainOptions()


@dataclass(frozen=True)
class _Training:
    """The parts of one training that stay the same from step to step."""

    section: TrainSection
    options: TrainOptions
    engine: Engine
    network: Any
    optimizer: Any
    loader: Any
    """Network with loss, optimizer and loader as accelerate returns them."""
    images: int
    """Images of a batch, over all processes."""
    batches: int
    """Batches of an epoch in one process."""
    mix: Mix
    stop: StopFlag


def train(
    model: TimmModule, loader: DataLoader, loss: Loss, section: TrainSection, options: TrainOptions = DEFAULTS
) -> tuple[nn.Module, History]:
    """Train a copy of `model`.

    Args:
        model: The network to train; it does not change.
        loader: Batches from `slimvit.data.loaders.train_loader`. Each of several processes takes every n-th batch, so
            a step sees n times its `batch_size`.
        loss: (network, images [B, C, H, W], targets) -> mean loss.
        section: Epochs, optimizer, schedule, augmentation.
        options: Learning rate, seed, engine, checkpoints and callback.

    Returns:
        The trained copy in eval mode on the engine's device (with `ema_decay` its moving average), and one row an
        epoch.

    Raises:
        Diverged: The loss is NaN or infinite.
        Interrupted: The training was asked to stop; its state is saved.
    """
    engine, checkpoints = options.engine_for(model), options.checkpoints
    images = _images_a_step(loader)
    mix = mixing(section, model.num_classes, images)
    with seeded(options.seed), stop_flag(checkpoints is not None) as stop:
        share = engine.accelerator.prepare_data_loader(loader)
        batches = max(1, len(share))
        updates = math.ceil(batches / section.accumulate)
        state = begin(model, section, section.lr or options.lr, options.mix_lr_scale, updates, engine.device)
        if engine.compiles:
            state.model.compile()
        engine.accelerator.gradient_accumulation_steps = section.accumulate
        network, optimizer = engine.accelerator.prepare(ModelWithLoss(state.model, loss), state.optimizer)
        images *= engine.processes
        training = _Training(section, options, engine, network, optimizer, share, images, batches, mix, stop)
        if checkpoints is not None and (saved := checkpoints.last()) is not None:
            state.restore(saved)
        while state.epoch < section.epochs:
            _epoch(state, training)
            _end_epoch(state, training)
        engine.accelerator.free_memory()
        state.model._compiled_call_impl = None
    return finish(state, section, model), state.history


def _epoch(state: TrainState, training: _Training) -> None:
    """The rest of the epoch under way."""
    section, accelerator, options = training.section, training.engine.accelerator, training.options
    training_mode(state.model, section)
    losses = Losses(state, training.engine, options.name, options.checkpoints)
    size, started = 1, time.perf_counter() - state.seconds
    for images, targets in _batches(state, training):
        if state.batch % section.accumulate == 0:
            size = min(section.accumulate, training.batches - state.batch)  # an epoch's last step may have fewer
            state.schedule.step_update(state.updates)
        seed_step(options.seed, state.epoch, state.batch, accelerator.process_index)
        with accelerator.accumulate(training.network):
            value = training.network(*training.mix(images, targets))
            losses.add(value.detach())
            accelerator.backward(value * (section.accumulate / size))  # accelerate divides by `accumulate`
            if accelerator.sync_gradients and section.clip_grad is not None:
                accelerator.clip_grad_norm_(state.model.parameters(), section.clip_grad)
            training.optimizer.step()
            training.optimizer.zero_grad()
        state.batch += 1
        if accelerator.sync_gradients:
            state.update()
            if losses.are_due:
                state.seconds = time.perf_counter() - started
                _between_steps(state, training, losses)
    losses.look()
    state.seconds = time.perf_counter() - started


def _batches(state: TrainState, training: _Training) -> Iterator[Any]:
    """The batches of the epoch that are not done yet."""
    training.loader.set_epoch(state.epoch)
    rest = training.loader
    if state.batch:
        rest = skip_first_batches(rest, state.batch)
        rest.set_epoch(state.epoch)
    title = f"{training.options.name} {state.epoch + 1}/{training.section.epochs}"
    return track(rest, title, training.batches - state.batch)


def _between_steps(state: TrainState, training: _Training, losses: Losses) -> None:
    """Check the losses, save the state when due, and stop when asked to."""
    losses.look()
    checkpoints = training.options.checkpoints
    if checkpoints is not None and checkpoints.due:
        checkpoints.save(state.to_dict())
    _stop_if_asked(state, training)


def _stop_if_asked(state: TrainState, training: _Training) -> None:
    """A signal does not reach all processes at the same step, so they ask each other."""
    asked, engine, checkpoints = training.stop.asked, training.engine, training.options.checkpoints
    if engine.processes > 1:
        asked = bool(engine.accelerator.reduce(torch.tensor(float(asked), device=engine.device)).item())
    if asked and checkpoints is not None:
        checkpoints.save(state.to_dict())
        raise Interrupted(
            f"{training.options.name}: stopped after epoch {state.epoch} of {training.section.epochs} and "
            f"{state.batch} of the next {training.batches} steps; the state is saved. "
            f"Go on with: {checkpoints.go_on}"
        )


def _end_epoch(state: TrainState, training: _Training) -> None:
    """Measure, keep the row, save."""
    options = training.options
    row = _row(state, training)
    state.model.eval()
    options.after_epoch(state.result, row)
    earlier = [r["top1"] for r in state.history if r.get("top1") is not None]
    best = row.get("top1") is not None and all(row["top1"] > other for other in earlier)
    state.history.append(row)
    state.epoch, state.batch, state.total, state.seconds = state.epoch + 1, 0, 0.0, 0.0
    if options.checkpoints is not None:
        if best:
            options.checkpoints.save_best(state.result.state_dict())
        options.checkpoints.save(state.to_dict())
    _stop_if_asked(state, training)


def _row(state: TrainState, training: _Training) -> dict[str, Any]:
    """The epoch's row of the history, before anything is measured."""
    accumulate = training.section.accumulate
    row = {"epoch": state.epoch + 1, "loss": state.total / training.batches, "lr": rate_of(state.optimizer)}
    if accumulate > 1 or training.engine.processes > 1:
        row["batch"] = min(accumulate, training.batches) * training.images
    return row | {"seconds": round(state.seconds, 2)}


def _images_a_step(loader: DataLoader) -> int:
    return min(loader.batch_size or 1, len(loader.dataset))  # type: ignore[arg-type]
