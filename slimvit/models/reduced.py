"""Attention with fewer heads, or narrower queries and keys, than timm's classes can have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.models.base import plain_type


class HeadPruned:
    """Mixin of a family's head-pruned attention, which replaces the `forward` of timm's class.

    The subclass adds `attend`, which maps queries, keys and values to the output. The buffer `head_ids` [num_heads]
    holds the positions of the kept heads among the original ones. It selects from tensors with an entry per head that
    a network hands to all of its blocks.
    """

    plain: type[nn.Module]
    """The timm class that is replaced."""
    num_heads: int

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map tokens [B, N, C] to queries, keys and values [B, N, k]."""
        attn: Any = self
        if attn.qkv is None:
            return attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)
        q, k, v = self._fused_projection(x).chunk(3, -1)
        return q, k, v

    def _fused_projection(self, x: Tensor) -> Tensor:
        """[B, N, 3k]."""
        attn: Any = self
        if getattr(attn, "q_bias", None) is None:
            return attn.qkv(x)
        bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        return attn.qkv(x) + bias if attn.qkv_bias_separate else F.linear(x, weight=attn.qkv.weight, bias=bias)

    def split_heads(self, t: Tensor) -> Tensor:
        """Split the channels [B, N, k] by head: [B, H, N, d]."""
        return t.view(*t.shape[:-1], self.num_heads, -1).transpose(1, 2)

    def select_heads(self, shared: Tensor) -> Tensor:
        """Select the kept heads from a tensor that all blocks share.

        Args:
            shared: [..., original heads, N, m]. A tensor without an entry per head is returned unchanged.
        """
        ids = getattr(self, "head_ids", None)
        if ids is None or shared.ndim < 3 or shared.shape[-3] == 1:
            return shared
        return shared.index_select(-3, ids)


def scaled_attention(
    attn: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v as timm does, fused or not.

    Args:
        attn: The attention, for its scale, its dropout and its `fused_attn`.
        q: Queries [B, H, N, d].
        k: Keys [B, H, N, d].
        v: Values [B, H, N, d].
        mask: A bias to add to the scores, or True where attention is allowed; broadcast to [B, H, N, N].
        is_causal: Whether each token attends to itself and earlier tokens only.

    Returns:
        The weighted values [B, H, N, d].
    """
    if attn.fused_attn:
        dropout = attn.attn_drop.p if attn.training else 0.0
        scale = attn.scale if "qk_dim" in attn.__dict__ else None  # narrower queries keep the scale of all channels
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=scale
        )
    scores = (q * attn.scale) @ k.transpose(-2, -1)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        bias = mask
        if mask.dtype == torch.bool:
            bias = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -torch.inf)
        scores = scores + bias
    return attn.attn_drop(scores.softmax(dim=-1)) @ v


def merge_heads(heads: Tensor) -> Tensor:
    """Join the heads [B, H, N, d] into channels [B, N, H * d]."""
    return heads.transpose(1, 2).flatten(2)


def as_class(module: Any, cls: Any, **attributes: Any) -> Any:
    """Return a module of `cls` with the parameters, children and settings of `module`.

    The two share their state, so `module` must not be used any more.
    """
    other = cls.__new__(cls)
    nn.Module.__init__(other)
    other.__dict__.update(module.__dict__)
    for name, value in attributes.items():
        setattr(other, name, value)
    return other


def has_narrow_class(attn: nn.Module) -> bool:
    """Return whether heads or channels are gone that timm's own class could not do without; dense or not."""
    return "head_ids" in attn._buffers or "qk_dim" in attn.__dict__


def as_head_pruned(attn: nn.Module, head_pruned: type[Any]) -> Any:
    """Return an attention that still has all of its heads as its `head_pruned` class, or itself if it is one."""
    if "head_ids" in attn._buffers:
        return attn
    other = as_class(attn, head_pruned)
    ids = torch.arange(other.num_heads, device=other.proj.weight.device)
    other.register_buffer("head_ids", ids, persistent=False)
    return other


def class_without_mixing(attn: Any) -> type[Any]:
    """Return the class of a dense attention once dense attention is removed."""
    return type(attn).head_pruned if has_narrow_class(attn) else plain_type(attn)
