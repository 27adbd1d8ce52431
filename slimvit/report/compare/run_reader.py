"""Read a run folder for a comparison. No torch."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimvit.config.recipe import Recipe
from slimvit.report.compare.measurement import Measurement
from slimvit.report.record import Report
from slimvit.report.timing import read_timings
from slimvit.utils.errors import StoreError
from slimvit.utils.reading import Unreadable, is_regular, read_json, read_text

PICTURES = {"heads kept": "head_map.png", "learned mixes": "mixes.png"}
"""Pictures of a run on the HTML page, by title."""
MOST_PICTURE = 16 * 2**20
"""Largest picture that a page embeds, in bytes."""


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
        pictures={title: folder / file for title, file in PICTURES.items() if _is_picture(folder / file)},
    )


def left_out_pictures(folder: Path) -> list[Path]:
    """The pictures of a run that no page embeds, since they are links, devices or too large."""
    names = [folder / file for file in PICTURES.values() if os.path.lexists(folder / file)]
    return [path for path in names if not _is_picture(path)]


def _is_picture(path: Path) -> bool:
    return is_regular(path) and path.stat().st_size <= MOST_PICTURE


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
        for row in csv.DictReader(io.StringIO(read_text(path), newline="")):
            if row["training"] == "finetune":
                figures = {k: float(row[k]) for k in ("loss", "top1", "agreement") if row.get(k)}
                yield {"epoch": int(row["epoch"])} | figures
    except (Unreadable, csv.Error, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: damaged: {error!r}; delete it to leave its curves out, or run again") from None
