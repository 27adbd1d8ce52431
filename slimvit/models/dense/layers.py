"""The container of a stage's blocks, through which the values of earlier blocks travel to later ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.layers import use_reentrant_ckpt
from torch import Tensor, nn

from slimvit.models.base import is_dense
from slimvit.models.dense.mixing import Pair, mix_values
from slimvit.utils.errors import ModelError

Values = Sequence[Tensor | None]
"""The values of the blocks of a stage so far, None where no later block needs them."""


class DenseBlocks(nn.ModuleList):
    """The blocks of one stage, some of them dense. To be called, or walked through, from the first to the last.

    Walking (``for block in blocks: x = block(x)``), as timm does in ``forward_intermediates``, with attention masks and
    in gradient checkpointing, gives blocks that share the values of this one walk; ``blocks[i]`` is the bare module.
    ``container`` is the class of timm's own, in whose place it stands.
    """

    container: type[nn.Module] = nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        """The stream after all blocks; [B, ..., C] -> [B, ..., C]."""
        values: list[Tensor | None] = []
        for block in self._modules.values():
            x, value = _run(block, x, values)
            values.append(value)
        return x

    def __iter__(self) -> Iterator[Any]:
        values: list[Tensor | None] = [None] * len(self)
        return iter([_Walked(block, i, values) for i, block in enumerate(self._modules.values())])


class _Walked:
    """A block in one walk: called with the stream alone, it finds and leaves values in the list of its walk."""

    def __init__(self, block: Any, position: int, values: list[Tensor | None]) -> None:
        self.__dict__.update(_block=block, _position=position, _values=values)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # what the forward pass looks like inside a reentrant checkpoint: values would lose their gradients
        if x.requires_grad and not torch.is_grad_enabled() and use_reentrant_ckpt():
            raise ModelError("dense attention needs non-reentrant checkpointing: unset TIMM_REENTRANT_CKPT")
        x, self._values[self._position] = _run(self._block, x, self._values[: self._position], *args, **kwargs)
        return x

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._block, name, value)


def _run(block: Any, x: Tensor, earlier: Values, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    if is_dense(block):
        return block(x, *args, earlier=earlier, **kwargs)
    return block(x, *args, **kwargs), None


class MixesValues:
    """What every dense attention has besides its family's attention."""

    mix: nn.Parameter | None
    pairs: tuple[Pair, ...]
    per_head: bool
    feeds: bool
    """Whether a later block needs this one's values."""

    def needed(self, earlier: Values) -> list[Tensor]:
        """The values of each pair's block; raises :class:`ModelError` when one is missing."""
        found = []
        for pair in self.pairs:
            values = earlier[pair.earlier] if pair.earlier < len(earlier) else None
            if values is None:
                raise ModelError(
                    f"a dense attention block needs the values of block {pair.earlier} of its stage and got none; "
                    "call the whole model, or the stage's blocks in order"
                )
            found.append(values)
        return found


def kept(values: Tensor) -> Tensor:
    """Values to keep until the stage ends: without gradients as a copy, so that queries and keys can be freed."""
    return values if values.requires_grad else values.contiguous()


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
