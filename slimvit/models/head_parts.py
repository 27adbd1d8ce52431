"""The parameters of an attention that belong to its heads. Families describe them; cutting and counting use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn


@dataclass(frozen=True)
class Rows:
    """A linear layer whose outputs belong to the heads."""

    layer: nn.Linear
    width: int
    """Adjacent outputs of one head."""
    copies: int = 1
    """Number of times the sequence of heads is repeated: three in a fused qkv."""
    positions: int | None = None
    """Number of vectors that pass through the layer; None for the tokens."""

    @property
    def outputs(self) -> int:
        """Number of outputs of one head over all copies."""
        return self.width * self.copies

    @property
    def weights(self) -> int:
        """Number of weights of one head."""
        return self.outputs * self.layer.in_features

    @property
    def params(self) -> int:
        """Number of parameters of one head."""
        return self.weights + (self.outputs if self.layer.bias is not None else 0)

    def of(self, heads: Sequence[int]) -> list[int]:
        """Return the positions of the outputs that belong to `heads`."""
        every = self.layer.out_features // self.copies
        return [
            copy * every + head * self.width + i
            for copy in range(self.copies)
            for head in heads
            for i in range(self.width)
        ]


@dataclass(frozen=True)
class Slice:
    """A parameter or buffer with `width` entries per head along `dim`."""

    name: str
    dim: int = 0
    width: int = 1

    def params(self, attn: nn.Module) -> int:
        """Return the number of parameters of one head; 0 for a buffer."""
        tensor: Tensor = getattr(attn, self.name)
        return self.width * tensor.numel() // tensor.shape[self.dim] if isinstance(tensor, nn.Parameter) else 0


@dataclass(frozen=True)
class HeadParts:
    """The parameters and settings of one attention that belong to its heads, besides the inputs of `proj`."""

    rows: tuple[Rows, ...] = ()
    slices: tuple[Slice, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    """Attributes that are proportional to the number of heads, and their value per head."""
    narrow: type[Any] | None = None
    """Head-pruned class, for timm classes that assume num_heads x head_dim == embed_dim."""
    shared_macs: int = 0
    """MACs of layers that all heads share, and that are removed with the last one."""
    narrow_qk: type[Any] | None = None
    """Class whose queries and keys may be narrower than its values."""
    whole_qk: str | None = None
    """The reason that queries and keys keep their width; None where `narrow_qk` can narrow them."""


def projections(attn: Any, head_dim: int) -> tuple[Rows, ...]:
    """Return the layers of queries, keys and values, fused or separate, and of a gate if there is one."""
    gate = getattr(attn, "gate", None)
    layers = [Rows(attn.qkv, head_dim, 3)] if attn.qkv is not None else []
    if not layers:
        separate = (attn.q_proj, attn.k_proj, attn.v_proj)
        layers = [Rows(layer, layer.out_features // attn.num_heads) for layer in separate]
    return (*layers, *([] if gate is None else [Rows(gate, head_dim)]))


def separate_biases(attn: Any, head_dim: int) -> tuple[Slice, ...]:
    """Return the biases that a fused qkv keeps as separate tensors; that of the keys is a buffer of zeros."""
    names = ("q_bias", "k_bias", "v_bias")
    return tuple(Slice(name, width=head_dim) for name in names if getattr(attn, name, None) is not None)


def traceable(attn: Any, head_dim: int) -> Any:
    """Return a plain attention with the layers of `attn`, for Torch-Pruning.

    Its dependency graph supports neither norms that all heads share nor tables of biases. Neither is part of a group.
    """
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
