"""The layers of dense attention that families share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from slimvit.models.base import NOTHING, Attended, Carried
from slimvit.models.dense.mixing import Pair, mix_values
from slimvit.utils.errors import ModelError

Values = Sequence[Tensor | None]
"""The values [B, ..., k] of the blocks of a stage so far; None where no later block needs them."""


class DenseMixin:
    """Attributes that a dense attention has beside those of its family's attention."""

    mix: nn.Parameter | None
    """The weights of the earlier values: one per pair, or one per pair and head. None where it mixes nothing."""
    pairs: tuple[Pair, ...]
    """The earlier blocks whose values it mixes into its own."""
    per_head: bool
    """Whether every head has weights of its own."""
    feeds: bool
    """Whether a later block needs the values of this one."""

    def needed(self, earlier: Values) -> list[Tensor]:
        """Return the values [B, ..., k_i] of the block of each pair.

        Raises:
            ModelError: The values of a block are missing, because the blocks were not called in order.
        """
        needed = []
        for pair in self.pairs:
            values = earlier[pair.earlier] if pair.earlier < len(earlier) else None
            if values is None:
                raise ModelError(
                    f"a dense attention block needs the values of block {pair.earlier} of its stage and got none; "
                    "call the whole model, or the stage's blocks in order"
                )
            needed.append(values)
        return needed

    def mixed(self, own: Tensor, earlier: Values) -> Tensor:
        """Add the weighted values of earlier blocks to the own values [B, N, k]."""
        if self.mix is None:
            return own
        attn: Any = self
        return mix_values(
            own, self.needed(earlier), self.pairs, self.mix, self.per_head, own.shape[-1] // attn.num_heads
        )

    def handed_on(self, own: Tensor) -> Tensor | None:
        """Return the own values [B, N, k] to keep until the stage ends; None where no later block needs them.

        A copy without gradients lets q and k be freed.
        """
        if not self.feeds:
            return None
        return own if own.requires_grad else own.contiguous()


class DenseForward(DenseMixin):
    """Forward pass of a dense attention with the methods of `HeadPruned`: project, mix the values, attend."""

    head_pruned: type[Any]
    """The class without dense attention where heads are gone."""

    def forward(self, x: Tensor, *args: Any, earlier: Values = (), **kwargs: Any) -> Attended:
        """Map tokens [B, N, C] to the output [B, N, C] and the block's own unmixed values [B, N, k]."""
        attn: Any = self
        q, k, own = attn.project(x)
        return Attended(attn.attend(x, q, k, self.mixed(own, earlier), *args, **kwargs), self.handed_on(own))


class DenseGammaBlock:
    """Forward pass of a dense pre-norm block whose LayerScale is a parameter of the block."""

    def forward(self, x: Tensor, *args: Any, carried: Carried = NOTHING, **kwargs: Any) -> tuple[Tensor, Carried]:
        """Map the stream [B, N, C] to the stream after the block [B, N, C] and what later blocks need."""
        block: Any = self
        found = Attended.of(block.attn(block.norm1(x), *args, earlier=carried.values, **kwargs))
        x = x + block.drop_path1(_scaled(block.gamma_1, found.output))
        return x + block.drop_path2(_scaled(block.gamma_2, block.mlp(block.norm2(x)))), carried.adding(found.values)


def _scaled(gamma: Tensor | None, branch: Tensor) -> Tensor:
    return branch if gamma is None else gamma * branch
