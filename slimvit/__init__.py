"""slimvit makes pretrained Vision Transformers smaller. The public names load what they need when first used."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slimvit.config.options import Options as Options
    from slimvit.config.recipe import Recipe as Recipe
    from slimvit.io.backbone import backbone as backbone
    from slimvit.io.create import create_model as create_model
    from slimvit.io.load import load as load
    from slimvit.io.load import load_into as load_into
    from slimvit.io.saved_model import save as save
    from slimvit.measure.flops.count import count_macs as count_macs
    from slimvit.models.insert_dense import insert_dense_attention as insert_dense_attention
    from slimvit.models.plan import SlimPlan as SlimPlan
    from slimvit.prune.criteria.registry import score_parts as score_parts
    from slimvit.prune.ratio_search import plan_units as plan_units
    from slimvit.prune.refit import refit as refit
    from slimvit.prune.surgery import prune_model as prune_model
    from slimvit.train.finetune import finetune as finetune
    from slimvit.utils.errors import SlimvitError as SlimvitError
    from slimvit.workflows.bench.bench import bench as bench
    from slimvit.workflows.compare import report as report
    from slimvit.workflows.evaluate import evaluate as evaluate
    from slimvit.workflows.export import export as export
    from slimvit.workflows.predict import predict as predict
    from slimvit.workflows.push.push import push as push
    from slimvit.workflows.run import run as run
    from slimvit.workflows.sweep.sweep import sweep as sweep
    from slimvit.workflows.token_picture import draw_tokens as draw_tokens
    from slimvit.workflows.training_free import plan as plan
    from slimvit.workflows.training_free import prune as prune

    __version__: str

_HOME = {
    "Options": "config.options",
    "Recipe": "config.recipe",
    "SlimPlan": "models.plan",
    "SlimvitError": "utils.errors",
    "backbone": "io.backbone",
    "bench": "workflows.bench.bench",
    "count_macs": "measure.flops.count",
    "create_model": "io.create",
    "draw_tokens": "workflows.token_picture",
    "evaluate": "workflows.evaluate",
    "export": "workflows.export",
    "finetune": "train.finetune",
    "insert_dense_attention": "models.insert_dense",
    "load": "io.load",
    "load_into": "io.load",
    "plan": "workflows.training_free",
    "plan_units": "prune.ratio_search",
    "predict": "workflows.predict",
    "prune": "workflows.training_free",
    "prune_model": "prune.surgery",
    "push": "workflows.push.push",
    "refit": "prune.refit",
    "report": "workflows.compare",
    "run": "workflows.run",
    "save": "io.saved_model",
    "score_parts": "prune.criteria.registry",
    "sweep": "workflows.sweep.sweep",
}
__all__ = list(_HOME)


class _CallablePackage(ModuleType):
    """A subpackage with the name of a public function: `slimvit.prune(...)` calls, `slimvit.prune.surgery` imports."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:
        """The function, also for `inspect.signature`."""
        return _function(self.__name__.rpartition(".")[2])


class _Package(ModuleType):
    """slimvit itself, in which such subpackages become callable when they are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _function(name: str) -> Any:
    return getattr(importlib.import_module(f"slimvit.{_HOME[name]}"), name)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("slimvit")
    if name not in _HOME:
        raise AttributeError(f"module 'slimvit' has no attribute {name!r}")
    found = _function(name)
    return sys.modules.get(f"slimvit.{name}", found)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
