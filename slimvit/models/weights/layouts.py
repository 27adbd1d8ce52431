"""Libraries whose weights are not under timm's names, recognised by the names of the tensors."""

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
"""Kind of weights -> patterns; one match in the name of a tensor is enough."""


def layout_of(names: Iterable[str]) -> str | None:
    """Return the kind of weights with these names (`a ViT of torchvision`); None for an unknown one."""
    names = list(names)
    for kind, patterns in LAYOUTS.items():
        if any(re.search(pattern, name) for pattern in patterns for name in names):
            return kind
    return None
