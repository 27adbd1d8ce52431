"""Collect the runs of run folders and sweep folders for a comparison. No torch."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slimvit.config.recipe import Recipe
from slimvit.config.sweep import PublishedFigure
from slimvit.io.hub import fetch
from slimvit.io.hub.name import hub_name, is_hub_name
from slimvit.io.sweep_folder import CONTENTS, Contents, is_sweep_folder, point_folder, read_contents
from slimvit.report.compare.measurement import CollectedRuns, Measurement
from slimvit.report.record import Report
from slimvit.report.text import listed
from slimvit.report.timing import read_timings
from slimvit.utils.errors import StoreError
from slimvit.utils.files import MOST, Unreadable, read_json
from slimvit.utils.output import UNFINISHED

FETCHED = ("slim.json", "recipe.yaml", "history.csv", "timings.json")
"""Files of a run on the Hub that a table needs beside its report. Unseen pictures do not go into a page."""
PICTURES = {"heads kept": "head_map.png", "learned mixes": "mixes.png"}


def collect_runs(sources: Sequence[Path], references: Sequence[Path] = (), allow_mixed: bool = False) -> CollectedRuns:
    """Read run folders and the points of sweep folders; a folder given twice counts once.

    Args:
        sources: Run folders, sweep folders, or runs on the Hub.
        references: The same, as references.
        allow_mixed: Whether runs on different images may be compared.

    Raises:
        StoreError: For a folder that is neither, a sweep without a measured point, and, unless `allow_mixed`, runs on
            different images.
    """
    several = sum(map(is_sweep_folder, (*references, *sources))) > 1
    runs: dict[Path, Measurement] = {}
    notes: list[str] = []
    claims: list[tuple[str, PublishedFigure]] = []
    for place, is_reference in [*((r, True) for r in references), *((s, False) for s in sources)]:
        part = _sweep(place, several) if is_sweep_folder(place) else CollectedRuns((_run(place),))
        for run in part.measurements:
            runs.setdefault(run.folder.resolve(), replace(run, is_reference=is_reference))
        notes += part.notes
        claims += part.claims
    if not allow_mixed:
        check_alike(list(runs.values()))
    return CollectedRuns(tuple(_completed(list(runs.values()))), tuple(claims), tuple(notes))


def _sweep(place: Path, several: bool) -> CollectedRuns:
    contents = read_contents(place)
    runs = _points(place, contents, place.resolve().name if several else "")
    claims = tuple((str(place), claim) for claim in contents.claims)
    return CollectedRuns(tuple(runs), claims, tuple(_left_out(place, contents, several)))


def _run(place: Path) -> Measurement:
    """A run folder, or a run on the Hub, whose command names the fetched copy."""
    folder = run_folder(place)
    return measured(folder, str(folder), str(place))


def run_folder(place: Path) -> Path:
    """Return a run's folder; the files of a run on the Hub are fetched.

    Raises:
        ModelError: If the Hub has no such run.
    """
    if not is_hub_name(place):
        return place
    name = hub_name(place)
    repository, report = fetch.find(name, ("report.json",))
    files = {report: MOST} | {file: MOST for file in FETCHED if repository.has(file)}
    return fetch.fetch(repository, files, name.branch)


def _completed(runs: list[Measurement]) -> Iterator[Measurement]:
    """Fill in an unknown input size from the other runs on the same images, where they agree."""
    for run in runs:
        known = {m.input_size for m in runs if (m.report.data, m.report.images) == (run.report.data, run.report.images)}
        known.discard(None)
        yield replace(run, input_size=known.pop()) if run.input_size is None and len(known) == 1 else run


def _points(sweep: Path, contents: Contents, prefix: str) -> Iterator[Measurement]:
    """The measured points of a sweep, which written files name by their path inside the sweep."""
    for entry in contents.points:
        folder = point_folder(sweep, entry.id)
        if _is_measured(folder):
            shown = "/".join(filter(None, (prefix, folder.relative_to(sweep).as_posix())))
            yield replace(measured(folder, shown, entry.name), sweep=str(sweep))


def _is_measured(folder: Path) -> bool:
    return (folder / "report.json").is_file() and not (folder / UNFINISHED).exists()


def _left_out(sweep: Path, contents: Contents, several: bool) -> list[str]:
    """Notes on the points that are not measured."""
    lost = [e for e in contents.points if not _is_measured(point_folder(sweep, e.id))]
    if len(lost) == len(contents.points):
        total = f"{len(lost)} point{'s' * (len(lost) != 1)}"
        raise StoreError(f"{sweep / CONTENTS}: none of its {total} is measured; call the sweep again to go on with it")
    failed = [f"{e.id} ({e.error})" for e in lost if e.error is not None]
    missing = [e.id for e in lost if e.error is None]
    states = [(failed, "failed"), (missing, "not measured yet")]
    where = f"{sweep.name}: " if several else ""
    return [f"{where}{len(n)} point{'s' * (len(n) != 1)} {what}: {listed(n)}" for n, what in states if n]


def measured(folder: Path, shown: str, name: str) -> Measurement:
    """Read a run folder.

    Args:
        folder: Its path.
        shown: Its name in written files.
        name: The run's name for people.
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
    """The model that a line of runs started from, and the epochs of fine-tuning in that line."""
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
    """From the report, or for an older one from the saved model beside it."""
    if report.input_size is not None:
        return tuple(report.input_size)
    try:
        size: Any = read_json(folder / "slim.json")["preprocessing"]["input_size"]
        return tuple(int(n) for n in size)
    except (FileNotFoundError, Unreadable, ValueError, KeyError, TypeError):
        return None


def _history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of the fine-tuning."""
    if not path.is_file():
        return
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["training"] == "finetune":
                    known = {k: float(row[k]) for k in ("loss", "top1", "agreement") if row.get(k)}
                    yield {"epoch": int(row["epoch"])} | known
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: damaged: {error!r}; delete it to leave its curves out, or run again") from None


FACTS: dict[str, Callable[[Measurement], Any]] = {
    "data": lambda m: m.report.data,
    "images": lambda m: m.report.images,
    "input size": lambda m: m.input_size,
}


def check_alike(runs: Sequence[Measurement]) -> None:
    """Check that all runs were measured on the same images; an unknown fact fits everything.

    Raises:
        StoreError: For the first two runs that differ.
    """
    for what, fact in FACTS.items():
        known = [m for m in runs if fact(m) is not None]
        other = next((m for m in known if fact(m) != fact(known[0])), None)
        if other is not None:
            differ = (
                f"{known[0].folder} has {what} {_text(fact(known[0]))}, but {other.folder} has {_text(fact(other))}"
            )
            raise StoreError(
                f"{differ}: figures on other images do not compare; report them apart, or add --allow-mixed"
            )


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
