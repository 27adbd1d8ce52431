"""timm's SwinTransformerV2: Swin with cosine attention, position biases from a small network, and norms behind the
branches."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block, WindowAttention
from torch import Tensor
from torch.nn import functional as F

from slimvit.models.base import Family, TimmModule, fits_block, fits_post_norm
from slimvit.models.closed_form import attention_macs, linear_macs
from slimvit.models.families.swin import (
    named_blocks,
    window_arguments,
    windowed_blocks,
    windowed_macs,
    windowed_steps,
)
from slimvit.models.head_parts import HeadParts, Rows, Slice, projections, separate_biases
from slimvit.models.reduced import HeadPruned, merge_heads


class HeadPrunedWindowAttention(HeadPruned, WindowAttention):
    """Head-pruned cosine attention in windows."""

    plain = WindowAttention

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map windows [B * windows, area, C] to [B * windows, area, C]; `mask` is [windows, area, area]."""
        area = x.shape[1]
        q, k, v = (self.split_heads(t) for t in self.project(x))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * self.logit_scale.clamp(max=math.log(1.0 / 0.01)).exp() + self._position_bias(area)
        if mask is not None:
            scores = scores.view(-1, len(mask), self.num_heads, area, area) + mask[None, :, None]
            scores = scores.view(-1, self.num_heads, area, area)
        x = merge_heads(self.attn_drop(self.softmax(scores)) @ v)
        return self.proj_drop(self.proj(x))

    def _position_bias(self, area: int) -> Tensor:
        """[num_heads, area, area]."""
        attn: Any = self
        table = attn.cpb_mlp(attn.relative_coords_table).view(-1, self.num_heads)
        bias = table[attn.relative_position_index.view(-1)].view(area, area, self.num_heads)
        return 16 * torch.sigmoid(bias.permute(2, 0, 1))


def _head_parts(attn: TimmModule, head_dim: int) -> HeadParts:
    offsets = _offsets(attn)
    hidden, by_head = attn.cpb_mlp[0], attn.cpb_mlp[2]
    return HeadParts(
        rows=(*projections(attn, head_dim), Rows(by_head, 1, positions=offsets)),
        slices=(Slice("logit_scale"), *separate_biases(attn, head_dim)),
        counts={"num_heads": 1},
        narrow=HeadPrunedWindowAttention,
        shared_macs=offsets * hidden.weight.numel(),
        whole_qk="its cosine attention normalises queries and keys",
    )


def _check(model: TimmModule) -> str | None:
    for name, _, block in named_blocks(model):
        reason = fits_block(block, name, (SwinTransformerV2Block,), (WindowAttention,)) or fits_post_norm(block, name)
        if reason is not None:
            return reason
    return None


def _offsets(attn: TimmModule) -> int:
    """Offsets within a window, each of which the network of position biases sees once."""
    return attn.relative_coords_table.numel() // 2


def _attention_macs(attn: TimmModule, tokens: int, window: int) -> int:
    biases = getattr(attn, "cpb_mlp", None)
    if biases is None:  # without heads
        return attention_macs(attn, tokens, window)
    return attention_macs(attn, tokens, window) + linear_macs(biases, _offsets(attn)) - linear_macs(biases, tokens)


SWIN_V2 = Family(
    name="swin_v2",
    owns=lambda model: isinstance(model, SwinTransformerV2),
    timm_modules=("swin_transformer_v2",),
    supported="timm SwinTransformerV2s (swinv2_*)",
    check=_check,
    attention_blocks=partial(windowed_blocks, head_parts_of=_head_parts, post_norm=True),
    steps=partial(windowed_steps, post_norm=True),
    arguments=window_arguments,
    no_dense=lambda model: "its norms stand behind the branches, so every block's values have a scale of their own",
    closed_form=partial(windowed_macs, attention=_attention_macs),
)
