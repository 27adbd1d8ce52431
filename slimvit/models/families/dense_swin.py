"""Dense attention in timm's Swin blocks. Values meet in the layout of the image, where every token has one place."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import Tensor
from torch.nn import functional as F

from slimvit.models.dense.layers import MixesValues, Values
from slimvit.models.dense.mixing import mix_values
from slimvit.models.families.swin import image_to_windows, padded_size, windows_to_image


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
