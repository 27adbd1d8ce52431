"""The parts that can be cut, by name, in the order in which tables show them. No torch."""

from __future__ import annotations

from slimvit.models.parts.base import Part
from slimvit.models.parts.heads import HEADS
from slimvit.models.parts.mlp import MLP

PARTS: dict[str, Part] = {part.name: part for part in (HEADS, MLP)}


def register_part(part: Part) -> Part:
    """Add a part, so that recipes, plans, scores, costs, tables and pictures know it."""
    PARTS[part.name] = part
    return part
