"""The training loop: optimizer steps, one history row per epoch, checkpoints.

Random numbers depend on seeds, not on earlier steps: the augmentation of an image on (seed, epoch, index), mixing,
drop-path and dropout of a batch on (seed, epoch, batch, process). A resumed training therefore has the result of an
uninterrupted one: bit for bit on a CPU, on a GPU as far as its kernels are deterministic.
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
from slimvit.train.optimizer import learning_rate
from slimvit.train.state import History, TrainState, begin, finish, training_mode
from slimvit.train.step import Losses, Mix, ModelWithLoss, mixing
from slimvit.utils.distributed import Engine, open_engine
from slimvit.utils.progress import track
from slimvit.utils.seeds import seed_step, seeded

AfterEpoch = Callable[[nn.Module, dict[str, Any]], None]
"""(network in eval mode, row of the epoch) -> None. It may add figures to the row."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training besides its section of the recipe.

    Attributes:
        lr: Peak learning rate if the section has none.
        mix_lr_scale: Learning rate of the mixes of dense attention, relative to the other parameters.
        seed: Seed of mixing, drop-path and dropout.
        engine: Device, precision and processes. None is one process on the model's device, in fp32.
        name: Name of the training in messages.
        after_epoch: Callback after each epoch, before its row is added to the history.
        after_save: Callback after each epoch, when its state is saved.
        checkpoints: Checkpoint files. Training resumes from the last state in them.
    """

    lr: float = 2e-5
    mix_lr_scale: float = 1.0
    seed: int = 0
    engine: Engine | None = None
    name: str = "fine-tuning"
    after_epoch: AfterEpoch = lambda model, row: None
    after_save: Callable[[], None] = lambda: None
    checkpoints: Checkpoints | None = None

    def engine_for(self, model: nn.Module) -> Engine:
        """Return the engine, or a new one on the model's device."""
        return self.engine or open_engine(str(device_of(model)))


DEFAULTS = TrainOptions()


@dataclass(frozen=True)
class _Training:
    """The constant parts of one training."""

    section: TrainSection
    options: TrainOptions
    engine: Engine
    network: Any
    optimizer: Any
    loader: Any
    """Network with loss, optimizer and loader, wrapped by accelerate."""
    images: int
    """Batch size over all processes."""
    batches: int
    """Batches per epoch and process."""
    mix: Mix
    stop: StopFlag


def train(
    model: TimmModule, loader: DataLoader, loss: Loss, section: TrainSection, options: TrainOptions = DEFAULTS
) -> tuple[nn.Module, History]:
    """Train a copy of a model.

    Args:
        model: The network to train; it does not change.
        loader: Batches from `slimvit.data.loaders.train_loader`. Each of n processes takes every n-th batch, so the
            effective batch is n times `batch_size`.
        loss: (network, images [B, C, H, W], targets) -> mean loss.
        section: Epochs, optimizer, schedule, augmentation.
        options: Learning rate, seed, engine, checkpoints and callback.

    Returns:
        The trained copy (with `ema_decay` its moving average) in eval mode on the engine's device, and one row per
        epoch.

    Raises:
        Diverged: The loss is NaN or infinite.
        Interrupted: A signal stopped the training; its state is saved.
    """
    engine, checkpoints = options.engine_for(model), options.checkpoints
    images = _batch_size(loader)
    mix = mixing(section, model.num_classes, images)
    with seeded(options.seed), stop_flag(checkpoints is not None) as stop:
        process_loader = engine.accelerator.prepare_data_loader(loader)
        batches = max(1, len(process_loader))
        updates = math.ceil(batches / section.accumulate)
        state = begin(model, section, section.lr or options.lr, options.mix_lr_scale, updates, engine.device)
        if engine.compiles:
            state.model.compile()
        engine.accelerator.gradient_accumulation_steps = section.accumulate
        network, optimizer = engine.accelerator.prepare(ModelWithLoss(state.model, loss), state.optimizer)
        images *= engine.processes
        training = _Training(section, options, engine, network, optimizer, process_loader, images, batches, mix, stop)
        if checkpoints is not None and (last := checkpoints.last()) is not None:
            with checkpoints.content_errors():
                state.restore(last, section.epochs, len(loader))
            checkpoints.check_best(state.result)
        while state.epoch < section.epochs:
            _epoch(state, training)
            _end_epoch(state, training)
        engine.accelerator.free_memory()
        state.model._compiled_call_impl = None
    return finish(state, section, model), state.history


