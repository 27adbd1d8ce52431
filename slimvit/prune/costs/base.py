"""Costs of a model's parts, block by block, as functions of the number of kept units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from slimvit.models.parts.registry import PARTS
from slimvit.models.plan import SlimPlan

Price: TypeAlias = Callable[[int], float]
"""Maps the number of kept units of a block to the cost of the part."""


@dataclass(frozen=True)
class Costs:
    """Costs of a model in one unit (MACs, parameters, milliseconds): the sum of `rest` and of every part.

    The price of a part inside another one, such as channels of a head, holds for one unit of that one.
    """

    unit: str
    rest: float
    """Cost of the parts of the model that cannot be cut."""
    prices: Mapping[str, tuple[Price, ...]]
    """Prices by part, block by block."""

    def of(self, part: str) -> tuple[Price, ...]:
        """Return the prices of a part, block by block."""
        return self.prices[part]

    def of_block(self, block: int, kept: Mapping[str, int]) -> float:
        """Return the cost of a block with `kept` units of each part."""
        cost = 0.0
        for name, prices in self.prices.items():
            outer = PARTS[name].within
            cost += prices[block](kept[name]) * (1 if outer is None else kept[outer.name])
        return cost

    def total(self, plan: SlimPlan) -> float:
        """Return the cost of the model cut to `plan`."""
        kept = ({name: len(block.of(name).kept) for name in self.prices} for block in plan.blocks)
        return self.rest + sum(self.of_block(i, counts) for i, counts in enumerate(kept))


def costs_from(unit: str, total: float, plan: SlimPlan, prices: Mapping[str, tuple[Price, ...]]) -> Costs:
    """Return the costs of a model whose total is known; `rest` is what the parts leave over.

    Args:
        unit: Unit of the costs, such as `MACs`.
        total: Cost of the whole model.
        plan: The plan of that model.
        prices: Prices by part, block by block.
    """
    return Costs(unit, total - Costs(unit, 0.0, prices).total(plan), prices)
