"""Which models there are: embedded ones, and timm's that a family understands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import timm
import torch
from torch import nn

from slimvit.models.base import AttentionBlock, Family
from slimvit.models.mlp import why_neurons_stay
from slimvit.models.registry import FAMILIES, family_or_reason
from slimvit.utils.progress import track


def prunable_models(pattern: str) -> list[dict[str, str]]:
    """Every timm model matching ``pattern`` that is understood, with its heads; built without memory or weights."""
    rows = []
    names = sorted({m for f in FAMILIES for mod in f.timm_modules for m in timm.list_models(pattern, module=mod)})
    for name in track(names, "looking at models"):
        model = _shape_of(name)
        found = family_or_reason(model) if isinstance(model, nn.Module) else model
        if isinstance(model, str) or not isinstance(found, Family):
            continue
        blocks = found.attention_blocks(model)
        heads = [b.attn.num_heads for b in blocks]
        about = f"{len(blocks)} blocks, {sum(heads)} heads of {blocks[0].head_dim}"
        about += "" if _why_neurons_stay(blocks) is None else ", neurons stay"
        about += "" if found.why_no_dense(model) is None else ", no dense attention"
        rows.append({"model": name, "about": about})
    return rows


@dataclass(frozen=True)
class Support:
    """What slimvit can do with models of one timm module that are alike in this."""

    module: str
    models: tuple[str, ...]
    heads: bool
    mlp: bool
    dense: bool
    reason: str
    """Why not all of it, in the words with which such a model is refused; empty where all of it."""


def support(pattern: str = "*") -> list[Support]:
    """Every timm model with attention matching ``pattern``, put together by timm module and verdict."""
    alike: dict[tuple[str, Verdict], list[str]] = {}
    names = [(module, m) for module in timm.list_modules() for m in timm.list_models(pattern, module=module)]
    for module, name in track(names, "looking at models"):
        model = _shape_of(name)
        if isinstance(model, str):
            alike.setdefault((module, (False, False, False, model)), []).append(name)
        elif any(hasattr(m, "num_heads") for m in model.modules()):
            alike.setdefault((module, verdict(model)), []).append(name)
    return [Support(module, tuple(models), *found) for (module, found), models in alike.items()]


Verdict: TypeAlias = tuple[bool, bool, bool, str]
"""Heads, MLP neurons, dense attention, and why not."""


def verdict(model: nn.Module) -> Verdict:
    """What slimvit can do with a model."""
    found = family_or_reason(model)
    if not isinstance(found, Family):
        return False, False, False, found
    neurons, dense = _why_neurons_stay(found.attention_blocks(model)), found.why_no_dense(model)
    reasons = [f"MLP: {neurons}" if neurons else "", f"dense: {dense}" if dense else ""]
    return True, neurons is None, dense is None, "; ".join(filter(None, reasons))


def _why_neurons_stay(blocks: Iterable[AttentionBlock]) -> str | None:
    return next(filter(None, (why_neurons_stay(b.mlp) for b in blocks)), None)


def _shape_of(name: str) -> nn.Module | str:
    """The model without memory or weights, or why timm cannot build it like that."""
    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except (TypeError, RuntimeError) as error:
        return f"could not be looked at: {type(error).__name__}"


def coverage_table(rows: Iterable[Support]) -> str:
    """The page that ``slimvit models --table`` prints."""
    lines = [
        "# What can be done with timm's models",
        "",
        f"Printed by `slimvit models --table` with timm {timm.__version__}: all models with attention, those of a",
        "module that are alike in one row.",
        "",
    ]
    lines += ["| timm module | models | heads | MLP | dense | why not |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        more = f" and {len(row.models) - 1} more" if len(row.models) > 1 else ""
        marks = " | ".join("yes" if can else "no" for can in (row.heads, row.mlp, row.dense))
        lines.append(f"| {row.module} | `{row.models[0]}`{more} | {marks} | {row.reason} |")
    return "\n".join(lines)
