"""The base class of the parts of a block that can be cut. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from slimvit.utils.ranges import from_ranges, to_ranges

if TYPE_CHECKING:
    from torch import Tensor, nn

    from slimvit.config.recipe import PruneSection
    from slimvit.models.base import AttentionBlock


class Limits(NamedTuple):
    """Limits of the cut of one part in one block."""

    least: int
    """Fewest units that stay, unless the whole branch is removed."""
    group: int = 1
    """Units are removed in groups of this size."""

    def may_go(self, count: int) -> int:
        """Return the number of groups that may be removed from `count` units."""
        return max(0, (count - self.least + self.group - 1) // self.group)

    def stops(self, count: int) -> range:
        """Return the allowed numbers of kept units below `count`, in falling order."""
        return range((count - 1) // self.group * self.group, self.least - 1, -self.group)


@dataclass(frozen=True)
class UnitCost:
    """Cost of one part of one block, in MACs or parameters."""

    unit: int
    """Cost of each kept unit."""
    fixed: int = 0
    """Cost that remains while any unit is kept, such as that of the branch's norm."""
    beyond: int = 0
    """Number of units whose cost another part includes already, so that fewer units cost less than nothing."""

    def __call__(self, kept: int) -> int:
        """Return the cost of the part with `kept` units."""
        return (kept - self.beyond) * self.unit + (self.fixed if kept else 0)


@dataclass(frozen=True)
class Coupled:
    """Start of Torch-Pruning's dependency graph, which collects the weights coupled to the units of a part."""

    module: nn.Module
    """The module to trace, which takes tokens [B, N, k]."""
    width: int
    """Channels k of these tokens."""
    layer: nn.Linear
    """The layer whose outputs or inputs are the units."""
    outputs: bool
    """Whether the units are the outputs of the layer, not its inputs."""
    by_unit: Callable[[Tensor], Tensor]
    """Maps one number per channel of the layer [channels] to one per unit [units]."""


