"""timm's SwinTransformer: windowed attention, shifted in every second block, patch merging between stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F

from slimvit.models.base import AttentionBlock, Branch, Family, Step, TimmModule, block_branches, fits_block
from slimvit.models.dense.layers import MixesValues, Values
from slimvit.models.dense.mixing import mix_values
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


class DenseWindowAttention(MixesValues, WindowAttention):
    """timm's window attention, with a sum of earlier values added to its own before they are attended to."""

    plain = WindowAttention

    @property
    def head_dim(self) -> int:
        """Channels of one head; timm's own attention does not keep it."""
        return self.proj.in_features // self.num_heads

    def forward(  # type: ignore[override]
        self, x: Tensor, mask: Tensor | None = None, mixed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Windows [B * windows, area, C], ``mixed`` [B * windows, area, k] to add to the values -> output
        [B * windows, area, C] and own unmixed values [B * windows, area, k]."""
        windows, area, _ = x.shape
        q, k, own = self.qkv(x).chunk(3, -1)
        v = own if mixed is None else own + mixed
        q, k, v = (t.view(windows, area, self.num_heads, -1).transpose(1, 2) for t in (q, k, v))
        bias = self._get_rel_pos_bias()
        if self.fused_attn:
            if mask is not None:
                shape = (windows // len(mask), -1, self.num_heads, -1, -1)
                bias = bias + mask[None, :, None].expand(shape).reshape(-1, self.num_heads, area, area)
            dropout = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        else:
            scores = (q * self.scale) @ k.transpose(-2, -1) + bias
            if mask is not None:
                by_image = scores.view(-1, len(mask), self.num_heads, area, area) + mask[None, :, None]
                scores = by_image.view(-1, self.num_heads, area, area)
            x = self.attn_drop(self.softmax(scores)) @ v
        x = x.transpose(1, 2).reshape(windows, area, -1)
        return self.proj_drop(self.proj(x)), own


class DenseSwinBlock(SwinTransformerBlock):
    """timm's Swin block around a :class:`DenseWindowAttention`."""

    plain = SwinTransformerBlock

    def forward(self, x: Tensor, earlier: Values = ()) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """[B, H, W, C] -> the stream after the block [B, H, W, C], and own values [B, H, W, k] for later blocks."""
        shape = x.shape
        branch, values = self._attn(self.norm1(x), earlier)
        x = (x + self.drop_path1(branch)).reshape(shape[0], -1, shape[-1])
        return (x + self.drop_path2(self.mlp(self.norm2(x)))).reshape(shape), values

    def _attn(self, x: Tensor, earlier: Values = ()) -> tuple[Tensor, Tensor | None]:
        """The branch [B, H, W, C] of the normed stream, and its own values."""
        attn: Any = self.attn
        size = x.shape[1:3]
        mask: Any = self.attn_mask
        if getattr(self, "dynamic_mask", False):
            mask = self.get_attn_mask(x.new_empty(1, *padded_size(self, size), 1))
        branch, own = attn(image_to_windows(self, x), mask, self._mixed(attn, earlier))
        values = windows_to_image(self, own, size).contiguous() if attn.feeds else None
        return windows_to_image(self, branch, size), values

    def _mixed(self, attn: Any, earlier: Values) -> Tensor | None:
        """The weighted sum of earlier values in this block's windows; nothing is added where there is padding."""
        if attn.mix is None:
            return None
        needed, d = attn.needed(earlier), attn.head_dim
        nothing = torch.zeros_like(needed[0][..., :1]).expand(*needed[0].shape[:-1], attn.num_heads * d)
        return image_to_windows(self, mix_values(nothing, needed, attn.pairs, attn.mix, attn.per_head, d))
