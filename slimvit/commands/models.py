"""slimvit models: what can be pruned."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("pattern", default="*")
@click.option("--embedded", is_flag=True, help="The small pretrained models that come with slimvit.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def command(pattern: str, embedded: bool, as_json: bool) -> None:
    """List the timm models slimvit can prune, or those that match PATTERN (wildcards).

    \b
    Examples:
      slimvit models --embedded
      slimvit models 'deit_*'
    """
    from slimvit.catalogue import embedded_models, prunable_models

    rows = embedded_models(pattern) if embedded else prunable_models(pattern)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    width = max((len(r["model"]) for r in rows), default=0)
    for row in rows:
        click.echo(f"{row['model']:<{width}}  {row['about']}")
    if not rows:
        from slimvit.errors import ModelError

        raise ModelError(f"{pattern}: no model that slimvit can prune matches; `slimvit models` lists all of them")
