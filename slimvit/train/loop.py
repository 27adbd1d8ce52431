"""The training loop: batches in, steps of the optimizer out, a row an epoch.

Nothing random is carried from step to step: an image's augmentation is drawn from (seed, epoch, index), the mixing of a
batch, drop-path and dropout from (seed, epoch, batch, process). So a training that is picked up from a checkpoint ends
where an unbroken one would have, bit for bit on a CPU; on a GPU as far as its kernels repeat themselves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import skip_first_batches
from torch import Tensor, nn
from torch.utils.data import DataLoader

from slimvit.config.training import TrainSection
from slimvit.models.base import TimmModule
from slimvit.train.checkpoint import Checkpoints, Interrupted
from slimvit.train.distill import Loss
from slimvit.train.mixup import Mix, mixing
from slimvit.train.optimizer import rate_of
from slimvit.train.state import History, TrainState, begin, finish, training_mode
from slimvit.train.stopping import StopFlag, stop_flag
from slimvit.utils.distributed import Engine, open_engine
from slimvit.utils.errors import SlimvitError
from slimvit.utils.progress import track
from slimvit.utils.seeds import seed_step, seeded

LOOK_EVERY = 50
"""Batches between two looks at the losses where a look makes the device, or other processes, wait."""

AfterEpoch = Callable[[nn.Module, dict[str, Any]], None]


class Diverged(SlimvitError):
    """Training produced a loss that is no number."""


class ModelWithLoss(nn.Module):
    """The network and its loss as one module, so that whatever the loss asks of the network (features, the stream after
    every block), it passes through what accelerate wraps around this: gradient exchange and mixed precision."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self.model, images, targets)


@dataclass
class Training:
    """What one training works with, besides its state."""

    section: TrainSection
    engine: Engine
    seed: int
    what: str
    """What the training is called in messages."""
    lesson: Any
    optimizer: Any
    loader: Any
    """These three as accelerate hands them back."""
    batches: int
    """Batches of an epoch, in one process."""
    mix: Mix
    checkpoints: Checkpoints | None
    stop: StopFlag


def train(
    model: TimmModule,
    loader: DataLoader,
    loss: Loss,
    section: TrainSection,
    *,
    lr: float,
    device: torch.device | str = "cpu",
    engine: Engine | None = None,
    seed: int = 0,
    mix_lr_scale: float = 1.0,
    what: str = "fine-tuning",
    after_epoch: AfterEpoch = lambda model, row: None,
    checkpoints: Checkpoints | None = None,
) -> tuple[nn.Module, History]:
    """A trained copy of ``model`` in eval mode on the engine's device, and a row an epoch; with ``ema_decay`` the
    moving average of the trained copies.

    ``loader``: from :func:`slimvit.data.loaders.train_loader`; with several processes each takes every n-th batch, so
    that a step sees n times its ``batch_size``. ``lr`` is the peak learning rate when the section names none.
    ``engine``: where to compute (default: one process on ``device``, fp32). ``after_epoch`` may measure the model and
    add to the epoch's row. ``checkpoints``: where the state is kept; a state that is there already is gone on from.

    Raises :class:`Diverged` with step and learning rate when the loss is NaN or infinite, :class:`Interrupted` after an
    interrupt, when the state is saved.
    """
    engine = engine or open_engine(str(device))
    images = _images_a_step(loader) * engine.processes
    mix = mixing(section, model.num_classes, _images_a_step(loader))
    with seeded(seed), stop_flag(checkpoints is not None) as stop:
        share = engine.accelerator.prepare_data_loader(loader)
        updates = math.ceil(max(1, len(share)) / section.accumulate)
        state = begin(model, section, section.lr or lr, mix_lr_scale, updates, engine.device)
        if engine.compiles:
            state.model.compile()
        engine.accelerator.gradient_accumulation_steps = section.accumulate
        lesson, optimizer = engine.accelerator.prepare(ModelWithLoss(state.model, loss), state.optimizer)
        batches = max(1, len(share))
        now = Training(section, engine, seed, what, lesson, optimizer, share, batches, mix, checkpoints, stop)
        if checkpoints is not None and (saved := checkpoints.last()) is not None:
            state.restore(saved)
        while state.epoch < section.epochs:
            _epoch(state, now)
            _end_epoch(state, now, images, after_epoch)
        engine.accelerator.free_memory()
        state.model._compiled_call_impl = None
    return finish(state, section, model), state.history


