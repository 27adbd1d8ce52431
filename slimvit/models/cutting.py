"""Cutting tensors, and counting what is cut: what the parts of a block have in common."""

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
    """Torch-Pruning makes new parameters, which are never frozen."""
    trained = {name: p.requires_grad for name, p in linear.named_parameters()}
    yield
    for name, p in linear.named_parameters():
        p.requires_grad_(trained[name])


def drop_entries(module: TimmModule, name: str, dim: int, gone: Sequence[int]) -> None:
    """Take `gone` out of a parameter or buffer of `module` along `dim`, in place."""
    tensor: torch.Tensor = getattr(module, name)
    kept = sorted({*range(tensor.shape[dim])} - {*gone})
    cut = tensor.detach().index_select(dim, torch.tensor(kept, device=tensor.device))
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(cut, requires_grad=tensor.requires_grad))
    else:
        module._buffers[name] = cut


def without_norm(norm: nn.Module, constant: nn.Linear, post_norm: bool) -> EmptyNorm:
    """In place of the norm of a constant branch; one behind the branch leaves its work done in the `constant`."""
    if post_norm:
        with torch.no_grad():
            constant.bias.copy_(norm(constant.bias))
    return EmptyNorm(norm)


def norm_macs(norm: nn.Module, tokens: int) -> int:
    """MACs of a norm as the counters have them: five a number (mean, variance, scale and shift)."""
    return 5 * tokens * norm.weight.numel() if isinstance(norm, nn.LayerNorm) and norm.bias is not None else 0


def params_beside(branch: nn.Module, last: nn.Linear, norm: nn.Module) -> int:
    """Parameters of a branch and its norm but for the bias of its last layer, which stays when all units are gone."""
    stays = 0 if last.bias is None else last.bias.numel()
    return sum(p.numel() for module in (branch, norm) for p in module.parameters()) - stays
