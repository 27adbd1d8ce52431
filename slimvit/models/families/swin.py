"""timm's SwinTransformer: windowed attention, shifted in every second block, patch merging between stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from slimvit.models.base import (
    NOTHING,
    Attended,
    AttentionBlock,
    BlockWidth,
    Branch,
    Carried,
    Family,
    ImageSize,
    Step,
    TimmModule,
    block_branches,
    fits_block,
)
from slimvit.models.closed_form import attention_macs, linear_macs, stem_of
from slimvit.models.dense.layers import DenseMixin, Values
from slimvit.models.dense.mixing import mix_values
from slimvit.models.head_parts import HeadParts, Slice, projections
from slimvit.models.reduced import HeadPruned, merge_heads, scaled_attention


def windows_to_image(block: TimmModule, windows: Tensor, size: tuple[int, ...]) -> Tensor:
    """Undo the partition into windows, drop the padding, and shift back.

    Args:
        block: The block, for its window size and shift.
        windows: Features in the layout of the block's attention [B * windows, area, k].
        size: Height and width of the stream.

    Returns:
        The features in the layout of the stream [B, H, W, k].
    """
    (wh, ww), (height, width), k = block.window_size, padded_size(block, size), windows.shape[-1]
    rows, columns = height // wh, width // ww
    b = windows.shape[0] // (rows * columns)  # no -1 anywhere: without heads k is 0
    image = windows.reshape(b, rows, columns, wh, ww, k).permute(0, 1, 3, 2, 4, 5).reshape(b, height, width, k)
    image = image[:, : size[0], : size[1]]
    return image.roll(block.shift_size, (1, 2)) if any(block.shift_size) else image


def padded_size(block: TimmModule, size: tuple[int, ...]) -> tuple[int, int]:
    """Return the stream's height and width with the padding that fills its last windows."""
    (h, w), (wh, ww) = size, block.window_size
    return -(-h // wh) * wh, -(-w // ww) * ww


def image_to_windows(block: TimmModule, image: Tensor) -> Tensor:
    """Shift, pad with zeros and partition as timm's block does: [B, H, W, k] -> [B * windows, area, k]."""
    if any(block.shift_size):
        image = image.roll((-block.shift_size[0], -block.shift_size[1]), (1, 2))
    wh, ww = block.window_size
    b, h, w, k = image.shape
    below, right = -h % wh, -w % ww
    h, w = h + below, w + right
    # torch 2.7 cannot pad an empty tensor, such as the features of a block without heads
    image = nn.functional.pad(image, (0, 0, 0, right, 0, below)) if k else image.new_zeros(b, h, w, 0)
    windows = image.view(b, h // wh, wh, w // ww, ww, k).permute(0, 1, 3, 2, 4, 5)
    return windows.reshape(b * (h // wh) * (w // ww), wh * ww, k)


class NarrowWindowAttention(HeadPruned, WindowAttention):
    """timm's window attention with narrower queries and keys."""

    plain = WindowAttention

    @property
    def head_dim(self) -> int:
        """Channels of one head's values; timm's attention does not store it."""
        return self.proj.in_features // self.num_heads

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map windows [B * windows, area, C] to [B * windows, area, C]; `mask` is [windows, area, area]."""
        return self.attend(*self.project(x), mask)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Map queries, keys and values [windows, area, k] of all images to the output [windows, area, C]."""
        windows, area, _ = q.shape
        q, k, v = (self.split_heads(t) for t in (q, k, v))
        bias = self._get_rel_pos_bias()
        if self.fused_attn:
            if mask is not None:
                shape = (windows // len(mask), -1, self.num_heads, -1, -1)
                bias = bias + mask[None, :, None].expand(shape).reshape(-1, self.num_heads, area, area)
            found = scaled_attention(self, q, k, v, bias)
        else:
            scores = (q * self.scale) @ k.transpose(-2, -1) + bias
            if mask is not None:
                by_image = scores.view(-1, len(mask), self.num_heads, area, area) + mask[None, :, None]
                scores = by_image.view(-1, self.num_heads, area, area)
            found = self.attn_drop(self.softmax(scores)) @ v
        return self.proj_drop(self.proj(merge_heads(found)))


class DenseWindowAttention(DenseMixin, NarrowWindowAttention):
    """timm's window attention with a sum of earlier values added to its own before it attends."""

    plain = WindowAttention
    head_pruned = NarrowWindowAttention

    def forward(  # type: ignore[override]
        self, x: Tensor, mask: Tensor | None = None, mixed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend within windows.

        Args:
            x: Windows [B * windows, area, C].
            mask: Bias per window [windows, area, area], which shifted windows need.
            mixed: Earlier values to add to the own ones [B * windows, area, k].

        Returns:
            The output [B * windows, area, C], and the own unmixed values [B * windows, area, k].
        """
        q, k, own = self.project(x)
        return self.attend(q, k, own if mixed is None else own + mixed, mask), own


class DenseSwinBlock(SwinTransformerBlock):
    """timm's Swin block around a `DenseWindowAttention`."""

    plain = SwinTransformerBlock

    def forward(self, x: Tensor, carried: Carried = NOTHING) -> tuple[Tensor, Carried]:  # type: ignore[override]
        """Map the stream [B, H, W, C] to the stream after the block and what later blocks need."""
        shape = x.shape
        found = self._attn(self.norm1(x), carried.values)
        x = (x + self.drop_path1(found.output)).reshape(shape[0], -1, shape[-1])
        return (x + self.drop_path2(self.mlp(self.norm2(x)))).reshape(shape), carried.adding(found.values)

    def _attn(self, x: Tensor, earlier: Values = ()) -> Attended:
        """The attention branch [B, H, W, C] of the normed stream, and its own values."""
        attn: Any = self.attn
        size = x.shape[1:3]
        mask: Any = self.attn_mask
        if getattr(self, "dynamic_mask", False):
            mask = self.get_attn_mask(x.new_empty(1, *padded_size(self, size), 1))
        branch, own = attn(image_to_windows(self, x), mask, self._mixed(attn, earlier))
        values = windows_to_image(self, own, size).contiguous() if attn.feeds else None
        return Attended(windows_to_image(self, branch, size), values)

    def _mixed(self, attn: Any, earlier: Values) -> Tensor | None:
        """The weighted sum of earlier values in this block's windows; 0 in the padding."""
        if attn.mix is None:
            return None
        needed, d = attn.needed(earlier), attn.head_dim
        zeros = torch.zeros_like(needed[0][..., :1]).expand(*needed[0].shape[:-1], attn.num_heads * d)
        return image_to_windows(self, mix_values(zeros, needed, attn.pairs, attn.mix, attn.per_head, d))


def named_blocks(model: TimmModule) -> list[tuple[str, int, TimmModule]]:
    """Return name, stage and block in forward order."""
    return [
        (f"layers.{i}.blocks.{j}", i, block)
        for i, stage in enumerate(model.layers)
        for j, block in enumerate(stage.blocks.children())
    ]


def _check(model: TimmModule) -> str | None:
    each = (fits_block(b, name, (SwinTransformerBlock,), (WindowAttention,)) for name, _, b in named_blocks(model))
    return next((reason for reason in each if reason), None)


def _head_parts(attn: TimmModule, head_dim: int) -> HeadParts:
    counts = {"num_heads": 1, "attn_dim": head_dim} if hasattr(attn, "attn_dim") else {"num_heads": 1}
    table = Slice("relative_position_bias_table", dim=1)
    return HeadParts(projections(attn, head_dim), (table,), counts, narrow_qk=NarrowWindowAttention)


def windowed_blocks(
    model: TimmModule, head_parts_of: Callable[[TimmModule, int], HeadParts], post_norm: bool = False
) -> list[AttentionBlock]:
    """Return the blocks of a model that attends in windows.

    Args:
        model: A Swin of either version.
        head_parts_of: Maps an attention and its head_dim to the parameters that belong to the heads.
        post_norm: Whether the norms stand behind the branches.
    """
    return [
        AttentionBlock(
            name=name,
            stage=stage,
            block=block,
            attn=block.attn,
            tokens=_padded_tokens(block),
            window=block.window_area,
            mlp_tokens=prod(block.input_resolution),
            head_parts_of=head_parts_of,
            to_stream=partial(windows_to_image, block),
            post_norm=post_norm,
            whole_tokens="its windows need every token",
        )
        for name, stage, block in named_blocks(model)
    ]


def _padded_tokens(block: TimmModule) -> int:
    """Tokens of one image in all windows of a block, padding included, which qkv and proj see too."""
    height, width = padded_size(block, block.input_resolution)
    return height * width


def windowed_steps(model: TimmModule, post_norm: bool = False) -> list[Branch | Step]:
    """Return the forward pass of a model that attends in windows, stage by stage."""
    steps: list[Branch | Step] = [Step("embed", model.patch_embed)]
    for i, stage in enumerate(model.layers):
        steps.append(Step(f"layers.{i}.downsample", stage.downsample))
        for j, block in enumerate(stage.blocks.children()):
            to_stream = partial(windows_to_image, block)
            name = f"layers.{i}.blocks.{j}"
            steps += block_branches(name, block, block._attn, to_stream, post_norm=post_norm)
    return steps


def window_arguments(model: TimmModule) -> dict[str, Any]:
    """Return the window sizes as arguments of timm's constructor, since `set_input_size` may have changed them.

    They are one size for all stages where timm's shrinking of windows to smaller stages gives the same sizes.
    """
    blocks = [stage.blocks[0] for stage in model.layers]
    sizes = [b.window_size for b in blocks]
    largest = tuple(max(sides) for sides in zip(*sizes, strict=True))
    shrunk = [tuple(map(min, largest, b.input_resolution)) for b in blocks]
    one = largest if blocks[0].always_partition or shrunk == sizes else None
    window = ([*one] if one[0] != one[1] else one[0]) if one else [list(s) for s in sizes]
    return {"window_size": window} | ({"always_partition": True} if blocks[0].always_partition else {})


def windowed_macs(
    model: TimmModule, image_size: ImageSize, attention: Callable[[Any, int, int], int] = attention_macs
) -> int | None:
    """Count the MACs of a model that attends in windows, norms left out.

    The attention sees the padding of the windows; the MLP does not.

    Args:
        model: A Swin of either version.
        image_size: Channels, height and width of one image.
        attention: Maps an attention, its tokens and the tokens of a window to MACs.
    """
    stem = stem_of(model)
    if stem is None:
        return None
    h, w = (-(-side // stride) for side, stride in zip(image_size[1:], stem.stride, strict=True))
    count = h * w * stem.weight.numel()
    for stage in model.layers:
        if not isinstance(stage.downsample, nn.Identity):
            h, w = (h + 1) // 2, (w + 1) // 2
            count += linear_macs(stage.downsample, h * w)
        for block in stage.blocks:
            tokens = prod(padded_size(block, (h, w)))
            count += attention(block.attn, tokens, prod(block.window_size)) + linear_macs(block.mlp, h * w)
    return count + linear_macs(model.head, h * w if model.global_pool == "" else 1)


def _timm_arguments(blocks: Sequence[BlockWidth]) -> dict[str, Any]:
    """timm's SwinTransformer takes heads, their width and the MLP ratio by stage."""
    first = [next(b for b in blocks if b.stage == stage) for stage in sorted({b.stage for b in blocks})]
    arguments: dict[str, Any] = {}
    if any(b.heads < b.original_heads for b in blocks):
        arguments |= {"num_heads": [b.heads for b in first], "head_dim": [b.head_dim for b in first]}
    if first[0].mlp_ratio is not None:
        arguments |= {"mlp_ratio": [b.mlp_ratio for b in first]}
    return arguments


SWIN = Family(
    name="swin",
    owns=lambda model: isinstance(model, SwinTransformer),
    timm_modules=("swin_transformer",),
    supported="timm SwinTransformers (swin_*, windows of any size, padded and dynamic inputs included)",
    check=_check,
    attention_blocks=partial(windowed_blocks, head_parts_of=_head_parts),
    steps=windowed_steps,
    arguments=window_arguments,
    linked={WindowAttention: DenseWindowAttention, SwinTransformerBlock: DenseSwinBlock},
    closed_form=windowed_macs,
    timm_arguments=_timm_arguments,
)
