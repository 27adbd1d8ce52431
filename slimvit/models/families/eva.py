"""timm's Eva: EVA, EVA-02, DINOv3, Perception Encoders and ViTs with rotary positions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn

from slimvit.models.base import (
    AttentionBlock,
    Branch,
    Family,
    State,
    Step,
    TimmModule,
    block_branches,
    fits_block,
    fits_post_norm,
    plain_type,
)
from slimvit.models.closed_form import vit_macs
from slimvit.models.dense.layers import DenseForward, DenseGammaBlock
from slimvit.models.head_parts import HeadParts, projections, separate_biases
from slimvit.models.reduced import HeadPruned, merge_heads, scaled_attention


class _Rotary(HeadPruned):
    """Forward pass of both head-pruned attentions of Eva.

    Rotary positions that differ between the heads are one parameter for all blocks. That parameter stays whole, and
    each block selects the positions of its heads.
    """

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Map tokens [B, N, C] to [B, N, C].

        `rope` is [N, 2d] or [original heads, N, 2d], without the prefix tokens.
        """
        return self.attend(x, *self.project(x), rope, attn_mask, is_causal)

    def attend(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Map queries, keys and values [B, N, k] of the tokens x [B, N, C] to the output [B, N, C]."""
        attn: Any = self
        gate = getattr(attn, "gate", None)  # timm 1.0.23 has none
        q, k, v = (self.split_heads(t) for t in (q, k, v))
        q, k = attn.q_norm(q), attn.k_norm(k)
        if rope is not None:
            rope = self.select_heads(rope)
            q, k = self._rotated(q, rope).type_as(v), self._rotated(k, rope).type_as(v)
        heads = attn.norm(merge_heads(scaled_attention(self, q, k, v, attn_mask, is_causal)))
        if gate is not None:
            heads = heads * gate(x).sigmoid()
        return attn.proj_drop(attn.proj(heads))

    def _rotated(self, t: Tensor, rope: Tensor) -> Tensor:
        """[B, H, N, d] -> [B, H, N, d]; the prefix tokens are not rotated."""
        attn: Any = self
        prefix = attn.num_prefix_tokens
        rotated = apply_rot_embed_cat(t[:, :, prefix:], rope, half=getattr(attn, "rotate_half", False))
        return torch.cat([t[:, :, :prefix], rotated], 2)


class HeadPrunedEvaAttention(_Rotary, EvaAttention):
    """Head-pruned attention of EVA and EVA-02."""

    plain = EvaAttention


class HeadPrunedAttentionRope(_Rotary, AttentionRope):
    """Head-pruned attention of timm's ViTs with rotary positions."""

    plain = AttentionRope


class DenseEvaAttention(DenseForward, HeadPrunedEvaAttention):  # type: ignore[misc]
    """EVA's attention with the values of earlier blocks mixed into its own before it attends."""

    plain = EvaAttention
    head_pruned = HeadPrunedEvaAttention


class DenseAttentionRope(DenseForward, HeadPrunedAttentionRope):  # type: ignore[misc]
    """timm's rotary attention with the values of earlier blocks mixed into its own before it attends."""

    plain = AttentionRope
    head_pruned = HeadPrunedAttentionRope


class DenseEvaBlock(DenseGammaBlock, EvaBlock):  # type: ignore[misc]
    """EVA's pre-norm block around a `DenseEvaAttention` or `DenseAttentionRope`."""

    plain = EvaBlock


HEAD_PRUNED = {EvaAttention: HeadPrunedEvaAttention, AttentionRope: HeadPrunedAttentionRope}
"""timm's attentions and their head-pruned classes."""


def _head_parts(attn: TimmModule, head_dim: int) -> HeadParts:
    sizes = {"num_heads": 1, "num_kv_heads": 1, "attn_dim": head_dim, "kv_dim": head_dim}
    return HeadParts(
        rows=projections(attn, head_dim),
        slices=separate_biases(attn, head_dim),
        counts={name: size for name, size in sizes.items() if hasattr(attn, name)},
        narrow=HEAD_PRUNED[plain_type(attn)],
        whole_qk="rotary positions turn pairs of its query and key channels",
    )


def _check(model: TimmModule) -> str | None:
    for i, block in enumerate(model.blocks.children()):
        name, attn = f"blocks.{i}", block.attn
        if reason := fits_block(block, name, (EvaBlock, EvaBlockPostNorm), (*HEAD_PRUNED,)):
            return reason
        if not isinstance(getattr(attn, "norm", None), nn.Identity | None):
            return f"{name}.attn normalises across its heads (scale_attn_inner), so a head cannot be removed exactly"
        if getattr(attn, "num_kv_heads", attn.num_heads) != attn.num_heads:
            return f"{name}.attn shares keys and values between its heads (num_kv_heads), so none goes on its own"
        if _post_norm(block) and (reason := fits_post_norm(block, name)):
            return reason
    return None


def _post_norm(block: TimmModule) -> bool:
    return plain_type(block) is EvaBlockPostNorm


def _attention_blocks(model: TimmModule) -> list[AttentionBlock]:
    n = model.patch_embed.num_patches + model.num_prefix_tokens
    return [
        AttentionBlock(
            f"blocks.{i}", 0, block, block.attn, n, n, n, _head_parts,
            post_norm=_post_norm(block), whole_tokens="its positions turn the queries and keys of single tokens",
        )
        for i, block in enumerate(model.blocks.children())
    ]  # fmt: skip


def _embed(model: TimmModule, images: Tensor) -> State:
    """Images [B, C, H, W] -> the stream that enters the first block [B, N, C], and the rotary positions."""
    x, rope = model._pos_embed(model.patch_embed(images))
    return State(model.norm_pre(x), shared=rope)


def _shared_arguments(model: TimmModule, i: int, rope: Any) -> dict[str, Any]:
    """Mixed rotary positions are one tensor per block."""
    return {"rope": rope[i] if rope is not None and getattr(model, "rope_mixed", False) else rope}


def _steps(model: TimmModule) -> list[Branch | Step]:
    steps: list[Branch | Step] = [Step("embed", partial(_embed, model))]
    for i, block in enumerate(model.blocks.children()):
        shared = partial(_shared_arguments, model, i)
        steps += block_branches(f"blocks.{i}", block, block.attn, shared_arguments=shared, post_norm=_post_norm(block))
    return steps


def _arguments(model: TimmModule) -> dict[str, Any]:
    """Pooling and place of the norm; `reset_classifier` changes the pooling alone."""
    return {"global_pool": model.global_pool, "use_fc_norm": not isinstance(model.fc_norm, nn.Identity)}


def _no_dense(model: TimmModule) -> str | None:
    if any(_post_norm(block) for block in model.blocks.children()):
        return "its norms stand behind the branches, so every block's values have a scale of their own"
    return None


EVA = Family(
    name="eva",
    owns=lambda model: isinstance(model, Eva),
    timm_modules=("eva",),
    supported="timm Evas (eva_*, eva02_*, vit_*_dinov3, vit_pe_*, vit_*_rope_*)",
    check=_check,
    attention_blocks=_attention_blocks,
    steps=_steps,
    arguments=_arguments,
    linked={EvaAttention: DenseEvaAttention, AttentionRope: DenseAttentionRope, EvaBlock: DenseEvaBlock},
    no_dense=_no_dense,
    closed_form=vit_macs,
)
