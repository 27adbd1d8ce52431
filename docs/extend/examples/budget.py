"""A kind of budget: energy for one image, estimated from arithmetic and from reading each weight once.

Energy per operation: Horowitz, Computing's energy problem, ISSCC 2014 (45 nm, fp32). `slimvit prune MODEL --target
energy=0.6 ...`, or `target: {energy: 0.6}` in the prune section of a recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from slimvit.measure.flops.count import count_macs
from slimvit.measure.flops.parts import count_params
from slimvit.models.base import AttentionBlock
from slimvit.models.parts.base import Part
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.costs.base import Costs, Price, costs_from
from slimvit.prune.costs.budget import Budget, register_budget

MAC = 4.6e-9
"""Millijoules of a multiplication and an addition."""
READ = 640e-9
"""Millijoules of reading a weight from DRAM."""


def energy(model: nn.Module) -> float:
    """Millijoules for one image."""
    return MAC * count_macs(model).total + READ * count_params(model)


class Energy(Budget):
    """Millijoules for one image."""

    name, unit, noun = "energy", "mJ", "energy"
    figure, promise = "energy_mj", "estimated for 45 nm"

    def costs(self, model: nn.Module, original: nn.Module, prepared: Any) -> Costs:
        blocks = attention_blocks(model)
        prices = {name: tuple(_price(part, view) for view in blocks) for name, part in PARTS.items()}
        return costs_from(self.unit, energy(model), plan_of(model), prices)

    def true_cost(self, finished: Callable[[], nn.Module], promised: float) -> float:
        return energy(finished())


def _price(part: Part, view: AttentionBlock) -> Price:
    """Units that stay in a block -> what they cost."""
    macs, params = part.macs(view), part.params(view)
    return lambda kept: MAC * macs(kept) + READ * params(kept)


ENERGY = register_budget(Energy())
