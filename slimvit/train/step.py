"""One training step: mixup and cutmix, the loss, and the check for a finite loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.data import Mixup
from torch import Tensor, nn

from slimvit.config.training import TrainSection
from slimvit.train.checkpoint import Checkpoints
from slimvit.train.distill import Loss
from slimvit.train.optimizer import learning_rate
from slimvit.train.state import TrainState
from slimvit.utils.distributed import Engine
from slimvit.utils.errors import RecipeError, SlimvitError

READ_EVERY = 50
"""Batches between two reads of the losses if a read has to wait for the device or other processes."""

Mix = Callable[[Tensor, Tensor], Any]
"""(images, targets [B]) -> (mixed images, soft targets [B, K]), or both unchanged."""


class Diverged(SlimvitError):
    """The training loss became NaN or infinite."""


class ModelWithLoss(nn.Module):
    """The network and its loss as one module.

    accelerate wraps this module for gradient exchange and mixed precision, so every output that the loss reads
    (logits, features, residual streams) passes through its wrapper.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of images [B, C, H, W] with targets [B] or [B, K]."""
        return self.loss(self.model, images, targets)


class Losses:
    """The losses that were not read yet.

    One process on a CPU reads every loss before the optimizer step. Elsewhere a read waits for the device or the other
    processes, so it happens every `READ_EVERY` batches and before a state is saved.
    """

    def __init__(self, state: TrainState, engine: Engine, name: str, checkpoints: Checkpoints | None) -> None:
        self.state, self.engine, self.name, self.checkpoints = state, engine, name, checkpoints
        self.is_slow = engine.device.type != "cpu" or engine.processes > 1
        self.unread: list[tuple[int, float, Tensor]] = []
        """Step of the epoch, learning rate, loss."""

    def add(self, value: Tensor) -> None:
        """Add the loss of a batch."""
        self.unread.append((self.state.batch + 1, learning_rate(self.state.optimizer), value))
        if not self.is_slow:
            self.read()

    @property
    def are_due(self) -> bool:
        """Whether the losses should be read after this step."""
        return not self.is_slow or len(self.unread) >= READ_EVERY

    def read(self) -> None:
        """Read the losses and add their means over the processes to the epoch's total.

        Raises:
            Diverged: A loss is NaN or infinite.
        """
        if not self.unread:
            return
        means = self.engine.accelerator.reduce(torch.stack([value for *_, value in self.unread]).float(), "mean")
        for (step, lr, _), value in zip(self.unread, means.tolist(), strict=True):
            if not math.isfinite(value):
                raise Diverged(self._message(value, step, lr))
            self.state.total += value
        self.unread = []

    def _message(self, value: float, step: int, lr: float) -> str:
        where = f"in epoch {self.state.epoch + 1}, step {step}, at lr {lr:.2e}"
        checkpoint = None if self.checkpoints is None else self.checkpoints.describe()
        return f"{self.name}: the loss became {value} {where}; " + (
            f"the last good state is {checkpoint}; " * bool(checkpoint) + "give a smaller learning rate"
        )


def check_mixing(section: TrainSection, batch_size: int) -> None:
    """Raise `RecipeError` for mixup or cutmix with an odd batch size."""
    if (section.mixup or section.cutmix) and batch_size % 2:
        raise RecipeError(
            f"mixup and cutmix mix images in pairs, but a step has {batch_size}; give an even batch_size, "
            "or leave both out"
        )


def mixing(section: TrainSection, num_classes: int, batch_size: int) -> Mix:
    """Return timm's mixup and cutmix for a batch, or no change if the section has neither."""
    check_mixing(section, batch_size)
    if section.mixup == 0 and section.cutmix == 0:
        return lambda images, targets: (images, targets)
    mixup = Mixup(
        section.mixup,
        section.cutmix,
        prob=section.mixup_prob,
        switch_prob=section.switch_prob,
        label_smoothing=0.0,  # the loss applies it
        num_classes=max(1, num_classes),
    )
    # timm indexes with the targets even if there are no labels (-1) or classes and no loss reads them
    return lambda images, targets: mixup(images, targets.clamp_min(0) if num_classes else torch.zeros_like(targets))
