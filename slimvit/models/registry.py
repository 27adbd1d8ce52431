"""The registry of families, and what depends on a model's family: its blocks, its steps, its plan."""

from __future__ import annotations

from typing import Any

from torch import nn

from slimvit.models.base import AttentionBlock, Branch, Family, ImageSize, Step, TimmModule
from slimvit.models.block_plan import BlockPlan, Units
from slimvit.models.families.beit import BEIT
from slimvit.models.families.eva import EVA
from slimvit.models.families.swin import SWIN
from slimvit.models.families.swin_v2 import SWIN_V2
from slimvit.models.families.vit import VIT
from slimvit.models.parts.registry import PARTS
from slimvit.models.parts.tokens import TOKENS
from slimvit.models.plan import SlimPlan
from slimvit.utils.errors import ModelError
from slimvit.utils.plugins import load_plugins

FAMILIES: list[Family] = [VIT, SWIN, SWIN_V2, BEIT, EVA]
"""Families in order; a model belongs to the first that owns it."""

INNER = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
}
"""Wrapper class -> the attribute that holds the model."""


def register_family(family: Family) -> Family:
    """Add a family before the others, in place of one of the same name.

    A model that subclasses timm's then belongs to the family that was registered for it.
    """
    FAMILIES[:] = [family, *(f for f in FAMILIES if f.name != family.name)]
    return family


def architecture_of(model: TimmModule) -> str:
    """Return the name under which timm builds the model, or its class name."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture") or type(model).__name__


def model_name(model: TimmModule) -> str:
    """Return the model's own name, such as that of an embedded model, or that of its architecture."""
    return getattr(model, "slim_name", None) or architecture_of(model)


def names_of(model: TimmModule) -> tuple[str, ...]:
    """Return the names of the model's classes, in the order of its outputs; empty where it has none."""
    names = tuple(getattr(model, "class_names", ()))
    return names if len(names) == getattr(model, "num_classes", 0) else ()


def check_unwrapped(model: object) -> None:
    """Raise `ModelError` for a compiled or parallel wrapper, and for anything but a module."""
    kind = type(model).__name__
    if kind in INNER and isinstance(model, nn.Module):
        raise ModelError(f"the model is wrapped in {kind}; pass the inner model: model.{INNER[kind]}")
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is of type {kind}; pass a timm model, from slimvit.create_model or slimvit.load")


def family_of(model: nn.Module) -> Family:
    """Return the family of a model.

    Raises:
        ModelError: The model is of no family, or its family does not support it.
    """
    check_unwrapped(model)
    family = family_or_reason(model)
    if isinstance(family, Family):
        return family
    supported = "; ".join(f.supported for f in FAMILIES)
    raise ModelError(f"{model_name(model)}: {family}; supported: {supported}")


def family_or_reason(model: nn.Module) -> Family | str:
    """Return the family that supports a model, or why there is none."""
    if _owner(model) is None:
        load_plugins()
    family = _owner(model)
    if family is None:
        return f"{type(model).__module__}.{type(model).__name__} is not a model slimvit can prune"
    return family.check(model) or family


def _owner(model: nn.Module) -> Family | None:
    return next((family for family in FAMILIES if family.owns(model)), None)


def arguments_of(model: nn.Module) -> dict[str, Any]:
    """Return `Family.arguments` of a model; nothing for a model of no family."""
    family = _owner(model)
    return {} if family is None else family.arguments(model)


def closed_form(model: nn.Module, image_size: ImageSize) -> int | None:
    """Return the MACs of one image [C, H, W], without norms, from shapes; None where its family has no formula."""
    family = _owner(model)
    return None if family is None else family.closed_form(model, image_size)


def attention_blocks(model: nn.Module) -> list[AttentionBlock]:
    """Return the model's transformer blocks in forward order."""
    return family_of(model).attention_blocks(model)


def steps(model: nn.Module) -> list[Branch | Step]:
    """Return the forward pass up to the final norm as a list of steps."""
    return family_of(model).steps(model)


def plan_of(model: TimmModule) -> SlimPlan:
    """Return the units of every part that a model keeps, by original id: all of them until it is pruned."""
    plan: SlimPlan | None = getattr(model, "slim_plan", None)
    if plan is None:
        return SlimPlan(tuple(map(_uncut, attention_blocks(model))), model_name(model))
    pairs = zip(plan.blocks, attention_blocks(model), strict=True)
    return SlimPlan(tuple(_with_present_tokens(block, view) for block, view in pairs), plan.model)


def _with_present_tokens(block: BlockPlan, view: AttentionBlock) -> BlockPlan:
    """The plan of a block with the tokens of the model's present input size."""
    tokens = Units(view.mergeable, tuple(range(view.mergeable - view.merged)))
    return BlockPlan(block.name, block.stage, {**block.units, TOKENS.name: tokens})


def _uncut(view: AttentionBlock) -> BlockPlan:
    units = {name: Units.all(part.count(view)) for name, part in PARTS.items()}
    return BlockPlan(view.name, view.stage, units)


def is_uncut_form(other: TimmModule, model: TimmModule) -> bool:
    """Return whether `model` may have come from `other` by pruning or inserting dense attention, weights aside."""
    try:
        cut, uncut = plan_of(model).blocks, plan_of(other).blocks
    except ModelError:  # of no supported family
        return False
    shapes = [(architecture_of(m), m.num_features, len(blocks)) for m, blocks in ((model, cut), (other, uncut))]
    if shapes[0] != shapes[1]:
        return False
    return all(new.may_come_from(old) for old, new in zip(uncut, cut, strict=True))
