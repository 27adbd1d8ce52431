"""From run folders and sweep folders to what a table of many runs is made of. No torch."""

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
"""What a table takes of a run on the Hub beside its report. Pictures stay there: they would go into a page unseen."""
PICTURES = {"heads kept": "head_map.png", "learned mixes": "mixes.png"}


def collect_runs(sources: Sequence[Path], references: Sequence[Path] = (), allow_mixed: bool = False) -> CollectedRuns:
    """Read run folders and the points of sweep folders; a folder given twice counts once.

    Raises :class:`StoreError` for a folder that is neither, a sweep of which nothing is measured yet, and figures that
    were measured on different images (unless ``allow_mixed``).
    """
    several = sum(map(is_sweep_folder, (*references, *sources))) > 1
    found: dict[Path, Measurement] = {}
    notes: list[str] = []
    claims: list[tuple[str, PublishedFigure]] = []
    for place, is_reference in [*((r, True) for r in references), *((s, False) for s in sources)]:
        part = _sweep(place, several) if is_sweep_folder(place) else CollectedRuns((_run(place),))
        for run in part.measurements:
            found.setdefault(run.folder.resolve(), replace(run, is_reference=is_reference))
        notes += part.notes
        claims += part.claims
    if not allow_mixed:
        check_alike(list(found.values()))
    return CollectedRuns(tuple(_completed(list(found.values()))), tuple(claims), tuple(notes))


def _sweep(place: Path, several: bool) -> CollectedRuns:
    contents = read_contents(place)
    runs = _points(place, contents, place.resolve().name if several else "")
    claims = tuple((str(place), claim) for claim in contents.claims)
    return CollectedRuns(tuple(runs), claims, tuple(_left_out(place, contents, several)))


def _run(place: Path) -> Measurement:
    """A run folder, or a run on the Hub, whose command speaks of where it was fetched to."""
    folder = run_folder(place)
    return measured(folder, str(folder), str(place))


def run_folder(place: Path) -> Path:
    """Where a run lies; what a report needs of one on the Hub is fetched. Raises :class:`ModelError`."""
    if not is_hub_name(place):
        return place
    name = hub_name(place)
    found, report = fetch.find(name, ("report.json",))
    files = {report: MOST} | {file: MOST for file in FETCHED if found.has(file)}
    return fetch.fetch(found, files, name.branch)


def _completed(runs: list[Measurement]) -> Iterator[Measurement]:
    """An input size that is not known is that of the other runs on these images, where they agree."""
    for run in runs:
        known = {m.input_size for m in runs if (m.report.data, m.report.images) == (run.report.data, run.report.images)}
        known.discard(None)
        yield replace(run, input_size=known.pop()) if run.input_size is None and len(known) == 1 else run


def _points(sweep: Path, contents: Contents, prefix: str) -> Iterator[Measurement]:
    """What is measured of a sweep. Written files name a point from its sweep on, wherever that lies."""
    for entry in contents.points:
        folder = point_folder(sweep, entry.id)
        if _is_measured(folder):
            shown = "/".join(filter(None, (prefix, folder.relative_to(sweep).as_posix())))
            yield replace(measured(folder, shown, entry.name), sweep=str(sweep))


def _is_measured(folder: Path) -> bool:
    return (folder / "report.json").is_file() and not (folder / UNFINISHED).exists()


def _left_out(sweep: Path, contents: Contents, several: bool) -> list[str]:
    """What the sweep names and the table cannot show."""
    lost = [e for e in contents.points if not _is_measured(point_folder(sweep, e.id))]
    if len(lost) == len(contents.points):
        total = f"{len(lost)} point{'s' * (len(lost) != 1)}"
        raise StoreError(f"{sweep / CONTENTS}: none of its {total} is measured; call the sweep again to go on with it")
    failed = [f"{e.id} ({e.error})" for e in lost if e.error is not None]
    missing = [e.id for e in lost if e.error is None]
    told = [(failed, "failed"), (missing, "not measured yet")]
    where = f"{sweep.name}: " if several else ""
    return [f"{where}{len(n)} point{'s' * (len(n) != 1)} {what}: {listed(n)}" for n, what in told if n]


def measured(folder: Path, shown: str, name: str) -> Measurement:
    """One run folder."""
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
    """The model at the beginning of a line of runs that go on from each other, and the epochs of fine-tuning in it."""
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
    """From the report; an older one does not know it, but the saved model beside it does."""
    if report.input_size is not None:
        return tuple(report.input_size)
    try:
        size: Any = read_json(folder / "slim.json")["preprocessing"]["input_size"]
        return tuple(int(n) for n in size)
    except (FileNotFoundError, Unreadable, ValueError, KeyError, TypeError):
        return None


def _history(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of the fine-tuning. Raises :class:`StoreError` for a file that is no history."""
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
    """Raise :class:`StoreError` where two runs were measured on other images; what is not known fits everything."""
    for what, fact in FACTS.items():
        known = [m for m in runs if fact(m) is not None]
        other = next((m for m in known if fact(m) != fact(known[0])), None)
        if other is not None:
            told = f"{known[0].folder} has {what} {_said(fact(known[0]))}, but {other.folder} has {_said(fact(other))}"
            raise StoreError(f"{told}: figures on other images do not compare; report them apart, or add --allow-mixed")


def _said(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
