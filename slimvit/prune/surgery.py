"""Cutting: a plan carried out on a copy of the model. What comes out is an ordinary timm model, only narrower."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from slimvit.models.base import AttentionBlock, TimmModule
from slimvit.models.empty import EmptyAttention, EmptyMlp, EmptyNorm
from slimvit.models.insert_dense import can_mix, dense_mix, insert_dense_attention, mixes_of, remove_dense_attention
from slimvit.models.mlp import hidden_neurons, input_layers
from slimvit.models.plan import SlimPlan
from slimvit.models.reduced import as_head_pruned
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.torch_pruning import drop_inputs, drop_outputs


def prune_model(model: nn.Module, plan: SlimPlan) -> nn.Module:
    """A copy of ``model`` that keeps the heads and neurons of ``plan``; ``model`` itself stays as it is.

    The result equals the model whose removed heads and neurons output zero, to rounding. Raises
    :class:`~slimvit.utils.errors.PlanError` when the plan is for another model or keeps what is gone.
    """
    mix = dense_mix(model)
    if mix is not None:
        return _prune_dense(model, plan, mix)
    current = plan_of(model)
    plan = plan.on(current)
    slim: TimmModule = copy.deepcopy(model)
    for view, wanted, now in zip(attention_blocks(slim), plan.blocks, current.blocks, strict=True):
        _cut(view, _gone(now.kept_heads, wanted.kept_heads), _gone(now.kept_neurons, wanted.kept_neurons))
    slim.slim_plan = plan
    return slim


def pruned_block(view: AttentionBlock, heads: int, neurons: int) -> TimmModule:
    """A copy of a plain block that keeps its first ``heads`` heads and ``neurons`` neurons; layers that stay whole are
    the block's own."""
    parts = ((view.attn, heads, view.attn.num_heads), (view.mlp, neurons, hidden_neurons(view.mlp)))
    own = {id(part): part for part, kept, whole in parts if not 0 < kept < whole}
    block = copy.deepcopy(view.block, own)
    _cut(replace(view, block=block, attn=block.attn), *(list(range(kept, whole)) for _, kept, whole in parts))
    return block


def _cut(view: AttentionBlock, heads: list[int], neurons: list[int]) -> None:
    """Remove heads and neurons, by their position among those still there, in place."""
    if heads:
        if len(heads) < view.attn.num_heads:
            _remove_heads(view, heads)
        else:
            _remove_attention(view)
    if neurons:
        if len(neurons) < hidden_neurons(view.mlp):
            _remove_neurons(view.mlp, neurons)
        else:
            _remove_mlp(view)


def _gone(now: tuple[int, ...], wanted: tuple[int, ...]) -> list[int]:
    """Positions, among what is there ``now``, of what is not ``wanted`` any more."""
    keep = set(wanted)
    return [position for position, i in enumerate(now) if i not in keep]


def _prune_dense(model: nn.Module, plan: SlimPlan, mix: str) -> nn.Module:
    """The mixes of the pairs of blocks that still share a head stay as they were."""
    slim = prune_model(remove_dense_attention(model), plan)
    if not can_mix(plan):
        return slim
    return insert_dense_attention(slim, mix, mixes=mixes_of(model))


def _remove_heads(view: AttentionBlock, positions: list[int]) -> None:
    """Cut heads, by their position among those still there, out of ``proj`` and all that the family names, in place."""
    attn, d, parts = view.attn, view.head_dim, view.head_parts
    left = attn.num_heads - len(positions)
    if parts.narrow is not None:
        attn = view.block.attn = as_head_pruned(attn, parts.narrow)
        _drop_entries(attn, "head_ids", 0, positions)
    for rows in parts.rows:
        drop_outputs(rows.layer, rows.of(positions))
    for part in parts.slices:
        _drop_entries(attn, part.name, part.dim, [h * part.width + i for h in positions for i in range(part.width)])
    drop_inputs(attn.proj, [h * d + i for h in positions for i in range(d)])
    for name, size in parts.counts.items():
        setattr(attn, name, left * size)


def _drop_entries(attn: TimmModule, name: str, dim: int, gone: list[int]) -> None:
    """Take ``gone`` out of a parameter or buffer along ``dim``."""
    tensor: torch.Tensor = getattr(attn, name)
    kept = sorted({*range(tensor.shape[dim])} - {*gone})
    cut = tensor.detach().index_select(dim, torch.tensor(kept, device=tensor.device))
    if isinstance(tensor, nn.Parameter):
        setattr(attn, name, nn.Parameter(cut, requires_grad=tensor.requires_grad))
    else:
        attn._buffers[name] = cut


def _remove_attention(view: AttentionBlock) -> None:
    """A block without heads: its branch is a constant, so norm1 goes too."""
    block = view.block
    block.attn = EmptyAttention(view.head_dim, block.attn.proj).train(block.training)
    block.norm1 = _no_norm(view, block.norm1, block.attn.proj)


def _no_norm(view: AttentionBlock, norm: nn.Module, constant: nn.Linear) -> EmptyNorm:
    """In place of a constant branch's norm; one behind the branch leaves its work done in the ``constant``."""
    if view.post_norm:
        with torch.no_grad():
            constant.bias.copy_(norm(constant.bias))
    return EmptyNorm(norm)


def _remove_neurons(mlp: TimmModule, positions: list[int]) -> None:
    """Cut hidden neurons out of ``fc1`` (or what feeds a GLU) and ``fc2``, in place."""
    width = mlp.fc2.in_features
    for layer, copies in input_layers(mlp):
        drop_outputs(layer, [part * width + i for part in range(copies) for i in positions])
    drop_inputs(mlp.fc2, positions)


def _remove_mlp(view: AttentionBlock) -> None:
    """A block without neurons: its branch is a constant, so norm2 goes too."""
    block = view.block
    block.mlp = EmptyMlp(block.mlp.fc2).train(block.training)
    block.norm2 = _no_norm(view, block.norm2, block.mlp.fc2)
