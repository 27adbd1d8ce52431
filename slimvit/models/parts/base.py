"""What slimvit needs to know about one part of a block that can be cut. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from slimvit.utils.ranges import from_ranges, to_ranges

if TYPE_CHECKING:
    from torch import Tensor, nn

    from slimvit.config.recipe import PruneSection
    from slimvit.models.base import AttentionBlock


class Limits(NamedTuple):
    """How far a part may be cut in one block."""

    least: int
    """Units that stay where the branch stays."""
    group: int = 1
    """Units go in groups of as many."""

    def may_go(self, now: int) -> int:
        """Whole groups that may go where `now` units are there."""
        return max(0, (now - self.least + self.group - 1) // self.group)

    def stops(self, now: int) -> range:
        """The numbers of units below `now` that may stay, falling."""
        return range((now - 1) // self.group * self.group, self.least - 1, -self.group)


@dataclass(frozen=True)
class UnitCost:
    """What a part of one block costs, in MACs or parameters."""

    unit: int
    """Each unit that stays."""
    fixed: int = 0
    """What else is there while any unit stays, such as the norm of the branch."""

    def __call__(self, kept: int) -> int:
        """Units that stay -> what the part then costs."""
        return kept * self.unit + (self.fixed if kept else 0)


@dataclass(frozen=True)
class Coupled:
    """Where Torch-Pruning's dependency graph begins to collect what goes with the units of a part."""

    module: nn.Module
    """What is traced: it takes tokens [B, N, k]."""
    width: int
    """k."""
    layer: nn.Linear
    """Whose outputs or inputs are the units."""
    outputs: bool
    """Outputs, not inputs."""
    by_unit: Callable[[Tensor], Tensor]
    """A number a channel of the layer [channels] -> a number a unit [units]."""


class Part(ABC):
    """One kind of unit that can be removed from a block, such as attention heads.

    One file defines a subclass and registers one instance of it; recipes, plans, scores, costs, tables and pictures
    follow. A `view` (`AttentionBlock`) is one block of a model. Units are named by
    position among those that the block has now; only plans know original ids.
    """

    name: str
    """The word in recipes, `--parts` and every dict by part."""
    unit: str
    """One unit, in words."""
    units: str
    """Several of them; plans keep them under this key and `kept_` + this key."""
    label: str = ""
    """What a message about budgets calls them; `units` where it is empty."""
    branch: str | None = None
    """What goes with the last unit, in words; None where one unit at least must stay."""
    everywhere: bool = False
    """Every block has units of this part: plans name them, runs score them, and they alone go unless others must."""
    fallback: bool = False
    """Goes too where a target is out of reach of the parts before it and the recipe does not say what may go."""
    in_timm: bool = False
    """timm's own constructors can build blocks with fewer units."""
    plan_format: int = 3
    """The first format of plan files that knows the part."""
    as_ranges: bool = True
    """Plans write ids as `0-7,16`, not as a list."""
    ratio_key: str | None = None
    """Key of the recipe's prune section with the fraction of units to remove."""
    keep_key: str | None = None
    """Key with the units that every block keeps."""
    limit_key: str | None = None
    """Key with what limits the cut in every block."""
    ratio_per_mac: bool = False
    """A ratio compares units of different blocks by score a MAC, not by score."""

    @abstractmethod
    def count(self, view: AttentionBlock) -> int:
        """Units of the block that can be removed; 0 too where none can go."""

    @abstractmethod
    def module(self, view: AttentionBlock) -> nn.Module:
        """The branch of the block that `remove` changes."""

    def why_not(self, view: AttentionBlock) -> str | None:
        """Why no unit of the block can be removed; None where they can, or all are gone."""
        return None

    def limits(self, section: PruneSection) -> Limits:
        """How far a recipe lets every block be cut."""
        return Limits(1)

    @abstractmethod
    def macs(self, view: AttentionBlock) -> UnitCost:
        """MACs of one image."""

    @abstractmethod
    def params(self, view: AttentionBlock) -> UnitCost:
        """Parameters."""

    @abstractmethod
    def remove(self, view: AttentionBlock, positions: Sequence[int]) -> None:
        """Cut some of the units out of the block, in place."""

    def remove_branch(self, view: AttentionBlock) -> None:
        """Cut all of them out, in place, and what is of no use without them."""
        raise NotImplementedError(f"{self.name}: one unit of every block has to stay")

    def out(self, view: AttentionBlock) -> nn.Linear | None:
        """The linear layer that ends the branch, whose inputs belong to the units; None where there is none."""
        return None

    def width(self, view: AttentionBlock) -> int:
        """Inputs of that layer that belong to one unit, side by side."""
        return 1

    def to_stream(self, view: AttentionBlock) -> Callable[[Tensor, tuple[int, ...]], Tensor]:
        """Map inputs [..., k] and outputs [..., C] of that layer to the layout of the stream [B, ..., k]."""
        return lambda features, _: features

    def squares(self, view: AttentionBlock) -> Tensor:
        """Sum of the squares of all weights that go with each unit, [units]."""
        raise NotImplementedError(f"{self.name}: has no weights of its own to add up")

    def coupled(self, view: AttentionBlock) -> Coupled:
        """What Torch-Pruning needs to know; `view` is of a copy that may be changed."""
        raise NotImplementedError(f"{self.name}: Torch-Pruning does not know it")

    score: Callable[..., Any] | None = None
    """Scores of a part without a last layer, which criteria cannot observe: `model` -> values of every block."""

    def kind(self, view: AttentionBlock) -> str | None:
        """All that the time of the branch depends on besides its number of units, in words; None where units have no
        branch to themselves, and no time that could be measured."""
        return None

    def widths(self, view: AttentionBlock) -> list[int]:
        """The numbers of units, all of them included, at which the branch is timed."""
        return []

    def written(self, ids: Sequence[int]) -> Any:
        """Ids as a plan file has them."""
        return to_ranges(ids) if self.as_ranges else list(ids)

    def read(self, value: Any, total: int) -> tuple[int, ...] | None:
        """The ids that `written` wrote; None for anything else."""
        if self.as_ranges:
            return from_ranges(value, total)
        whole = isinstance(value, list) and all(type(i) is int and i >= 0 for i in value)
        return tuple(value) if whole else None

    def expected(self, total: int) -> str:
        """What `read` takes, in words."""
        if not self.as_ranges:
            return f"expected a list of {self.unit} ids"
        told = f"expected ids of 0-{total - 1} by range, like 0-7,16-31"
        return told if total else f"the block names no {self.units}"

    def kept_words(self, kept: Sequence[int], total: int) -> str:
        """`0,2 of 6 heads`, or `24 of 288 neurons (0-7,16-31)` with the ids where those are few ranges."""
        if not self.as_ranges:
            return f"{','.join(map(str, kept))} of {total} {self.units}"
        if len(kept) == total:
            return f"all {total:,} {self.units}"
        ids = to_ranges(kept)
        return f"{len(kept):,} of {total:,} {self.units}" + (f" ({ids})" if len(ids) <= LONGEST else "")


LONGEST = 40
"""Characters of a block's ids by range; the terminal is spared longer ones."""
