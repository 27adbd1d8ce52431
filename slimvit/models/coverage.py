"""Which of timm's models slimvit supports, and why not the others."""

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
    """List the supported timm models matching `pattern` with their heads. They are built without memory."""
    rows = []
    names = sorted({m for f in FAMILIES for mod in f.timm_modules for m in timm.list_models(pattern, module=mod)})
    for name in track(names, "looking at models", unit="models"):
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
    """The support for models of one timm module, all of which have the same."""

    module: str
    models: tuple[str, ...]
    heads: bool
    mlp: bool
    dense: bool
    reason: str
    """Why something is not supported, as error messages say it; empty where everything is."""


def support(pattern: str = "*") -> list[Support]:
    """List all timm models with attention matching `pattern`, grouped by timm module and support."""
    alike: dict[tuple[str, Verdict], list[str]] = {}
    names = [(module, m) for module in timm.list_modules() for m in timm.list_models(pattern, module=module)]
    for module, name in track(names, "looking at models", unit="models"):
        model = _shape_of(name)
        if isinstance(model, str):
            alike.setdefault((module, (False, False, False, model)), []).append(name)
        elif any(hasattr(m, "num_heads") for m in model.modules()):
            alike.setdefault((module, verdict(model)), []).append(name)
    return [Support(module, tuple(models), *found) for (module, found), models in alike.items()]


Verdict: TypeAlias = tuple[bool, bool, bool, str]
"""Whether heads, MLP neurons and dense attention are supported, and why not."""


def verdict(model: nn.Module) -> Verdict:
    """Return which features of slimvit a model supports."""
    found = family_or_reason(model)
    if not isinstance(found, Family):
        return False, False, False, found
    neurons, dense = _why_neurons_stay(found.attention_blocks(model)), found.why_no_dense(model)
    reasons = [f"MLP: {neurons}" if neurons else "", f"dense: {dense}" if dense else ""]
    return True, neurons is None, dense is None, "; ".join(filter(None, reasons))


def _why_neurons_stay(blocks: Iterable[AttentionBlock]) -> str | None:
    return next(filter(None, (why_neurons_stay(b.mlp) for b in blocks)), None)


def _shape_of(name: str) -> nn.Module | str:
    """The model on the meta device, or why timm cannot build it there."""
    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except (TypeError, RuntimeError) as error:
        return f"could not be looked at: {type(error).__name__}"


def coverage_table(rows: Iterable[Support]) -> str:
    """Write the page that `slimvit models --table` prints."""
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
