"""A part that can be cut: the width of the values in timm's plain ViT attention.

Channel i of the values of all heads is one unit; the inputs of `proj` that it feeds are removed with it. Queries and
keys keep their width. Not for models with dense attention.
`slimvit prune MODEL --target-macs 0.9 --parts values ...`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimvit.config.recipe import PruneSection
from slimvit.models.base import AttentionBlock
from slimvit.models.cutting import drop_inputs, drop_outputs
from slimvit.models.families.vit import NarrowAttention
from slimvit.models.parts.base import Limits, Part, UnitCost
from slimvit.models.parts.heads import HEADS
from slimvit.models.parts.registry import register_part
from slimvit.models.query_key import with_own_layers
from slimvit.models.registry import attention_blocks


class Values(Part):
    """Channels of the values, the same in all heads of a block."""

    name, unit, units = "values", "value channel", "value_channels"
    label = "value channels"
    within = HEADS

    def count(self, view: AttentionBlock) -> int:
        return 0 if self.why_not(view) or not view.attn.num_heads else view.head_dim

    def why_not(self, view: AttentionBlock) -> str | None:
        if view.head_parts.narrow_qk is not NarrowAttention:
            return f"its {type(view.attn).__name__} has no form with narrower values"
        return "its attention has a gate" if getattr(view.attn, "gate", None) is not None else None

    def module(self, view: AttentionBlock) -> nn.Module:
        return view.attn

    def limits(self, section: PruneSection) -> Limits:
        """Even widths, of which one pair stays."""
        return Limits(least=2, group=2)

    def macs(self, view: AttentionBlock) -> UnitCost:
        """Count a row of values, a column of proj, and one output of the products with the values, per head."""
        # the price of a head includes all of its channels, so fewer cost less than nothing
        return UnitCost(view.tokens * (2 * view.attn.proj.out_features + view.window), beyond=self.count(view))

    def params(self, view: AttentionBlock) -> UnitCost:
        rows = view.head_parts.rows
        bias = bool(rows) and rows[-1].layer.bias is not None
        return UnitCost(2 * view.attn.proj.out_features + bias, beyond=self.count(view))

    def score(self, model: nn.Module) -> list[Tensor]:
        """The squared columns of proj of each channel, all heads added up: [head_dim] for each block.

        Criteria observe the inputs of a last layer by unit, which must be adjacent; those of a channel are not."""
        return [self._sizes(view) if self.count(view) else torch.zeros(0) for view in attention_blocks(model)]

    def _sizes(self, view: AttentionBlock) -> Tensor:
        columns = view.attn.proj.weight.detach().square().sum(0)
        return columns.view(view.attn.num_heads, view.head_dim).sum(0)

    def remove(self, view: AttentionBlock, positions: Sequence[int]) -> None:
        attn: Any = with_own_layers(view.attn, NarrowAttention)
        view.block.attn = attn
        gone = [head * attn.head_dim + i for head in range(attn.num_heads) for i in positions]
        drop_outputs(attn.v_proj, gone)
        drop_inputs(attn.proj, gone)
        attn.head_dim -= len(positions)
        attn.attn_dim = attn.num_heads * attn.head_dim


VALUES = register_part(Values())
