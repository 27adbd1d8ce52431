"""Collect the runs of run folders, sweep folders and the Hub for a comparison. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slimvit.config.sweep import PublishedFigure
from slimvit.io.hub import fetch
from slimvit.io.hub.name import hub_name, is_hub_name
from slimvit.io.sweep_folder import CONTENTS, Contents, is_sweep_folder, point_folder, read_contents
from slimvit.report.compare.measurement import CollectedRuns, Measurement
from slimvit.report.compare.run_reader import left_out_pictures, read_run
from slimvit.report.text import listed
from slimvit.utils.errors import StoreError
from slimvit.utils.output import UNFINISHED
from slimvit.utils.reading import MOST

FETCHED = ("slim.json", "recipe.yaml", "history.csv", "timings.json")
"""Files of a run on the Hub that a comparison reads beside report.json; pictures are not fetched."""


def collect_runs(sources: Sequence[Path], references: Sequence[Path] = (), allow_mixed: bool = False) -> CollectedRuns:
    """Read run folders and the points of sweep folders; a folder named twice counts once.

    Args:
        sources: Run folders, sweep folders, or runs on the Hub.
        references: Sources that are compared with and never picked.
        allow_mixed: Whether runs on different images may be compared.

    Raises:
        StoreError: A source is no run or sweep, a sweep has no finished point, or, unless `allow_mixed`, runs were
            measured on different images.
    """
    several = sum(map(is_sweep_folder, (*references, *sources))) > 1
    runs: dict[Path, Measurement] = {}
    notes: list[str] = []
    claims: list[tuple[str, PublishedFigure]] = []
    for place, is_reference in [*((r, True) for r in references), *((s, False) for s in sources)]:
        collected = _sweep(place, several) if is_sweep_folder(place) else CollectedRuns((_run(place),))
        for run in collected.measurements:
            runs.setdefault(run.folder.resolve(), replace(run, is_reference=is_reference))
            notes += [f"{path}: is a link or too large, so it is not shown" for path in left_out_pictures(run.folder)]
        notes += collected.notes
        claims += collected.claims
    if not allow_mixed:
        check_alike(list(runs.values()))
    return CollectedRuns(tuple(_completed(list(runs.values()))), tuple(claims), tuple(notes))


def _sweep(place: Path, several: bool) -> CollectedRuns:
    contents = read_contents(place)
    runs = _points(place, contents, place.resolve().name if several else "")
    claims = tuple((str(place), claim) for claim in contents.claims)
    return CollectedRuns(tuple(runs), claims, tuple(_left_out(place, contents, several)))


def _run(place: Path) -> Measurement:
    """A run folder or a run on the Hub; files name the latter by its local copy."""
    folder = run_folder(place)
    return read_run(folder, str(folder), str(place))


def run_folder(place: Path) -> Path:
    """Return the local folder of a run; the files of a run on the Hub are fetched.

    Raises:
        ModelError: The Hub has no such run.
    """
    if not is_hub_name(place):
        return place
    name = hub_name(place)
    repository, report = fetch.find(name, ("report.json",))
    files = {report: MOST} | {file: MOST for file in FETCHED if repository.has(file)}
    return fetch.fetch(repository, files, name.branch)


def _completed(runs: list[Measurement]) -> Iterator[Measurement]:
    """Fill in an unknown input size from the other runs on the same images, if they agree."""
    for run in runs:
        sizes = {m.input_size for m in runs if (m.report.data, m.report.images) == (run.report.data, run.report.images)}
        sizes.discard(None)
        yield replace(run, input_size=sizes.pop()) if run.input_size is None and len(sizes) == 1 else run


def _points(sweep: Path, contents: Contents, prefix: str) -> Iterator[Measurement]:
    """The finished points of a sweep; files name a point by its path inside the sweep."""
    for entry in contents.points:
        folder = point_folder(sweep, entry.id)
        if _is_finished(folder):
            shown = "/".join(filter(None, (prefix, folder.relative_to(sweep).as_posix())))
            yield replace(read_run(folder, shown, entry.name), sweep=str(sweep))


def _is_finished(folder: Path) -> bool:
    return (folder / "report.json").is_file() and not (folder / UNFINISHED).exists()


def _left_out(sweep: Path, contents: Contents, several: bool) -> list[str]:
    """Notes on the points that failed or are not finished."""
    absent = [e for e in contents.points if not _is_finished(point_folder(sweep, e.id))]
    if len(absent) == len(contents.points):
        total = f"{len(absent)} point{'s' * (len(absent) != 1)}"
        raise StoreError(f"{sweep / CONTENTS}: none of its {total} is measured; call the sweep again to go on with it")
    failed = [f"{e.id} ({e.error})" for e in absent if e.error is not None]
    missing = [e.id for e in absent if e.error is None]
    states = [(failed, "failed"), (missing, "not measured yet")]
    where = f"{sweep.name}: " if several else ""
    return [f"{where}{len(n)} point{'s' * (len(n) != 1)} {what}: {listed(n)}" for n, what in states if n]


FACTS: dict[str, Callable[[Measurement], Any]] = {
    "data": lambda m: m.report.data,
    "images": lambda m: m.report.images,
    "input size": lambda m: m.input_size,
}


def check_alike(runs: Sequence[Measurement]) -> None:
    """Check that all runs were measured on the same images; unknown facts are ignored.

    Raises:
        StoreError: Two runs differ; the message names them.
    """
    for name, fact in FACTS.items():
        stated = [m for m in runs if fact(m) is not None]
        other = next((m for m in stated if fact(m) != fact(stated[0])), None)
        if other is not None:
            first = stated[0]
            differ = f"{first.folder} has {name} {_text(fact(first))}, but {other.folder} has {_text(fact(other))}"
            raise StoreError(
                f"{differ}: figures on other images do not compare; report them apart, or add --allow-mixed"
            )


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