def _epoch(state: TrainState, training: _Training) -> None:
    """Run the remaining batches of the current epoch."""
    section, accelerator, options = training.section, training.engine.accelerator, training.options
    training_mode(state.model, section)
    losses = Losses(state, training.engine, options.name, options.checkpoints)
    window, started = 1, time.perf_counter() - state.seconds
    for images, targets in _batches(state, training):
        if state.batch % section.accumulate == 0:
            window = min(section.accumulate, training.batches - state.batch)  # an epoch's last step may be smaller
            state.schedule.step_update(state.updates)
        seed_step(options.seed, state.epoch, state.batch, accelerator.process_index)
        with accelerator.accumulate(training.network):
            loss = training.network(*training.mix(images, targets))
            losses.add(loss.detach())
            accelerator.backward(loss * (section.accumulate / window))  # accelerate divides by `accumulate`
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
    losses.read()
    state.seconds = time.perf_counter() - started


def _batches(state: TrainState, training: _Training) -> Iterator[Any]:
    """The remaining batches of the current epoch."""
    training.loader.set_epoch(state.epoch)
    remaining = training.loader
    if state.batch:
        remaining = skip_first_batches(remaining, state.batch)
        remaining.set_epoch(state.epoch)
    title = f"{training.options.name} {state.epoch + 1}/{training.section.epochs}"
    return track(remaining, title, training.batches - state.batch)


def _between_steps(state: TrainState, training: _Training, losses: Losses) -> None:
    """Check the losses, save the state if due, and stop if a signal arrived."""
    losses.read()
    checkpoints = training.options.checkpoints
    if checkpoints is not None and checkpoints.due:
        checkpoints.save(state.to_dict())
    _stop_if_signalled(state, training)


def _stop_if_signalled(state: TrainState, training: _Training) -> None:
    """Save the state and raise `Interrupted` if any process has received a signal.

    Signals reach the processes at different steps, so the flags are reduced over all of them.
    """
    stop, engine, checkpoints = training.stop.is_set, training.engine, training.options.checkpoints
    if engine.processes > 1:
        stop = bool(engine.accelerator.reduce(torch.tensor(float(stop), device=engine.device)).item())
    if stop and checkpoints is not None:
        checkpoints.save(state.to_dict())
        raise Interrupted(
            f"{training.options.name}: stopped after epoch {state.epoch} of {training.section.epochs} and "
            f"{state.batch} of the next {training.batches} steps; the state is saved. "
            f"Go on with: {checkpoints.resume_command}"
        )


def _end_epoch(state: TrainState, training: _Training) -> None:
    """Evaluate, add the row to the history, save the state."""
    options = training.options
    row = _row(state, training)
    state.model.eval()
    options.after_epoch(state.result, row)
    earlier = [r["top1"] for r in state.history if r.get("top1") is not None]
    is_best = row.get("top1") is not None and all(row["top1"] > top1 for top1 in earlier)
    state.history.append(row)
    state.epoch, state.batch, state.total, state.seconds = state.epoch + 1, 0, 0.0, 0.0
    if options.checkpoints is not None:
        if is_best:
            options.checkpoints.save_best(state.result.state_dict())
        options.checkpoints.save(state.to_dict())
    options.after_save()
    _stop_if_signalled(state, training)


def _row(state: TrainState, training: _Training) -> dict[str, Any]:
    """The history row of the epoch, without evaluation figures."""
    accumulate = training.section.accumulate
    row = {"epoch": state.epoch + 1, "loss": state.total / training.batches, "lr": learning_rate(state.optimizer)}
    if accumulate > 1 or training.engine.processes > 1:
        row["batch"] = min(accumulate, training.batches) * training.images
    return row | {"seconds": round(state.seconds, 2)}


def _batch_size(loader: DataLoader) -> int:
    return min(loader.batch_size or 1, len(loader.dataset))  # type: ignore[arg-type]
