"""Save the state of a run before a training, and restore it to resume an interrupted training."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from slimvit.config.recipe import Recipe
from slimvit.data.known import missing_options
from slimvit.io import saved_model, slim_file
from slimvit.models.base import TimmModule
from slimvit.models.parts.registry import everywhere
from slimvit.report.record import Stage
from slimvit.train.checkpoint import Checkpoints
from slimvit.utils.errors import DiskError, StoreError, WorkerError
from slimvit.utils.files import disk_errors, write_whole
from slimvit.utils.output import LOGS, UNFINISHED, aside
from slimvit.utils.reading import Unreadable, read_json
from slimvit.workflows.run_folder import copy_logs
from slimvit.workflows.state import RunContext, RunState, ScoreTables

FORMAT_VERSION = 2
"""2 holds the scores of every part, 1 those of the heads."""
READS = (1, 2)
MODEL, ORIGINAL, RECIPE, PROGRESS = "model", "original", "recipe.yaml", "run.json"


class Progress(BaseModel):
    """run.json: the results of a run before its training."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    format_version: int = FORMAT_VERSION
    training: str
    """`adapt` or `finetune`."""
    stages: list[Stage]
    notes: list[str]
    histories: dict[str, list[dict[str, Any]]]
    scores: ScoreTables | None
    adapt_seconds: float = Field(alias="adapting")
    """Under the key of format 1."""
    adapted: bool

    @field_validator("scores", mode="before")
    @classmethod
    def _by_part(cls, scores: Any) -> Any:
        return {everywhere()[0]: scores} if isinstance(scores, list) else scores


SHARED_FIELDS = tuple(Progress.model_fields.keys() - {"format_version", "training"})
"""Fields of both `RunState` and run.json."""


@dataclass(frozen=True)
class Saved:
    """An interrupted run, read from its folder.

    Attributes:
        training: The interrupted training, `adapt` or `finetune`.
        model: The network before that training.
        original: The network before the cut.
        values: Further fields of `RunState`.
    """

    training: str
    model: TimmModule
    original: TimmModule
    values: dict[str, Any]


def checkpoints(state: RunState, training: str) -> Checkpoints | None:
    """The checkpoints of a new or resumed training; None for a run without a folder.

    A new training saves the state of the run first.
    """
    context, out = state.context, state.context.options.out
    if out is None:
        return None
    if state.interrupted != training and context.engine.is_main:
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            with aside(out / UNFINISHED) as folder:
                _write(state, training, folder, out / UNFINISHED / LOGS)
    context.engine.wait()
    return Checkpoints(out / UNFINISHED, resume_command(context), context.options.save_minutes, context.engine.is_main)


def resume_command(context: RunContext, workers: int | None = None) -> str:
    """The command that resumes this run, with `workers` in place of its own number if given."""
    program = "accelerate launch -m slimvit" if context.engine.processes > 1 else "slimvit"
    options = context.options if workers is None else replace(context.options, workers=workers)
    words = ["run", str(options.out), "--resume", *options.flags(), *missing_options(context.recipe.data)]
    return f"{program} {shlex.join(words)}"


@contextmanager
def resume_hints(context: RunContext) -> Iterator[None]:
    """Add the resume command to disk and worker errors raised after training has started."""
    try:
        yield
    except (DiskError, WorkerError) as error:
        started = context.options.out is not None and recipe_in(context.options.out) is not None
        if not started or resume_command(context) in str(error):
            raise
        workers = context.options.workers // 2 if isinstance(error, WorkerError) else None
        hint = f"The training's state is kept; then go on with: {resume_command(context, workers)}"
        raise type(error)(f"{error}. {hint}") from None


def recipe_in(folder: str | Path) -> Path | None:
    """Path of the recipe of an unfinished run; None for any other folder."""
    path = Path(folder) / UNFINISHED / RECIPE
    return path if path.is_file() else None


def read_saved(context: RunContext) -> Saved | None:
    """Read the interrupted run in the run folder; None where there is none.

    Raises:
        StoreError: It has another recipe, or its files are damaged.
    """
    out = context.options.out
    assert out is not None
    if (path := recipe_in(out)) is None:
        return None
    if changed := _changed(Recipe.read(path), context.recipe):
        raise StoreError(
            f"{out}: the unfinished run in it has other settings ({changed}); go on with them "
            f"({resume_command(context)}), or begin anew with --force instead of --resume"
        )
    folder = out / UNFINISHED
    progress = _progress(folder / PROGRESS)
    model = _loaded(folder / MODEL, context)
    original = _loaded(folder / ORIGINAL, context) if slim_file.is_saved(folder / ORIGINAL) else model
    return Saved(progress.training, model, original, {name: getattr(progress, name) for name in SHARED_FIELDS})


def _write(state: RunState, training: str, folder: Path, logs: Path) -> None:
    models = {MODEL: state.model} | ({} if state.original is state.model else {ORIGINAL: state.original})
    for name, model in models.items():
        (folder / name).mkdir()
        saved_model.write_model(model, folder / name, state.context.data.class_names)
    write_whole(folder / RECIPE, state.recipe.to_yaml())
    progress = Progress(training=training, **{name: getattr(state, name) for name in SHARED_FIELDS})
    write_whole(folder / PROGRESS, json.dumps(progress.model_dump(mode="json", by_alias=True), indent=1) + "\n")
    if logs.is_dir():  # written by an earlier training of this run
        copy_logs(logs, folder / LOGS)


def _loaded(folder: Path, context: RunContext) -> TimmModule:
    model: TimmModule = saved_model.load_folder(folder)
    return model.to(context.device)


def _progress(path: Path) -> Progress:
    try:
        data = read_json(path)
        if isinstance(data, dict) and data.get("format_version") not in READS:
            reads = f"{READS[0]} to {READS[-1]}"
            message = f"format_version is {data.get('format_version')!r}, this slimvit reads {reads}"
            raise StoreError(f"{path}: {message}; go on with the slimvit that wrote it")
        return Progress.model_validate(data)
    except (FileNotFoundError, Unreadable, ValidationError) as error:
        raise StoreError(f"{path}: damaged: {' '.join(str(error).split())}; begin anew with --force") from None


def _changed(stored: Recipe, asked: Recipe) -> str:
    """`finetune.lr: 0.001, now 0.01` for every key that differs."""
    before, now = dict(_leaves(stored.model_dump(mode="json"))), dict(_leaves(asked.model_dump(mode="json")))
    keys = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    return ", ".join(f"{k}: {before.get(k)}, now {now.get(k)}" for k in keys)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
