"""slimvit evaluate: accuracy, size and cost of one model."""

from __future__ import annotations

import json
from typing import Any

import click

from slimvit.cli import shared
from slimvit.utils.allocator import keep_freed_memory


@click.command()
@click.argument("model")
@shared.data_options
@shared.model_options
@shared.how_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, as_json: bool, **given: Any) -> None:
    """Measure MODEL (a timm name, an embedded model, a run folder or hf-hub:user/name) on the validation images.

    A run folder is measured on its run's own data unless --data names another; a model on the Hub needs --data.

    \b
    Example:
      slimvit evaluate vit_digits --data digits
    """
    from slimvit.config.recipe import Recipe
    from slimvit.workflows.run import evaluate_model
    from slimvit.workflows.run_folder import recipe_of

    keep_freed_memory()
    tree = shared.sections(model, given)
    tree["data"] = shared.data_of(recipe_of(model), tree.get("data", {}))
    shared.need_data({"data": tree["data"].get("name")})
    figures = evaluate_model(Recipe.parse(tree, "command line"), shared.how(given))
    if as_json:
        click.echo(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        click.echo(f"{name:<10} {'not measured' if value is None else value}")
