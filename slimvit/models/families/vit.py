"""timm's VisionTransformer: ViT, DeiT, DeiT-3, DINOv2, CLIP and SigLIP image towers."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from slimvit.models.base import AttentionBlock, Branch, Family, Step, TimmModule, block_branches, plain_type
from slimvit.models.empty import NoAttention
from slimvit.models.head_parts import HeadParts, projections


def _check(model: TimmModule) -> str | None:
    for i, block in enumerate(model.blocks.children()):
        if plain_type(block) is not Block:
            return f"blocks.{i} is a {type(block).__name__}, not timm's pre-norm Block"
        attn = block.attn
        if plain_type(attn) not in (Attention, NoAttention):
            return f"blocks.{i}.attn is a {type(attn).__module__}.{type(attn).__name__}, not timm's Attention"
        if isinstance(attn, Attention) and not isinstance(attn.norm, nn.Identity):
            return f"blocks.{i}.attn normalises across its heads (scale_norm), so a head cannot be removed exactly"
        if not isinstance(getattr(block.mlp, "fc2", None), nn.Linear):
            return f"blocks.{i}.mlp is a {type(block.mlp).__name__} without a linear fc2"
    return None


def _parts(attn: TimmModule, head_dim: int) -> HeadParts:
    return HeadParts(projections(attn, head_dim), counts={"num_heads": 1, "attn_dim": head_dim})


def _attention_blocks(model: TimmModule) -> list[AttentionBlock]:
    n = model.patch_embed.num_patches + model.num_prefix_tokens
    return [
        AttentionBlock(f"blocks.{i}", 0, block, block.attn, n, n, n, _parts)
        for i, block in enumerate(model.blocks.children())
    ]


def _embed(model: TimmModule, images: Tensor) -> Tensor:
    """Images [B, C, H, W] -> the stream that enters the first block, [B, N, C]."""
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))


def _steps(model: TimmModule) -> list[Branch | Step]:
    found: list[Branch | Step] = [Step("embed", partial(_embed, model))]
    for i, block in enumerate(model.blocks.children()):
        found += block_branches(f"blocks.{i}", block, block.attn)
    return found


def _arguments(model: TimmModule) -> dict[str, Any]:
    """reset_classifier may change the pooling, but leaves the norm where it was."""
    return {"global_pool": model.global_pool, "fc_norm": not isinstance(model.fc_norm, nn.Identity)}


VIT = Family(
    name="vit",
    check=_check,
    owns=lambda model: isinstance(model, VisionTransformer),
    attention_blocks=_attention_blocks,
    steps=_steps,
    supported="timm VisionTransformers with standard blocks (deit_*, deit3_*, deit_*_distilled, vit_*, "
    "vit_*_dinov2, vit_*_clip_*, vit_*_siglip_*, qk_norm and gated attention included)",
    arguments=_arguments,
    no_dense=lambda model: None,
)
