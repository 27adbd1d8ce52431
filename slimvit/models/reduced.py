"""Attentions that lost heads, for those of timm that take their width for that of the stream; and what all of our own
attentions share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.models.base import plain_type


class HeadPruned:
    """What the narrow form of every family has besides its family's attention, whose ``forward`` it replaces.

    ``plain`` is that attention. ``head_ids`` [num_heads]: the places of the heads that are left among the original
    ones, where a network hands all its blocks something with an entry a head.
    """

    plain: type[nn.Module]
    num_heads: int

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, N, C] -> queries, keys and values [B, N, k]."""
        attn: Any = self
        if attn.qkv is None:
            return attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)
        q, k, v = self._fused(x).chunk(3, -1)
        return q, k, v

    def _fused(self, x: Tensor) -> Tensor:
        """[B, N, 3k]."""
        attn: Any = self
        if getattr(attn, "q_bias", None) is None:
            return attn.qkv(x)
        bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        return attn.qkv(x) + bias if attn.qkv_bias_separate else F.linear(x, weight=attn.qkv.weight, bias=bias)

    def by_head(self, t: Tensor) -> Tensor:
        """[B, N, k] -> [B, H, N, d]."""
        return t.view(*t.shape[:-1], self.num_heads, -1).transpose(1, 2)

    def of_these_heads(self, shared: Tensor) -> Tensor:
        """Of what all blocks get, [..., original heads, N, m], the entries of the heads that are left. What has no
        entry a head is given back as it is."""
        ids = getattr(self, "head_ids", None)
        if ids is None or shared.ndim < 3 or shared.shape[-3] == 1:
            return shared
        return shared.index_select(-3, ids)


def attended(attn: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v on timm's path, fused or not; q, k, v [B, H, N, d] -> [B, H, N, d]."""
    if attn.fused_attn:
        dropout = attn.attn_drop.p if attn.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
    scores = (q * attn.scale) @ k.transpose(-2, -1)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        bias = mask
        if mask.dtype == torch.bool:
            bias = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -torch.inf)
        scores = scores + bias
    return attn.attn_drop(scores.softmax(dim=-1)) @ v


def merged(heads: Tensor) -> Tensor:
    """[B, H, N, d] -> [B, N, H * d]."""
    return heads.transpose(1, 2).flatten(2)


def as_class(module: Any, cls: Any, **attributes: Any) -> Any:
    """A module of ``cls`` with the parameters, children and settings of ``module``, which must not be used any more."""
    other = cls.__new__(cls)
    nn.Module.__init__(other)
    other.__dict__.update(module.__dict__)
    for name, value in attributes.items():
        setattr(other, name, value)
    return other


def is_head_pruned(attn: nn.Module) -> bool:
    """Whether an attention has its family's narrow form, dense or not."""
    return "head_ids" in attn._buffers


def as_head_pruned(attn: nn.Module, narrow: type[Any]) -> Any:
    """``attn``, still with all of its heads, as ``narrow``; itself where it is that already."""
    if is_head_pruned(attn):
        return attn
    other = as_class(attn, narrow)
    ids = torch.arange(other.num_heads, device=other.proj.weight.device)
    other.register_buffer("head_ids", ids, persistent=False)
    return other


def without_values(attn: Any) -> type[Any]:
    """The class that a dense attention has once it is none any more."""
    return type(attn).narrow if is_head_pruned(attn) else plain_type(attn)
