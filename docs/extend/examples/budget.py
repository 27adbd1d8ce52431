"""A kind of budget: energy per image, for the arithmetic and for reading each weight once.

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
"""Millijoules per multiply-add."""
READ = 640e-9
"""Millijoules to read one weight from DRAM."""


def energy(model: nn.Module) -> float:
    """Return millijoules per image."""
    return MAC * count_macs(model).total + READ * count_params(model)


class Energy(Budget):
    """Millijoules per image."""

    name, unit, noun = "energy", "mJ", "energy"
    figure, promise = "energy_mj", "estimated for 45 nm"

    def costs(self, model: nn.Module, original: nn.Module, prepared: Any) -> Costs:
        blocks = attention_blocks(model)
        prices = {name: tuple(_price(part, view) for view in blocks) for name, part in PARTS.items()}
        return costs_from(self.unit, energy(model), plan_of(model), prices)

    def true_cost(self, finished: Callable[[], nn.Module], estimate: float) -> float:
        return energy(finished())


def _price(part: Part, view: AttentionBlock) -> Price:
    """Price of a part of one block: kept units -> millijoules."""
    macs, params = part.macs(view), part.params(view)
    return lambda kept: MAC * macs(kept) + READ * params(kept)


ENERGY = register_budget(Energy())
