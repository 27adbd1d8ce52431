"""MACs of a plain ViT or Swin from the shapes of its layers and the number of its tokens; nothing is run.

Per block with N tokens, each attending to M: N * (weights of its linear layers) + 2 * N * M * attn_dim. Norms are
left out. M is N, and in Swin the window; there qkv, attention and proj also see the padding of the windows. Swin V2's
network of position biases sees every offset within a window once.
"""

from __future__ import annotations

from math import prod
from typing import Any

from timm.layers import AttentionPoolLatent
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn

from slimvit.models.families.swin import padded_size


def closed_form(model: Any, input_size: tuple[int, int, int]) -> int | None:
    """MACs of one image [C, H, W] = ``input_size``, without norms; None for a model that has no formula here."""
    stem = stem_of(model)
    if stem is None:
        return None
    if isinstance(model, SwinTransformer | SwinTransformerV2):
        return _swin(model, stem, input_size)
    blocks = getattr(model, "blocks", None)
    if blocks is None or not all(hasattr(getattr(b, "attn", None), "proj") for b in blocks):
        return None
    patches = _patches(model, stem, input_size)
    tokens = patches + model.num_prefix_tokens
    head = _head(model, tokens)
    if head is None:
        return None
    return patches * stem.weight.numel() + sum(_block(b, tokens) for b in blocks) + head


def _swin(model: Any, stem: nn.Conv2d, input_size: tuple[int, int, int]) -> int:
    h, w = (-(-side // stride) for side, stride in zip(input_size[1:], stem.stride, strict=True))
    count = h * w * stem.weight.numel()
    for stage in model.layers:
        if not isinstance(stage.downsample, nn.Identity):
            h, w = (h + 1) // 2, (w + 1) // 2
            count += _linear(stage.downsample, h * w)
        for block in stage.blocks:
            tokens = prod(padded_size(block, (h, w)))
            count += _attention(block.attn, tokens, prod(block.window_size)) + _linear(block.mlp, h * w)
    return count + _linear(model.head, h * w if model.global_pool == "" else 1)


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
    rest = _linear(block, tokens) - _linear(block.attn, tokens)
    return rest + _attention(block.attn, tokens, tokens)


def _attention(attn: Any, tokens: int, window: int) -> int:
    """Its layers, and both products of its heads."""
    biases = getattr(attn, "cpb_mlp", None)
    offsets = 0 if biases is None else attn.relative_coords_table.numel() // 2
    layers = _linear(attn, tokens) - _linear(biases, tokens) + _linear(biases, offsets)
    return layers + 2 * tokens * window * attn.proj.in_features


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
