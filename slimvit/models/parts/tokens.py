"""Tokens that blocks merge between attention and MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from slimvit.models.parts.base import Limits, Part, UnitCost

if TYPE_CHECKING:
    from torch import nn

    from slimvit.config.recipe import PruneSection
    from slimvit.models.base import AttentionBlock

STOPS = 24
"""Numbers of merged tokens that are tried in a block."""


class MergeLimits(Limits):
    """Limits of the merging in one block: none but that a search tries few numbers."""

    def stops(self, count: int) -> range:
        """Return the numbers of tokens that a search leaves for merging, below `count` and in falling order."""
        step = max(1, count // STOPS)
        return range(count - step, -1, -step)


@dataclass(frozen=True)
class MergeCost(UnitCost):
    """Cost of the matching, which is the same however many tokens are merged."""

    def __call__(self, kept: int) -> int:
        """Return the cost of the matching."""
        return self.fixed


class MergedTokens(Part):
    """Tokens that a block may merge: half of the image's. A plan holds how many it does merge.

    Merging has no weights. It makes the MLP of the block and everything in later blocks cheaper, and counts there.
    """

    name, unit, units = "tokens", "token", "tokens"
    label = "merged tokens"
    legend = "tokens: how many more tokens of an image the blocks could merge, added up"
    counted, counts_removed = True, "merged"

    def count(self, view: AttentionBlock) -> int:
        return view.mergeable - view.merged

    def module(self, view: AttentionBlock) -> nn.Module:
        return view.block

    def why_not(self, view: AttentionBlock) -> str | None:
        return None if view.mergeable else view.whole_tokens

    def limits(self, section: PruneSection) -> Limits:
        return MergeLimits(0)

    def macs(self, view: AttentionBlock) -> UnitCost:
        """Count the comparison of the keys, where the block merges."""
        from slimvit.models.closed_form import matching_macs

        if not view.merged:
            return MergeCost(0)
        return MergeCost(0, matching_macs(view.attn, view.tokens - view.prefix))

    def params(self, view: AttentionBlock) -> UnitCost:
        return MergeCost(0)

    def remove(self, view: AttentionBlock, positions: Sequence[int]) -> None:
        """Do nothing: surgery inserts the merging of all blocks at once, since it changes all later blocks."""

    def remove_branch(self, view: AttentionBlock) -> None:
        """Do nothing, as in `remove`."""

    def keys(self) -> tuple[str, str]:
        """Plan files hold `"mergeable_tokens": 98, "merged_tokens": 16`."""
        return "mergeable_tokens", "merged_tokens"

    def entry(self, total: int, kept: Sequence[int]) -> dict[str, Any]:
        return dict(zip(self.keys(), (total, total - len(kept)), strict=True))

    def of_entry(self, entry: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the number of tokens and of those not merged, or whatever else is in the entry."""
        keys = self.keys()
        if not any(key in entry for key in keys):
            return 0, 0
        total, merged = entry.get(keys[0]), entry.get(keys[1], 0)
        valid = type(total) is int and type(merged) is int and 0 <= merged <= total
        return total, total - merged if valid else merged

    def kept_words(self, kept: Sequence[int], total: int) -> str:
        return self.count_words(len(kept), total)

    def count_words(self, kept: int, total: int) -> str:
        return f"{total - kept:,} {self.units} {self.counts_removed}"


TOKENS = MergedTokens()


def with_tokens(view: AttentionBlock, tokens: int, merged: int) -> AttentionBlock:
    """Return the view of a block as it is when `tokens` tokens enter it and it merges `merged` of them.

    Blocks that cannot merge tokens are returned unchanged.
    """
    if not view.mergeable:
        return view
    return replace(view, tokens=tokens, window=tokens, mlp_tokens=tokens - merged, merged=merged)
