"""MACs of the mixes of dense attention. No counter sees elementwise work, so they come from the formula."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import nn

from slimvit.models.dense.layers import MixesValues


def mix_macs(model: nn.Module, size: tuple[int, int, int]) -> dict[str, int]:
    """MACs of one image [C, H, W] = ``size`` by the name of each attention that mixes: shared channels x tokens, added
    up over its pairs. ``model`` lives on the meta device."""
    tokens: dict[str, int] = {}
    hooks = []

    def watch(name: str) -> Any:
        return lambda _, args: tokens.update({name: prod(args[0].shape[1:-1])})

    for name, module in model.named_modules():
        if isinstance(attn := getattr(module, "attn", None), MixesValues) and attn.mix is not None:
            hooks.append(module.register_forward_pre_hook(watch(f"{name}.attn")))
    if not hooks:  # a plain model needs no pass
        return {}
    with torch.no_grad():
        model(torch.empty(1, *size, device="meta"))
    return {name: count * _channels(model.get_submodule(name)) for name, count in tokens.items()}


def _channels(attn: Any) -> int:
    return sum(len(pair.heads) for pair in attn.pairs) * attn.proj.in_features // attn.num_heads
