"""slimvit models: what can be pruned."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command()
@click.argument("pattern", default="*")
@click.option("--embedded", is_flag=True, help="The small pretrained models that come with slimvit.")
@click.option(
    "--table", is_flag=True, help="All of timm's models with attention, what can be done with them and why not."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def command(pattern: str, embedded: bool, table: bool, as_json: bool) -> None:
    """List the timm models slimvit can prune, or those that match PATTERN (wildcards).

    \b
    Examples:
      slimvit models --embedded
      slimvit models 'deit_*'
      slimvit models 'beit*' --table
    """
    from slimvit.io.saved_model import embedded_models
    from slimvit.models.coverage import coverage_table, prunable_models, support
    from slimvit.utils.errors import ModelError

    if table:
        if embedded:
            raise click.UsageError("--table is about timm's models; leave --embedded out")
        found = support(pattern)
        click.echo(json.dumps([asdict(row) for row in found], indent=1) if as_json else coverage_table(found))
        if not found:
            raise ModelError(f"{pattern}: no timm model with attention matches; `slimvit models --table` shows all")
        return
    rows = embedded_models(pattern) if embedded else prunable_models(pattern)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    width = max((len(r["model"]) for r in rows), default=0)
    for row in rows:
        click.echo(f"{row['model']:<{width}}  {row['about']}")
    if not rows:
        raise ModelError(f"{pattern}: no model that slimvit can prune matches; `slimvit models` lists all of them")
