"""slimvit run: carry out a recipe."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from slimvit.cli import options, shared


@options.command()
@click.argument("recipe")
@options.data_options
@options.seed_option
@options.machine_options
@options.training_machine
@click.option("--cache", "--shelf", type=click.Path(path_type=Path), hidden=True)
@click.option("--ends-with-stdin", is_flag=True, hidden=True)
@options.out_options
@options.resume_option
def run_command(recipe: str, ends_with_stdin: bool, **given: Any) -> None:
    """Run RECIPE: a YAML file, or the name of a recipe of the package (`slimvit recipes list`).

    With --resume, RECIPE may also be the folder of an interrupted run, which then continues.

    \b
    Examples:
      slimvit run digits_half --out runs/digits_half
      slimvit run runs/digits --resume
    """
    from slimvit.config.recipe import Recipe

    if ends_with_stdin:
        threading.Thread(target=_follow_stdin, daemon=True).start()
    tree = Recipe.read(_file(recipe, given)).model_dump(mode="json")
    overrides = shared.sections(None, given)
    tree["data"].update(overrides.get("data", {}))
    tree["seed"] = overrides.get("seed", tree["seed"])
    whole = Recipe.parse(tree, recipe)
    if given["resume"] and Path(recipe).is_dir():
        from slimvit.data.known import check_known_data

        check_known_data(whole.data, recipe, overrides.get("data", {}))
    shared.run_and_show(whole, given)


def _follow_stdin() -> None:
    """Wait until the sweep that started this run closes stdin, then save the training state and stop, as on SIGTERM."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _file(recipe: str, given: dict[str, Any]) -> Path:
    """The recipe file; with --resume, the recipe of the run in the named folder."""
    from slimvit.config.shipped import recipe_path
    from slimvit.utils.lock import clean_up

    folder = Path(recipe)
    if given["resume"]:
        clean_up(folder)
    if not (given["resume"] and folder.is_dir()):
        return recipe_path(recipe)
    from slimvit.utils.errors import StoreError
    from slimvit.workflows.resume import recipe_in  # imports torch, which the error of a wrong name must not wait for

    given["out"] = given["out"] or folder
    path = recipe_in(folder) or folder / "recipe.yaml"
    if not path.is_file():
        raise StoreError(f"{folder}: holds no run, interrupted or not; give a recipe, and the folder to --out")
    return path
