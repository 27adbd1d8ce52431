"""slimvit report: compare runs and sweeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimvit.cli import options, shared
from slimvit.utils.escaping import in_line

if TYPE_CHECKING:
    from slimvit.report.compare.comparison import Comparison
    from slimvit.report.compare.pick import PickRule

PLACE = click.Path(path_type=Path)


def parse_picks(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[PickRule]:
    """Parse the bounds of `--pick`, such as `top1 >= -1.0`."""
    from slimvit.report.compare.pick import PickError, parse_pick

    try:
        return [parse_pick(value) for value in values]
    except PickError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@options.command()
@click.argument("places", nargs=-1, required=True, metavar="RUN_OR_SWEEP...", type=PLACE)
@options.group(
    "Data",
    click.option(
        "--reference",
        "references",
        multiple=True,
        type=PLACE,
        metavar="RUN",
        help="Run to compare with, such as an unpruned smaller model; it is never picked. Repeatable.",
    ),
    click.option(
        "--allow-mixed", is_flag=True, help="Allow runs on different data, images or input sizes in one table."
    ),
)
@options.group(
    "Output",
    click.option(
        "--pick",
        "picks",
        multiple=True,
        callback=parse_picks,
        metavar="BOUND",
        help="Name the best run under a bound. 'top1 >= -1.0': fewest FLOPs among runs that lose at most 1 "
        "point. 'macs <= 0.6': best accuracy among runs with at most 60 % of the original's FLOPs. Also top5, "
        "agreement (>= per cent), params, heads, latency. Repeatable.",
    ),
)
@options.group(
    "Output",
    click.option("--out", type=PLACE, metavar="DIR", help="Write tables (csv, json, md, tex), a page (html) and "
                 "pictures."),
    click.option("--force", is_flag=True, help="Replace an earlier report folder."),
    click.option("--json", "as_json", is_flag=True, help="Print tradeoff.json."),
)  # fmt: skip
def report_command(places: tuple[Path, ...], references: tuple[Path, ...], allow_mixed: bool, **given: Any) -> None:
    """Compare run folders and sweeps: the trade-off of accuracy and cost.

    Runs that differ only in the seed form one row with mean and standard deviation. A single run is shown stage by
    stage. hf-hub:user/name names a run on the Hub.

    \b
    Examples:
      slimvit report runs/digits
      slimvit report runs/digits --pick "macs <= 0.9" --out runs/tradeoff
    """  # fmt: skip
    from slimvit.io.sweep_folder import is_sweep_folder

    compares = given["out"] or given["as_json"] or given["picks"] or references
    if len(places) == 1 and not compares and not is_sweep_folder(places[0]):
        from slimvit.report.compare.collect import run_folder
        from slimvit.report.record import Report
        from slimvit.report.run.table import report_markdown

        shared.echo(report_markdown(Report.read(run_folder(places[0]) / "report.json")))
        return
    from slimvit.workflows.compare import report

    show_comparison(
        report(*places, out=given["out"], pick=given["picks"], references=references, allow_mixed=allow_mixed,
               force=given["force"]),
        given["as_json"],
    )  # fmt: skip


def show_comparison(comparison: Comparison, as_json: bool) -> None:
    """Print the comparison on stdout and its notes on stderr."""
    for note in comparison.notes:
        shared.echo(in_line(f"note: {note}"), err=True)
    if as_json:
        from slimvit.report.compare.formats import to_json

        shared.echo(json.dumps(to_json(comparison), indent=1))
        return
    from slimvit.report.compare.cells import print_comparison

    print_comparison(comparison)
