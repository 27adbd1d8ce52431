"""Budgets in MACs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import nn

from slimvit.measure.flops.count import count_macs
from slimvit.models.parts.registry import PARTS
from slimvit.models.parts.tokens import with_tokens
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.costs.base import Costs, Price, costs_from
from slimvit.prune.costs.budget import Budget, register_budget


def macs_costs(model: nn.Module, total: int) -> Costs:
    """Return the MACs of one image by part, given the `total` of the whole model."""
    blocks = attention_blocks(model)
    whole = blocks[0].tokens

    @cache
    def by_tokens(block: int, before: int, merged: int) -> Mapping[str, Price]:
        view = with_tokens(blocks[block], whole - before, merged)
        return {name: part.macs(view) for name, part in PARTS.items()}

    unmerged = [with_tokens(view, whole, 0) for view in blocks]
    prices: dict[str, tuple[Price, ...]] = {name: tuple(map(part.macs, unmerged)) for name, part in PARTS.items()}
    return costs_from(MACS.unit, total, plan_of(model), prices, by_tokens)


class Macs(Budget):
    """MACs of one image, counted from the layers."""

    name, unit, noun = "macs", "MACs", "MACs"

    def costs(self, model: nn.Module, original: nn.Module, prepared: Any) -> Costs:
        return macs_costs(model, count_macs(model).total)

    def true_cost(self, finished: Callable[[], nn.Module], estimate: float) -> float:
        return count_macs(finished()).total


MACS = register_budget(Macs())
