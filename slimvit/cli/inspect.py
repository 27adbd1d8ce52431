"""slimvit inspect: the blocks of a model, their costs and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimvit.cli import options, shared

if TYPE_CHECKING:
    from slimvit.config.recipe import Recipe

SCORING_IMAGES = 256
"""Default of --calibration-images."""


@options.command()
@click.argument("model")
@options.model_options
@options.data_options
@options.group(
    "Method",
    click.option("--calibration-images", type=int, metavar="N",
                 help=f"Training images for scoring. [default: {SCORING_IMAGES}]"),
)  # fmt: skip
@options.seed_option
@options.machine_options
@options.json_option
def inspect_command(model: str, as_json: bool, **given: Any) -> None:
    """Show the blocks of MODEL with their kept heads and neurons, and parameters and MACs by part.

    MODEL is a timm name, an embedded model, a run folder or hf-hub:user/name. With --data, heads and neurons are scored
    on training images; without it, timm's weights are not downloaded.

    For a run or sweep folder, the last line is its status: complete, unfinished (with the command that continues it),
    being written (with the process that writes it), or left behind by a killed process.

    \b
    Examples:
      slimvit inspect vit_digits
      slimvit inspect vit_digits --data digits
      slimvit inspect runs/digits
    """
    from slimvit.io.status import folder_status, has_model

    recipe = _recipe(model, given)
    status = folder_status(Path(model))
    if status is not None and not has_model(Path(model)):
        shared.echo(json.dumps({"folder": status.to_json()}, indent=1) if as_json else f"{model}: {status.text}")
        return
    from slimvit.report.run.model_table import inspection_text
    from slimvit.workflows.inspect import inspect_model, inspect_with_data

    inspection = (
        inspect_model(recipe.model) if given["data"] is None else inspect_with_data(recipe, shared.run_options(given))
    )
    if as_json:
        shared.echo(json.dumps({"folder": status and status.to_json()} | inspection, indent=1))
        return
    shared.echo(inspection_text(inspection) + (f"\n\n{model}: {status.text}" if status else ""))


def _recipe(model: str, given: dict[str, Any]) -> Recipe:
    """The options as a recipe, which validates them."""
    from slimvit.config.recipe import Recipe

    tree = shared.sections(model, given)
    idle = [*tree.get("data", {}), *(["calibration_images"] if given["calibration_images"] is not None else [])]
    if given["data"] is None and idle:
        raise click.UsageError(f"--{idle[0].replace('_', '-')} does nothing without --data DATA")
    images = given["calibration_images"]
    tree["prune"] = {"calibration_images": SCORING_IMAGES if images is None else images}
    return Recipe.parse({"data": {"name": "none"}} | tree, "command line")
