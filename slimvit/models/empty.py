"""Replacements for a branch that lost all of its heads or neurons: the branch is its bias."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn


class EmptyNorm(nn.Identity):
    """Replacement for the norm of an empty branch.

    Swin's block reads device and dtype from the norm's `weight`, so there is one, of no elements.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        like = next(norm.parameters(), torch.empty(0))
        self.register_buffer("weight", torch.empty(0, device=like.device, dtype=like.dtype), persistent=False)


class EmptyAttention(nn.Module):
    """Attention without heads. It outputs the bias of the old `proj` for every token and takes no MACs.

    `proj` is a linear layer without inputs. So the state dict keeps timm's names (`attn.proj.weight` has shape
    [C, 0]), and the refit treats the layer like any other.
    """

    def __init__(self, head_dim: int, proj: nn.Linear) -> None:
        super().__init__()
        self.num_heads = 0
        self.head_dim = head_dim
        self.attn_dim = 0
        self.proj = _bias_alone(proj)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map [..., C] to [..., C]; masks and other arguments are ignored."""
        return self.proj(x[..., :0])

    def set_window_size(self, window_size: Any) -> None:
        """Do nothing: without heads there is no table of position biases to resize."""


class EmptyMlp(nn.Module):
    """MLP without neurons. It outputs the bias of the old `fc2`, which has no inputs any more."""

    def __init__(self, fc2: nn.Linear) -> None:
        super().__init__()
        self.fc2 = _bias_alone(fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., C] to [..., C]."""
        return self.fc2(x[..., :0])


def _bias_alone(linear: nn.Linear) -> nn.Linear:
    """A layer without inputs that outputs the bias of `linear`, or zeros."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # zero elements are intended
        like = linear.weight
        alone = nn.utils.skip_init(nn.Linear, 0, linear.out_features, device=like.device, dtype=like.dtype)
    bias = torch.zeros_like(alone.bias) if linear.bias is None else linear.bias.detach().clone()
    alone.bias = nn.Parameter(bias)
    return alone.requires_grad_(like.requires_grad)
