"""Cache of results that several runs share: outputs of the original, scores, adapted models.

An entry is named by a hash of everything it depends on, and written atomically, with a checksum beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
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
from slimvit.utils.errors import SlimvitError
from slimvit.utils.files import check_no_link, disk_errors, fsync_tree, write_whole
from slimvit.utils.output import fingerprint
from slimvit.utils.progress import log
from slimvit.utils.reading import Unreadable, is_regular, read_json, read_text, shortened
from slimvit.workflows.state import RunContext

HISTORY = "history.json"
NEW = ".new-"
"""Prefix of the temporary folders that entries are written in."""
SUM = ".sha256"
"""Suffix of the file with the checksum of an entry."""
DAMAGE = (SlimvitError, Unreadable, SafetensorError, OSError, KeyError, TypeError, ValueError)
"""What reading a damaged entry raises."""
T = TypeVar("T")


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
    images = context.data.val

    def read(path: Path) -> Outputs:
        stored = load_file(path)
        outputs = Outputs(stored.get("logits"), stored["features"], stored.get("labels"))
        if any(len(tensor) != len(images) for tensor in _tensors(outputs).values()):
            raise ValueError("it is of another number of images")
        return outputs

    return _shared(
        context,
        _entry_path(context, "original", ".safetensors"),
        read,
        lambda: context.outputs(original, images),
        lambda outputs, partial: save_file(_tensors(outputs), partial),
    )


def scores(context: RunContext, parts: tuple[str, ...], plan: SlimPlan, compute: Callable[[], Scores]) -> Scores:
    """The scores of the original.

    Args:
        context: The run.
        parts: The parts that are scored.
        plan: The plan of the original.
        compute: Computes the scores that the cache does not hold.
    """
    path = _entry_path(context, "scores", f"-{'-'.join(parts)}.json")
    return _shared(context, path, lambda path: read_scores(path, plan), compute, write_scores)


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

    def read(folder: Path) -> Adapted:
        record = read_json(folder / HISTORY)
        return Adapted(saved_model.load_folder(folder).to(context.device), record["notes"], record["histories"])

    def write(computed: Adapted, partial: Path) -> None:
        _write_adapted(context, computed, partial)

    path = _entry_path(context, "adapted", "")
    return _shared(context, path, read, compute, write, recompute)


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


def _shared(
    context: RunContext,
    path: Path | None,
    read: Callable[[Path], T],
    compute: Callable[[], T],
    write: Callable[[T, Path], Any],
    recompute: bool = False,
) -> T:
    """The entry at `path`, or else what `compute` returns, which becomes the entry; a damaged entry is replaced."""
    if path is not None and path.exists() and not recompute:
        try:
            _check_sum(path)
            return read(path)
        except DAMAGE as error:
            log(f"{path}: damaged ({shortened(error)}), so it is thrown away and computed again")
            with disk_errors(path):
                _throw_away(path)
    computed = compute()
    if path is not None and context.engine.is_main:
        _write_entry(path, lambda partial: write(computed, partial))
    return computed


def _write_entry(path: Path, write: Callable[[Path], Any]) -> None:
    """Write an entry and its checksum; another run may have been faster."""
    with disk_errors(path), weight_file.safetensors_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=NEW, dir=path.parent))
        try:
            write(temporary / path.name)
            fsync_tree(temporary)
            if not path.exists():
                write_whole(_sum_file(path), f"{_checksum(temporary / path.name)}\n")
                os.replace(temporary / path.name, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _throw_away(path: Path) -> None:
    doomed = Path(tempfile.mkdtemp(prefix=NEW, dir=path.parent))
    os.replace(path, doomed / path.name)
    shutil.rmtree(doomed, ignore_errors=True)


def _sum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}{SUM}")


def _check_sum(path: Path) -> None:
    """Raise `Unreadable` for an entry that is not as it was written. Entries of earlier versions have no checksum."""
    try:
        expected = read_text(_sum_file(path)).strip()
    except FileNotFoundError:
        return
    if expected != _checksum(path):
        raise Unreadable("its checksum is another one")


def _checksum(path: Path) -> str:
    """The SHA-256 of a file, or of the names and checksums of a folder's files."""
    if path.is_file():
        return weight_file.checksum(path)
    sums = {str(file.relative_to(path)): weight_file.checksum(file) for file in path.rglob("*") if is_regular(file)}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
