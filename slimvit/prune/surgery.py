"""Surgery: cuts a copy of a model to a plan. The result is an ordinary timm model with narrower layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from slimvit.models.base import AttentionBlock, TimmModule
from slimvit.models.block_plan import BlockPlan
from slimvit.models.insert_dense import can_mix, dense_mix, insert_dense_attention, mixes_of, remove_dense_attention
from slimvit.models.insert_merging import insert_merging, remove_merging
from slimvit.models.parts.registry import PARTS
from slimvit.models.parts.tokens import TOKENS
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import attention_blocks, plan_of


def prune_model(model: nn.Module, plan: SlimPlan) -> nn.Module:
    """Copy a model and remove the units that `plan` does not keep.

    Up to rounding, the result equals the model with the outputs of the removed units set to zero.

    Raises:
        PlanError: The plan is of another model, or keeps a unit that was removed earlier.
    """
    mix = dense_mix(model)
    if mix is not None:
        return _prune_dense(model, plan, mix)
    current = plan_of(model)
    plan = plan.on(current)
    slim: TimmModule = copy.deepcopy(model)
    remove_merging(slim)
    blocks = []
    for view, after, before in zip(attention_blocks(slim), plan.blocks, current.blocks, strict=True):
        _cut(view, {part: _gone(units.kept, after.of(part).kept) for part, units in before.units.items()})
        blocks.append(_as_cut(view, after))
    insert_merging(slim, [len(block.of(TOKENS.name).removed) for block in blocks])
    slim.slim_plan = SlimPlan(tuple(blocks), plan.model)
    return slim


def pruned_block(view: AttentionBlock, keep: Mapping[str, int]) -> TimmModule:
    """Copy a block without dense attention and keep only the first units of each part.

    Args:
        view: The block.
        keep: Number of units to keep, by part; other parts keep all.

    Returns:
        A block that shares its uncut branches with the original one.
    """
    counts = {name: part.count(view) for name, part in PARTS.items()}
    gone = {name: list(range(keep.get(name, n), n)) for name, n in counts.items()}
    changed = {id(PARTS[name].module(view)) for name, units in gone.items() if 0 < len(units) < counts[name]}
    shared = {id(branch): branch for branch in (view.attn, view.mlp) if id(branch) not in changed}
    block = copy.deepcopy(view.block, shared)
    _cut(replace(view, block=block, attn=block.attn), gone)
    return block


def _cut(view: AttentionBlock, gone: Mapping[str, Sequence[int]]) -> None:
    """Remove units in place, given their positions among the present ones."""
    for name, part in PARTS.items():
        view = replace(view, attn=view.block.attn)  # an earlier part may have replaced it
        positions, count = gone.get(name, ()), part.count(view)
        if not positions or not count:
            continue
        if len(positions) < count:
            part.remove(view, positions)
        else:
            part.remove_branch(view)


def _as_cut(view: AttentionBlock, plan: BlockPlan) -> BlockPlan:
    """The plan of a block after the cut. A removed branch loses the units of all of its parts."""
    view = replace(view, attn=view.block.attn)
    empty = [name for name, units in plan.units.items() if units.kept and not PARTS[name].count(view)]
    return plan.keeping({name: () for name in empty})


def _gone(before: tuple[int, ...], after: tuple[int, ...]) -> list[int]:
    """Positions of the ids in `before` that are missing in `after`."""
    kept = set(after)
    return [position for position, i in enumerate(before) if i not in kept]


def _prune_dense(model: nn.Module, plan: SlimPlan, mix: str) -> nn.Module:
    """Prune a model with dense attention. Block pairs with a common head keep their mixes."""
    slim = prune_model(remove_dense_attention(model), plan)
    if not can_mix(plan):
        return slim
    return insert_dense_attention(slim, mix, mixes=mixes_of(model))
