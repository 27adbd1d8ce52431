"""slimvit sweep: many runs that differ in a few settings, and their comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slimvit.cli import options, shared
from slimvit.utils.allocator import keep_freed_memory
from slimvit.utils.escaping import in_line


@options.command()
@click.argument("sweep", metavar="SWEEP")
@options.data_options
@options.group(
    "Machine",
    click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Runs at a time on this machine; each process gets its share of the cores.",
    ),
    click.option(
        "--engine",
        type=click.Choice(("local", "ray")),
        default="local",
        show_default=True,
        help="This machine, or a Ray cluster (pip install 'slimvit[ray]').",
    ),
)
@options.machine_options
@options.training_machine
@options.group(
    "Output",
    click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Sweep folder to write; required."),
    click.option("--force", is_flag=True, help="Remove an earlier sweep in --out and start again."),
    click.option("--dry-run", is_flag=True, help="Check the sweep and list its points; run nothing."),
)  # fmt: skip
def sweep_command(sweep: str, jobs: int, engine: str, dry_run: bool, **given: Any) -> None:
    """Run every point of SWEEP: a YAML file, or the name of a sweep of the package (`slimvit recipes list`).

    Each point gets a run folder in --out; a report of all points follows. Work that points share (accuracy of the
    original, scores, adapted classifier) is done once. A repeated call skips finished points, continues interrupted
    ones and retries failed ones. A failed point does not stop the others.

    \b
    Examples:
      slimvit sweep quick --out runs/quick
      slimvit sweep paper_cifar10 --data-root cifar10/ --dry-run
    """  # fmt: skip
    from slimvit.config.shipped import sweep_path
    from slimvit.config.sweep import Sweep, points_of

    path = sweep_path(sweep)
    file = Sweep.read(path)
    points = points_of(file, str(path), shared.sections(None, given).get("data", {}))
    if dry_run:
        for point in points:
            shared.echo(point.id)
        return
    out = given["out"]
    if out is None:
        raise click.UsageError("Missing option '--out': the folder of the sweep")
    _carry_out(file, points, out, jobs, engine, given)


def _carry_out(file: Any, points: Any, out: Path, jobs: int, engine: str, given: dict[str, Any]) -> None:
    from slimvit.cli.report import show_comparison
    from slimvit.utils.lock import locked
    from slimvit.utils.output import link_target
    from slimvit.workflows.sweep.sweep import begin_anew, report_on, run_points

    keep_freed_memory()
    out = link_target(out)
    with locked(out):
        if given.pop("force"):
            begin_anew(out)
        del given["out"]
        contents = run_points(file, points, out, shared.run_options(given), jobs=jobs, engine=engine)
        comparison = report_on(out, contents)
    if comparison is not None:
        show_comparison(comparison, as_json=False)
        shared.echo(f"\nreport: {out / 'report'} (tradeoff.html and more)")
    failed = [entry for entry in contents.points if entry.error]
    for entry in failed:
        shared.echo(in_line(f"failed: {entry.id}: {entry.error} (log: {out / 'failed' / entry.id}.txt)"), err=True)
    if failed:
        raise click.exceptions.Exit(1)
