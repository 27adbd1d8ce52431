"""Costs of a model's parts, block by block, as functions of the number of kept units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from slimvit.models.parts.registry import PARTS
from slimvit.models.parts.tokens import TOKENS
from slimvit.models.plan import SlimPlan

Price: TypeAlias = Callable[[int], float]
"""Maps the number of kept units of a block to the cost of the part."""


BlockPrices: TypeAlias = Callable[[int, int, int], Mapping[str, Price]]
"""Maps a block's index, the tokens that earlier blocks merge and those that it merges to its prices by part."""


@dataclass(frozen=True)
class Costs:
    """Costs of a model in one unit (MACs, parameters, milliseconds): the sum of `rest` and of every part.

    The price of a part inside another one, such as channels of a head, holds for one unit of that one.
    """

    unit: str
    rest: float
    """Cost of the parts of the model that cannot be cut."""
    prices: Mapping[str, tuple[Price, ...]]
    """Prices by part, block by block, of a network that merges no tokens."""
    by_tokens: BlockPrices | None = None
    """Prices in a network that merges tokens; None where they are the same."""

    def of(self, part: str) -> tuple[Price, ...]:
        """Return the prices of a part, block by block, of a network that merges no tokens."""
        return self.prices[part]

    def of_block(self, block: int, kept: Mapping[str, int], before: int = 0, merged: int = 0) -> float:
        """Return the cost of a block with `kept` units of each part.

        Args:
            block: Index of the block.
            kept: Number of units by part.
            before: Tokens that earlier blocks merge.
            merged: Tokens that the block merges.
        """
        prices = {name: of_part[block] for name, of_part in self.prices.items()}
        if self.by_tokens is not None and (before or merged):
            prices = prices | dict(self.by_tokens(block, before, merged))
        cost = 0.0
        for name, price in prices.items():
            outer = PARTS[name].within
            cost += price(kept[name]) * (1 if outer is None else kept[outer.name])
        return cost

    def total(self, plan: SlimPlan) -> float:
        """Return the cost of the model cut to `plan`."""
        total, before = self.rest, 0
        for i, block in enumerate(plan.blocks):
            merged = len(block.of(TOKENS.name).removed)
            total += self.of_block(i, {name: len(block.of(name).kept) for name in self.prices}, before, merged)
            before += merged
        return total


def costs_from(
    unit: str,
    total: float,
    plan: SlimPlan,
    prices: Mapping[str, tuple[Price, ...]],
    by_tokens: BlockPrices | None = None,
) -> Costs:
    """Return the costs of a model whose total is known; `rest` is what the parts leave over.

    Args:
        unit: Unit of the costs, such as `MACs`.
        total: Cost of the whole model.
        plan: The plan of that model.
        prices: Prices by part, block by block.
        by_tokens: Prices where tokens are merged, if they differ.
    """
    return Costs(unit, total - Costs(unit, 0.0, prices, by_tokens).total(plan), prices, by_tokens)
