"""Read a run folder for a comparison. No torch."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimvit.config.recipe import Recipe
from slimvit.report.compare.measurement import Measurement
from slimvit.report.record import Report
from slimvit.report.timing import read_timings
from slimvit.utils.errors import StoreError
from slimvit.utils.files import Unreadable, read_json

PICTURES = {"heads kept": "head_map.png", "learned mixes": "mixes.png"}
"""Pictures of a run on the HTML page, by title."""


def read_run(folder: Path, shown: str, name: str) -> Measurement:
    """Read a run folder.

    Args:
        folder: Path of the folder.
        shown: Name of the folder in the files of a comparison.
        name: Name of the run in tables and pictures.

    Raises:
        StoreError: A file is missing or damaged.
    """
    report, recipe = Report.read(folder / "report.json"), _recipe(folder)
    model, epochs = _origin(report, recipe)
    return Measurement(
        folder=folder,
        shown=shown,
        name=name,
        model=model,
        report=report,
        recipe=recipe,
        epochs=epochs,
        input_size=_input_size(folder, report),
        timings=tuple(read_timings(folder)),
        history=tuple(_history(folder / "history.csv")),
        pictures={title: folder / file for title, file in PICTURES.items() if (folder / file).is_file()},
    )


def _recipe(folder: Path) -> Recipe | None:
    path = folder / "recipe.yaml"
    return Recipe.read(path) if path.is_file() else None


def _origin(report: Report, recipe: Recipe | None) -> tuple[str, int | None]:
    """The model that the first of successive runs started from, and their epochs of fine-tuning in all."""
    if recipe is None:
        return report.model, None
    model, epochs, seen = report.model, recipe.finetune.epochs, set()
    while (parent := Path(recipe.model.name)) not in seen and (parent / "report.json").is_file():
        seen.add(parent)
        earlier, before = Report.read(parent / "report.json"), _recipe(parent)
        if before is None or earlier.reference.macs != report.reference.macs:
            break
        model, epochs, recipe = earlier.model, epochs + before.finetune.epochs, before
    return model, epochs


def _input_size(folder: Path, report: Report) -> tuple[int, ...] | None:
    """The input size in the report, or in slim.json for a report of format 1; None if neither has it."""
    if report.input_size is not None:
        return tuple(report.input_size)
    try:
        size: Any = read_json(folder / "slim.json")["preprocessing"]["input_size"]
        return tuple(int(n) for n in size)
    except (FileNotFoundError, Unreadable, ValueError, KeyError, TypeError):
        return None


def _history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of the fine-tuning in history.csv."""
    if not path.is_file():
        return
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["training"] == "finetune":
                    figures = {k: float(row[k]) for k in ("loss", "top1", "agreement") if row.get(k)}
                    yield {"epoch": int(row["epoch"])} | figures
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: damaged: {error!r}; delete it to leave its curves out, or run again") from None
