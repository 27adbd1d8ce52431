"""The training loop: batches in, steps of the optimizer out, a row an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from slimvit.errors import SlimvitError
from slimvit.models.family import TimmModule
from slimvit.progress import track
from slimvit.train.distill import Loss
from slimvit.train.mixup import Mix, mixing
from slimvit.train.optimizer import rate_of
from slimvit.train.state import TrainState, begin, finish, training_mode
from slimvit.training import TrainSection

History = list[dict[str, Any]]
"""A row an epoch: epoch (from 1), loss (mean over batches), lr (at the epoch's end), seconds, and what was measured;
batch (images a step of the optimizer) where gradients are accumulated."""


class Diverged(SlimvitError):
    """Training produced a loss that is no number."""


def train(
    model: TimmModule,
    loader: DataLoader,
    loss: Loss,
    section: TrainSection,
    *,
    lr: float,
    device: torch.device | str = "cpu",
    seed: int = 0,
    mix_lr_scale: float = 1.0,
    what: str = "fine-tuning",
    after_epoch: Callable[[nn.Module, dict[str, Any]], None] = lambda model, row: None,
) -> tuple[nn.Module, History]:
    """A trained copy of ``model`` in eval mode on ``device``, and a row an epoch; with ``ema_decay`` the moving average
    of the trained copies.

    ``loader`` yields (images [B, C, H, W], labels [B]) and has ``set_epoch``. ``lr`` is the peak learning rate when
    the section names none. ``after_epoch`` may measure the model and add to the epoch's row. Raises
    :class:`Diverged` with step and learning rate when the loss is NaN or infinite.
    """
    batches = max(1, len(loader))
    state = begin(model, section, section.lr or lr, mix_lr_scale, math.ceil(batches / section.accumulate), device)
    mix = mixing(section, state.model.num_classes, _images_a_step(loader))
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # timm's Mixup draws from numpy's global generator
    history: History = []
    while state.epoch < section.epochs:
        started = time.perf_counter()
        loader.set_epoch(state.epoch)  # type: ignore[attr-defined]
        training_mode(state.model, section)
        tracked = track(loader, f"{what} {state.epoch + 1}/{section.epochs}", batches)
        total = _epoch(state, _prepared(tracked, mix, device), batches, loss, section, what)
        state.epoch += 1
        row = {"epoch": state.epoch, "loss": total / batches, "lr": rate_of(state.optimizer)}
        if section.accumulate > 1:
            row["batch"] = min(section.accumulate, batches) * _images_a_step(loader)
        row["seconds"] = round(time.perf_counter() - started, 2)
        state.model.eval()
        after_epoch(state.result, row)
        history.append(row)
    return finish(state, section, model), history


def _prepared(batches: Iterable[Any], mix: Mix, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and targets on the device, mixed where that is asked for."""
    for images, targets in batches:
        yield mix(images.to(device), targets.to(device))


def _epoch(
    state: TrainState,
    batches: Iterator[tuple[Tensor, Tensor]],
    count: int,
    loss: Loss,
    section: TrainSection,
    what: str,
) -> float:
    """One pass over ``count`` batches, ``accumulate`` of them a step; the sum of their losses."""
    total, size = 0.0, 1
    for done, (images, targets) in enumerate(batches):
        if done % section.accumulate == 0:
            size = min(section.accumulate, count - done)  # the last step of an epoch may have fewer
            state.schedule.step_update(state.updates)
        value = loss(state.model, images, targets)
        number = float(value.detach())
        _check(number, what, state, done + 1)  # never step on a broken gradient
        (value / size).backward()
        total += number
        if done + 1 == count or (done + 1) % section.accumulate == 0:
            _step(state, section.clip_grad)
    return total


def _check(value: float, what: str, state: TrainState, batch: int) -> None:
    if not math.isfinite(value):
        raise Diverged(
            f"{what}: the loss became {value} in epoch {state.epoch + 1}, step {batch}, at lr "
            f"{rate_of(state.optimizer):.2e}; give a smaller learning rate"
        )


def _step(state: TrainState, clip: float | None) -> None:
    if clip is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), clip)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.update()


def _images_a_step(loader: DataLoader) -> int:
    return min(loader.batch_size or 1, len(loader.dataset))  # type: ignore[arg-type]
