"""The parts that can be cut, by name, in the order in which tables show them. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from slimvit.config import choices
from slimvit.config.recipe import PruneSection
from slimvit.models.parts.base import Limits, Part
from slimvit.models.parts.branches import BRANCHES
from slimvit.models.parts.heads import HEADS
from slimvit.models.parts.mlp import MLP
from slimvit.utils.errors import PlanError

PARTS: dict[str, Part] = {part.name: part for part in (HEADS, MLP)}

TAKEN = ("name", "stage", "units", "blocks", "model")
"""Attributes of plans, which no part may call its units."""


def register_part(part: Part) -> Part:
    """Add a part, so that recipes, plans, scores, costs, tables and pictures know it."""
    others = [p.units for p in PARTS.values() if p.name != part.name]
    if part.units in (*TAKEN, *others):
        raise ValueError(f"part {part.name}: its units cannot be called {part.units}, a word that is taken")
    PARTS[part.name] = part
    choices.PARTS.add(part.name)
    return part


def part_of(name: str) -> Part:
    """The part of a name; raises `PlanError` for one that is not known."""
    try:
        choices.PARTS.check(name)
        return PARTS[name]
    except (ValueError, KeyError):
        known = ", ".join(PARTS)
        raise PlanError(f"part {name!r} is not known, or has no units; choose from {known}") from None


def part_with_units(word: str) -> Part | None:
    """The part whose units a plan calls by `word`, such as `neurons`."""
    return next((part for part in PARTS.values() if part.units == word), None)


def everywhere() -> tuple[str, ...]:
    """The parts that every block has: scored for every picture, and the first to go."""
    return tuple(name for name, part in PARTS.items() if part.everywhere)


def may_go(part: Part, names: Collection[str]) -> bool:
    """Whether units of a part, or at least all of them with their branch, go when the parts of these names may."""
    return part.name in names or BRANCHES.ends(part, names)


def limits_of(section: PruneSection | None = None) -> dict[str, Limits]:
    """How far a recipe lets each part of a block be cut; with None the recipe's defaults."""
    section = section or PruneSection()
    return {name: part.limits(section) for name, part in PARTS.items()}


def label(name: str) -> str:
    """What messages about budgets call a part."""
    part = PARTS.get(name)
    return name if part is None else part.label or part.units


def labels(names: Sequence[str]) -> str:
    """`heads and MLP neurons`."""
    return " and ".join(map(label, names))
