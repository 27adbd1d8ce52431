"""slimvit inspect: what a model is made of."""

from __future__ import annotations

import json
from typing import Any

import click

from slimvit.commands import shared


@click.command()
@click.argument("model")
@shared.model_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, as_json: bool, **given: Any) -> None:
    """Show the blocks of MODEL, the heads each keeps (by original id), parameters and MACs by part.

    MODEL is a timm name (no weights are fetched), an embedded model or a run folder.

    \b
    Example:
      slimvit inspect vit_digits
    """
    from slimvit.inspection import inspect_model, inspection_text
    from slimvit.recipe import Recipe

    tree = shared.sections(model, given) | {"data": {"name": "none"}}  # a recipe, to have the options checked alike
    found = inspect_model(Recipe.parse(tree, "command line").model)
    click.echo(json.dumps(found, indent=1) if as_json else inspection_text(found))
