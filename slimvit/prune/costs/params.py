"""Budgets in parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from slimvit.measure.flops.parts import count_params
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.costs.base import Costs, Price, costs_from
from slimvit.prune.costs.budget import Budget, register_budget


def params_costs(model: nn.Module) -> Costs:
    """Return the parameters by part."""
    blocks = attention_blocks(model)
    prices: dict[str, tuple[Price, ...]] = {name: tuple(map(part.params, blocks)) for name, part in PARTS.items()}
    return costs_from(PARAMS.unit, count_params(model), plan_of(model), prices)


class Params(Budget):
    """Number of parameters."""

    name, unit, noun = "params", "parameters", "parameters"

    def costs(self, model: nn.Module, original: nn.Module, prepared: Any) -> Costs:
        return params_costs(model)

    def true_cost(self, finished: Callable[[], nn.Module], estimate: float) -> float:
        return count_params(finished())


PARAMS = register_budget(Params())
