"""slimvit run: a recipe, as written."""

from __future__ import annotations

from typing import Any

import click

from slimvit.commands import shared


@click.command()
@click.argument("recipe")
@shared.data_options
@shared.how_options
@shared.out_options
def command(recipe: str, **given: Any) -> None:
    """Carry out RECIPE: a YAML file, or the name of a shipped one (`slimvit recipes list`).

    \b
    Example:
      slimvit run digits_half --out runs/digits_half
    """
    from slimvit.recipe import Recipe
    from slimvit.shipped import recipe_path

    read = Recipe.read(recipe_path(recipe))
    over = shared.sections(None, given)
    tree = read.model_dump(mode="json")
    tree["data"].update(over.get("data", {}))
    tree["seed"] = over.get("seed", tree["seed"])
    shared.carry_out(Recipe.parse(tree, recipe), given)
