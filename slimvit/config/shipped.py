"""The recipes that come with slimvit: beside the package in a checkout, inside it when installed. No torch."""

from __future__ import annotations

from pathlib import Path

from slimvit.utils.errors import RecipeError, nearest
from slimvit.utils.files import Unreadable, read_text

_PACKAGE = Path(__file__).parents[1]
FOLDER = next((f for f in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if f.is_dir()), _PACKAGE / "recipes")


def recipe_files() -> dict[str, Path]:
    """Name (without .yaml) -> file, sorted."""
    return {f.stem: f for f in sorted(FOLDER.glob("*.yaml"))}


def recipe_path(name: str) -> Path:
    """The file that a user means: a path, or a shipped recipe's name. Raises `RecipeError`."""
    return _found(name, recipe_files(), "recipe")


def _found(name: str, known: dict[str, Path], kind: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    stem = name.removesuffix(".yaml")
    if stem in known:
        return known[stem]
    raise RecipeError(f"{name}: no such {kind}{nearest(stem, known)}; `slimvit recipes list` names the shipped ones")


def sweep_files() -> dict[str, Path]:
    """The same of the sweeps."""
    return {f.stem: f for f in sorted((FOLDER / "sweeps").glob("*.yaml"))}


def sweep_path(name: str) -> Path:
    """The file that a user means: a path, or a shipped sweep's name. Raises `RecipeError`."""
    return _found(name, sweep_files(), "sweep")


def shipped_path(name: str) -> Path:
    """The recipe's or sweep's file that a user means."""
    return _found(name, sweep_files() | recipe_files(), "recipe")


def is_shipped_sweep(path: Path) -> bool:
    """Whether a file is a sweep rather than a recipe, as far as its first words tell."""
    if path in sweep_files().values():
        return True
    try:
        return any(line.startswith(("grid:", "points:", "base:")) for line in read_text(path).splitlines())
    except (FileNotFoundError, Unreadable):
        return False


def header(path: Path) -> list[str]:
    """The comment lines a recipe begins with: the command that runs it, then what it is."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines
