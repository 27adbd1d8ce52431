"""MACs of a ViT from the shapes of its layers and the number of its tokens; nothing is run.

A block with N tokens, each attending to M, takes N * (weights of its linear layers) + 2 * N * M * attn_dim MACs.
Norms are left out. Without windows M is N.
"""

from __future__ import annotations

from typing import Any

from timm.layers import AttentionPoolLatent
from torch import nn

from slimvit.models.base import ImageSize


def vit_macs(model: Any, image_size: ImageSize) -> int | None:
    """Count the MACs of a model whose blocks all see the same tokens.

    Args:
        model: A model with timm's `patch_embed`, `blocks`, `num_prefix_tokens` and `head`.
        image_size: Channels, height and width of one image.

    Returns:
        The MACs of one image without norms; None for a stem or pooling that has no formula here.
    """
    stem = stem_of(model)
    if stem is None:
        return None
    patches = _patches(model, stem, image_size)
    tokens = patches + model.num_prefix_tokens
    head = _head_macs(model, tokens)
    if head is None:
        return None
    blocks, left = 0, tokens
    for block in model.blocks.children():
        blocks += _block_macs(block, left, model.num_prefix_tokens)
        left -= getattr(block, "merges", 0)
    return patches * stem.weight.numel() + blocks + head


def stem_of(model: nn.Module) -> nn.Conv2d | None:
    """Return the convolution that cuts the image into patches; None where the patch embedding does more than that."""
    embed = getattr(model, "patch_embed", None)
    stem = getattr(embed, "proj", None)
    return stem if isinstance(stem, nn.Conv2d) and not hasattr(embed, "backbone") else None


def linear_macs(module: nn.Module | None, tokens: int) -> int:
    """Count the MACs of every linear layer inside `module`, each applied to `tokens` tokens; 0 for None."""
    layers = [] if module is None else [m for m in module.modules() if isinstance(m, nn.Linear)]
    return tokens * sum(m.in_features * m.out_features for m in layers)


def attention_macs(attn: Any, tokens: int, window: int) -> int:
    """Count the MACs of an attention: its linear layers, and both products of its heads.

    Args:
        attn: The attention, which ends in `proj`.
        tokens: Tokens of one image.
        window: Tokens that each token attends to.
    """
    values = attn.proj.in_features
    queries = attn.num_heads * attn.qk_dim if hasattr(attn, "qk_dim") else values
    return linear_macs(attn, tokens) + tokens * window * (queries + values)


def _patches(model: Any, stem: nn.Conv2d, image_size: ImageSize) -> int:
    count = 1
    for side, stride in zip(image_size[1:], stem.stride, strict=True):
        padded = getattr(model.patch_embed, "dynamic_img_pad", False)
        count *= -(-side // stride) if padded else side // stride
    return count


def _block_macs(block: Any, tokens: int, prefix: int) -> int:
    """Attention, matching and MLP of a block that gets `tokens` tokens."""
    merges = getattr(block, "merges", 0)
    behind = linear_macs(block, tokens - merges) - linear_macs(block.attn, tokens - merges)
    return (
        attention_macs(block.attn, tokens, tokens)
        + behind
        + (matching_macs(block.attn, tokens - prefix) if merges else 0)
    )


def matching_macs(attn: Any, patches: int) -> int:
    """Count the MACs of the products of the keys of every other token with those of the rest.

    Args:
        attn: The attention; without heads the stream takes the place of the keys.
        patches: Tokens behind the prefix.
    """
    channels = getattr(attn, "qk_dim", attn.head_dim) if attn.num_heads else attn.proj.out_features
    return (patches + 1) // 2 * (patches // 2) * channels


def _head_macs(model: Any, tokens: int) -> int | None:
    """Pooling and classifier; None for a pooling that has no formula here."""
    pool = getattr(model, "attn_pool", None)
    pooled = tokens if getattr(model, "global_pool", "token") == "" else 1
    classifiers = linear_macs(model.head, pooled) + linear_macs(getattr(model, "head_dist", None), pooled)
    if pool is None:
        return classifiers
    if type(pool) is not AttentionPoolLatent:
        return None
    seen = tokens if getattr(model, "pool_include_prefix", True) else tokens - model.num_prefix_tokens
    latent = pool.latent_len
    attention = 2 * latent * seen * pool.num_heads * pool.head_dim
    layers = linear_macs(pool.kv, seen) + linear_macs(pool, latent) - linear_macs(pool.kv, latent)
    return classifiers + layers + attention
