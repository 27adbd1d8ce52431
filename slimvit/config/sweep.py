"""The sweep file: one recipe, and the settings in which many runs differ from it. Imports no torch.

base: digits_half                  # name, file or content of a recipe
points:                            # named runs, each with its changes; optional
  - name: half the heads
    change: {prune.ratio: 0.5}
grid:                              # every combination of these values, for every point; optional
  seed: [0, 1, 2]
claims:                            # published figures, shown beside the measured ones; optional
  - {point: half the heads, top1: 98.0, source: who says so}
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from slimvit.config.recipe import Recipe
from slimvit.config.shipped import recipe_path
from slimvit.config.training import Section
from slimvit.config.validation import Document
from slimvit.utils.errors import RecipeError

SHORT = {"dense.mix": "dense", "refit.target": "refit", "finetune.epochs": "epochs", "adapt.epochs": "adapt epochs"}
"""Names of settings whose last word alone is ambiguous."""
MOST_POINTS = 1000
"""Most runs of a sweep, each of which is built and checked before the first one starts."""
UNSET = {"prune.parts": "as needed"}
"""Words for None where `none` would be wrong."""


class NamedPoint(Section):
    """One run of the sweep, or one per combination of the grid."""

    name: str = Field(min_length=1)
    recipe: str | None = None
    """Name or file of a recipe that replaces base."""
    change: dict[str, Any] = Field(default_factory=dict)
    """Setting (`prune.ratio`) -> value."""


class PublishedFigure(Section):
    """A published figure."""

    point: str | None = None
    """Name of the point to compare the figure with; None where the source names no network."""
    against: str | None = None
    """Name of the point that `change` starts from; None stands for the original."""
    top1: float | None = None
    """Top-1 accuracy, per cent."""
    change: float | None = None
    """Change of top-1, points."""
    source: str

    def contradictions(self) -> list[str]:
        rules = {
            "a claim needs top1 or change": self.top1 is None and self.change is None,
            "against is what change is measured from; give point and change, or drop it": self.against is not None
            and (self.change is None or self.point is None),
        }
        return [clause for clause, broken in rules.items() if broken]


class Sweep(Document):
    """The content of a sweep file. `base` is optional where every point names its recipe."""

    kind = "sweep"
    begins_with = "base: and points: or grid:"

    base: str | dict[str, Any] | None = None
    points: list[NamedPoint] = Field(default_factory=list)
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    claims: list[PublishedFigure] = Field(default_factory=list)

    def contradictions(self) -> list[str]:
        names = [p.name for p in self.points]
        rules = {
            "nothing to sweep over: give points, grid or both": not (self.points or self.grid),
            "base is missing, and not every point names its recipe": self.base is None
            and not (self.points and all(p.recipe for p in self.points)),
        }
        clauses = [clause for clause, broken in rules.items() if broken]
        if (count := max(1, len(self.points)) * math.prod(map(len, self.grid.values()))) > MOST_POINTS:
            clauses.append(f"points and grid make {count:,} runs, at most {MOST_POINTS:,} are allowed; give fewer")
        clauses += [f"grid: {key} has no values" for key, values in self.grid.items() if not values]
        clauses += [f"two points are called {n!r}" for n in dict.fromkeys(names) if names.count(n) > 1]
        for keys in [[*point.change, *self.grid] for point in self.points] or [list(self.grid)]:
            clauses += _set_twice(keys)
        for claim in self.claims:
            named = [name for name in (claim.point, claim.against) if name is not None]
            clauses += [f"a claim names {n!r}, but no point has that name" for n in named if n not in names]
        return list(dict.fromkeys(clauses))


def _set_twice(keys: list[str]) -> Iterator[str]:
    """Clauses on settings that a point's change and the grid set twice, or once alone and once with its section."""
    seen = set(keys)
    for key in dict.fromkeys(keys):
        words = key.split(".")
        sections = {".".join(words[:count]) for count in range(1, len(words))} & seen
        yield from (f"{section} and {key} set the same; give one of them" for section in sorted(sections))
        if keys.count(key) > 1:
            yield f"{key} is set by a point and by the grid; give one of them"


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    id: str
    """Name of the folder."""
    name: str
    """Title, which points that differ only in the seed share."""
    recipe: Recipe


def points_of(sweep: Sweep, source: str = "sweep", data: dict[str, Any] | None = None) -> list[Point]:
    """Return every run of the sweep, checked.

    Args:
        sweep: The content of the file.
        source: Name of the file, for errors.
        data: Settings that override the data section of every run.

    Raises:
        RecipeError: Points have defects, or two points are the same run. The message names all of them.
    """
    points: dict[str, Point] = {}
    defects: list[str] = []
    for name, settings, tree in _combinations(sweep, source):
        label = ", ".join(
            [name] * bool(name) + [f"{_short(k, sweep.grid)} {value_text(k, v)}" for k, v in settings.items()]
        )
        tree["data"] = tree.get("data", {}) | (data or {})
        try:
            recipe = Recipe.parse(tree, label)
        except RecipeError as error:
            defects.append(str(error))
            continue
        without_seed = {k: v for k, v in settings.items() if k != "seed"}
        title = [name] * bool(name) + [f"{_short(k, sweep.grid)} {value_text(k, v)}" for k, v in without_seed.items()]
        point = Point(_slug(label), ", ".join(title) or "base", recipe)
        twin = next((p for p in points.values() if p.recipe == recipe), None)
        if twin is not None:
            defects.append(f"{label}: is the same run as {twin.id}")
        elif point.id in points:
            defects.append(f"{label}: its folder would be {point.id}, as that of another point; rename one")
        else:
            points[point.id] = point
    if defects:
        raise RecipeError(f"{source}: " + "; ".join(defects))
    return list(points.values())


def _combinations(sweep: Sweep, source: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name of the point, settings of the grid, and whole recipe as plain data, for every run."""
    base = _content(sweep.base)
    points: list[NamedPoint | None] = [*sweep.points] or [None]
    for point in points:
        start = _content(point.recipe) if point is not None and point.recipe is not None else base
        for values in itertools.product(*sweep.grid.values()):
            settings = dict(zip(sweep.grid, values, strict=True))
            tree = copy.deepcopy(start)
            for key, value in ((point.change if point is not None else {}) | settings).items():
                _put(tree, key, value, source)
            yield ("" if point is None else point.name), settings, tree


def _content(recipe: str | dict[str, Any] | None) -> dict[str, Any]:
    """The recipe as plain data; a mapping may be incomplete."""
    if isinstance(recipe, str):
        return Recipe.read(recipe_path(recipe)).model_dump(mode="json", exclude_unset=True)
    return recipe or {}


def _put(tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"{source}: {key}: {section} is no section of a recipe; give its value as a whole")
    tree[last] = value


def _short(key: str, grid: dict[str, list[Any]]) -> str:
    last = key.rpartition(".")[2]
    alone = sum(k.rpartition(".")[2] == last for k in grid) == 1
    return SHORT.get(key, last.replace("_", " ") if alone else key)


def value_text(key: str, value: Any) -> str:
    """Format the value of a setting for titles; lists have no spaces, since a comma and a space separate settings."""
    if isinstance(value, list):
        return ",".join(value_text(key, v) for v in value)
    if value is None:
        return UNSET.get(key, "none")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _slug(label: str) -> str:
    """A folder name: letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-.") or "base"
