"""The layers of dense attention that families share, and the container that carries values from block to block."""

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
"""The values [B, ..., k] of the blocks of a stage so far; None where no later block needs them."""


class DenseBlocks(nn.ModuleList):
    """The blocks of one stage, some of them dense. Call it, or loop over it from the first block to the last.

    timm loops (`for block in blocks: x = block(x)`) in `forward_intermediates`, with attention masks, and in gradient
    checkpointing. The blocks of one loop share their values. `blocks[i]` is the bare module.
    """

    container: type[nn.Module] = nn.Sequential
    """The class of timm's own container."""

    def forward(self, x: Tensor) -> Tensor:
        """Map the stream [B, ..., C] to the stream after all blocks [B, ..., C]."""
        values: list[Tensor | None] = []
        for block in self._modules.values():
            x, value = _run(block, x, values)
            values.append(value)
        return x

    def __iter__(self) -> Iterator[Any]:
        """Start a loop over the blocks, with values of its own."""
        values: list[Tensor | None] = [None] * len(self)
        return iter([_BlockInLoop(block, i, values) for i, block in enumerate(self._modules.values())])


class _BlockInLoop:
    """A block in one loop. Called with the stream alone, it reads and stores values in the list of its loop."""

    def __init__(self, block: Any, position: int, values: list[Tensor | None]) -> None:
        self.__dict__.update(_block=block, _position=position, _values=values)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # this is a reentrant checkpoint, in which values would lose their gradients
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


def keep_values(values: Tensor) -> Tensor:
    """Return values [B, N, k] to keep until the stage ends; a copy without gradients lets q and k be freed."""
    return values if values.requires_grad else values.contiguous()


class DenseForward(DenseMixin):
    """Forward pass of a dense attention with the methods of `HeadPruned`: project, mix the values, attend."""

    head_pruned: type[Any]
    """The class without dense attention where heads are gone."""

    def forward(self, x: Tensor, *args: Any, earlier: Values = (), **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Map tokens [B, N, C] to the output [B, N, C] and the block's own unmixed values [B, N, k].

        The values are None when no later block needs them.
        """
        attn: Any = self
        q, k, own = attn.project(x)
        v = own
        if self.mix is not None:
            head_dim = own.shape[-1] // attn.num_heads
            v = mix_values(own, self.needed(earlier), self.pairs, self.mix, self.per_head, head_dim)
        return attn.attend(x, q, k, v, *args, **kwargs), keep_values(own) if self.feeds else None


class DenseGammaBlock:
    """Forward pass of a dense pre-norm block whose LayerScale is a parameter of the block."""

    def forward(self, x: Tensor, *args: Any, earlier: Values = (), **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Map the stream [B, N, C] to the stream after the block [B, N, C] and the values for later blocks."""
        block: Any = self
        branch, values = block.attn(block.norm1(x), *args, earlier=earlier, **kwargs)
        x = x + block.drop_path1(_scaled(block.gamma_1, branch))
        return x + block.drop_path2(_scaled(block.gamma_2, block.mlp(block.norm2(x)))), values


def _scaled(gamma: Tensor | None, branch: Tensor) -> Tensor:
    return branch if gamma is None else gamma * branch
