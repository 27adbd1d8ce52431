"""Run a model in eval mode, and leave it as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` in eval mode and without gradients; afterwards every submodule has its own training flag back."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        for m in training:
            m.training = True


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lives."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
