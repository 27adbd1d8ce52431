"""slimvit recipes: the recipes and sweeps of the package."""

from __future__ import annotations

import os
from pathlib import Path

import click

from slimvit.cli import options, shared


@click.group()
def recipes_command() -> None:
    """List, show, copy and check the recipes and sweeps of the package.

    \b
    Example:
      slimvit recipes show digits_half
    """


@recipes_command.command("list", cls=options.GroupedCommand)
def list_recipes() -> None:
    """List the names of the recipes and sweeps, with one line about each.

    \b
    Example:
      slimvit recipes list
    """
    from slimvit.config.shipped import header, recipe_files, sweep_files

    files = {"slimvit run": recipe_files(), "slimvit sweep": sweep_files()}
    width = max(map(len, [name for paths in files.values() for name in paths]), default=0)
    for command, paths in files.items():
        shared.echo(f"for {command}:")
        for name, path in paths.items():
            lines = header(path)
            shared.echo(f"  {name:<{width}}  {lines[1] if len(lines) > 1 else ''}")


@recipes_command.command("show", cls=options.GroupedCommand)
@click.argument("name")
def show_recipe(name: str) -> None:
    """Print the recipe or sweep NAME.

    \b
    Example:
      slimvit recipes show digits_half
    """
    shared.echo(_text(name), nl=False)


@recipes_command.command("copy", cls=options.GroupedCommand)
@click.argument("name")
@click.argument("target", type=click.Path(path_type=Path))
@options.group("Output", click.option("--force", is_flag=True, help="Replace TARGET if it exists."))
def copy_recipe(name: str, target: Path, force: bool) -> None:
    """Copy the recipe or sweep NAME to the file TARGET for editing.

    \b
    Example:
      slimvit recipes copy digits_half mine.yaml
    """
    from slimvit.config.shipped import is_shipped_sweep, shipped_path
    from slimvit.utils.errors import RecipeError
    from slimvit.utils.files import write_whole

    text, path = _text(name), shipped_path(name)
    if target.is_dir():
        target = target / f"{path.stem}.yaml"
    if os.path.lexists(target) and not force:
        raise RecipeError(f"{target}: exists; name another file, or add --force to replace it")
    try:
        write_whole(target, text)
    except OSError as error:
        raise RecipeError(f"{target}: cannot be written: {error.strerror}; name another file") from None
    shared.echo(target)
    command = "sweep" if is_shipped_sweep(path) else "run"
    shared.echo(f"edit it, then: slimvit {command} {target} --out DIR", err=True)


@recipes_command.command("check", cls=options.GroupedCommand)
@click.argument("names", nargs=-1, required=True, metavar="RECIPE...")
def check_recipe(names: tuple[str, ...]) -> None:
    """Check recipes and sweeps (files or names) without running them; all defects are printed.

    \b
    Example:
      slimvit recipes check digits_half
    """
    from slimvit.config.recipe import Recipe
    from slimvit.config.shipped import is_shipped_sweep, shipped_path
    from slimvit.config.sweep import Sweep, points_of

    for name in names:
        path = shipped_path(name)
        if is_shipped_sweep(path):
            points_of(Sweep.read(path), str(path))
        else:
            Recipe.read(path)
        shared.echo(f"{name}: ok")


def _text(name: str) -> str:
    from slimvit.config.shipped import shipped_path
    from slimvit.utils.errors import RecipeError
    from slimvit.utils.reading import Unreadable, read_text

    path = shipped_path(name)
    try:
        return read_text(path)
    except (FileNotFoundError, Unreadable) as error:
        raise RecipeError(f"{path}: not a readable recipe: {error}") from None
