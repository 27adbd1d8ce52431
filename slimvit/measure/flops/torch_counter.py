"""torch's own counter, halved because it counts 2 a multiply-add.

It misses attention on the CPU; on the meta device attention is taken apart into two products, which it sees.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def torch_count(model: nn.Module, size: tuple[int, int, int]) -> int | None:
    """MACs of one image [C, H, W] = ``size``, without norms, by a ``model`` on the meta device.

    None when this torch version does not see attention, as some do not.
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