class Part(ABC):
    """One kind of unit that can be removed from a block, such as attention heads.

    One file defines a subclass and registers one instance of it. Recipes, plans, scores, costs, tables and pictures
    then know the part. A `view` (`AttentionBlock`) is one block of a model. Methods number units by position among the
    present units of the block; only plans hold original ids.
    """

    name: str
    """Name in recipes, in `--parts` and as a key of dicts."""
    unit: str
    """Word for one unit."""
    units: str
    """Word for several units. Plan files have the keys `UNITS` and `kept_UNITS`."""
    legend: str = ""
    """Line of the legend of tables that show the units; none where it is empty."""
    label: str = ""
    """Word for the units in messages about budgets; `units` where it is empty."""
    branch: str | None = None
    """Word for the branch that is removed with the last unit; None where one unit must stay."""
    everywhere: bool = False
    """Whether every block has units of this part. Such parts are always scored, and are cut by default."""
    fallback: bool = False
    """Whether the part is cut by default too, where the others cannot reach a target."""
    within: Part | None = None
    """The part whose every unit has these units, as every head has its channels. Costs are per unit of that part."""
    counted: bool = False
    """Whether plans hold the number of units, not their ids: a cut makes new units, the largest first."""
    counts_removed: str = ""
    """Word for removed units where texts and pictures give their number, not that of the kept ones; such units have no
    cost of their own."""
    in_timm: bool = False
    """Whether timm's constructors can build blocks with fewer units."""
    plan_format: int = 3
    """First format version of plan files with this part."""
    as_ranges: bool = True
    """Whether plan files hold ids as `0-7,16`, not as a list."""
    ratio_key: str | None = None
    """Key of the recipe's prune section for the fraction of units to remove."""
    keep_key: str | None = None
    """Key for the number of units that every block keeps."""
    limit_key: str | None = None
    """Key for the limit of the cut in every block."""
    ratio_per_mac: bool = False
    """Whether a ratio compares units of different blocks by score per MAC, not by score."""

    @abstractmethod
    def count(self, view: AttentionBlock) -> int:
        """Return the number of units that can be removed from the block."""

    @abstractmethod
    def module(self, view: AttentionBlock) -> nn.Module:
        """Return the branch of the block that `remove` changes."""

    def why_not(self, view: AttentionBlock) -> str | None:
        """Return why no unit can be removed; None where units can, or all have been removed."""
        return None

    def limits(self, section: PruneSection) -> Limits:
        """Return the limits that a recipe sets."""
        return Limits(1)

    @abstractmethod
    def macs(self, view: AttentionBlock) -> UnitCost:
        """Return the MACs of one image."""

    @abstractmethod
    def params(self, view: AttentionBlock) -> UnitCost:
        """Return the number of parameters."""

    @abstractmethod
    def remove(self, view: AttentionBlock, positions: Sequence[int]) -> None:
        """Remove some of the units in place, but not all."""

    def remove_branch(self, view: AttentionBlock) -> None:
        """Remove all units in place, with the layers that only they need."""
        raise NotImplementedError(f"{self.name}: one unit of every block must stay")

    def out(self, view: AttentionBlock) -> nn.Linear | None:
        """Return the last linear layer of the branch, whose inputs belong to the units; None where there is none."""
        return None

    def width(self, view: AttentionBlock) -> int:
        """Return the number of adjacent inputs of that layer that belong to one unit."""
        return 1

    def to_stream(self, view: AttentionBlock) -> Callable[[Tensor, tuple[int, ...]], Tensor]:
        """Map inputs [..., k] and outputs [..., C] of that layer to the layout of the stream [B, ..., k]."""
        return lambda features, _: features

    def squares(self, view: AttentionBlock) -> Tensor:
        """Return the sum of the squared weights of each unit [units]."""
        raise NotImplementedError(f"{self.name}: its units have no weights of their own")

    def coupled(self, view: AttentionBlock) -> Coupled:
        """Return the start of Torch-Pruning's dependency graph; `view` belongs to a copy that may be changed."""
        raise NotImplementedError(f"{self.name}: not supported by Torch-Pruning")

    score: Callable[..., Any] | None = None
    """Scores the units of a part without a last layer: `model -> one number per unit, block by block`."""

    def recalibrate(  # noqa: B027  (most parts approximate nothing)
        self, view: AttentionBlock, uncut: AttentionBlock, outer: Sequence[int], inputs: Iterable[Tensor]
    ) -> None:
        """Adapt an approximation that the cut has made to calibration images, in place; the refit calls it.

        Args:
            view: The cut block.
            uncut: The block before the cut.
            outer: Positions in `uncut` of the units of `within` that are kept.
            inputs: Normed inputs of the branch [B, ..., C], batch by batch.
        """

    def kind(self, view: AttentionBlock) -> str | None:
        """Return all conditions of the branch's time except its number of units, in words.

        None where the units have no branch of their own that could be timed.
        """
        return None

    def widths(self, view: AttentionBlock) -> list[int]:
        """Return the numbers of units at which the branch is timed, from few to all."""
        return []

    def written(self, ids: Sequence[int]) -> Any:
        """Return ids in the form of plan files."""
        if self.counted:
            return len(ids)
        return to_ranges(ids) if self.as_ranges else list(ids)

    def read(self, value: Any, total: int) -> tuple[int, ...] | None:
        """Return the ids that `written` formatted; None for any other value."""
        if self.counted:
            return tuple(range(value)) if type(value) is int and 0 <= value <= total else None
        if self.as_ranges:
            return from_ranges(value, total)
        valid = isinstance(value, list) and all(type(i) is int and i >= 0 for i in value)
        return tuple(value) if valid else None

    def keys(self) -> tuple[str, str]:
        """Return the keys of a plan file for the number of units and for the kept ones."""
        return self.units, KEPT + self.units

    def entry(self, total: int, kept: Sequence[int]) -> dict[str, Any]:
        """Return the part's items in a block of a plan file."""
        return dict(zip(self.keys(), (total, self.written(kept)), strict=True))

    def of_entry(self, entry: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the values of `entry`; where both are missing, those of no units, unless every block has the part."""
        number, kept = self.keys()
        if self.everywhere or number in entry or kept in entry:
            return entry.get(number), entry.get(kept)
        return 0, self.written(())

    def expected(self, total: int) -> str:
        """Return the form that `read` expects, in words."""
        if self.counted:
            return f"expected a whole number of 0 to {total}"
        if not self.as_ranges:
            return f"expected a list of {self.unit} ids"
        words = f"expected ids of 0-{total - 1} by range, like 0-7,16-31"
        return words if total else f"the block names no {self.units}"

    def count_words(self, kept: int, total: int) -> str:
        """Return the number of kept units in words: `3 of 6 heads`."""
        return f"{kept:,} of {total:,} {self.units}"

    def kept_words(self, kept: Sequence[int], total: int) -> str:
        """Return the kept ids in words: `0,2 of 6 heads`, `24 of 288 neurons (0-7,16-31)`.

        Ranges longer than `LONGEST` are left out.
        """
        if self.counted:
            return f"{len(kept)} of {total} {self.units}"
        if not self.as_ranges:
            return f"{','.join(map(str, kept))} of {total} {self.units}"
        if len(kept) == total:
            return f"all {total:,} {self.units}"
        ids = to_ranges(kept)
        return f"{len(kept):,} of {total:,} {self.units}" + (f" ({ids})" if len(ids) <= LONGEST else "")


KEPT = "kept_"
"""Prefix of the keys of plan files and of the attributes of plans that hold kept units."""
LONGEST = 40
"""Longest list of ranges in the terminal, in characters."""


def spread_widths(most: int, unit: int, points: int) -> list[int]:
    """Return about `points` evenly spaced widths up to `most`, all but the last in multiples of `unit`."""
    even = (round(most * i / points / unit) * unit for i in range(1, points + 1))
    return sorted({min(unit, most), most, *(width for width in even if 0 < width < most)})
