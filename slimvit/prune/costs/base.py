"""What the parts of a model cost, block by block, as a function of how many of their units stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from slimvit.models.plan import SlimPlan

Price: TypeAlias = Callable[[int], float]
"""Units that stay in a block -> what the part then costs."""


@dataclass(frozen=True)
class Costs:
    """What a model costs, in one unit (MACs, parameters, milliseconds): the sum of `rest` and of every part."""

    unit: str
    rest: float
    """What no cut changes."""
    prices: Mapping[str, tuple[Price, ...]]
    """By part, one a block."""

    def of(self, part: str) -> tuple[Price, ...]:
        """The prices of a part, block by block."""
        return self.prices[part]

    def total(self, plan: SlimPlan) -> float:
        """What the model costs when it keeps what `plan` says."""
        return self.rest + sum(
            sum(price[i](len(block.of(part).kept)) for part, price in self.prices.items())
            for i, block in enumerate(plan.blocks)
        )


def costs_from(unit: str, total: float, plan: SlimPlan, prices: Mapping[str, tuple[Price, ...]]) -> Costs:
    """Prices of parts, and the `total` that the model they belong to costs with `plan`."""
    return Costs(unit, total - Costs(unit, 0.0, prices).total(plan), prices)
