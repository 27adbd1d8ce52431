"""Insert token merging into a model, and remove it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from slimvit.models.linking import link_block, unlink_blocks
from slimvit.models.registry import attention_blocks, model_name
from slimvit.models.tokens.merging import most_merged
from slimvit.utils.errors import ModelError, PlanError


def merges_of(model: nn.Module) -> list[int]:
    """Return the number of tokens that each block merges."""
    return [view.merged for view in attention_blocks(model)]


def check_merges(model: nn.Module, merges: Sequence[int]) -> None:
    """Check that the blocks of a model can merge these numbers of tokens.

    Raises:
        ModelError: The model cannot merge tokens.
        PlanError: A block would merge more than half of the tokens that are left behind the prefix.
    """
    before = 0
    for view, r in zip(attention_blocks(model), merges, strict=True):
        if r and not view.mergeable:
            raise ModelError(f"{model_name(model)} takes no token merging: {view.whole_tokens}; cut other parts")
        if r > (most := most_merged(view.mergeable, before)):
            raise PlanError(
                f"{view.name}: the plan merges {r} tokens, but at most {most}, half of those that earlier blocks "
                "leave; lower merged_tokens of that block"
            )
        before += r


def insert_merging(model: nn.Module, merges: Sequence[int]) -> None:
    """Let the blocks of a model merge tokens, in place.

    Args:
        model: A supported model, with or without dense attention.
        merges: Number of tokens that each block merges; all 0 puts timm's own blocks back.

    Raises:
        ModelError: The model cannot merge tokens.
        PlanError: A block would merge more than half of the tokens that are left behind the prefix.
    """
    check_merges(model, merges)
    remove_merging(model)
    before = 0
    for view, r in zip(attention_blocks(model), merges, strict=True):
        before += r
        if before:
            block = link_block(model, view)
            block.merges, block.prefix = r, view.prefix


def remove_merging(model: nn.Module) -> None:
    """Let no block merge tokens any more, in place."""
    for view in attention_blocks(model):
        if view.merged:
            view.block.merges = 0
    unlink_blocks(model)
