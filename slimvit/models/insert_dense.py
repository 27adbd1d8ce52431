"""Insert dense attention into a model, and remove it: model in, new model out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from slimvit.config.choices import DENSE_INITS, DENSE_MIXES
from slimvit.models.base import AttentionBlock, TimmModule
from slimvit.models.dense.layers import DenseMixin
from slimvit.models.dense.mixing import Pair, mix_size, pairs_of
from slimvit.models.linking import link_block, no_mixes, unlink_blocks
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import attention_blocks, family_of, model_name, plan_of
from slimvit.utils.errors import ModelError

NOTHING_TO_MIX = "dense attention has nothing to mix: no two blocks of a stage share a head"

Mixes: TypeAlias = Mapping[tuple[str, str, int], float]
"""(block, earlier block, original head id) -> weight of the earlier block's values."""


@dataclass(frozen=True)
class _Slot:
    """A block, and the earlier blocks whose values it mixes in."""

    view: AttentionBlock
    pairs: tuple[Pair, ...]
    feeds: bool
    """Whether a later block needs its values."""
    names: tuple[str, ...]
    """Names of the blocks of the stage."""


def insert_dense_attention(
    model: nn.Module, mix: str = "layer", init: str = "zero", *, seed: int = 0, mixes: Mixes | None = None
) -> nn.Module:
    """Copy a model and let every attention block also attend to the values of the earlier blocks of its stage.

    Values are mixed between heads of the same original id, so two blocks that share no head have no weight. The
    method is that of Li, Chen, Zhao: Dense Attention, IJCNN 2023.

    Args:
        model: A supported model without dense attention.
        mix: `layer` for one learnable weight per pair of blocks, as in the paper; `head` for one per pair and head.
        init: `zero` leaves the function of the model unchanged, bit for bit; `normal` draws from N(0, 1), as the paper
            does to train from scratch.
        seed: Seed of `normal`.
        mixes: Weights to insert, in place of `init`.

    Returns:
        A new model.

    Raises:
        ModelError: The family has no dense attention, the model has it already, or no two blocks share a head.
    """
    for name, value, known in (("mix", mix, DENSE_MIXES), ("init", init, DENSE_INITS)):
        if value not in known:
            raise ModelError(f"dense {name} {value!r} is not known; choose from {', '.join(known)}")
    check_takes_dense(model)
    if dense_mix(model) is not None:
        raise ModelError(f"the model has dense attention already (mix {dense_mix(model)})")
    dense: TimmModule = copy.deepcopy(model)
    slots = _slots(dense)
    if not any(slot.pairs for slot in slots):
        raise ModelError(NOTHING_TO_MIX)
    generator = torch.Generator().manual_seed(seed)
    for slot in slots:
        if slot.pairs or slot.feeds:
            weights = _weights(slot, mix == "head", init, generator, mixes)
            _let_mix(link_block(dense, slot.view).attn, slot, mix == "head", weights)
    return dense


def check_takes_dense(model: nn.Module) -> None:
    """Raise `ModelError` for a model that is not supported, or not with dense attention."""
    reason = family_of(model).why_no_dense(model)
    if reason is not None:
        raise ModelError(f"{model_name(model)} takes no dense attention: {reason}; leave dense out")


def remove_dense_attention(model: nn.Module) -> nn.Module:
    """Copy a model without the contribution of earlier values; timm's own blocks are put back where they can be."""
    plain: TimmModule = copy.deepcopy(model)
    for view in attention_blocks(plain):
        if isinstance(view.attn, DenseMixin):
            no_mixes(view.attn)
    unlink_blocks(plain)
    return plain


def can_mix(plan: SlimPlan) -> bool:
    """Return whether any two blocks of a stage share a head."""
    stages = [[b.kept_heads for b in plan.blocks if b.stage == stage] for stage in {b.stage for b in plan.blocks}]
    return any(pairs for kept in stages for pairs in pairs_of(kept))


def dense_mix(model: nn.Module) -> str | None:
    """Return `layer` or `head`; None for a model without dense attention."""
    kinds = {m.per_head for m in model.modules() if isinstance(m, DenseMixin) and (m.pairs or m.feeds)}
    return None if not kinds else "head" if kinds.pop() else "layer"


def mixes_in(model: nn.Module) -> int:
    """Count the learnable weights of earlier values."""
    return sum(m.mix.numel() for m in model.modules() if isinstance(m, DenseMixin) and m.mix is not None)


def mixes_of(model: nn.Module) -> dict[tuple[str, str, int], float]:
    """Return all weights of earlier values; with `layer` the heads of a pair have the same one."""
    mixes = {}
    for slot in _slots(model):
        attn = slot.view.attn
        if not isinstance(attn, DenseMixin) or attn.mix is None:
            continue
        weights = iter(attn.mix.detach().tolist())
        for pair in attn.pairs:
            values = [next(weights)] * len(pair.heads) if not attn.per_head else [next(weights) for _ in pair.heads]
            for head, value in zip(pair.heads, values, strict=True):
                mixes[slot.view.name, slot.names[pair.earlier], head] = value
    return mixes


def _slots(model: nn.Module) -> list[_Slot]:
    """Every block with its pairs, stage by stage."""
    plan, views = plan_of(model), attention_blocks(model)
    slots = []
    for stage in sorted({v.stage for v in views}):
        members = [(v, b.kept_heads) for v, b in zip(views, plan.blocks, strict=True) if v.stage == stage]
        pairs = pairs_of([kept for _, kept in members])
        fed = {pair.earlier for block in pairs for pair in block}
        names = tuple(view.name for view, _ in members)
        slots += [_Slot(view, pairs[i], i in fed, names) for i, (view, _) in enumerate(members)]
    return slots


def _weights(
    slot: _Slot, per_head: bool, init: str, generator: torch.Generator, mixes: Mixes | None
) -> torch.Tensor | None:
    size = mix_size(slot.pairs, per_head)
    if size == 0:
        return None
    if mixes is not None:
        heads = [(p, p.heads if per_head else p.heads[:1]) for p in slot.pairs]
        values = [mixes[slot.view.name, slot.names[p.earlier], h] for p, ids in heads for h in ids]
        return torch.tensor(values, dtype=torch.float64)
    return torch.randn(size, generator=generator) if init == "normal" else torch.zeros(size)


def _let_mix(attn: Any, slot: _Slot, per_head: bool, weights: torch.Tensor | None) -> None:
    """Let a linked attention mix in the values of the pairs of its slot."""
    attn.pairs, attn.per_head, attn.feeds = slot.pairs, per_head, slot.feeds
    if weights is not None:
        like = attn.proj.weight
        attn.mix = nn.Parameter(weights.to(like), requires_grad=like.requires_grad)
