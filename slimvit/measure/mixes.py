"""MACs of the mixes of dense attention. No counter sees elementwise work, so they come from the formula."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import nn

from slimvit.dense.blocks import MixesValues


def mix_macs(model: nn.Module, size: tuple[int, int, int]) -> dict[str, int]:
    """MACs of one image [C, H, W] = ``size`` by the name of each attention that mixes: shared channels x tokens, added
    up over its pairs. ``model`` lives on the meta device."""
    tokens: dict[str, int] = {}

    def watch(name: str) -> Any:
        return lambda _, args: tokens.update({name: prod(args[0].shape[1:-1])})

    for name, module in model.named_modules():
        if isinstance(attn := getattr(module, "attn", None), MixesValues) and attn.mix is not None:
            module.register_forward_pre_hook(watch(f"{name}.attn"))
    with torch.no_grad():
        model(torch.empty(1, *size, device="meta"))
    return {name: count * _channels(model.get_submodule(name)) for name, count in tokens.items()}


def _channels(attn: Any) -> int:
    head_dim = attn.proj.in_features // attn.num_heads
    return sum(len(pair.heads) for pair in attn.pairs) * head_dim
