"""What of an attention goes with its heads: an adapter says it, and cutting, counting and scoring follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn


@dataclass(frozen=True)
class Rows:
    """A linear layer of whose outputs some belong to each head."""

    layer: nn.Linear
    width: int
    """Outputs of one head, side by side."""
    copies: int = 1
    """How often all heads follow one another: three times in a fused qkv."""
    positions: int | None = None
    """How many vectors pass through it, where they are not the tokens."""

    @property
    def outputs(self) -> int:
        """Outputs of one head, in all."""
        return self.width * self.copies

    @property
    def weights(self) -> int:
        """Weights of one head."""
        return self.outputs * self.layer.in_features

    @property
    def params(self) -> int:
        """Parameters of one head."""
        return self.weights + (self.outputs if self.layer.bias is not None else 0)

    def of(self, heads: Sequence[int]) -> list[int]:
        """The outputs that belong to `heads`, by position."""
        every = self.layer.out_features // self.copies
        return [
            copy * every + head * self.width + i
            for copy in range(self.copies)
            for head in heads
            for i in range(self.width)
        ]


@dataclass(frozen=True)
class Slice:
    """A parameter or buffer of the attention in which every head has `width` entries along `dim`."""

    name: str
    dim: int = 0
    width: int = 1

    def params(self, attn: nn.Module) -> int:
        """Parameters of one head."""
        tensor: Tensor = getattr(attn, self.name)
        return self.width * tensor.numel() // tensor.shape[self.dim] if isinstance(tensor, nn.Parameter) else 0


@dataclass(frozen=True)
class HeadParts:
    """What of one attention goes with its heads, besides the inputs of `proj`."""

    rows: tuple[Rows, ...] = ()
    slices: tuple[Slice, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    """Attributes that are a number a head, and that number."""
    narrow: type[Any] | None = None
    """The class that computes with fewer heads, where timm's own takes its width for that of the stream."""
    shared_macs: int = 0
    """MACs of what serves all heads and goes with the last of them."""


def projections(attn: Any, head_dim: int) -> tuple[Rows, ...]:
    """Queries, keys and values, fused or each its own layer, and a gate."""
    gate = getattr(attn, "gate", None)
    layers = [Rows(attn.qkv, head_dim, 3)] if attn.qkv is not None else []
    if not layers:
        separate = (attn.q_proj, attn.k_proj, attn.v_proj)
        layers = [Rows(layer, layer.out_features // attn.num_heads) for layer in separate]
    return (*layers, *([] if gate is None else [Rows(gate, head_dim)]))


def separate_biases(attn: Any, head_dim: int) -> tuple[Slice, ...]:
    """Of a fused qkv that keeps its biases beside it; that of the keys is zero and a buffer."""
    names = ("q_bias", "k_bias", "v_bias")
    return tuple(Slice(name, width=head_dim) for name in names if getattr(attn, name, None) is not None)


def traceable(attn: Any, head_dim: int) -> Any:
    """A plain attention around the layers of `attn`: Torch-Pruning's graph understands neither norms that all heads
    share nor tables of biases, and none of them is part of a group."""
    plain: Any = Attention(attn.num_heads * head_dim, num_heads=attn.num_heads)
    plain.qkv, plain.proj = _fused(attn), attn.proj
    if getattr(attn, "gate", None) is not None:
        plain.gate = attn.gate
    return plain


def _fused(attn: Any) -> nn.Linear:
    """Queries, keys and values as one layer, gradients included."""
    if attn.qkv is not None:
        return attn.qkv
    layers = [attn.q_proj, attn.k_proj, attn.v_proj]
    fused = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), bias=False)
    fused.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]))
    if all(layer.weight.grad is not None for layer in layers):
        fused.weight.grad = torch.cat([layer.weight.grad for layer in layers])
    return fused
