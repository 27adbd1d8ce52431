"""The shipped recipes and sweeps, beside the package in a checkout and inside it when installed. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from slimvit.utils.errors import RecipeError, nearest
from slimvit.utils.reading import Unreadable, read_text

_PACKAGE = Path(__file__).parents[1]
FOLDER = next((f for f in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if f.is_dir()), _PACKAGE / "recipes")


def recipe_files() -> dict[str, Path]:
    """Return the shipped recipes: name without .yaml -> file, sorted."""
    return {f.stem: f for f in sorted(FOLDER.glob("*.yaml"))}


def recipe_path(name: str) -> Path:
    """Return the file of a recipe, given as a path or a shipped name; raises `RecipeError` for neither."""
    return _resolve(name, recipe_files(), "recipe")


def _resolve(name: str, shipped: dict[str, Path], kind: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    stem = name.removesuffix(".yaml")
    if stem in shipped:
        return shipped[stem]
    raise RecipeError(f"{name}: no such {kind}{nearest(stem, shipped)}; `slimvit recipes list` names the shipped ones")


def sweep_files() -> dict[str, Path]:
    """Return the shipped sweeps: name without .yaml -> file, sorted."""
    return {f.stem: f for f in sorted((FOLDER / "sweeps").glob("*.yaml"))}


def sweep_path(name: str) -> Path:
    """Return the file of a sweep, given as a path or a shipped name; raises `RecipeError` for neither."""
    return _resolve(name, sweep_files(), "sweep")


def shipped_path(name: str) -> Path:
    """Return the file of a recipe or sweep, given as a path or a shipped name; raises `RecipeError` for neither."""
    return _resolve(name, sweep_files() | recipe_files(), "recipe")


def is_shipped_sweep(path: Path) -> bool:
    """Return whether a file is a sweep and not a recipe, judged by the first words of its lines."""
    if path in sweep_files().values():
        return True
    try:
        return any(line.startswith(("grid:", "points:", "base:")) for line in read_text(path).splitlines())
    except (FileNotFoundError, Unreadable):
        return False


def header(path: Path) -> list[str]:
    """Return the comment lines at the top of a recipe: the command that runs it, then its description."""
    lines = []
    for line in read_text(path).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines
