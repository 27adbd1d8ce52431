"""Cutting: a plan carried out on a copy of the model. What comes out is an ordinary timm model, only narrower."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from slimvit.models.base import AttentionBlock, TimmModule
from slimvit.models.block_plan import BlockPlan
from slimvit.models.insert_dense import can_mix, dense_mix, insert_dense_attention, mixes_of, remove_dense_attention
from slimvit.models.parts.registry import PARTS
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import attention_blocks, plan_of


def prune_model(model: nn.Module, plan: SlimPlan) -> nn.Module:
    """A copy of `model` that keeps the units of `plan`; `model` itself stays as it is.

    The result equals the model whose removed heads and neurons output zero, to rounding.

    Raises:
        PlanError: The plan is for another model, or keeps what is gone.
    """
    mix = dense_mix(model)
    if mix is not None:
        return _prune_dense(model, plan, mix)
    current = plan_of(model)
    plan = plan.on(current)
    slim: TimmModule = copy.deepcopy(model)
    blocks = []
    for view, wanted, now in zip(attention_blocks(slim), plan.blocks, current.blocks, strict=True):
        _cut(view, {part: _gone(units.kept, wanted.of(part).kept) for part, units in now.units.items()})
        blocks.append(_as_cut(view, wanted))
    slim.slim_plan = SlimPlan(tuple(blocks), plan.model)
    return slim


def pruned_block(view: AttentionBlock, keep: Mapping[str, int]) -> TimmModule:
    """A copy of a plain block that keeps the first so many units of each part, all of one that is not named; layers
    that stay whole are the block's own."""
    whole = {name: part.count(view) for name, part in PARTS.items()}
    gone = {name: list(range(keep.get(name, n), n)) for name, n in whole.items()}
    changed = {id(PARTS[name].module(view)) for name, units in gone.items() if 0 < len(units) < whole[name]}
    own = {id(branch): branch for branch in (view.attn, view.mlp) if id(branch) not in changed}
    block = copy.deepcopy(view.block, own)
    _cut(replace(view, block=block, attn=block.attn), gone)
    return block


def _cut(view: AttentionBlock, gone: Mapping[str, Sequence[int]]) -> None:
    """Remove units, by their position among those still there, in place."""
    for name, part in PARTS.items():
        view = replace(view, attn=view.block.attn)  # the part before may have put another module there
        positions, there = gone.get(name, ()), part.count(view)
        if not positions or not there:
            continue
        if len(positions) < there:
            part.remove(view, positions)
        else:
            part.remove_branch(view)


def _as_cut(view: AttentionBlock, plan: BlockPlan) -> BlockPlan:
    """The plan of a block after the cut: with a branch goes whatever was cut inside it."""
    view = replace(view, attn=view.block.attn)
    empty = [name for name, units in plan.units.items() if units.kept and not PARTS[name].count(view)]
    return plan.keeping({name: () for name in empty})


def _gone(now: tuple[int, ...], wanted: tuple[int, ...]) -> list[int]:
    """Positions, among what is there `now`, of what is not `wanted` any more."""
    keep = set(wanted)
    return [position for position, i in enumerate(now) if i not in keep]


def _prune_dense(model: nn.Module, plan: SlimPlan, mix: str) -> nn.Module:
    """The mixes of the pairs of blocks that still share a head stay as they were."""
    slim = prune_model(remove_dense_attention(model), plan)
    if not can_mix(plan):
        return slim
    return insert_dense_attention(slim, mix, mixes=mixes_of(model))
