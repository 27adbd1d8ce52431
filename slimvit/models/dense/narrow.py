"""Dense attention on top of the attentions of :mod:`slimvit.models.reduced`, whatever their family."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from slimvit.models.dense.layers import MixesValues, Values, kept
from slimvit.models.dense.mixing import mix_values


class MixesBeforeAttending(MixesValues):
    """Mixes the values of earlier blocks into its own before they are attended to. ``narrow`` is its plain form where
    heads are gone."""

    narrow: type[Any]

    def forward(self, x: Tensor, *args: Any, earlier: Values = (), **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """[B, N, C] -> output [B, N, C] and own unmixed values [B, N, k] (None when no later block needs them)."""
        attn: Any = self
        q, k, own = attn.project(x)
        v = own
        if self.mix is not None:
            head_dim = own.shape[-1] // attn.num_heads
            v = mix_values(own, self.needed(earlier), self.pairs, self.mix, self.per_head, head_dim)
        return attn.attend(x, q, k, v, *args, **kwargs), kept(own) if self.feeds else None


class KeepsGamma:
    """A pre-norm block whose LayerScale is a parameter of its own, around such an attention."""

    def forward(self, x: Tensor, *args: Any, earlier: Values = (), **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """[B, N, C] -> the stream after the block [B, N, C], and the attention's own values for later blocks."""
        block: Any = self
        branch, values = block.attn(block.norm1(x), *args, earlier=earlier, **kwargs)
        x = x + block.drop_path1(_scaled(block.gamma_1, branch))
        return x + block.drop_path2(_scaled(block.gamma_2, block.mlp(block.norm2(x)))), values


def _scaled(gamma: Tensor | None, branch: Tensor) -> Tensor:
    return branch if gamma is None else gamma * branch
