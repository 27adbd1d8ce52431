"""mixup and cutmix, through timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.data import Mixup
from torch import Tensor

from slimvit.config.training import TrainSection
from slimvit.utils.errors import RecipeError

Mix = Callable[[Tensor, Tensor], Any]
"""(images, targets [B]) -> (mixed images, soft targets [B, K]), or both as they were."""


def check_mixing(section: TrainSection, images_a_step: int) -> None:
    """Raise :class:`RecipeError` when mixup or cutmix is asked for and the images of a step make no pairs."""
    if (section.mixup or section.cutmix) and images_a_step % 2:
        raise RecipeError(
            f"mixup and cutmix mix images in pairs, but a step has {images_a_step}; give an even batch_size, "
            "or leave both out"
        )


def mixing(section: TrainSection, num_classes: int, images_a_step: int) -> Mix:
    """What a section asks to be done to every batch."""
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
    # without labels (-1) or classes no loss looks at the targets, but timm still wants to index with them
    return lambda images, targets: mixup(images, targets.clamp_min(0) if num_classes else torch.zeros_like(targets))
