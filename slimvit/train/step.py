"""One training step: mixing the batch, the loss, and the check that the loss stays finite."""

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
from slimvit.train.optimizer import rate_of
from slimvit.train.state import TrainState
from slimvit.utils.distributed import Engine
from slimvit.utils.errors import RecipeError, SlimvitError

LOOK_EVERY = 50
"""Batches between two reads of the losses where reading makes the device or other processes wait."""

Mix = Callable[[Tensor, Tensor], Any]
"""(images, targets [B]) -> (mixed images, soft targets [B, K]), or both unchanged."""


class Diverged(SlimvitError):
    """The training's loss became NaN or infinite."""


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
    """The losses since they were last read.

    On a CPU with one process every loss is read before its step is taken. Elsewhere reading waits for the device or
    the other processes, so it happens every `LOOK_EVERY` batches and before a state is saved.
    """

    def __init__(self, state: TrainState, engine: Engine, name: str, checkpoints: Checkpoints | None) -> None:
        self.state, self.engine, self.name, self.checkpoints = state, engine, name, checkpoints
        self.waits = engine.device.type != "cpu" or engine.processes > 1
        self.unseen: list[tuple[int, float, Tensor]] = []
        """Step in the epoch, learning rate, loss."""

    def add(self, value: Tensor) -> None:
        """Note the loss of a batch."""
        self.unseen.append((self.state.batch + 1, rate_of(self.state.optimizer), value))
        if not self.waits:
            self.look()

    @property
    def are_due(self) -> bool:
        """Whether the losses should be read now."""
        return not self.waits or len(self.unseen) >= LOOK_EVERY

    def look(self) -> None:
        """Add the losses to the epoch's total, as means over the processes.

        Raises:
            Diverged: A loss is NaN or infinite.
        """
        if not self.unseen:
            return
        together = self.engine.accelerator.reduce(torch.stack([value for *_, value in self.unseen]).float(), "mean")
        for (step, rate, _), value in zip(self.unseen, together.tolist(), strict=True):
            if not math.isfinite(value):
                raise Diverged(self._message(value, step, rate))
            self.state.total += value
        self.unseen = []

    def _message(self, value: float, step: int, rate: float) -> str:
        where = f"in epoch {self.state.epoch + 1}, step {step}, at lr {rate:.2e}"
        kept = None if self.checkpoints is None else self.checkpoints.describe()
        return f"{self.name}: the loss became {value} {where}; " + (
            f"the last good state is {kept}; " * bool(kept) + "give a smaller learning rate"
        )


def check_mixing(section: TrainSection, images_a_step: int) -> None:
    """Check that the images of a step make pairs where mixup or cutmix is asked for.

    Raises:
        RecipeError: The number of images is odd.
    """
    if (section.mixup or section.cutmix) and images_a_step % 2:
        raise RecipeError(
            f"mixup and cutmix mix images in pairs, but a step has {images_a_step}; give an even batch_size, "
            "or leave both out"
        )


def mixing(section: TrainSection, num_classes: int, images_a_step: int) -> Mix:
    """mixup and cutmix of a batch, through timm; no change where the section asks for neither."""
    check_mixing(section, images_a_step)
    if section.mixup == 0 and section.cutmix == 0:
        return lambda images, targets: (images, targets)
    mixup = Mixup(
        section.mixup,
        section.cutmix,
        prob=section.mixup_prob,
        switch_prob=section.switch_prob,
        label_smoothing=0.0,  # the loss smooths
        num_classes=max(1, num_classes),
    )
    # without labels (-1) or classes no loss reads the targets, but timm still indexes with them
    return lambda images, targets: mixup(images, targets.clamp_min(0) if num_classes else torch.zeros_like(targets))
