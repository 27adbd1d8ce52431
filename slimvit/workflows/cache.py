"""What several runs have in common, computed by the first and taken from a folder by the others.

Each entry lies in a file or folder whose name is a hash of all that it depends on, and appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from slimvit.config.recipe import Recipe
from slimvit.io import saved_model
from slimvit.io.open import random_weights
from slimvit.measure.accuracy import Outputs
from slimvit.models.registry import plan_of
from slimvit.prune.criteria.registry import Scores
from slimvit.prune.criteria.scores import read_scores, write_scores
from slimvit.utils.files import disk_errors
from slimvit.utils.output import fingerprint
from slimvit.workflows.state import RunState

HISTORY = "history.json"
NEW = ".new-"
"""How the names of folders begin in which entries are written."""


def keys_of(recipe: Recipe) -> dict[str, str]:
    """What a run would take from the shelf or put there: `original`, `scores`, `adapted` -> name of the entry.

    The seed counts only where something depends on it, so that seeds share what they can.
    """
    trained = recipe.adapt.epochs > 0
    start: dict[str, Any] = {"model": recipe.model.model_dump(), "data": recipe.data.model_dump()}
    if trained:
        start |= {"adapt": recipe.adapt.model_dump()}
    if trained or random_weights(recipe.model):
        start |= {"seed": recipe.seed}
    found = {"adapted": fingerprint(start)} if trained else {}
    found["original"] = fingerprint(start)
    if recipe.prune.wanted and recipe.prune.plan is None:
        section = recipe.prune
        draws = {"criterion": section.criterion, "images": section.calibration_images, "seed": recipe.seed}
        found["scores"] = fingerprint(start | {"scores": draws})
    return {what: f"{what}-{name}" for what, name in found.items()}


def original_outputs(state: RunState) -> Outputs:
    """What the uncut network gives on the validation images."""
    path = _place(state, "original", ".safetensors")
    if path is None or not path.exists():
        found = state.outputs(state.original, state.data.val)
        _put(state, path, lambda partial: save_file(_known(found), partial))
        return found
    stored = load_file(path)
    return Outputs(stored.get("logits"), stored["features"], stored.get("labels"))


def scores(state: RunState, parts: tuple[str, ...], make: Callable[[], Scores]) -> Scores:
    """The scores of the network's ``parts``."""
    path = _place(state, "scores", f"-{'-'.join(parts)}.json")
    if path is not None and path.exists():
        return read_scores(path, plan_of(state.model))
    found = make()
    _put(state, path, lambda partial: write_scores(found, partial))
    return found


def adapted(state: RunState, train: Callable[[], None]) -> None:
    """Let ``train`` make the run's model one for the data's classes, or take the one that it made before."""
    folder = _place(state, "adapted", "")
    if folder is None or not folder.exists() or state.interrupted == "adapt":
        train()
        _put(state, folder, lambda partial: _write_adapted(state, partial))
        return
    state.model = saved_model.load_folder(folder).to(state.device)
    kept = json.loads((folder / HISTORY).read_text())
    state.notes += kept["notes"]
    state.histories |= kept["histories"]
    state.adapted = True


def _write_adapted(state: RunState, partial: Path) -> None:
    partial.mkdir()
    saved_model.write_model(state.model, partial, state.data.class_names)
    kept = {"notes": state.notes, "histories": state.histories}
    (partial / HISTORY).write_text(json.dumps(kept))


def _known(outputs: Outputs) -> dict[str, Any]:
    return {name: tensor.contiguous() for name, tensor in vars(outputs).items() if tensor is not None}


def _place(state: RunState, what: str, suffix: str) -> Path | None:
    """Where the entry lies or would lie; None for a run that shares nothing, or needs no such thing."""
    shelf = state.options.shelf if state.engine.processes == 1 else None  # all processes must take the same way
    name = None if shelf is None else keys_of(state.recipe).get(what)
    return None if shelf is None or name is None else shelf / f"{name}{suffix}"


def _put(state: RunState, place: Path | None, write: Callable[[Path], Any]) -> None:
    if place is None or not state.engine.is_main:
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
