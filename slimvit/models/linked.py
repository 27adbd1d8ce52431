"""The container of blocks that hand values and merged tokens to later ones of their stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import use_reentrant_ckpt
from torch import Tensor, nn

from slimvit.models.base import NOTHING, Carried, is_linked
from slimvit.models.tokens.merging import take, unmerge
from slimvit.utils.errors import ModelError


class LinkedBlocks(nn.ModuleList):
    """The blocks of one stage, some of them linked. Call it, or loop over it from the first block to the last.

    timm loops (`for block in blocks: x = block(x)`) in `forward_intermediates`, with attention masks, and in gradient
    checkpointing. The blocks of one loop share what they carry on. `blocks[i]` is the bare module.

    The result has a copy of every merged token in each of its original places. So the mean over tokens is weighted by
    size, and so is attention pooling.
    """

    container: type[nn.Module] = nn.Sequential
    """The class of timm's own container."""

    def forward(self, x: Tensor) -> Tensor:
        """Map the stream [B, ..., C] to the stream after all blocks [B, ..., C]."""
        carried = NOTHING
        for block in self._modules.values():
            x, carried = _run(block, x, carried)
        return _in_places(x, carried)

    def __iter__(self) -> Iterator[Any]:
        """Start a loop over the blocks, with values and tokens of its own."""
        carried = [NOTHING] * (len(self) + 1)
        return iter([_BlockInLoop(block, i, carried) for i, block in enumerate(self._modules.values())])


class _BlockInLoop:
    """A block in one loop. It maps streams of all original tokens; the list of the loop has what is carried on."""

    def __init__(self, block: Any, position: int, carried: list[Carried]) -> None:
        self.__dict__.update(_block=block, _position=position, _carried=carried)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # this is a reentrant checkpoint, in which values would lose their gradients
        if x.requires_grad and not torch.is_grad_enabled() and use_reentrant_ckpt():
            raise ModelError(
                "dense attention and token merging need non-reentrant checkpointing: unset TIMM_REENTRANT_CKPT"
            )
        before: Carried = self._carried[self._position]
        x = x if before.tokens is None else take(x, before.tokens.places)
        x, after = _run(self._block, x, before, *args, **kwargs)
        self._carried[self._position + 1] = after
        return _in_places(x, after)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._block, name, value)


def _run(block: Any, x: Tensor, carried: Carried, *args: Any, **kwargs: Any) -> tuple[Tensor, Carried]:
    if is_linked(block):
        return block(x, *args, carried=carried, **kwargs)
    return block(x, *args, **kwargs), carried.adding(None)


def _in_places(x: Tensor, carried: Carried) -> Tensor:
    return x if carried.tokens is None else unmerge(x, carried.tokens.sources)
