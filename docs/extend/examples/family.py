"""A model family: a small ViT with its blocks under `encoder` instead of `blocks`.

Import this file before the model is used, or name its module as an entry point of the group `slimvit.plugins`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import Attention
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from slimvit.models.base import AttentionBlock, Branch, Family, Step, block_branches, fits_block
from slimvit.models.families.vit import LinkedAttention, LinkedBlock
from slimvit.models.head_parts import HeadParts, projections
from slimvit.models.registry import register_family

default_cfgs = generate_default_cfgs(
    {"my_vit": {"input_size": (1, 16, 16), "mean": (0.5,), "std": (0.5,), "num_classes": 10, "classifier": "head"}}
)


class MyViT(nn.Module):
    """A ViT without class token: patch embedding, timm's blocks, mean over tokens, classifier."""

    def __init__(
        self,
        img_size: int = 16,
        in_chans: int = 1,
        dim: int = 24,
        depth: int = 3,
        heads: int = 4,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, dim, 4, stride=4)
        self.tokens = (img_size // 4) ** 2
        self.position = nn.Parameter(0.02 * torch.randn(1, self.tokens, dim))
        self.encoder = nn.Sequential(*(Block(dim, 4, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.num_features = dim
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by an untrained one, as timm's models do."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def embed(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] to the stream [B, N, C] that enters the first block."""
        return self.stem(images).flatten(2).transpose(1, 2) + self.position

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] to the normed stream [B, N, C]."""
        return self.norm(self.encoder(self.embed(images)))

    def forward_head(self, stream: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the normed stream [B, N, C] to logits [B, K], or to the classifier's inputs [B, C]."""
        pooled = stream.mean(1)
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, K]."""
        return self.forward_head(self.forward_features(images))


@register_model
def my_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the model by its timm name, which recipes and saved models use."""
    return build_model_with_cfg(MyViT, "my_vit", pretrained, **kwargs)


def check(model: Any) -> str | None:
    """Return the reason that slimvit cannot prune the model, or None."""
    reasons = (fits_block(b, f"encoder.{i}", (Block,), (Attention,)) for i, b in enumerate(model.encoder.children()))
    return next(filter(None, reasons), None)


def head_parts(attn: Any, head_dim: int) -> HeadParts:
    """Return the slices of an attention that belong to its heads, besides the inputs of `proj`."""
    return HeadParts(projections(attn, head_dim), counts={"num_heads": 1, "attn_dim": head_dim})


def attention_blocks(model: Any) -> list[AttentionBlock]:
    """Return the blocks in forward order."""
    n = model.tokens
    return [
        AttentionBlock(f"encoder.{i}", 0, block, block.attn, n, n, n, head_parts)
        for i, block in enumerate(model.encoder.children())
    ]


def steps(model: Any) -> list[Branch | Step]:
    """Return the forward pass up to the final norm."""
    found: list[Branch | Step] = [Step("embed", partial(MyViT.embed, model))]
    for i, block in enumerate(model.encoder.children()):
        found += block_branches(f"encoder.{i}", block, block.attn)
    return found


MY_VIT = register_family(
    Family(
        name="my_vit",
        owns=lambda model: isinstance(model, MyViT),
        supported="MyViTs (my_vit)",
        check=check,
        attention_blocks=attention_blocks,
        steps=steps,
        arguments=lambda model: {"img_size": 4 * int(model.tokens**0.5), "in_chans": model.stem.in_channels},
        linked={Attention: LinkedAttention, Block: LinkedBlock},
    )
)
