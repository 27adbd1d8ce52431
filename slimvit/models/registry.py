"""Which family a model belongs to, and what follows from it: its blocks, its steps, its plan."""

from __future__ import annotations

from typing import Any

from torch import nn

from slimvit.models.base import AttentionBlock, Branch, Family, Step, TimmModule
from slimvit.models.mlp import hidden_neurons
from slimvit.models.plan import BlockPlan, SlimPlan
from slimvit.utils.errors import ModelError


def families() -> tuple[Family, ...]:
    from slimvit.models.families.beit import BEIT
    from slimvit.models.families.eva import EVA
    from slimvit.models.families.swin import SWIN
    from slimvit.models.families.swin_v2 import SWIN_V2
    from slimvit.models.families.vit import VIT

    return (VIT, SWIN, SWIN_V2, BEIT, EVA)


def model_name(model: TimmModule) -> str:
    """The timm name of a model, or its class name."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture") or type(model).__name__


def family_of(model: nn.Module) -> Family:
    """The adapter of a model; raises :class:`ModelError` for every model that is not understood."""
    found = family_or_reason(model)
    if isinstance(found, Family):
        return found
    supported = "; ".join(f.supported for f in families())
    raise ModelError(f"{model_name(model)}: {found}; supported: {supported}")


def family_or_reason(model: nn.Module) -> Family | str:
    """The adapter of a model, or why there is none."""
    for family in families():
        if family.owns(model):
            return family.check(model) or family
    return f"{type(model).__module__}.{type(model).__name__} is not a model slimvit can prune"


def arguments_of(model: nn.Module) -> dict[str, Any]:
    """See :class:`Family`; nothing for a model of no family."""
    return next((family.arguments(model) for family in families() if family.owns(model)), {})


def attention_blocks(model: nn.Module) -> list[AttentionBlock]:
    return family_of(model).attention_blocks(model)


def steps(model: nn.Module) -> list[Branch | Step]:
    return family_of(model).steps(model)


def plan_of(model: TimmModule) -> SlimPlan:
    """The heads and neurons a model keeps, by original id: all of them until it is pruned."""
    plan = getattr(model, "slim_plan", None)
    if plan is not None:
        return plan
    counts = [(b, b.attn.num_heads, hidden_neurons(b.mlp)) for b in attention_blocks(model)]
    full = tuple(BlockPlan(b.name, h, tuple(range(h)), b.stage, n, tuple(range(n))) for b, h, n in counts)
    return SlimPlan(full, model_name(model))


def is_uncut_form(other: TimmModule, model: TimmModule) -> bool:
    """Whether ``model`` may have come from ``other`` by cutting or inserting dense attention, weights aside."""
    try:
        mine, theirs = plan_of(model).blocks, plan_of(other).blocks
    except ModelError:  # of no family that slimvit cuts
        return False
    if (model_name(other), other.num_features, len(theirs)) != (model_name(model), model.num_features, len(mine)):
        return False
    return all(
        (t.heads, t.neurons) == (m.heads, m.neurons)
        and {*t.kept_heads} >= {*m.kept_heads}
        and {*t.kept_neurons} >= {*m.kept_neurons}
        for t, m in zip(theirs, mine, strict=True)
    )
