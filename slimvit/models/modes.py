"""Temporary eval mode, and the device of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` in eval mode without gradients for the block, and restore every training flag afterwards."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        for m in training:
            m.training = True


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
