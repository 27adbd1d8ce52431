"""The branches of a model that differ in what they cost, each as real blocks cut to a ladder of widths.

A branch is timed inside its own block, whose other branch is gone; what the block costs when both are gone is then
taken off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from slimvit.models.base import AttentionBlock, TimmModule
from slimvit.models.parts.registry import PARTS
from slimvit.prune.surgery import pruned_block


@dataclass(frozen=True)
class TimedBranch:
    """One branch of one block."""

    part: str
    kind: str
    """All that its time depends on besides its number of units."""
    units: int
    """0 too where none can go."""


def branches_of(view: AttentionBlock) -> list[TimedBranch]:
    """The branches of a block that have a time of their own."""
    kinds = ((name, part, part.kind(view)) for name, part in PARTS.items())
    return [TimedBranch(name, kind, part.count(view)) for name, part, kind in kinds if kind is not None]


@dataclass(frozen=True)
class WidthSweep:
    """One kind of branch."""

    kind: str
    part: str
    view: AttentionBlock
    """The widest block of the kind."""
    widths: tuple[int, ...]
    """From 0, where the branch is gone, to all of it."""

    def block(self, width: int) -> TimmModule:
        """The block with so many units of the part, and without its other branch."""
        empty = {branch.part: 0 for branch in branches_of(self.view)}
        return pruned_block(self.view, empty | {self.part: width})


def width_sweeps(views: Iterable[AttentionBlock]) -> list[WidthSweep]:
    """A ladder for every kind of branch among the blocks, of which none may have dense attention."""
    widest: dict[tuple[str, str], tuple[int, AttentionBlock]] = {}
    for view in views:
        for branch in branches_of(view):
            before, _ = widest.get(key := (branch.kind, branch.part), (0, view))
            if branch.units > before:
                widest[key] = (branch.units, view)
    return [WidthSweep(kind, part, view, (0, *PARTS[part].widths(view))) for (kind, part), (_, view) in widest.items()]
