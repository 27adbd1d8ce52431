"""slimvit makes pretrained Vision Transformers smaller. The public names load what they need when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slimvit.config.options import Options as Options
    from slimvit.config.recipe import Recipe as Recipe
    from slimvit.io.backbone import backbone as backbone
    from slimvit.io.create import create_model as create_model
    from slimvit.io.load import load as load
    from slimvit.io.saved_model import save as save
    from slimvit.measure.accuracy import evaluate as evaluate
    from slimvit.measure.flops.count import count_macs as count_macs
    from slimvit.models.insert_dense import insert_dense_attention as insert_dense_attention
    from slimvit.models.plan import SlimPlan as SlimPlan
    from slimvit.prune.criteria.registry import score_parts as score_parts
    from slimvit.prune.ratio_search import plan_heads as plan_heads
    from slimvit.prune.refit import refit as refit
    from slimvit.prune.surgery import prune_model as prune_model
    from slimvit.train.finetune import finetune as finetune
    from slimvit.utils.errors import SlimvitError as SlimvitError
    from slimvit.workflows.run import run as run

_HOME = {
    "Options": "config.options",
    "Recipe": "config.recipe",
    "SlimPlan": "models.plan",
    "SlimvitError": "utils.errors",
    "backbone": "io.backbone",
    "count_macs": "measure.flops.count",
    "create_model": "io.create",
    "evaluate": "measure.accuracy",
    "finetune": "train.finetune",
    "insert_dense_attention": "models.insert_dense",
    "load": "io.load",
    "plan_heads": "prune.ratio_search",
    "prune_model": "prune.surgery",
    "refit": "prune.refit",
    "run": "workflows.run",
    "save": "io.saved_model",
    "score_parts": "prune.criteria.registry",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'slimvit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"slimvit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
