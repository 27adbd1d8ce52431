"""Helpers of the parts: remove channels from layers and tensors, and count norms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch_pruning as tp
from torch import nn

from slimvit.models.base import TimmModule
from slimvit.models.empty import EmptyNorm


def drop_outputs(linear: nn.Linear, channels: Sequence[int]) -> None:
    """Remove output channels (rows of the weight) in place."""
    with _flags_kept(linear):
        tp.prune_linear_out_channels(linear, list(channels))


def drop_inputs(linear: nn.Linear, channels: Sequence[int]) -> None:
    """Remove input channels (columns of the weight) in place."""
    with _flags_kept(linear):
        tp.prune_linear_in_channels(linear, list(channels))


@contextmanager
def _flags_kept(linear: nn.Linear) -> Iterator[None]:
    """Keep `requires_grad`, which Torch-Pruning does not copy to its new parameters."""
    trained = {name: p.requires_grad for name, p in linear.named_parameters()}
    yield
    for name, p in linear.named_parameters():
        p.requires_grad_(trained[name])


def drop_entries(module: TimmModule, name: str, dim: int, gone: Sequence[int]) -> None:
    """Remove the entries `gone` of a parameter or buffer along `dim`, in place."""
    tensor: torch.Tensor = getattr(module, name)
    kept = sorted({*range(tensor.shape[dim])} - {*gone})
    cut = tensor.detach().index_select(dim, torch.tensor(kept, device=tensor.device))
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(cut, requires_grad=tensor.requires_grad))
    else:
        module._buffers[name] = cut


def without_norm(norm: nn.Module, constant: nn.Linear, post_norm: bool) -> EmptyNorm:
    """Return the replacement for the norm of an empty branch.

    A norm behind the branch is first applied to the bias of `constant`, the layer that the branch now consists of.
    """
    if post_norm:
        with torch.no_grad():
            constant.bias.copy_(norm(constant.bias))
    return EmptyNorm(norm)


def norm_macs(norm: nn.Module, tokens: int) -> int:
    """Return the MACs of a LayerNorm as fvcore counts them: five per channel and token; 0 for other norms."""
    return 5 * tokens * norm.weight.numel() if isinstance(norm, nn.LayerNorm) and norm.bias is not None else 0


def params_beside(branch: nn.Module, last: nn.Linear, norm: nn.Module) -> int:
    """Count the parameters of a branch and its norm, except the bias of the last layer, which is never removed."""
    stays = 0 if last.bias is None else last.bias.numel()
    return sum(p.numel() for module in (branch, norm) for p in module.parameters()) - stays
