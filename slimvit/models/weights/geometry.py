"""The geometry of a network from the shapes of its weights: stem, input size, windows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import NamedTuple

from torch import Tensor

STEMS = ("patch_embed.proj.weight", "visual.trunk.patch_embed.proj.weight", "visual.patch_embed.proj.weight")
CLIP_STEMS = ("visual.conv1.weight", "conv1.weight")
POSITIONS = ("pos_embed", "visual.trunk.pos_embed", "visual.pos_embed", "visual.positional_embedding")
POSITION_TABLE = re.compile(
    r"(?:layers\.(\d+)\.)?(?:blocks\.0\.attn|rel_pos_bias)\.relative_(?:position_bias|coords)_table$"
)
"""Names of relative position tables: one per stage in Swin and Swin V2, one per network in BEiT."""
LARGEST_INPUT = 4096
"""Largest plausible side of an input, in pixels."""
REGISTERS = ("reg_token", "register_tokens", "storage_tokens")


class InputSize(NamedTuple):
    """The input size that weights were trained at."""

    pixels: int
    source: str
    """Name of the tensors from which it follows."""


def stem_weight(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Return the weight [C, channels, patch, patch] of the patch embedding; None for a network without."""
    stems = (tensors[name] for name in (*STEMS, *CLIP_STEMS) if name in tensors and tensors[name].ndim == 4)
    return next(stems, None)


def input_size_in(tensors: Mapping[str, Tensor]) -> InputSize | None:
    """Return the side of the square input of the training, in pixels; None where it does not follow from the shapes."""
    stem = stem_weight(tensors)
    if stem is None or stem.shape[-1] != stem.shape[-2]:
        return None
    side, source = _tokens(tensors)
    pixels = side * stem.shape[-1]
    return InputSize(pixels, source) if 0 < pixels <= LARGEST_INPUT else None


def _tokens(tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """The side of the grid of patches, 0 where it is unknown, and the tensors from which it follows."""
    if (positions := next((tensors[name] for name in POSITIONS if name in tensors), None)) is not None:
        return _grid(positions, tensors), "pos_embed"
    windows = windows_in(tensors)
    if not windows:
        return 0, ""
    if (mask := tensors.get("layers.0.blocks.1.attn_mask")) is not None:
        return isqrt(len(mask)) * windows[0], "attn_mask"
    return windows[-1] * 2 ** (len(windows) - 1), "the relative position tables"


def windows_in(tensors: Mapping[str, Tensor]) -> list[int]:
    """Return the side of the windows of every stage, in tokens: one entry for BEiT, none without position tables."""
    sides: dict[int, int] = {}
    for name, table in tensors.items():
        if match := POSITION_TABLE.fullmatch(name):
            sides[int(match.group(1) or 0)] = _window(table)
    return [sides[stage] for stage in sorted(sides)]


def _window(table: Tensor) -> int:
    """The side w of the windows of a table [(2w-1)^2, heads], [(2w-1)^2 + 3, heads] or [1, 2w-1, 2w-1, 2]."""
    side = table.shape[1] if table.ndim == 4 else isqrt(table.shape[0])
    return (side + 1) // 2


def _grid(positions: Tensor, tensors: Mapping[str, Tensor]) -> int:
    """The side of the square grid of patches in a position embedding with any prefix tokens; 0 for another grid."""
    if positions.ndim > 3:
        return 0
    count, single = positions.shape[-2], sum(name in tensors for name in ("cls_token", "dist_token"))
    registers = sum(tensors[name].shape[-2] for name in REGISTERS if name in tensors)
    patches = (count - extra for extra in (single, single + registers, 1, 0) if count > extra)
    return next((isqrt(n) for n in patches if isqrt(n) ** 2 == n), 0)


def adapted_stem(weight: Tensor, channels: int) -> Tensor:
    """Return the weight [C, I, h, w] of a stem for another number of input channels, as timm does.

    For one channel the given channels are summed, for more they are repeated and scaled.
    """
    given = weight.shape[1]
    if channels == given:
        return weight
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.repeat(1, -(-channels // given), 1, 1)[:, :channels]
    return repeated * (given / channels)
