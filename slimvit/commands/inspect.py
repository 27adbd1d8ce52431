"""slimvit inspect: what a model is made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from slimvit.commands import shared

if TYPE_CHECKING:
    from slimvit.recipe import Recipe

IMAGES = 256
"""Calibration images, where none are asked for."""


@click.command()
@click.argument("model")
@shared.model_options
@shared.data_options
@click.option("--calibration-images", type=int, metavar="N", help=f"Images that the scores see. [default: {IMAGES}]")
@shared.how_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, as_json: bool, **given: Any) -> None:
    """Show the blocks of MODEL, the heads and neurons each keeps, parameters and MACs by part, what one head and one
    group of neurons costs.

    MODEL is a timm name (no weights are fetched), an embedded model, a run folder or hf-hub:user/name. With --data, its
    heads and neurons are scored on training images too (which needs the weights): how much the attention and the MLP
    of every block matter.

    \b
    Examples:
      slimvit inspect vit_digits
      slimvit inspect vit_digits --data digits
    """
    from slimvit.inspection import inspect_model, inspect_with_data
    from slimvit.report.blocks import inspection_text

    recipe = _recipe(model, given)
    found = inspect_model(recipe.model) if given["data"] is None else inspect_with_data(recipe, shared.how(given))
    click.echo(json.dumps(found, indent=1) if as_json else inspection_text(found))


def _recipe(model: str, given: dict[str, Any]) -> Recipe:
    """A recipe, to have the options checked alike."""
    from slimvit.recipe import Recipe

    tree = shared.sections(model, given)
    idle = [*tree.get("data", {}), *(["calibration_images"] if given["calibration_images"] is not None else [])]
    if given["data"] is None and idle:
        raise click.UsageError(f"--{idle[0].replace('_', '-')} does nothing without --data DATA")
    images = given["calibration_images"]
    tree["prune"] = {"calibration_images": IMAGES if images is None else images}
    return Recipe.parse({"data": {"name": "none"}} | tree, "command line")
