"""The registry of parts. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from slimvit.config import choices
from slimvit.config.recipe import PruneSection
from slimvit.models.parts.base import Limits, Part
from slimvit.models.parts.branches import BRANCHES
from slimvit.models.parts.heads import HEADS
from slimvit.models.parts.mlp import MLP
from slimvit.models.parts.query_key import QK
from slimvit.models.parts.tokens import TOKENS
from slimvit.utils.errors import PlanError

PARTS: dict[str, Part] = {part.name: part for part in (HEADS, MLP, QK, TOKENS)}
"""Parts by name, in the order of tables."""

TAKEN = ("name", "stage", "units", "blocks", "model")
"""Attributes of plans, which are not allowed as words for units."""


def register_part(part: Part) -> Part:
    """Register a part for recipes, plans, scores, costs, tables and pictures.

    Raises:
        ValueError: The word for its units is taken.
    """
    others = [p.units for p in PARTS.values() if p.name != part.name]
    if part.units in (*TAKEN, *others):
        raise ValueError(f"part {part.name}: its units cannot be called {part.units}, a word that is taken")
    PARTS[part.name] = part
    choices.PARTS.add(part.name)
    return part


def part_of(name: str) -> Part:
    """Return the part of this name; raises `PlanError` for an unknown name."""
    try:
        choices.PARTS.check(name)
        return PARTS[name]
    except (ValueError, KeyError):
        known = ", ".join(PARTS)
        raise PlanError(f"part {name!r} is not known, or has no units; choose from {known}") from None


def part_with_units(word: str) -> Part | None:
    """Return the part with this word for its units, such as `neurons`; None where there is none."""
    return next((part for part in PARTS.values() if part.units == word), None)


def everywhere() -> tuple[str, ...]:
    """Return the names of the parts that every block has: always scored, and cut by default."""
    return tuple(name for name, part in PARTS.items() if part.everywhere)


def may_go(part: Part, names: Collection[str]) -> bool:
    """Return whether units of `part` may be removed, alone or with their branch, when the parts `names` may be cut."""
    return part.name in names or BRANCHES.ends(part, names)


def limits_of(section: PruneSection | None = None) -> dict[str, Limits]:
    """Return the limits that a recipe sets, by part; None stands for a recipe without limits."""
    section = section or PruneSection()
    return {name: part.limits(section) for name, part in PARTS.items()}


def label(name: str) -> str:
    """Return the word for a part in messages about budgets."""
    part = PARTS.get(name)
    return name if part is None else part.label or part.units


def labels(names: Sequence[str]) -> str:
    """Return the words for several parts: `heads and MLP neurons`."""
    return " and ".join(map(label, names))
