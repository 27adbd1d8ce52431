"""slimvit models: the supported models."""

from __future__ import annotations

import json

import click

from slimvit.cli import options, shared


@options.command()
@click.argument("pattern", default="*")
@options.group(
    "Model",
    click.option("--embedded", is_flag=True, help="List the small pretrained models of the package."),
    click.option("--table", is_flag=True,
                 help="List all timm models with attention: the prunable parts of each, or the reason for none."),
)  # fmt: skip
@options.json_option
def models_command(pattern: str, embedded: bool, table: bool, as_json: bool) -> None:
    """List the timm models that slimvit can prune and that match PATTERN (with wildcards).

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
        coverage = support(pattern)
        shared.echo(json.dumps([row.to_json() for row in coverage], indent=1) if as_json else coverage_table(coverage))
        if not coverage:
            raise ModelError(f"{pattern}: no timm model with attention matches; `slimvit models --table` shows all")
        return
    rows = embedded_models(pattern) if embedded else prunable_models(pattern)
    if as_json:
        shared.echo(json.dumps(rows, indent=1))
        return
    width = max((len(r["model"]) for r in rows), default=0)
    for row in rows:
        shared.echo(f"{row['model']:<{width}}  {row['about']}")
    if not rows:
        raise ModelError(f"{pattern}: no model that slimvit can prune matches; `slimvit models` lists all of them")
