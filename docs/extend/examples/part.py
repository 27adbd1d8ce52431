"""A part to cut: the width of queries and keys in timm's plain ViT attention.

Dimension i of the queries and keys of all heads is one unit. The values do not change. Models with dense attention are
not supported.
`slimvit prune MODEL --target-macs 0.9 --parts qk ...`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.config.recipe import PruneSection
from slimvit.models.base import AttentionBlock
from slimvit.models.cutting import drop_outputs
from slimvit.models.parts.base import Limits, Part, UnitCost
from slimvit.models.parts.registry import register_part
from slimvit.models.reduced import as_class, merge_heads
from slimvit.models.registry import attention_blocks


class NarrowQueryKey(Attention):
    """timm's attention with fewer channels per head in queries and keys (`qk_dim`) than in values (`head_dim`)."""

    plain = Attention
    """The timm class for which the ViT family accepts this one."""
    qk_dim: int

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Map tokens [B, N, C] to [B, N, C]; the scale stays that of the original width."""
        q, k = (self._by_head(layer(x), self.qk_dim) for layer in (self.q_proj, self.k_proj))
        v = self._by_head(self.v_proj(x), self.head_dim)
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout, is_causal, scale=self.scale)
        return self.proj_drop(self.proj(merge_heads(x)))

    def _by_head(self, x: Tensor, dim: int) -> Tensor:
        return x.unflatten(-1, (self.num_heads, dim)).transpose(1, 2)


class QueryKey(Part):
    """Dimensions of queries and keys, the same in all heads of a block."""

    name, unit, units = "qk", "query-key dimension", "qk_dims"
    label = "query-key dimensions"

    def count(self, view: AttentionBlock) -> int:
        return 0 if self.why_not(view) else view.qk_dim

    def why_not(self, view: AttentionBlock) -> str | None:
        attn = view.attn
        if type(attn) not in (Attention, NarrowQueryKey):
            return f"its attention is a {type(attn).__name__}, not timm's Attention"
        if not isinstance(attn.q_norm, nn.Identity):
            return "it normalises queries and keys across their dimensions (qk_norm)"
        return "its attention has a gate" if getattr(attn, "gate", None) is not None else None

    def module(self, view: AttentionBlock) -> nn.Module:
        return view.attn

    def limits(self, section: PruneSection) -> Limits:
        """Even widths, at least 2."""
        return Limits(least=2, group=2)

    def macs(self, view: AttentionBlock) -> UnitCost:
        """MACs of one query and one key row per head, and of one term in every query-key product."""
        heads, channels = view.attn.num_heads, view.attn.proj.out_features
        return UnitCost(view.tokens * heads * (2 * channels + view.window))

    def params(self, view: AttentionBlock) -> UnitCost:
        rows = view.head_parts.rows
        bias = bool(rows) and rows[0].layer.bias is not None
        return UnitCost(2 * view.attn.num_heads * (view.attn.proj.out_features + bias))

    def score(self, model: nn.Module) -> list[Tensor]:
        """Score each dimension by the norm of its query rows times its key rows over all heads, [qk_dim] per block.

        The units have no last layer whose inputs a criterion could observe.
        """
        return [self._sizes(view) if self.count(view) else torch.zeros(0) for view in attention_blocks(model)]

    def _sizes(self, view: AttentionBlock) -> Tensor:
        attn, shape = view.attn, (view.attn.num_heads, view.qk_dim, -1)
        q, k = (attn.qkv.weight.chunk(3)[:2]) if attn.qkv is not None else (attn.q_proj.weight, attn.k_proj.weight)
        squares = (w.detach().view(shape).square().sum(-1) for w in (q, k))
        return torch.stack(list(squares)).prod(0).sum(0).sqrt()

    def remove(self, view: AttentionBlock, positions: Sequence[int]) -> None:
        if view.attn.qkv is not None:
            view.block.attn = _separate(view.attn)
        attn: Any = view.block.attn
        gone = [head * attn.qk_dim + i for head in range(attn.num_heads) for i in positions]
        drop_outputs(attn.q_proj, gone)
        drop_outputs(attn.k_proj, gone)
        attn.qk_dim -= len(positions)


def _separate(attn: Any) -> NarrowQueryKey:
    """The same attention with separate layers for queries, keys and values."""
    qkv = attn.qkv
    layers = []
    for i in range(3):
        layer = nn.utils.skip_init(
            nn.Linear, qkv.in_features, qkv.out_features // 3, bias=qkv.bias is not None,
            device=qkv.weight.device, dtype=qkv.weight.dtype,
        )  # fmt: skip
        for name, whole in qkv.named_parameters():
            setattr(layer, name, nn.Parameter(whole.detach().chunk(3)[i].clone(), requires_grad=whole.requires_grad))
        layers.append(layer)
    q, k, v = layers
    return as_class(attn, NarrowQueryKey, qkv=None, q_proj=q, k_proj=k, v_proj=v, qk_dim=attn.head_dim)


QUERY_KEY = register_part(QueryKey())
