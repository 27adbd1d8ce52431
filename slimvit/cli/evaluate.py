"""slimvit evaluate: accuracy, size and cost of a model."""

from __future__ import annotations

import json
from typing import Any

import click

from slimvit.cli import options, shared
from slimvit.utils.allocator import keep_freed_memory
from slimvit.utils.escaping import in_line


@options.command()
@click.argument("model")
@options.model_options
@options.data_options
@options.seed_option
@options.machine_options
@options.json_option
def evaluate_command(model: str, as_json: bool, **given: Any) -> None:
    """Measure the accuracy, size and cost of MODEL on validation images.

    MODEL is a timm name, an embedded model, a run folder or hf-hub:user/name. A run folder is measured on the data of
    its run unless --data names other data; every other model needs --data. A folder of images may have val/ or test/
    alone, or class folders without splits.

    \b
    Example:
      slimvit evaluate vit_digits --data digits
    """
    from slimvit.config.recipe import Recipe
    from slimvit.workflows.evaluate import evaluate_model
    from slimvit.workflows.run_folder import recipe_of

    keep_freed_memory()
    tree = shared.sections(model, given)
    tree["data"] = shared.data_of(model, recipe_of(model), tree.get("data", {}))
    shared.need_data({"data": tree["data"].get("name")})
    figures = evaluate_model(Recipe.parse(tree, "command line"), shared.run_options(given))
    if as_json:
        shared.echo(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        shared.echo(in_line(f"{name:<10} {'not measured' if value is None else value}"))
