"""timm's VisionTransformer: ViT, DeiT, DeiT-3, DINOv2, CLIP and SigLIP image towers."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from slimvit.models.base import (
    NOTHING,
    Attended,
    AttentionBlock,
    Branch,
    Carried,
    Family,
    ImageSize,
    Step,
    TimmModule,
    block_branches,
    plain_type,
)
from slimvit.models.closed_form import vit_macs
from slimvit.models.dense.layers import DenseMixin, Values
from slimvit.models.empty import EmptyAttention
from slimvit.models.head_parts import HeadParts, projections
from slimvit.models.reduced import HeadPruned, merge_heads, scaled_attention
from slimvit.utils.errors import ModelError


class NarrowAttention(HeadPruned, Attention):
    """timm's attention with narrower queries and keys."""

    plain = Attention

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Map tokens [B, N, C] to [B, N, C]."""
        q, k, v = self.project(x)
        return self.attend(x, *self.by_head(q, k, v), attn_mask, is_causal)

    def by_head(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split queries, keys and values [B, N, k] by head, and normalise them: [B, H, N, d]."""
        q, k, v = (self.split_heads(t) for t in (q, k, v))
        return self.q_norm(q), self.k_norm(k), v

    def attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Map queries, keys and values [B, H, N, d] of the tokens x [B, N, C] to the output [B, N, C]."""
        gate = getattr(self, "gate", None)  # timm 1.0.23 has none
        found = self.norm(merge_heads(scaled_attention(self, q, k, v, attn_mask, is_causal)))
        if gate is not None:
            found = found * gate(x).sigmoid()
        return self.proj_drop(self.proj(found))


class LinkedAttention(DenseMixin, NarrowAttention):
    """timm's attention over merged tokens, with the values of earlier blocks mixed into its own before it attends."""

    plain = Attention
    head_pruned = NarrowAttention

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        earlier: Values = (),
        sizes: Tensor | None = None,
    ) -> Attended:
        """Attend to the present tokens.

        Args:
            x: The normed stream [B, n, C].
            attn_mask: A mask or bias of the caller.
            is_causal: Whether each token attends to itself and earlier tokens only.
            earlier: The values of earlier blocks.
            sizes: Number of original tokens in each present one [B, n]. Every token is attended to as often as it has
                original ones, so the logarithm of the size is added to the scores.
        """
        q, k, own = self.project(x)
        q, k, v = self.by_head(q, k, self.mixed(own, earlier))
        bias = attn_mask if sizes is None else sizes.log()[:, None, None].to(q.dtype)
        return Attended(self.attend(x, q, k, v, bias, is_causal), self.handed_on(own), k)


class LinkedBlock(Block):
    """timm's block around a `LinkedAttention`; it may merge tokens between attention and MLP."""

    plain = Block
    merges: int = 0
    """Tokens that the block merges."""
    prefix: int = 0
    """Tokens at the front that are never merged."""

    def forward(  # type: ignore[override]
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, carried: Carried = NOTHING
    ) -> tuple[Tensor, Carried]:
        """Map the stream [B, n, C] to the stream after the block [B, n - merges, C] and what later blocks need."""
        if (attn_mask is not None or is_causal) and (self.merges or carried.tokens is not None):
            raise ModelError("a model that merges tokens takes no attn_mask and no is_causal; leave them out")
        found = Attended.of(self.attn(self.norm1(x), attn_mask, is_causal, **carried.arguments()))
        x = x + self.drop_path1(self.ls1(found.output))
        x, carried = carried.adding(found.values).merged(x, found.keys, self.merges, self.prefix)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), carried


def _check(model: TimmModule) -> str | None:
    for i, block in enumerate(model.blocks.children()):
        if plain_type(block) is not Block:
            return f"blocks.{i} is a {type(block).__name__}, not timm's pre-norm Block"
        attn = block.attn
        if plain_type(attn) not in (Attention, EmptyAttention):
            return f"blocks.{i}.attn is a {type(attn).__module__}.{type(attn).__name__}, not timm's Attention"
        if isinstance(attn, Attention) and not isinstance(attn.norm, nn.Identity):
            return f"blocks.{i}.attn normalises across its heads (scale_norm), so a head cannot be removed exactly"
        if not isinstance(getattr(block.mlp, "fc2", None), nn.Linear):
            return f"blocks.{i}.mlp is a {type(block.mlp).__name__} without a linear fc2"
    return None


def _head_parts(attn: TimmModule, head_dim: int) -> HeadParts:
    return HeadParts(
        projections(attn, head_dim),
        counts={"num_heads": 1, "attn_dim": head_dim},
        narrow_qk=NarrowAttention,
        whole_qk=None if isinstance(attn.q_norm, nn.Identity) else "it normalises queries and keys (qk_norm)",
    )


def _attention_blocks(model: TimmModule) -> list[AttentionBlock]:
    patches, prefix = model.patch_embed.num_patches, model.num_prefix_tokens
    views, n = [], patches + prefix
    for i, block in enumerate(model.blocks.children()):
        merged = getattr(block, "merges", 0)
        views.append(
            AttentionBlock(
                f"blocks.{i}", 0, block, block.attn, n, n, n - merged, _head_parts,
                merged=merged, mergeable=patches // 2, prefix=prefix,
            )
        )  # fmt: skip
        n -= merged
    return views


def _embed(model: TimmModule, images: Tensor) -> Tensor:
    """Images [B, C, H, W] -> the stream that enters the first block [B, N, C]."""
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))


def _steps(model: TimmModule) -> list[Branch | Step]:
    steps: list[Branch | Step] = [Step("embed", partial(_embed, model))]
    for i, block in enumerate(model.blocks.children()):
        steps += block_branches(f"blocks.{i}", block, block.attn)
    return steps


def _arguments(model: TimmModule) -> dict[str, Any]:
    """Pooling and place of the norm; `reset_classifier` changes the pooling alone."""
    return {"global_pool": model.global_pool, "fc_norm": not isinstance(model.fc_norm, nn.Identity)}


def _closed_form(model: TimmModule, image_size: ImageSize) -> int | None:
    """MACs from shapes; None where a block has several attentions or none."""
    alike = all(hasattr(getattr(block, "attn", None), "proj") for block in model.blocks.children())
    return vit_macs(model, image_size) if alike else None


VIT = Family(
    name="vit",
    owns=lambda model: isinstance(model, VisionTransformer),
    timm_modules=("vision_transformer", "vision_transformer_hybrid", "deit"),
    supported="timm VisionTransformers with standard blocks (deit_*, deit3_*, deit_*_distilled, vit_*, "
    "vit_*_dinov2, vit_*_clip_*, vit_*_siglip_*, qk_norm and gated attention included)",
    check=_check,
    attention_blocks=_attention_blocks,
    steps=_steps,
    arguments=_arguments,
    linked={Attention: LinkedAttention, Block: LinkedBlock},
    closed_form=_closed_form,
)
