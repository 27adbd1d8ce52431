"""Whole branches: a block's attention, or its MLP. They have no units of their own; the last unit of a part goes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from slimvit.models.parts.base import Part


@dataclass(frozen=True)
class Branches:
    """What a search may do besides removing units: end a branch."""

    name: str = "branches"
    unit: str = "branch"

    def ends(self, part: Part, names: Collection[str]) -> bool:
        """Whether all units of `part` may go at once when the parts of these names may go."""
        return self.name in names and part.branch is not None


BRANCHES = Branches()
