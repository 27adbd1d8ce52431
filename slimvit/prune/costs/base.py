"""Costs of a model's parts, block by block, as functions of the number of kept units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from slimvit.models.plan import SlimPlan

Price: TypeAlias = Callable[[int], float]
"""Maps the number of kept units of a block to the cost of the part."""


@dataclass(frozen=True)
class Costs:
    """Costs of a model in one unit (MACs, parameters, milliseconds): the sum of `rest` and of every part."""

    unit: str
    rest: float
    """Cost of the parts of the model that cannot be cut."""
    prices: Mapping[str, tuple[Price, ...]]
    """Prices by part, block by block."""

    def of(self, part: str) -> tuple[Price, ...]:
        """Return the prices of a part, block by block."""
        return self.prices[part]

    def total(self, plan: SlimPlan) -> float:
        """Return the cost of the model cut to `plan`."""
        return self.rest + sum(
            sum(price[i](len(block.of(part).kept)) for part, price in self.prices.items())
            for i, block in enumerate(plan.blocks)
        )


def costs_from(unit: str, total: float, plan: SlimPlan, prices: Mapping[str, tuple[Price, ...]]) -> Costs:
    """Return the costs of a model whose total is known; `rest` is what the parts leave over.

    Args:
        unit: Unit of the costs, such as `MACs`.
        total: Cost of the whole model.
        plan: The plan of that model.
        prices: Prices by part, block by block.
    """
    return Costs(unit, total - Costs(unit, 0.0, prices).total(plan), prices)
