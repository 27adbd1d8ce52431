"""Run the points of a sweep, each in its own run folder; finished ones are skipped."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.config.shipped import sweep_path
from slimvit.config.sweep import Point, Sweep, points_of
from slimvit.io.load import hub_names, pinned, pinned_name
from slimvit.io.sweep_folder import (
    POINTS,
    SWEEP,
    Contents,
    Entry,
    is_sweep_folder,
    point_folder,
    read_contents,
    write_contents,
)
from slimvit.report.compare.collect import collect_runs
from slimvit.report.compare.comparison import Comparison, compare_runs
from slimvit.report.compare.formats import write_comparison
from slimvit.report.record import Report
from slimvit.train.checkpoint import Interrupted
from slimvit.utils.errors import StoreError
from slimvit.utils.files import check_no_link, disk_errors, write_whole
from slimvit.utils.lock import clean_up, locked
from slimvit.utils.output import UNFINISHED, aside, check_free, entries, link_target, new_folder, remove
from slimvit.utils.progress import log
from slimvit.workflows import run_folder
from slimvit.workflows.cache import NEW, keys_of
from slimvit.workflows.resume import recipe_in
from slimvit.workflows.sweep.executors import Executor, ProcessExecutor, RayExecutor, SerialExecutor, Task

DEFAULTS = Options()
CACHE, FAILED, REPORT = "shelf", "failed", "report"
"""Subfolders of a sweep folder; the cache is named `shelf` as in the first version."""


def sweep(
    sweep: str | Path,
    out: str | Path,
    options: Options = DEFAULTS,
    *,
    data: Mapping[str, Any] | None = None,
    jobs: int = 1,
    engine: str = "local",
    force: bool = False,
) -> Comparison | None:
    """Run every point of a sweep and compare the runs, as `slimvit sweep` does.

    Args:
        sweep: A sweep file, or the name of a sweep of the package.
        out: Folder of the sweep; finished points in it are skipped.
        options: Device, workers and precision of the runs; `out`, `cache` and `resume` are set for each run.
        data: Keys of the data section that replace those of every point, such as `{"name": "photos/"}`.
        jobs: Runs at a time on this machine.
        engine: `local`, or `ray` for a cluster.
        force: Remove an earlier sweep in `out` and start again.

    Returns:
        The comparison, which also lies in `out/report`; None where every point failed.

    Raises:
        RecipeError: The sweep file or one of its points is wrong.
        StoreError: `out` holds runs of another sweep.
        Interrupted: The sweep was stopped; the same call continues it.

    Example:
        >>> slimvit.sweep("quick", "runs/quick", jobs=2)
    """
    path, folder = sweep_path(str(sweep)), link_target(Path(out))
    file = Sweep.read(path)
    points = points_of(file, str(path), dict(data or {}))
    with locked(folder):
        if force:
            begin_anew(folder)
        return report_on(folder, run_points(file, points, folder, options, jobs=jobs, engine=engine))


def run_points(
    file: Sweep, points: Sequence[Point], out: Path, options: Options, *, jobs: int = 1, engine: str = "local"
) -> Contents:
    """Run the points of a sweep that `out` does not hold yet.

    Args:
        file: The sweep.
        points: Its points.
        out: Folder of the sweep.
        options: Device, workers and precision of the runs.
        jobs: Runs at a time on this machine.
        engine: `local` or `ray`.

    Returns:
        The points with the errors of those that failed.

    Raises:
        StoreError: `out` holds runs of another sweep; nothing is run.
        Interrupted: The sweep was stopped; the same call continues it.
    """
    with locked(out):
        return _sweep(file, points, out.absolute(), options, jobs, engine)


def _sweep(file: Sweep, points: Sequence[Point], out: Path, options: Options, jobs: int, engine: str) -> Contents:
    folders = [point_folder(out, point.id) for point in points]
    check_no_link(*(out / name for name in (POINTS, CACHE, FAILED)), *folders)
    for folder in folders:
        clean_up(folder)
    points, commits = _pinned(points, out)
    waiting = [p for p in points if not is_finished(out, p)]
    contents = _prepare(file, points, out, commits)
    log(f"{len(points)} points, {len(points) - len(waiting)} of them done already")
    tasks = {p.id: Task(p.recipe, _options(p, out, options), out / FAILED / f"{p.id}.txt") for p in waiting}
    executor = RayExecutor() if engine == "ray" else ProcessExecutor(jobs) if jobs > 1 else SerialExecutor()
    errors: dict[str, str] = {}
    try:
        with _interrupted_by_sigterm():
            _run_tasks(tasks, executor, errors, len(points))
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(f"stopped; finished points are in {out}; the same command continues the sweep") from None
    finally:
        if isinstance(executor, ProcessExecutor):
            executor.stop()
        entries = [e.model_copy(update={"error": errors.get(e.id)}) for e in contents.points]
        contents = contents.model_copy(update={"points": entries})
        with disk_errors(out):
            write_contents(out, contents)
    return contents


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, in the main thread alone: Python allows no signal handlers in others."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_finished(out: Path, point: Point) -> bool:
    """Whether the run folder of a point is finished. Raises `StoreError` if it holds another run."""
    folder = point_folder(out, point.id)
    if run_folder.finished(folder, point.recipe) is not None:
        return True
    unfinished = recipe_in(folder)
    recipe = Recipe.read(unfinished) if unfinished is not None else run_folder.recipe_of(folder)
    if recipe not in (None, point.recipe) or (recipe is None and entries(folder)):
        raise StoreError(
            f"{folder}: holds another run than this sweep's; name another --out, or begin anew with --force"
        )
    return False


def report_on(out: Path, contents: Contents) -> Comparison | None:
    """Write the report of a sweep into its folder, and return it; None if every point failed."""
    if all(entry.error for entry in contents.points):
        return None
    comparison = compare_runs(collect_runs([out], allow_mixed=True))
    with new_folder(out / REPORT, force=True) as folder:
        write_comparison(comparison, folder)
    return comparison


def begin_anew(out: Path) -> None:
    """Remove an earlier sweep."""
    remove(out)


def _pinned(points: Sequence[Point], out: Path) -> tuple[list[Point], dict[str, str]]:
    """Pin models on the Hub to their commit in the first call of the sweep; return points and commits by name."""
    commits = read_contents(out).commits if is_sweep_folder(out) else {}
    for name in dict.fromkeys(name for point in points for name in hub_names(point.recipe)):
        if name in commits:
            log(f"{name}: pinned to the commit of this sweep's first call, {commits[name]}")
        else:
            commits[name] = pinned_name(name)
    return [replace(point, recipe=pinned(point.recipe, commits)) for point in points], commits


def _prepare(file: Sweep, points: Sequence[Point], out: Path, commits: dict[str, str]) -> Contents:
    """Write the sweep file and the list of points into the sweep folder, created if missing."""
    entries = [Entry(id=p.id, name=p.name) for p in points]
    contents = Contents(points=entries, claims=file.claims, commits=commits)
    if not is_sweep_folder(out):
        check_free(out, force=False)
        with aside(out) as folder:
            write_whole(folder / SWEEP, file.to_yaml())
            write_contents(folder, contents)
        return contents
    with disk_errors(out):
        write_whole(out / SWEEP, file.to_yaml())
        write_contents(out, contents)
        for stale in (out / FAILED, *(out / CACHE).glob(f"{NEW}*")):  # failed points run again
            shutil.rmtree(stale, ignore_errors=True)
    return contents


def _options(point: Point, out: Path, options: Options) -> Options:
    folder = point_folder(out, point.id)
    return replace(options, out=folder, resume=(folder / UNFINISHED).is_dir(), cache=out / CACHE)


def _run_tasks(tasks: Mapping[str, Task], executor: Executor, errors: dict[str, str], total: int) -> None:
    """Run every task; a task waits while a running one computes a cache entry that it needs too."""
    waiting, done = dict(tasks), total - len(tasks)
    cached: set[str] = set()
    running: dict[Future[str | None], str] = {}
    needs = {id: set(keys_of(task.recipe).values()) for id, task in tasks.items()}
    while waiting or running:
        for id in list(waiting):
            computing = set().union(*(needs[other] for other in running.values())) - cached
            if not needs[id] & computing:
                running[executor.submit(waiting.pop(id))] = id
                if isinstance(executor, SerialExecutor):
                    break  # it has finished: log it before the next one starts
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            id, error, done = running.pop(future), future.result(), done + 1
            cached |= needs[id]
            if error is not None:
                errors[id] = error
            log(f"[{done}/{total}] {id}: {_summary(tasks[id]) if error is None else f'failed: {error}'}")


def _summary(task: Task) -> str:
    """Top-1 and FLOPs of a finished run, for the log."""
    assert task.options.out is not None
    report = Report.read(task.options.out / "report.json")
    last, first = report.last, report.reference
    after, before = last.figure("top1"), first.figure("top1")
    figures = [] if after is None else [f"top-1 {after:.1f}"]
    if after is not None and before is not None and last is not first:
        figures[0] += f" ({after - before:+.1f})"
    if last.macs and first.macs:
        figures.append(f"{100 * last.macs / first.macs:.0f} % of the FLOPs")
    return ", ".join(figures) or "done"
