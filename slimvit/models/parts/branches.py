"""Whole branches, a block's attention or its MLP: removed with the last unit of another part."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from slimvit.models.parts.base import Part


@dataclass(frozen=True)
class Branches:
    """The part `branches`, which has no units of its own."""

    name: str = "branches"
    unit: str = "branch"

    def ends(self, part: Part, names: Collection[str]) -> bool:
        """Return whether all units of `part` may be removed at once when the parts `names` may be cut."""
        return self.name in names and part.branch is not None


BRANCHES = Branches()
