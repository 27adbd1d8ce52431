"""MACs counted while a model runs on the meta device: by torch's own counter, and those of dense attention's mixes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from slimvit.models.base import ImageSize
from slimvit.models.dense.layers import DenseMixin


def torch_count(model: nn.Module, size: ImageSize) -> int | None:
    """Count the MACs of one image [C, H, W], norms left out, with torch's counter.

    torch counts 2 per multiply-add, so its count is halved. It misses attention on the CPU; on the meta device
    attention is split into two products, which it sees.

    Returns:
        The MACs, or None when this torch version does not see attention.
    """
    return _halved(lambda: model(torch.empty(1, *size, device="meta"))) if _sees_attention() else None


@cache
def _sees_attention() -> bool:
    q = torch.empty(1, 1, 8, 4, device="meta")
    return _halved(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * 8 * 8 * 4


def _halved(call: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def mix_macs(model: nn.Module, size: ImageSize) -> dict[str, int]:
    """Count the MACs of dense attention's mixes: shared channels x tokens, added up over the pairs of a block.

    No counter sees elementwise work, so these come from the formula.

    Args:
        model: The model, on the meta device.
        size: Channels, height and width of one image.

    Returns:
        Name of each attention that mixes -> MACs of one image.
    """
    tokens: dict[str, int] = {}
    hooks = []

    def watch(name: str) -> Any:
        return lambda _, args: tokens.update({name: prod(args[0].shape[1:-1])})

    for name, module in model.named_modules():
        if isinstance(attn := getattr(module, "attn", None), DenseMixin) and attn.mix is not None:
            hooks.append(module.register_forward_pre_hook(watch(f"{name}.attn")))
    if not hooks:  # a plain model needs no pass
        return {}
    with torch.no_grad():
        model(torch.empty(1, *size, device="meta"))
    return {name: count * _shared_channels(model.get_submodule(name)) for name, count in tokens.items()}


def _shared_channels(attn: Any) -> int:
    return sum(len(pair.heads) for pair in attn.pairs) * attn.proj.in_features // attn.num_heads
