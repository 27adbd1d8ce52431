"""Cache of results that several runs share: outputs of the original, scores, adapted models.

An entry is named by a hash of everything it depends on, and written atomically.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from slimvit.config.recipe import Recipe
from slimvit.io import saved_model, weight_file
from slimvit.io.open import random_weights
from slimvit.measure.accuracy import Outputs
from slimvit.models.base import TimmModule
from slimvit.models.plan import SlimPlan
from slimvit.prune.criteria.scores import Scores, read_scores, write_scores
from slimvit.train.state import History
from slimvit.utils.files import check_no_link, disk_errors, write_whole
from slimvit.utils.output import fingerprint
from slimvit.utils.reading import read_json
from slimvit.workflows.state import RunContext

HISTORY = "history.json"
NEW = ".new-"
"""Prefix of the temporary folders that entries are written in."""


def keys_of(recipe: Recipe) -> dict[str, str]:
    """Names of a run's cache entries, by kind: `original`, `scores`, `adapted`.

    The seed is part of the hash only where the entry depends on it.
    """
    trained = recipe.adapt.epochs > 0
    base: dict[str, Any] = {"model": recipe.model.model_dump(), "data": recipe.data.model_dump()}
    if trained:
        base |= {"adapt": recipe.adapt.model_dump()}
    if trained or random_weights(recipe.model):
        base |= {"seed": recipe.seed}
    keys = {"adapted": fingerprint(base)} if trained else {}
    keys["original"] = fingerprint(base)
    if recipe.prune.wanted and recipe.prune.plan is None:
        section = recipe.prune
        scoring = {"criterion": section.criterion, "images": section.calibration_images, "seed": recipe.seed}
        keys["scores"] = fingerprint(base | {"scores": scoring})
    return {kind: f"{kind}-{key}" for kind, key in keys.items()}


def original_outputs(context: RunContext, original: nn.Module) -> Outputs:
    """The original's outputs for the validation images."""
    path = _entry_path(context, "original", ".safetensors")
    if path is None or not path.exists():
        outputs = context.outputs(original, context.data.val)
        _write_entry(context, path, lambda partial: save_file(_tensors(outputs), partial))
        return outputs
    stored = load_file(path)
    return Outputs(stored.get("logits"), stored["features"], stored.get("labels"))


def scores(context: RunContext, parts: tuple[str, ...], plan: SlimPlan, compute: Callable[[], Scores]) -> Scores:
    """The scores of the original.

    Args:
        context: The run.
        parts: The parts that are scored.
        plan: The plan of the original.
        compute: Computes the scores that the cache does not hold.
    """
    path = _entry_path(context, "scores", f"-{'-'.join(parts)}.json")
    if path is not None and path.exists():
        return read_scores(path, plan)
    computed = compute()
    _write_entry(context, path, lambda partial: write_scores(computed, partial))
    return computed


@dataclass(frozen=True)
class Adapted:
    """A model trained for the classes of the data.

    Attributes:
        model: The trained network.
        notes: Remarks for the report.
        histories: One row per epoch, by training.
        seconds: Seconds of the training; 0 for a model from the cache.
    """

    model: TimmModule
    notes: list[str]
    histories: dict[str, History]
    seconds: float = 0.0


def adapted(context: RunContext, compute: Callable[[], Adapted], recompute: bool) -> Adapted:
    """The model trained for the classes of the data.

    Args:
        context: The run.
        compute: Trains a model that the cache does not hold.
        recompute: Train it even if the cache holds it.
    """
    folder = _entry_path(context, "adapted", "")
    if folder is None or not folder.exists() or recompute:
        computed = compute()
        _write_entry(context, folder, lambda partial: _write_adapted(context, computed, partial))
        return computed
    record = read_json(folder / HISTORY)
    return Adapted(saved_model.load_folder(folder).to(context.device), record["notes"], record["histories"])


def _write_adapted(context: RunContext, adapted: Adapted, partial: Path) -> None:
    partial.mkdir()
    saved_model.write_model(adapted.model, partial, context.data.class_names)
    write_whole(partial / HISTORY, json.dumps({"notes": adapted.notes, "histories": adapted.histories}))


def _tensors(outputs: Outputs) -> dict[str, Any]:
    return {name: tensor.contiguous() for name, tensor in vars(outputs).items() if tensor is not None}


def _entry_path(context: RunContext, kind: str, suffix: str) -> Path | None:
    """Path of a cache entry; None for a run without a cache or without this kind of entry."""
    cache = context.options.cache if context.engine.processes == 1 else None  # processes might see different caches
    name = None if cache is None else keys_of(context.recipe).get(kind)
    if cache is None or name is None:
        return None
    check_no_link(cache, path := cache / f"{name}{suffix}")
    return path


def _write_entry(context: RunContext, path: Path | None, write: Callable[[Path], Any]) -> None:
    if path is None or not context.engine.is_main:
        return
    with disk_errors(path), weight_file.safetensors_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=NEW, dir=path.parent))
        try:
            write(temporary / path.name)
            if not path.exists():  # another run may have been faster
                os.replace(temporary / path.name, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
