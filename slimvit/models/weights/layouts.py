"""Weights under names that are not timm's: the library they come from, recognised by the names of the tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable

LAYOUTS = {
    "a ViT of torchvision": (r"\bencoder_layer_\d+\.",),
    "a Swin of torchvision": (r"\bfeatures\.\d+\.\d+\.(attn\.qkv|mlp\.0)\.",),
    "a model of Hugging Face transformers": (
        r"\bembeddings\.patch_embedding",
        r"\bencoder\.layers?\.\d+\.(attention\.|layernorm|self_attn|layer_norm)",
    ),
    "a model of MMPretrain": (r"\bpatch_embed\.projection\.", r"\bffn\.layers\.\d"),
    "a model of vit-pytorch": (r"\bto_patch_embedding\.", r"\btransformer\.layers\.\d+\.\d+\."),
    "LoRA adapters, which must be merged into their model": (r"\blora_(A|B|a|b|up|down)\b",),
    "a convolutional network": (r"\blayer1\.0\.conv1\.", r"\bfeatures\.\d+\.(0\.)?weight$", r"\bdwconv\."),
}
"""What has such tensors -> patterns, one of which one of their names matches."""


def layout_of(names: Iterable[str]) -> str | None:
    """Return what the weights are of where their names are known to be another library's; None elsewhere."""
    listed = list(names)
    for what, patterns in LAYOUTS.items():
        if any(re.search(pattern, name) for pattern in patterns for name in listed):
            return what
    return None
