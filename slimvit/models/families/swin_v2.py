"""timm's SwinTransformerV2: cosine attention with a temperature a head, biases from a small network of the offsets, and
norms behind the branches."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block, WindowAttention
from torch import Tensor
from torch.nn import functional as F

from slimvit.models.base import Family, TimmModule, fits_block, fits_post_norm
from slimvit.models.families.swin import named_blocks, window_arguments, windowed_blocks, windowed_steps
from slimvit.models.head_parts import HeadParts, Rows, Slice, projections, separate_biases
from slimvit.models.reduced import HeadPruned, merged


class HeadPrunedWindowAttention(HeadPruned, WindowAttention):
    """timm's cosine attention in windows, with fewer heads."""

    plain = WindowAttention

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Windows [B * windows, area, C] -> [B * windows, area, C]."""
        area = x.shape[1]
        q, k, v = (self.by_head(t) for t in self.project(x))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * self.logit_scale.clamp(max=math.log(1.0 / 0.01)).exp() + self._position_bias(area)
        if mask is not None:
            scores = scores.view(-1, len(mask), self.num_heads, area, area) + mask[None, :, None]
            scores = scores.view(-1, self.num_heads, area, area)
        x = merged(self.attn_drop(self.softmax(scores)) @ v)
        return self.proj_drop(self.proj(x))

    def _position_bias(self, area: int) -> Tensor:
        """[num_heads, area, area]."""
        attn: Any = self
        table = attn.cpb_mlp(attn.relative_coords_table).view(-1, self.num_heads)
        bias = table[attn.relative_position_index.view(-1)].view(area, area, self.num_heads)
        return 16 * torch.sigmoid(bias.permute(2, 0, 1))


def _parts(attn: TimmModule, head_dim: int) -> HeadParts:
    offsets = attn.relative_coords_table.numel() // 2
    hidden, by_head = attn.cpb_mlp[0], attn.cpb_mlp[2]
    return HeadParts(
        rows=(*projections(attn, head_dim), Rows(by_head, 1, positions=offsets)),
        slices=(Slice("logit_scale"), *separate_biases(attn, head_dim)),
        counts={"num_heads": 1},
        narrow=HeadPrunedWindowAttention,
        shared_macs=offsets * hidden.weight.numel(),
    )


def _check(model: TimmModule) -> str | None:
    for name, _, block in named_blocks(model):
        reason = fits_block(block, name, (SwinTransformerV2Block,), (WindowAttention,)) or fits_post_norm(block, name)
        if reason is not None:
            return reason
    return None


SWIN_V2 = Family(
    name="swin_v2",
    check=_check,
    owns=lambda model: isinstance(model, SwinTransformerV2),
    attention_blocks=partial(windowed_blocks, takes_apart=_parts, post_norm=True),
    steps=partial(windowed_steps, post_norm=True),
    supported="timm SwinTransformerV2s (swinv2_*)",
    arguments=window_arguments,
    no_dense=lambda model: "its norms stand behind the branches, so every block's values have a scale of their own",
)
