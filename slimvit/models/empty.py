"""What stands in for a branch of a block that lost all of its heads, or all of its neurons: its bias."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn


class EmptyNorm(nn.Identity):
    """In place of the norm in front of it. Swin's block reads device and dtype off its ``weight``."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        like = next(norm.parameters(), torch.empty(0))
        self.register_buffer("weight", torch.empty(0, device=like.device, dtype=like.dtype), persistent=False)


class EmptyAttention(nn.Module):
    """Outputs the bias of the old ``proj`` for every token, whatever the input: what an attention without heads does.

    ``proj`` is a linear layer of no inputs, so that the state dict keeps timm's names (``attn.proj.bias``; the
    weight has shape [C, 0]) and the refit can treat it like any other. No MACs.
    """

    def __init__(self, head_dim: int, proj: nn.Linear) -> None:
        super().__init__()
        self.num_heads = 0
        self.head_dim = head_dim
        self.attn_dim = 0
        self.proj = _bias_alone(proj)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., C] -> [..., C]; masks and the like are accepted and have nothing to act on."""
        return self.proj(x[..., :0])

    def set_window_size(self, window_size: Any) -> None:
        """Swin's attention has a table to resize; without heads there is none."""


class EmptyMlp(nn.Module):
    """The same for an MLP without neurons: ``fc2`` has no inputs."""

    def __init__(self, fc2: nn.Linear) -> None:
        super().__init__()
        self.fc2 = _bias_alone(fc2)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return self.fc2(x[..., :0])


def _bias_alone(linear: nn.Linear) -> nn.Linear:
    """A layer with no inputs that gives the bias of ``linear``, or zeros."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # none is what we want
        like = linear.weight
        alone = nn.utils.skip_init(nn.Linear, 0, linear.out_features, device=like.device, dtype=like.dtype)
    bias = torch.zeros_like(alone.bias) if linear.bias is None else linear.bias.detach().clone()
    alone.bias = nn.Parameter(bias)
    return alone.requires_grad_(like.requires_grad)
