"""timm's Beit: BEiT and BEiT v2, with a table of position biases a block or one that all blocks share."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models.beit import Attention, Beit, Block
from torch import Tensor, nn

from slimvit.models.base import AttentionBlock, Branch, Family, State, Step, TimmModule, block_branches, fits_block
from slimvit.models.dense.layers import KeepsGamma, MixesBeforeAttending
from slimvit.models.head_parts import HeadParts, Slice, projections, separate_biases
from slimvit.models.reduced import HeadPruned, attended, merged


class HeadPrunedBeitAttention(HeadPruned, Attention):
    """timm's attention with position biases, with fewer heads."""

    plain = Attention

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        return self.attend(x, *self.project(x), shared_rel_pos_bias)

    def attend(self, _: Tensor, q: Tensor, k: Tensor, v: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Queries, keys and values [B, N, k] -> [B, N, C]; the biases that blocks share are [original heads, N, N]."""
        bias = None if self.relative_position_bias_table is None else self._get_rel_pos_bias()
        if shared_rel_pos_bias is not None:
            shared = self.of_these_heads(shared_rel_pos_bias)
            bias = shared if bias is None else bias + shared
        found = attended(self, self.by_head(q), self.by_head(k), self.by_head(v), bias)
        return self.proj_drop(self.proj(merged(found)))


def _parts(attn: TimmModule, head_dim: int) -> HeadParts:
    table = () if attn.relative_position_bias_table is None else (Slice("relative_position_bias_table", dim=1),)
    return HeadParts(
        rows=projections(attn, head_dim),
        slices=(*table, *separate_biases(attn, head_dim)),
        counts={"num_heads": 1},
        narrow=HeadPrunedBeitAttention,
    )


def _check(model: TimmModule) -> str | None:
    each = (fits_block(block, f"blocks.{i}", (Block,), (Attention,)) for i, block in enumerate(model.blocks.children()))
    return next((reason for reason in each if reason), None)


def _attention_blocks(model: TimmModule) -> list[AttentionBlock]:
    n = model.patch_embed.num_patches + model.num_prefix_tokens
    return [
        AttentionBlock(f"blocks.{i}", 0, block, block.attn, n, n, n, _parts)
        for i, block in enumerate(model.blocks.children())
    ]


def _embed(model: TimmModule, images: Tensor) -> State:
    """Images [B, C, H, W] -> the stream that enters the first block, [B, N, C], and the biases that blocks share."""
    patches = model.patch_embed(images)
    x = torch.cat((model.cls_token.expand(len(patches), -1, -1), patches), 1)
    return State(
        x if model.pos_embed is None else x + model.pos_embed,
        shared=None if model.rel_pos_bias is None else model.rel_pos_bias(),
    )


def _steps(model: TimmModule) -> list[Branch | Step]:
    found: list[Branch | Step] = [Step("embed", partial(_embed, model))]
    for i, block in enumerate(model.blocks.children()):
        found += block_branches(f"blocks.{i}", block, block.attn, takes=_takes)
    return found


def _takes(shared: Any) -> dict[str, Any]:
    return {"shared_rel_pos_bias": shared}


def _arguments(model: TimmModule) -> dict[str, Any]:
    """reset_classifier may change the pooling, but leaves the norm where it was; older timms know only one place."""
    after_pooling = not isinstance(model.fc_norm, nn.Identity)
    moved = {} if after_pooling == (model.global_pool == "avg") else {"use_fc_norm": after_pooling}
    return {"global_pool": model.global_pool} | moved


BEIT = Family(
    name="beit",
    check=_check,
    owns=lambda model: isinstance(model, Beit),
    attention_blocks=_attention_blocks,
    steps=_steps,
    supported="timm Beits (beit_*, beitv2_*)",
    arguments=_arguments,
    no_dense=lambda model: None,
)


class DenseBeitAttention(MixesBeforeAttending, HeadPrunedBeitAttention):  # type: ignore[misc]
    plain = Attention
    narrow = HeadPrunedBeitAttention


class DenseBeitBlock(KeepsGamma, Block):  # type: ignore[misc]
    plain = Block
