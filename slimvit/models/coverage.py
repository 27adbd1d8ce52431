"""The features of slimvit that each timm model supports, and why not the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import timm
from torch import nn

from slimvit.models.base import AttentionBlock, Family
from slimvit.models.parts.base import Part
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import FAMILIES, family_or_reason
from slimvit.models.shapes import shapes_alone
from slimvit.utils.plugins import load_plugins
from slimvit.utils.progress import track

DENSE = "dense"
"""The feature beside the parts that can be cut: dense attention."""


def prunable_models(pattern: str) -> list[dict[str, str]]:
    """List the supported timm models that match `pattern`, with their heads. They are built without memory."""
    rows = []
    names = sorted({m for f in FAMILIES for mod in f.timm_modules for m in timm.list_models(pattern, module=mod)})
    for name in track(names, "inspecting models", unit="models"):
        model = _on_meta(name)
        family = family_or_reason(model) if isinstance(model, nn.Module) else model
        if isinstance(model, str) or not isinstance(family, Family):
            continue
        blocks = family.attention_blocks(model)
        heads = [b.attn.num_heads for b in blocks]
        about = f"{len(blocks)} blocks, {sum(heads)} heads of {blocks[0].head_dim}"
        about += "".join(f", {part.units} stay" for part in PARTS.values() if _why_not(part, blocks))
        about += "" if family.why_no_dense(model) is None else ", no dense attention"
        rows.append({"model": name, "about": about})
    return rows


@dataclass(frozen=True)
class Support:
    """The features that models of one timm module support; models with equal support share a row."""

    module: str
    models: tuple[str, ...]
    features: dict[str, bool]
    """Name of a part, or `dense` -> whether it is supported."""
    reason: str
    """Why a feature is not supported; empty where all are."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data with one key per feature."""
        return {"module": self.module, "models": self.models, **self.features, "reason": self.reason}


def support(pattern: str = "*") -> list[Support]:
    """List all timm models with attention that match `pattern`, grouped by timm module and support."""
    load_plugins()
    groups: dict[tuple[str, tuple[tuple[str, bool], ...], str], list[str]] = {}
    names = [(module, m) for module in timm.list_modules() for m in timm.list_models(pattern, module=module)]
    for module, name in track(names, "inspecting models", unit="models"):
        model = _on_meta(name)
        if isinstance(model, str) or any(hasattr(m, "num_heads") for m in model.modules()):
            supported, reason = supported_features(model)
            groups.setdefault((module, tuple(supported.items()), reason), []).append(name)
    return [
        Support(module, tuple(models), dict(supported), reason)
        for (module, supported, reason), models in groups.items()
    ]


def supported_features(model: nn.Module | str) -> tuple[dict[str, bool], str]:
    """Return which features a model supports, and why not the others.

    Args:
        model: The model, or why it cannot be built.
    """
    family = family_or_reason(model) if isinstance(model, nn.Module) else model
    if isinstance(model, str) or not isinstance(family, Family):
        return dict.fromkeys(_features(), False), str(family)
    blocks = family.attention_blocks(model)
    reasons = {name: _why_not(part, blocks) for name, part in PARTS.items()} | {DENSE: family.why_no_dense(model)}
    clauses = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    return {name: reason is None for name, reason in reasons.items()}, "; ".join(clauses)


def _features() -> tuple[str, ...]:
    return (*PARTS, DENSE)


def _why_not(part: Part, blocks: Sequence[AttentionBlock]) -> str | None:
    return next(filter(None, map(part.why_not, blocks)), None)


def _on_meta(name: str) -> nn.Module | str:
    """The model on the meta device, or why timm cannot build it there."""
    try:
        with shapes_alone():
            return timm.create_model(name)
    except (TypeError, RuntimeError) as error:
        return f"could not be built: {type(error).__name__}"


def coverage_table(rows: Iterable[Support]) -> str:
    """Write the page that `slimvit models --table` prints."""
    features = " | ".join(_features())
    lines = [
        "# Supported timm models",
        "",
        f"Printed by `slimvit models --table` with timm {timm.__version__}: all models with attention. Models of a",
        "module with equal support share a row.",
        "",
        f"| timm module | models | {features} | why not |",
        "| --- | --- |" + " --- |" * len(_features()) + " --- |",
    ]
    for row in rows:
        more = f" and {len(row.models) - 1} more" if len(row.models) > 1 else ""
        marks = " | ".join("yes" if supported else "no" for supported in row.features.values())
        lines.append(f"| {row.module} | `{row.models[0]}`{more} | {marks} | {row.reason} |")
    return "\n".join(lines)
