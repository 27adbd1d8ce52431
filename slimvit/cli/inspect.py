"""slimvit inspect: what a model is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimvit.cli import shared

if TYPE_CHECKING:
    from slimvit.config.recipe import Recipe

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

    Of a folder that a command writes to or wrote to, the last line says how it stands: whole, unfinished (and how to
    go on), being written (and by which process), a sweep of which so much is done, or only what a killed process left.

    \b
    Examples:
      slimvit inspect vit_digits
      slimvit inspect vit_digits --data digits
      slimvit inspect runs/digits
    """
    from slimvit.io.status import folder_status, has_model

    recipe = _recipe(model, given)
    stands = folder_status(Path(model))
    if stands is not None and not has_model(Path(model)):
        click.echo(json.dumps({"folder": stands.to_json()}, indent=1) if as_json else f"{model}: {stands.told}")
        return
    from slimvit.report.run.model_table import inspection_text
    from slimvit.workflows.inspect import inspect_model, inspect_with_data

    found = inspect_model(recipe.model) if given["data"] is None else inspect_with_data(recipe, shared.how(given))
    if as_json:
        click.echo(json.dumps({"folder": stands and stands.to_json()} | found, indent=1))
        return
    click.echo(inspection_text(found) + (f"\n\n{model}: {stands.told}" if stands else ""))


def _recipe(model: str, given: dict[str, Any]) -> Recipe:
    """A recipe, to have the options checked alike."""
    from slimvit.config.recipe import Recipe

    tree = shared.sections(model, given)
    idle = [*tree.get("data", {}), *(["calibration_images"] if given["calibration_images"] is not None else [])]
    if given["data"] is None and idle:
        raise click.UsageError(f"--{idle[0].replace('_', '-')} does nothing without --data DATA")
    images = given["calibration_images"]
    tree["prune"] = {"calibration_images": IMAGES if images is None else images}
    return Recipe.parse({"data": {"name": "none"}} | tree, "command line")
