"""timm's SwinTransformer: windowed attention, shifted in every second block, patch merging between stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from slimvit.models.base import AttentionBlock, Branch, Family, Step, TimmModule, block_branches, fits_block
from slimvit.models.head_parts import HeadParts, Slice, projections


def windows_to_image(block: TimmModule, windows: Tensor, size: tuple[int, ...]) -> Tensor:
    """[B * windows, area, k] as the block's attention sees it -> [B, H, W, k] as the stream has it.

    Undoes the partition, drops the padding, and shifts back; ``size`` is the stream's (H, W).
    """
    (wh, ww), (height, width), k = block.window_size, padded_size(block, size), windows.shape[-1]
    rows, columns = height // wh, width // ww
    b = windows.shape[0] // (rows * columns)  # no -1 anywhere: without heads k is 0
    image = windows.reshape(b, rows, columns, wh, ww, k).permute(0, 1, 3, 2, 4, 5).reshape(b, height, width, k)
    image = image[:, : size[0], : size[1]]
    return image.roll(block.shift_size, (1, 2)) if any(block.shift_size) else image


def padded_size(block: TimmModule, size: tuple[int, ...]) -> tuple[int, int]:
    """The stream's (H, W) with the padding that fills its last windows."""
    (h, w), (wh, ww) = size, block.window_size
    return -(-h // wh) * wh, -(-w // ww) * ww


def image_to_windows(block: TimmModule, image: Tensor) -> Tensor:
    """[B, H, W, k] -> [B * windows, area, k]: shifted, padded with zeros and partitioned as in timm's block."""
    if any(block.shift_size):
        image = image.roll((-block.shift_size[0], -block.shift_size[1]), (1, 2))
    wh, ww = block.window_size
    b, h, w, k = image.shape
    below, right = -h % wh, -w % ww
    h, w = h + below, w + right
    # torch 2.7 cannot pad what is empty: the features of a block without heads
    image = nn.functional.pad(image, (0, 0, 0, right, 0, below)) if k else image.new_zeros(b, h, w, 0)
    windows = image.view(b, h // wh, wh, w // ww, ww, k).permute(0, 1, 3, 2, 4, 5)
    return windows.reshape(b * (h // wh) * (w // ww), wh * ww, k)


def named_blocks(model: TimmModule) -> list[tuple[str, int, TimmModule]]:
    """Name, stage and block, in forward order."""
    return [
        (f"layers.{i}.blocks.{j}", i, block)
        for i, stage in enumerate(model.layers)
        for j, block in enumerate(stage.blocks.children())
    ]


def _check(model: TimmModule) -> str | None:
    each = (fits_block(b, name, (SwinTransformerBlock,), (WindowAttention,)) for name, _, b in named_blocks(model))
    return next((reason for reason in each if reason), None)


def _parts(attn: TimmModule, head_dim: int) -> HeadParts:
    counts = {"num_heads": 1, "attn_dim": head_dim} if hasattr(attn, "attn_dim") else {"num_heads": 1}
    return HeadParts(projections(attn, head_dim), (Slice("relative_position_bias_table", dim=1),), counts)


def windowed_blocks(
    model: TimmModule, takes_apart: Callable[[TimmModule, int], HeadParts], post_norm: bool = False
) -> list[AttentionBlock]:
    """The blocks of a model that attends in windows."""
    return [
        AttentionBlock(
            name=name,
            stage=stage,
            block=block,
            attn=block.attn,
            tokens=_padded_tokens(block),
            window=block.window_area,
            mlp_tokens=prod(block.input_resolution),
            takes_apart=takes_apart,
            to_stream=partial(windows_to_image, block),
            post_norm=post_norm,
        )
        for name, stage, block in named_blocks(model)
    ]


def _padded_tokens(block: TimmModule) -> int:
    """Tokens of one image in all windows of a block, padding included: qkv and proj see those too."""
    height, width = padded_size(block, block.input_resolution)
    return height * width


def windowed_steps(model: TimmModule, post_norm: bool = False) -> list[Branch | Step]:
    """The forward pass of a model that attends in windows, stage by stage."""
    found: list[Branch | Step] = [Step("embed", model.patch_embed)]
    for i, stage in enumerate(model.layers):
        found.append(Step(f"layers.{i}.downsample", stage.downsample))
        for j, block in enumerate(stage.blocks.children()):
            to_stream = partial(windows_to_image, block)
            name = f"layers.{i}.blocks.{j}"
            found += block_branches(name, block, block._attn, to_stream, post_norm=post_norm)
    return found


def window_arguments(model: TimmModule) -> dict[str, Any]:
    """The windows as arguments: set_input_size may have changed them. One for all stages where that gives the same
    (timm shrinks a window to a smaller stage), otherwise one a stage."""
    blocks = [stage.blocks[0] for stage in model.layers]
    sizes = [b.window_size for b in blocks]
    largest = tuple(max(sides) for sides in zip(*sizes, strict=True))
    shrunk = [tuple(map(min, largest, b.input_resolution)) for b in blocks]
    alike = largest if blocks[0].always_partition or shrunk == sizes else None
    window = ([*alike] if alike[0] != alike[1] else alike[0]) if alike else [list(s) for s in sizes]
    return {"window_size": window} | ({"always_partition": True} if blocks[0].always_partition else {})


SWIN = Family(
    name="swin",
    check=_check,
    owns=lambda model: isinstance(model, SwinTransformer),
    attention_blocks=partial(windowed_blocks, takes_apart=_parts),
    steps=windowed_steps,
    supported="timm SwinTransformers (swin_*, windows of any size, padded and dynamic inputs included)",
    arguments=window_arguments,
    no_dense=lambda model: None,
)
