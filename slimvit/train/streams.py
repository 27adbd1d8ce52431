"""The residual stream after every block: what a network hands from block to block, of the same width however many heads
were cut."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from slimvit.models.registry import attention_blocks, model_name
from slimvit.utils.errors import ModelError


def run_with_streams(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the model gives for images [B, C, H, W], and its stream [B, ..., C] after every block, in order."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)  # a dense block gives its values too

    with ExitStack() as stack:
        for view in attention_blocks(model):
            stack.callback(view.block.register_forward_hook(look).remove)
        return model(images), seen


@torch.no_grad()
def check_same_streams(student: nn.Module, teacher: nn.Module, image: Tensor, seen_by_teacher: Tensor) -> None:
    """Raise :class:`ModelError` unless both have as many blocks, with streams of the same shapes.

    ``image`` [1, C, H, W] is of the student's input size, ``seen_by_teacher`` the same one as the teacher wants it.
    """
    mine, theirs = run_with_streams(student, image)[1], run_with_streams(teacher, seen_by_teacher)[1]
    if [s.shape for s in mine] != [t.shape for t in theirs]:
        raise ModelError(
            f"distill_kind features: {model_name(teacher)} has {_described(theirs)}, but {model_name(student)} has "
            f"{_described(mine)}; name a teacher with the same blocks, or use soft or hard"
        )


def _described(streams: list[Tensor]) -> str:
    return f"{len(streams)} blocks ending in a stream of {' x '.join(map(str, streams[-1].shape[1:]))}"
