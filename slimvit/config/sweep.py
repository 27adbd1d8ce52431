"""The sweep file: many runs that differ in a few settings, written down as one recipe and what changes in it. No torch.

base: digits_half                  # a recipe's name or file, or its content
points:                            # named runs, each with what it changes; may be left out
  - name: half the heads
    change: {prune.ratio: 0.5}
grid:                              # every combination of these, for every point; may be left out
  seed: [0, 1, 2]
claims:                            # figures that others published, to be read beside the measured ones
  - {point: half the heads, top1: 98.0, source: who says so}
"""

from __future__ import annotations

import copy
import itertools
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
"""Settings whose last word alone would not tell what they are."""
UNSET = {"prune.parts": "as needed"}
"""What no value means, where it does not mean none."""


class NamedPoint(Section):
    """One run of the sweep, or with a grid one for each combination in it."""

    name: str = Field(min_length=1)
    recipe: str | None = None
    """A recipe's name or file that takes the place of base."""
    change: dict[str, Any] = Field(default_factory=dict)
    """Setting (`prune.ratio`) -> value."""


class PublishedFigure(Section):
    """A published figure."""

    point: str | None = None
    """The name of the point it is to be read against; None where nobody said which network it is of."""
    against: str | None = None
    """The point that `change` is measured from; the original where it is left out."""
    top1: float | None = None
    """Per cent."""
    change: float | None = None
    """Top-1 points."""
    source: str

    def contradictions(self) -> list[str]:
        rules = {
            "a claim needs top1 or change": self.top1 is None and self.change is None,
            "against is what change is measured from; give point and change, or drop it": self.against is not None
            and (self.change is None or self.point is None),
        }
        return [clause for clause, broken in rules.items() if broken]


class Sweep(Document):
    """The file. `base` may be left out where every point names its recipe."""

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
        found = [clause for clause, broken in rules.items() if broken]
        found += [f"grid: {key} has no values" for key, values in self.grid.items() if not values]
        found += [f"two points are called {n!r}" for n in dict.fromkeys(names) if names.count(n) > 1]
        for claim in self.claims:
            asked = [name for name in (claim.point, claim.against) if name is not None]
            found += [f"a claim is about {n!r}, but no point is called so" for n in asked if n not in names]
        return found


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    id: str
    """Name of its folder."""
    name: str
    """For people; points that differ in nothing but the seed have one name."""
    recipe: Recipe


def points_of(sweep: Sweep, source: str = "sweep", data: dict[str, Any] | None = None) -> list[Point]:
    """Every run of the sweep, checked; `data` overrides the data section of all.

    Raises `RecipeError` that names each point with a defect and its defects. Points that come out alike are a
    defect too: one of them would be measured for nothing.
    """
    found: dict[str, Point] = {}
    defects: list[str] = []
    for name, settings, tree in _combinations(sweep, source):
        label = ", ".join([name] * bool(name) + [f"{_short(k, sweep.grid)} {said(k, v)}" for k, v in settings.items()])
        tree["data"] = tree.get("data", {}) | (data or {})
        try:
            recipe = Recipe.parse(tree, label)
        except RecipeError as error:
            defects.append(str(error))
            continue
        without_seed = {k: v for k, v in settings.items() if k != "seed"}
        told = [name] * bool(name) + [f"{_short(k, sweep.grid)} {said(k, v)}" for k, v in without_seed.items()]
        point = Point(_slug(label), ", ".join(told) or "base", recipe)
        twin = next((p for p in found.values() if p.recipe == recipe), None)
        if twin is not None:
            defects.append(f"{label}: is the same run as {twin.id}")
        elif point.id in found:
            defects.append(f"{label}: its folder would be {point.id}, as that of another point; rename one")
        else:
            found[point.id] = point
    if defects:
        raise RecipeError(f"{source}: " + "; ".join(defects))
    return list(found.values())


def _combinations(sweep: Sweep, source: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The point's name, the grid's settings, and the whole recipe as plain data."""
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
    """A recipe as plain data; a mapping may be incomplete."""
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


def said(key: str, value: Any) -> str:
    """A setting's value for people; a list as the command line takes it: a comma and a space end a setting."""
    if isinstance(value, list):
        return ",".join(said(key, v) for v in value)
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
