"""The part of a run folder that is there only while a training is under way: what it takes to go on after a stop."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from slimvit.config.recipe import Recipe
from slimvit.io import saved_model
from slimvit.models.base import TimmModule
from slimvit.report.record import Stage
from slimvit.train.checkpoint import Checkpoints
from slimvit.utils.errors import DiskError, StoreError, WorkerError
from slimvit.utils.files import Unreadable, disk_errors, read_json
from slimvit.utils.output import LOGS, UNFINISHED, aside
from slimvit.workflows.state import RunState

FORMAT_VERSION = 1
MODEL, ORIGINAL, RECIPE, PROGRESS = "model", "original", "recipe.yaml", "run.json"


class Progress(BaseModel):
    """run.json: what the run knew when the training began."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: int = FORMAT_VERSION
    training: str
    """`adapt` or `finetune`."""
    stages: list[Stage]
    notes: list[str]
    histories: dict[str, list[dict[str, Any]]]
    scores: list[list[float | None]] | None
    adapting: float
    adapted: bool


CARRIED = tuple(Progress.model_fields.keys() - {"format_version", "training"})
"""What a run and its run.json have in common."""


def checkpoints(state: RunState, training: str) -> Checkpoints | None:
    """Where the states of a training go that is about to begin, or to go on; None for a run that writes nothing."""
    out = state.options.out
    if out is None:
        return None
    if state.interrupted != training and state.engine.is_main:
        with disk_errors(out), aside(_made(out) / UNFINISHED) as folder:
            _write(state, training, folder)
    state.engine.wait()
    state.interrupted = None
    return Checkpoints(out / UNFINISHED, resume_command(state), state.options.save_minutes, state.engine.is_main)


def resume_command(state: RunState, workers: int | None = None) -> str:
    """The command that goes on with this run, perhaps with other ``workers``."""
    program = "accelerate launch -m slimvit" if state.engine.processes > 1 else "slimvit"
    options = state.options if workers is None else replace(state.options, workers=workers)
    return f"{program} {shlex.join(['run', str(options.out), '--resume', *options.flags()])}"


@contextmanager
def going_on(state: RunState) -> Iterator[None]:
    """What the machine does to a run whose training has begun is told with the command that goes on with it."""
    try:
        yield
    except (DiskError, WorkerError) as error:
        begun = state.options.out is not None and recipe_in(state.options.out) is not None
        if not begun or resume_command(state) in str(error):
            raise
        workers = state.options.workers // 2 if isinstance(error, WorkerError) else None
        told = f"The training's state is kept; then go on with: {resume_command(state, workers)}"
        raise type(error)(f"{error}. {told}") from None


def recipe_in(folder: str | Path) -> Path | None:
    """The recipe of an unfinished run in a run folder, if there is one."""
    path = Path(folder) / UNFINISHED / RECIPE
    return path if path.is_file() else None


def restore(state: RunState) -> None:
    """Put a run that has just started where the interrupted one in its folder was when its training began.

    Raises :class:`StoreError` when that one followed another recipe, or its files are damaged.
    """
    assert state.options.out is not None
    folder = state.options.out / UNFINISHED
    if (path := recipe_in(state.options.out)) is None:
        return
    if changed := _changed(Recipe.read(path), state.recipe):
        raise StoreError(
            f"{state.options.out}: the unfinished run in it has other settings ({changed}); go on with them "
            f"({resume_command(state)}), or begin anew with --force instead of --resume"
        )
    found = _progress(folder / PROGRESS)
    for name in CARRIED:
        setattr(state, name, getattr(found, name))
    state.model = _loaded(folder / MODEL, state)
    state.original = _loaded(folder / ORIGINAL, state) if saved_model.is_saved(folder / ORIGINAL) else state.model
    state.interrupted = found.training


def _made(out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    return out


def _write(state: RunState, training: str, folder: Path) -> None:
    models = {MODEL: state.model} | ({} if state.original is state.model else {ORIGINAL: state.original})
    for name, model in models.items():
        (folder / name).mkdir()
        saved_model.write_model(model, folder / name, state.data.class_names)
    (folder / RECIPE).write_text(state.recipe.to_yaml())
    found = Progress(training=training, **{name: getattr(state, name) for name in CARRIED})
    (folder / PROGRESS).write_text(json.dumps(found.model_dump(mode="json"), indent=1) + "\n")
    assert state.options.out is not None
    logs = state.options.out / UNFINISHED / LOGS
    if logs.is_dir():  # of the training before this one
        shutil.copytree(logs, folder / LOGS)


def _loaded(folder: Path, state: RunState) -> TimmModule:
    model: TimmModule = saved_model.load_folder(folder)
    return model.to(state.device)


def _progress(path: Path) -> Progress:
    try:
        data = read_json(path)
        if isinstance(data, dict) and data.get("format_version") != FORMAT_VERSION:
            told = f"format_version is {data.get('format_version')!r}, this slimvit reads {FORMAT_VERSION}"
            raise StoreError(f"{path}: {told}; go on with the slimvit that wrote it")
        return Progress.model_validate(data)
    except (FileNotFoundError, Unreadable, ValidationError) as error:
        raise StoreError(f"{path}: damaged: {' '.join(str(error).split())}; begin anew with --force") from None


def _changed(stored: Recipe, asked: Recipe) -> str:
    """`finetune.lr: 0.001, now 0.01` for every key that differs."""
    theirs, mine = dict(_leaves(stored.model_dump(mode="json"))), dict(_leaves(asked.model_dump(mode="json")))
    keys = sorted(k for k in theirs.keys() | mine.keys() if theirs.get(k) != mine.get(k))
    return ", ".join(f"{k}: {theirs.get(k)}, now {mine.get(k)}" for k in keys)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
