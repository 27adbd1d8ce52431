"""slimvit report: runs and sweeps side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from slimvit.report.compare.comparison import Comparison
    from slimvit.report.compare.measurement import CollectedRuns
    from slimvit.report.compare.pick import PickRule

FOLDER = click.Path(path_type=Path)


def pick_rules(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[PickRule]:
    from slimvit.report.compare.pick import PickError, parse_pick

    try:
        return [parse_pick(value) for value in values]
    except PickError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="RUN_OR_SWEEP...", type=FOLDER)
@click.option(
    "--out", type=FOLDER, metavar="DIR", help="Write tables (csv, json, md, tex), a page (html) and pictures."
)
@click.option("--force", is_flag=True, help="Replace an earlier report folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the content of tradeoff.json.")
@click.option(
    "--pick",
    "picks",
    multiple=True,
    callback=pick_rules,
    metavar="BOUND",
    help="Name the point to take: 'top1 >= -1.0' is the one with the fewest FLOPs among those that lose at most "
    "a point, 'macs <= 0.6' the most accurate among those with at most 60 % of the original's. Also top5, "
    "agreement (>= per cent), params, heads, latency. Repeatable.",
)
@click.option(
    "--reference",
    "references",
    multiple=True,
    type=FOLDER,
    metavar="RUN",
    help="A run to compare with, such as a smaller model that was not cut; no candidate itself. Repeatable.",
)
@click.option("--allow-mixed", is_flag=True, help="Let runs on other data, images or input sizes into one table.")
def command(places: tuple[Path, ...], references: tuple[Path, ...], allow_mixed: bool, **given: Any) -> None:
    """Put run folders and sweeps side by side: the trade-off of accuracy and cost.

    Runs that differ in nothing but the seed are one row, with their mean and standard deviation. One run alone is
    shown stage by stage. A run may also be `hf-hub:user/name`, where `slimvit push` put it.

    \b
    Examples:
      slimvit report runs/digits
      slimvit report runs/digits --pick "macs <= 0.9" --out runs/tradeoff
    """  # fmt: skip
    from slimvit.io.sweep_folder import is_sweep_folder

    asked = given["out"] or given["as_json"] or given["picks"] or references
    if len(places) == 1 and not asked and not is_sweep_folder(places[0]):
        from slimvit.report.compare.collect import run_folder
        from slimvit.report.record import Report
        from slimvit.report.run.table import report_markdown

        click.echo(report_markdown(Report.read(run_folder(places[0]) / "report.json")))
        return
    from slimvit.report.compare.collect import collect_runs
    from slimvit.report.compare.comparison import compare_runs

    gathered = collect_runs(places, references, allow_mixed)
    check_apart(gathered, given["out"])
    comparison = compare_runs(gathered, given["picks"])
    if given["out"] is not None:
        write_report(comparison, given["out"], given["force"])
    show_comparison(comparison, given["as_json"])


def check_apart(gathered: CollectedRuns, out: Path | None) -> None:
    """Raise `StoreError` where --force would put the report in the place of what it is on."""
    from slimvit.utils.errors import StoreError

    if out is not None and any(
        out.resolve() in (f, *f.parents) for f in (m.folder.resolve() for m in gathered.measurements)
    ):
        raise StoreError(f"{out}: holds runs that the report is on; name another folder for --out")


def write_report(comparison: Comparison, out: Path, force: bool) -> None:
    from slimvit.report.compare.write import write_comparison
    from slimvit.utils.output import new_folder

    with new_folder(out, force) as folder:
        write_comparison(comparison, folder)


def show_comparison(comparison: Comparison, as_json: bool) -> None:
    """The result on stdout, what must be known before reading it on stderr."""
    for note in comparison.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        from slimvit.report.compare.formats import to_json

        click.echo(json.dumps(to_json(comparison), indent=1))
        return
    from slimvit.report.compare.terminal import print_comparison

    print_comparison(comparison)
