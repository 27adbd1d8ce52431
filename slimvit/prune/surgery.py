"""Cutting: a plan carried out on a copy of the model. What comes out is an ordinary timm model, only narrower."""

from __future__ import annotations

import copy

from torch import nn

from slimvit.dense.insert import can_mix, dense_mix, insert_dense_attention, mixes_of, remove_dense_attention
from slimvit.models.family import AttentionBlock, TimmModule, attention_blocks, plan_of
from slimvit.models.no_attention import NoAttention, NoNorm
from slimvit.plan import SlimPlan
from slimvit.prune.torch_pruning import drop_inputs, drop_outputs


def prune_heads(model: nn.Module, plan: SlimPlan) -> nn.Module:
    """A copy of ``model`` that keeps the heads of ``plan``; ``model`` itself stays as it is.

    The result equals the model whose removed heads output zero, to rounding. Raises
    :class:`~slimvit.errors.PlanError` when the plan is for another model or keeps heads that are gone.
    """
    mix = dense_mix(model)
    if mix is not None:
        return _prune_dense(model, plan, mix)
    current = plan_of(model)
    plan.check_against(current)
    slim: TimmModule = copy.deepcopy(model)
    for view, wanted, now in zip(attention_blocks(slim), plan.blocks, current.blocks, strict=True):
        positions = [i for i, head in enumerate(now.kept_heads) if head not in wanted.kept_heads]
        if not positions:
            continue
        if not wanted.kept_heads:
            _remove_attention(view)
        else:
            _remove_heads(view, positions)
    slim.slim_plan = SlimPlan(plan.blocks, current.model)
    return slim


def _prune_dense(model: nn.Module, plan: SlimPlan, mix: str) -> nn.Module:
    """The mixes of the pairs of blocks that still share a head stay as they were."""
    slim = prune_heads(remove_dense_attention(model), plan)
    if not can_mix(plan):
        return slim
    return insert_dense_attention(slim, mix, mixes=mixes_of(model))


def _remove_heads(view: AttentionBlock, positions: list[int]) -> None:
    """Cut heads, by their position among those still there, out of ``qkv``, ``gate``, ``proj`` and Swin's bias table,
    in place."""
    attn, d = view.attn, view.head_dim
    width = attn.num_heads * d
    channels = [head * d + i for head in positions for i in range(d)]
    drop_outputs(attn.qkv, [part * width + c for part in range(3) for c in channels])
    if getattr(attn, "gate", None) is not None:
        drop_outputs(attn.gate, channels)
    drop_inputs(attn.proj, channels)
    if hasattr(attn, "relative_position_bias_table"):
        _drop_columns(attn, "relative_position_bias_table", positions)
    attn.num_heads -= len(positions)
    if hasattr(attn, "attn_dim"):  # WindowAttention has none
        attn.attn_dim = attn.num_heads * d


def _drop_columns(attn: TimmModule, name: str, positions: list[int]) -> None:
    table: nn.Parameter = getattr(attn, name)
    kept = [i for i in range(table.shape[1]) if i not in positions]
    setattr(attn, name, nn.Parameter(table.detach()[:, kept].contiguous(), requires_grad=table.requires_grad))


def _remove_attention(view: AttentionBlock) -> None:
    """A block without heads: its branch is a constant, so norm1 goes too."""
    block = view.block
    block.attn = NoAttention(view.head_dim, block.attn.proj).train(block.training)
    block.norm1 = NoNorm(block.norm1)
