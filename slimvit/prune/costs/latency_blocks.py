"""Width sweeps for latency profiling: every kind of branch in a model, as blocks of several widths.

A branch is timed inside its block, without the other branch. The time of the block without both is subtracted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from slimvit.models.base import AttentionBlock, TimmModule
from slimvit.models.parts.registry import PARTS
from slimvit.prune.surgery import pruned_block


@dataclass(frozen=True)
class TimedBranch:
    """A branch of one block in the latency table."""

    part: str
    kind: str
    """Everything that the time depends on except the number of units."""
    units: int
    """Number of removable units."""


def branches_of(view: AttentionBlock) -> list[TimedBranch]:
    """Return the branches of a block that can be timed."""
    kinds = ((name, part, part.kind(view)) for name, part in PARTS.items())
    return [TimedBranch(name, kind, part.count(view)) for name, part, kind in kinds if kind is not None]


@dataclass(frozen=True)
class WidthSweep:
    """One kind of branch, and the widths at which to time it."""

    kind: str
    part: str
    view: AttentionBlock
    """The widest block of the kind."""
    widths: tuple[int, ...]
    """Numbers of units, from 0 (no branch) to all."""

    def block(self, width: int) -> TimmModule:
        """Return the block with `width` units of the part and without its other branches."""
        empty = {branch.part: 0 for branch in branches_of(self.view)}
        return pruned_block(self.view, empty | {self.part: width})


def width_sweeps(views: Iterable[AttentionBlock]) -> list[WidthSweep]:
    """Return a sweep for every kind of branch among blocks without dense attention."""
    widest: dict[tuple[str, str], tuple[int, AttentionBlock]] = {}
    for view in views:
        for branch in branches_of(view):
            before, _ = widest.get(key := (branch.kind, branch.part), (0, view))
            if branch.units > before:
                widest[key] = (branch.units, view)
    return [WidthSweep(kind, part, view, (0, *PARTS[part].widths(view))) for (kind, part), (_, view) in widest.items()]
