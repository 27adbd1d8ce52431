"""Dense attention in timm's VisionTransformer blocks."""

from __future__ import annotations

from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor

from slimvit.models.dense.layers import MixesValues, Values, kept
from slimvit.models.dense.mixing import mix_values
from slimvit.models.reduced import attended


class DenseAttention(MixesValues, Attention):
    """timm's attention, with the values of earlier blocks mixed into its own before they are attended to."""

    plain = Attention

    def forward(  # type: ignore[override]
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, earlier: Values = ()
    ) -> tuple[Tensor, Tensor | None]:
        """[B, N, C] -> output [B, N, C] and own unmixed values [B, N, k] (None when no later block needs them)."""
        b, n, _ = x.shape
        gate_layer = getattr(self, "gate", None)  # timm 1.0.23 has none
        gate = None if gate_layer is None else gate_layer(x).sigmoid()
        q, k, own = self.qkv(x).split(self.attn_dim, -1)
        v = own
        if self.mix is not None:
            v = mix_values(own, self.needed(earlier), self.pairs, self.mix, self.per_head, self.head_dim)
        q, k, v = (t.view(b, n, self.num_heads, self.head_dim).transpose(1, 2) for t in (q, k, v))
        x = attended(self, self.q_norm(q), self.k_norm(k), v, attn_mask, is_causal)
        x = self.norm(x.transpose(1, 2).reshape(b, n, self.attn_dim))
        if gate is not None:
            x = x * gate
        return self.proj_drop(self.proj(x)), kept(own) if self.feeds else None


class DenseBlock(Block):
    """timm's block around a :class:`DenseAttention`."""

    plain = Block

    def forward(  # type: ignore[override]
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, earlier: Values = ()
    ) -> tuple[Tensor, Tensor | None]:
        """[B, N, C] -> the stream after the block [B, N, C], and the attention's own values for later blocks."""
        branch, values = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal, earlier=earlier)
        x = x + self.drop_path1(self.ls1(branch))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), values
