"""timm's SwinTransformer: windowed attention, shifted in every second block, patch merging between stages."""

from __future__ import annotations

from functools import partial
from math import prod

from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from slimvit.models.family import AttentionBlock, Branch, Family, Step, TimmModule, block_branches, plain_type
from slimvit.models.no_branch import NoAttention


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
    image = nn.functional.pad(image, (0, 0, 0, -image.shape[2] % ww, 0, -image.shape[1] % wh))
    b, h, w, k = image.shape
    windows = image.view(b, h // wh, wh, w // ww, ww, k).permute(0, 1, 3, 2, 4, 5)
    return windows.reshape(b * (h // wh) * (w // ww), wh * ww, k)


def _check(model: TimmModule) -> str | None:
    for i, stage in enumerate(model.layers):
        for j, block in enumerate(stage.blocks.children()):
            if plain_type(block) is not SwinTransformerBlock:
                return f"layers.{i}.blocks.{j} is a {type(block).__name__}, not timm's SwinTransformerBlock"
            if plain_type(block.attn) not in (WindowAttention, NoAttention):
                return f"layers.{i}.blocks.{j}.attn is a {type(block.attn).__name__}, not timm's WindowAttention"
            if not isinstance(getattr(block.mlp, "fc2", None), nn.Linear):
                return f"layers.{i}.blocks.{j}.mlp is a {type(block.mlp).__name__} without a linear fc2"
    return None


def _attention_blocks(model: TimmModule) -> list[AttentionBlock]:
    return [
        AttentionBlock(
            name=f"layers.{i}.blocks.{j}",
            stage=i,
            block=block,
            attn=block.attn,
            tokens=_padded_tokens(block),
            window=block.window_area,
            mlp_tokens=prod(block.input_resolution),
            to_stream=partial(windows_to_image, block),
        )
        for i, stage in enumerate(model.layers)
        for j, block in enumerate(stage.blocks.children())
    ]


def _padded_tokens(block: TimmModule) -> int:
    """Tokens of one image in all windows of a block, padding included: qkv and proj see those too."""
    height, width = padded_size(block, block.input_resolution)
    return height * width


def _steps(model: TimmModule) -> list[Branch | Step]:
    found: list[Branch | Step] = [Step("embed", model.patch_embed)]
    for i, stage in enumerate(model.layers):
        found.append(Step(f"layers.{i}.downsample", stage.downsample))
        for j, block in enumerate(stage.blocks.children()):
            to_stream = partial(windows_to_image, block)
            found += block_branches(f"layers.{i}.blocks.{j}", block, block._attn, to_stream)
    return found


SWIN = Family(
    name="swin",
    check=_check,
    owns=lambda model: isinstance(model, SwinTransformer),
    attention_blocks=_attention_blocks,
    steps=_steps,
    supported="timm SwinTransformers (swin_*, windows of any size, padded and dynamic inputs included)",
)
