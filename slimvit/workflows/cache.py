"""Results that several runs share: the first run computes them, the others read them from the cache folder.

The name of an entry is a hash of everything it depends on. An entry appears whole or not at all.
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
from slimvit.io import saved_model
from slimvit.io.open import random_weights
from slimvit.measure.accuracy import Outputs
from slimvit.models.base import TimmModule
from slimvit.models.plan import SlimPlan
from slimvit.prune.criteria.scores import Scores, read_scores, write_scores
from slimvit.train.state import History
from slimvit.utils.files import disk_errors
from slimvit.utils.output import fingerprint
from slimvit.workflows.state import RunContext

HISTORY = "history.json"
NEW = ".new-"
"""Prefix of the folders in which entries are written before they take their place."""


def keys_of(recipe: Recipe) -> dict[str, str]:
    """Names of a run's cache entries, by kind: `original`, `scores`, `adapted`.

    The seed enters a name only where the entry depends on it, so that seeds share what they can.
    """
    trained = recipe.adapt.epochs > 0
    start: dict[str, Any] = {"model": recipe.model.model_dump(), "data": recipe.data.model_dump()}
    if trained:
        start |= {"adapt": recipe.adapt.model_dump()}
    if trained or random_weights(recipe.model):
        start |= {"seed": recipe.seed}
    keys = {"adapted": fingerprint(start)} if trained else {}
    keys["original"] = fingerprint(start)
    if recipe.prune.wanted and recipe.prune.plan is None:
        section = recipe.prune
        draws = {"criterion": section.criterion, "images": section.calibration_images, "seed": recipe.seed}
        keys["scores"] = fingerprint(start | {"scores": draws})
    return {kind: f"{kind}-{key}" for kind, key in keys.items()}


def original_outputs(context: RunContext, original: nn.Module) -> Outputs:
    """The original's outputs for the validation images."""
    path = _place(context, "original", ".safetensors")
    if path is None or not path.exists():
        outputs = context.outputs(original, context.data.val)
        _put(context, path, lambda partial: save_file(_tensors(outputs), partial))
        return outputs
    stored = load_file(path)
    return Outputs(stored.get("logits"), stored["features"], stored.get("labels"))


def scores(context: RunContext, parts: tuple[str, ...], plan: SlimPlan, make: Callable[[], Scores]) -> Scores:
    """The scores of the `parts` of a network whose heads and neurons are those of `plan`."""
    path = _place(context, "scores", f"-{'-'.join(parts)}.json")
    if path is not None and path.exists():
        return read_scores(path, plan)
    made = make()
    _put(context, path, lambda partial: write_scores(made, partial))
    return made


@dataclass(frozen=True)
class Adapted:
    """A model trained for the data's classes.

    Attributes:
        model: The network with a classifier for them.
        notes: Remarks for the report.
        histories: A row an epoch, by training.
        seconds: Time that it took in this run.
    """

    model: TimmModule
    notes: list[str]
    histories: dict[str, History]
    seconds: float = 0.0


def adapted(context: RunContext, make: Callable[[], Adapted], anew: bool) -> Adapted:
    """The model trained for the data's classes; `anew` makes it even where another run has left it."""
    folder = _place(context, "adapted", "")
    if folder is None or not folder.exists() or anew:
        made = make()
        _put(context, folder, lambda partial: _write_adapted(context, made, partial))
        return made
    kept = json.loads((folder / HISTORY).read_text())
    return Adapted(saved_model.load_folder(folder).to(context.device), kept["notes"], kept["histories"])


def _write_adapted(context: RunContext, made: Adapted, partial: Path) -> None:
    partial.mkdir()
    saved_model.write_model(made.model, partial, context.data.class_names)
    (partial / HISTORY).write_text(json.dumps({"notes": made.notes, "histories": made.histories}))


def _tensors(outputs: Outputs) -> dict[str, Any]:
    return {name: tensor.contiguous() for name, tensor in vars(outputs).items() if tensor is not None}


def _place(context: RunContext, what: str, suffix: str) -> Path | None:
    """Where the entry lies or would lie; None for a run that shares nothing, or has no such entry."""
    cache = context.options.cache if context.engine.processes == 1 else None  # all processes must take the same way
    name = None if cache is None else keys_of(context.recipe).get(what)
    return None if cache is None or name is None else cache / f"{name}{suffix}"


def _put(context: RunContext, place: Path | None, write: Callable[[Path], Any]) -> None:
    if place is None or not context.engine.is_main:
        return
    with disk_errors(place), saved_model.safetensors_errors():
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=NEW, dir=place.parent))
        try:
            write(aside / place.name)
            if not place.exists():  # another run may have been faster
                os.replace(aside / place.name, place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
