"""Budgets in MACs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from slimvit.measure.flops.count import count_macs
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.costs.base import Costs, Price, costs_from
from slimvit.prune.costs.budget import Budget, register_budget


def macs_costs(model: nn.Module, total: int) -> Costs:
    """Return the MACs of one image by part, given the `total` of the whole model."""
    blocks = attention_blocks(model)
    prices: dict[str, tuple[Price, ...]] = {name: tuple(map(part.macs, blocks)) for name, part in PARTS.items()}
    return costs_from(MACS.unit, total, plan_of(model), prices)


class Macs(Budget):
    """MACs of one image, counted from the layers."""

    name, unit, noun = "macs", "MACs", "MACs"

    def costs(self, model: nn.Module, original: nn.Module, prepared: Any) -> Costs:
        return macs_costs(model, count_macs(model).total)

    def true_cost(self, finished: Callable[[], nn.Module], estimate: float) -> float:
        return count_macs(finished()).total


MACS = register_budget(Macs())
