"""Models inside wrappers of torch: compiled and parallel ones."""

from __future__ import annotations

from torch import nn

from slimvit.utils.errors import ModelError

INNER = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
}
"""Wrapper class -> the attribute that holds the model."""


def check_unwrapped(model: object) -> None:
    """Raise `ModelError` for a compiled or parallel wrapper, and for what is no module at all."""
    kind = type(model).__name__
    if kind in INNER and isinstance(model, nn.Module):
        raise ModelError(f"the model is wrapped in {kind}; pass the inner model: model.{INNER[kind]}")
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is of type {kind}; pass a timm model, from slimvit.create_model or slimvit.load")
