"""slimvit report: several runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Also write tradeoff.md and tradeoff.png.")
@click.option("--force", is_flag=True, help="Replace an earlier report folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
def command(runs: tuple[Path, ...], out: Path | None, force: bool, as_json: bool) -> None:
    """Print the trade-off table of one or more run folders.

    \b
    Example:
      slimvit report runs/digits
    """
    from slimvit.folders import new_folder
    from slimvit.report.record import Report
    from slimvit.report.table import markdown, markdown_many

    reports = {str(run): Report.read(run / "report.json") for run in runs}
    text = markdown(next(iter(reports.values()))) if len(reports) == 1 else markdown_many(reports)
    if out is not None:
        from slimvit.report.plots import tradeoff

        with new_folder(out, force) as folder:
            (folder / "tradeoff.md").write_text(text)
            tradeoff(reports, folder / "tradeoff.png")
    click.echo(json.dumps({k: r.to_json() for k, r in reports.items()}, indent=1) if as_json else text)
