"""slimvit makes pretrained Vision Transformers smaller. The public names load what they need when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slimvit.creation import create_model as create_model
    from slimvit.dense.insert import insert_dense_attention as insert_dense_attention
    from slimvit.feature_maps import backbone as backbone
    from slimvit.measure.accuracy import evaluate as evaluate
    from slimvit.measure.macs import count_macs as count_macs
    from slimvit.options import Options as Options
    from slimvit.origin import load as load
    from slimvit.pipeline import run as run
    from slimvit.plan import SlimPlan as SlimPlan
    from slimvit.prune.criteria import score_parts as score_parts
    from slimvit.prune.refit import refit as refit
    from slimvit.prune.search import plan_heads as plan_heads
    from slimvit.prune.surgery import prune_model as prune_model
    from slimvit.recipe import Recipe as Recipe
    from slimvit.store import save as save
    from slimvit.train.finetune import finetune as finetune

_HOME = {
    "Options": "options",
    "Recipe": "recipe",
    "SlimPlan": "plan",
    "SlimvitError": "errors",
    "backbone": "feature_maps",
    "count_macs": "measure.macs",
    "create_model": "creation",
    "evaluate": "measure.accuracy",
    "finetune": "train.finetune",
    "insert_dense_attention": "dense.insert",
    "load": "origin",
    "plan_heads": "prune.search",
    "prune_model": "prune.surgery",
    "refit": "prune.refit",
    "run": "pipeline",
    "save": "store",
    "score_parts": "prune.criteria",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'slimvit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"slimvit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
