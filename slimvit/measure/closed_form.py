"""MACs of a plain ViT from the shapes of its layers and the number of its tokens; nothing is run.

Per block with N tokens: N * (weights of its linear layers) + 2 * N * N * attn_dim. Norms are left out.
"""

from __future__ import annotations

from typing import Any

from timm.layers import AttentionPoolLatent
from torch import nn


def closed_form(model: Any, input_size: tuple[int, int, int]) -> int | None:
    """MACs of one image [C, H, W] = ``input_size``, without norms; None for a model that is no plain ViT."""
    stem, blocks = stem_of(model), getattr(model, "blocks", None)
    if stem is None or blocks is None or not all(hasattr(b, "attn") for b in blocks):
        return None
    patches = _patches(model, stem, input_size)
    tokens = patches + model.num_prefix_tokens
    head = _head(model, tokens)
    if head is None:
        return None
    return patches * stem.weight.numel() + sum(_block(b, tokens) for b in blocks) + head


def stem_of(model: nn.Module) -> nn.Conv2d | None:
    """The convolution that cuts the image into patches, None where more than that happens before the first block."""
    embed = getattr(model, "patch_embed", None)
    stem = getattr(embed, "proj", None)
    return stem if isinstance(stem, nn.Conv2d) and not hasattr(embed, "backbone") else None


def _patches(model: Any, stem: nn.Conv2d, input_size: tuple[int, int, int]) -> int:
    count = 1
    for side, stride in zip(input_size[1:], stem.stride, strict=True):
        padded = getattr(model.patch_embed, "dynamic_img_pad", False)
        count *= -(-side // stride) if padded else side // stride
    return count


def _linear(module: nn.Module | None, tokens: int) -> int:
    """MACs of every linear layer inside ``module``, each applied to ``tokens`` tokens."""
    layers = [] if module is None else [m for m in module.modules() if isinstance(m, nn.Linear)]
    return tokens * sum(m.in_features * m.out_features for m in layers)


def _block(block: Any, tokens: int) -> int:
    attn = block.attn
    attn_dim = attn.num_heads * attn.head_dim if hasattr(attn, "qkv") else 0
    return _linear(block, tokens) + 2 * tokens * tokens * attn_dim


def _head(model: Any, tokens: int) -> int | None:
    """Pooling and classifier; None for a pooling that has no formula here."""
    pool = getattr(model, "attn_pool", None)
    pooled = tokens if getattr(model, "global_pool", "token") == "" else 1
    classifiers = _linear(model.head, pooled) + _linear(getattr(model, "head_dist", None), pooled)
    if pool is None:
        return classifiers
    if type(pool) is not AttentionPoolLatent:
        return None
    seen = tokens if getattr(model, "pool_include_prefix", True) else tokens - model.num_prefix_tokens
    latent = pool.latent_len
    attention = 2 * latent * seen * pool.num_heads * pool.head_dim
    return classifiers + _linear(pool.kv, seen) + _linear(pool, latent) - _linear(pool.kv, latent) + attention