def _epoch(state: TrainState, now: Training) -> None:
    """What is left of the epoch under way."""
    section, accelerator = now.section, now.engine.accelerator
    now.loader.set_epoch(state.epoch)
    training_mode(state.model, section)
    rest = now.loader
    if state.batch:
        rest = skip_first_batches(now.loader, state.batch)
        rest.set_epoch(state.epoch)
    title = f"{now.what} {state.epoch + 1}/{section.epochs}"
    losses = Losses(state, now.engine, now.what, now.checkpoints)
    size, started = 1, time.perf_counter() - state.seconds
    for images, targets in track(rest, title, now.batches - state.batch):
        if state.batch % section.accumulate == 0:
            size = min(section.accumulate, now.batches - state.batch)  # the last step of an epoch may have fewer
            state.schedule.step_update(state.updates)
        seed_step(now.seed, state.epoch, state.batch, accelerator.process_index)
        with accelerator.accumulate(now.lesson):
            value = now.lesson(*now.mix(images, targets))
            losses.add(value.detach())
            accelerator.backward(value * (section.accumulate / size))  # accelerate divides by `accumulate`
            if accelerator.sync_gradients and section.clip_grad is not None:
                accelerator.clip_grad_norm_(state.model.parameters(), section.clip_grad)
            now.optimizer.step()
            now.optimizer.zero_grad()
        state.batch += 1
        if accelerator.sync_gradients:
            state.update()
            if losses.are_due:
                state.seconds = time.perf_counter() - started
                _look(state, now, losses)
    losses.look()
    state.seconds = time.perf_counter() - started


class Losses:
    """Losses since the last look. On a CPU alone every one is looked at before its step is taken; elsewhere a look
    waits for the device or the other processes, so it is taken now and then, and always before a state is saved."""

    def __init__(self, state: TrainState, engine: Engine, what: str, checkpoints: Checkpoints | None) -> None:
        self.state, self.engine, self.what, self.checkpoints = state, engine, what, checkpoints
        self.waits = engine.device.type != "cpu" or engine.processes > 1
        self.unseen: list[tuple[int, float, Tensor]] = []
        """Step in the epoch, learning rate, loss."""

    def add(self, value: Tensor) -> None:
        self.unseen.append((self.state.batch + 1, rate_of(self.state.optimizer), value))
        if not self.waits:
            self.look()

    @property
    def are_due(self) -> bool:
        return not self.waits or len(self.unseen) >= LOOK_EVERY

    def look(self) -> None:
        """Add them up, mean over processes; raises :class:`Diverged` at the first that is no finite number."""
        if not self.unseen:
            return
        together = self.engine.accelerator.reduce(torch.stack([value for *_, value in self.unseen]).float(), "mean")
        for (step, rate, _), value in zip(self.unseen, together.tolist(), strict=True):
            if not math.isfinite(value):
                raise Diverged(self._told(value, step, rate))
            self.state.total += value
        self.unseen = []

    def _told(self, value: float, step: int, rate: float) -> str:
        where = f"in epoch {self.state.epoch + 1}, step {step}, at lr {rate:.2e}"
        kept = None if self.checkpoints is None else self.checkpoints.describe()
        return f"{self.what}: the loss became {value} {where}; " + (
            f"the last good state is {kept}; " * bool(kept) + "give a smaller learning rate"
        )


def _look(state: TrainState, now: Training, losses: Losses) -> None:
    """Between two steps: are the losses numbers, is it time to save, did somebody ask to stop?"""
    losses.look()
    if now.checkpoints is not None and now.checkpoints.due:
        now.checkpoints.save(state.to_dict())
    _stop_if_asked(state, now)


def _stop_if_asked(state: TrainState, now: Training) -> None:
    """An interrupt does not reach all processes at the same step, so they ask each other."""
    asked, accelerator = now.stop.asked, now.engine.accelerator
    if now.engine.processes > 1:
        asked = bool(accelerator.reduce(torch.tensor(float(asked), device=now.engine.device)).item())
    if asked and now.checkpoints is not None:
        now.checkpoints.save(state.to_dict())
        raise Interrupted(
            f"{now.what}: stopped after epoch {state.epoch} of {now.section.epochs} and {state.batch} of the next "
            f"{now.batches} steps; the state is saved. Go on with: {now.checkpoints.go_on}"
        )


def _end_epoch(state: TrainState, now: Training, images: int, after_epoch: AfterEpoch) -> None:
    """Measure, write the row, save."""
    accumulate = now.section.accumulate
    row = {"epoch": state.epoch + 1, "loss": state.total / now.batches, "lr": rate_of(state.optimizer)}
    if accumulate > 1 or now.engine.processes > 1:
        row["batch"] = min(accumulate, now.batches) * images
    row["seconds"] = round(state.seconds, 2)
    state.model.eval()
    after_epoch(state.result, row)
    earlier = [r["top1"] for r in state.history if r.get("top1") is not None]
    best = row.get("top1") is not None and all(row["top1"] > other for other in earlier)
    state.history.append(row)
    state.epoch, state.batch, state.total, state.seconds = state.epoch + 1, 0, 0.0, 0.0
    if now.checkpoints is not None:
        if best:
            now.checkpoints.save_best(state.result.state_dict())
        now.checkpoints.save(state.to_dict())
    _stop_if_asked(state, now)


def _images_a_step(loader: DataLoader) -> int:
    return min(loader.batch_size or 1, len(loader.dataset))  # type: ignore[arg-type]
