"""What the shapes of weights say of the network: input channels, input size, windows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import NamedTuple

from torch import Tensor

STEMS = ("patch_embed.proj.weight", "visual.trunk.patch_embed.proj.weight", "visual.patch_embed.proj.weight")
CLIP_STEMS = ("visual.conv1.weight", "conv1.weight")
POSITIONS = ("pos_embed", "visual.trunk.pos_embed", "visual.pos_embed", "visual.positional_embedding")
TABLE = re.compile(r"(?:layers\.(\d+)\.)?(?:blocks\.0\.attn|rel_pos_bias)\.relative_(?:position_bias|coords)_table$")
"""Tables of relative positions: a stage's in Swin and Swin V2, the whole network's in BEiT."""
LARGEST = 4096
"""Pixels of an input size that is believed."""
REGISTERS = ("reg_token", "register_tokens", "storage_tokens")


class InputSize(NamedTuple):
    """The input size that weights were trained at."""

    pixels: int
    source: str
    """The tensors that it follows from."""


def stem_weight(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Return the convolution [C, channels, patch, patch] that makes the tokens; None where there is none."""
    found = (tensors[name] for name in (*STEMS, *CLIP_STEMS) if name in tensors and tensors[name].ndim == 4)
    return next(found, None)


def input_size_in(tensors: Mapping[str, Tensor]) -> InputSize | None:
    """Return the side of the square input that the weights were trained at, in pixels; None where they do not say."""
    stem = stem_weight(tensors)
    if stem is None or stem.shape[-1] != stem.shape[-2]:
        return None
    found = _tokens(tensors)
    return (
        None if found is None or found[0] * stem.shape[-1] > LARGEST else InputSize(found[0] * stem.shape[-1], found[1])
    )


def _tokens(tensors: Mapping[str, Tensor]) -> tuple[int, str] | None:
    """The side of the grid of patches, and the tensors that it follows from."""
    if (positions := next((tensors[name] for name in POSITIONS if name in tensors), None)) is not None:
        grid = _grid(positions, tensors)
        return None if grid is None else (grid, "pos_embed")
    windows = windows_in(tensors)
    if not windows:
        return None
    if (mask := tensors.get("layers.0.blocks.1.attn_mask")) is not None:
        return isqrt(len(mask)) * windows[0], "attn_mask"
    return windows[-1] * 2 ** (len(windows) - 1), "the tables of relative positions"


def windows_in(tensors: Mapping[str, Tensor]) -> list[int]:
    """Return the side of the windows of every stage, in tokens; for BEiT that of its one grid; empty elsewhere."""
    found: dict[int, int] = {}
    for name, table in tensors.items():
        if match := TABLE.fullmatch(name):
            found[int(match.group(1) or 0)] = _window(table)
    return [found[stage] for stage in sorted(found)]


def _window(table: Tensor) -> int:
    """The side w of the windows of a table [(2w-1)^2, heads], [(2w-1)^2 + 3, heads] or [1, 2w-1, 2w-1, 2]."""
    side = table.shape[1] if table.ndim == 4 else isqrt(table.shape[0])
    return (side + 1) // 2


def _grid(positions: Tensor, tensors: Mapping[str, Tensor]) -> int | None:
    """The side of the square grid of patches in a table of positions, whatever tokens stand before them."""
    if positions.ndim > 3:
        return None
    count, single = positions.shape[-2], sum(name in tensors for name in ("cls_token", "dist_token"))
    registers = sum(tensors[name].shape[-2] for name in REGISTERS if name in tensors)
    patches = (count - extra for extra in (single, single + registers, 1, 0) if count > extra)
    return next((isqrt(n) for n in patches if isqrt(n) ** 2 == n), None)


def adapted_stem(weight: Tensor, channels: int) -> Tensor:
    """Return a stem [C, I, h, w] for another number of input channels, as timm makes it.

    For one channel the given ones are summed, for more they are repeated and scaled.
    """
    given = weight.shape[1]
    if channels == given:
        return weight
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.repeat(1, -(-channels // given), 1, 1)[:, :channels]
    return repeated * (given / channels)
