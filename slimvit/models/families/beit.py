"""timm's Beit: BEiT and BEiT v2, with position biases per block or shared by all blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models.beit import Attention, Beit, Block
from torch import Tensor, nn

from slimvit.models.base import AttentionBlock, Branch, Family, State, Step, TimmModule, block_branches, fits_block
from slimvit.models.closed_form import vit_macs
from slimvit.models.dense.layers import DenseForward, DenseGammaBlock
from slimvit.models.head_parts import HeadParts, Slice, projections, separate_biases
from slimvit.models.reduced import HeadPruned, merge_heads, scaled_attention

WHOLE_TOKENS = "its position biases belong to pairs of tokens"
"""Why tokens are not merged."""


class HeadPrunedBeitAttention(HeadPruned, Attention):
    """Head-pruned attention with position biases."""

    plain = Attention

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Map tokens [B, N, C] to [B, N, C]; `shared_rel_pos_bias` is [original heads, N, N]."""
        return self.attend(x, *self.project(x), shared_rel_pos_bias)

    def attend(self, _: Tensor, q: Tensor, k: Tensor, v: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Map queries, keys and values [B, N, k] to the output [B, N, C]."""
        bias = None if self.relative_position_bias_table is None else self._get_rel_pos_bias()
        if shared_rel_pos_bias is not None:
            shared = self.select_heads(shared_rel_pos_bias)
            bias = shared if bias is None else bias + shared
        heads = scaled_attention(self, self.split_heads(q), self.split_heads(k), self.split_heads(v), bias)
        return self.proj_drop(self.proj(merge_heads(heads)))


class DenseBeitAttention(DenseForward, HeadPrunedBeitAttention):  # type: ignore[misc]
    """BEiT's attention with the values of earlier blocks mixed into its own before it attends."""

    plain = Attention
    head_pruned = HeadPrunedBeitAttention


class DenseBeitBlock(DenseGammaBlock, Block):  # type: ignore[misc]
    """BEiT's block around a `DenseBeitAttention`."""

    plain = Block


def _head_parts(attn: TimmModule, head_dim: int) -> HeadParts:
    table = () if attn.relative_position_bias_table is None else (Slice("relative_position_bias_table", dim=1),)
    return HeadParts(
        rows=projections(attn, head_dim),
        slices=(*table, *separate_biases(attn, head_dim)),
        counts={"num_heads": 1},
        narrow=HeadPrunedBeitAttention,
        narrow_qk=HeadPrunedBeitAttention,
    )


def _check(model: TimmModule) -> str | None:
    each = (fits_block(block, f"blocks.{i}", (Block,), (Attention,)) for i, block in enumerate(model.blocks.children()))
    return next((reason for reason in each if reason), None)


def _attention_blocks(model: TimmModule) -> list[AttentionBlock]:
    n = model.patch_embed.num_patches + model.num_prefix_tokens
    return [
        AttentionBlock(f"blocks.{i}", 0, block, block.attn, n, n, n, _head_parts, whole_tokens=WHOLE_TOKENS)
        for i, block in enumerate(model.blocks.children())
    ]


def _embed(model: TimmModule, images: Tensor) -> State:
    """Images [B, C, H, W] -> the stream that enters the first block [B, N, C], and the biases that all blocks share."""
    patches = model.patch_embed(images)
    x = torch.cat((model.cls_token.expand(len(patches), -1, -1), patches), 1)
    return State(
        x if model.pos_embed is None else x + model.pos_embed,
        shared=None if model.rel_pos_bias is None else model.rel_pos_bias(),
    )


def _steps(model: TimmModule) -> list[Branch | Step]:
    steps: list[Branch | Step] = [Step("embed", partial(_embed, model))]
    for i, block in enumerate(model.blocks.children()):
        steps += block_branches(f"blocks.{i}", block, block.attn, shared_arguments=_shared_arguments)
    return steps


def _shared_arguments(shared: Any) -> dict[str, Any]:
    return {"shared_rel_pos_bias": shared}


def _arguments(model: TimmModule) -> dict[str, Any]:
    """Pooling and place of the norm, which `reset_classifier` does not move; older timms have one place only."""
    after_pooling = not isinstance(model.fc_norm, nn.Identity)
    moved = {} if after_pooling == (model.global_pool == "avg") else {"use_fc_norm": after_pooling}
    return {"global_pool": model.global_pool} | moved


BEIT = Family(
    name="beit",
    owns=lambda model: isinstance(model, Beit),
    timm_modules=("beit",),
    supported="timm Beits (beit_*, beitv2_*)",
    check=_check,
    attention_blocks=_attention_blocks,
    steps=_steps,
    arguments=_arguments,
    linked={Attention: DenseBeitAttention, Block: DenseBeitBlock},
    closed_form=vit_macs,
)
