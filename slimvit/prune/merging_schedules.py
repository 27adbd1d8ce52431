"""Schedules of token merging: how many tokens each block merges, for every amount of merging.

The rise of a schedule is the sum over blocks of D(R) - D(R') (criteria/tokens.py), and its cost the sum of the blocks'
costs with R' tokens gone before and R behind. Both are sums along a path of R over the blocks, so for a price of a unit
of cost dynamic programming finds the best path. The schedules of all prices are the stops of the search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from slimvit.models.parts.tokens import TOKENS
from slimvit.models.plan import SlimPlan
from slimvit.models.tokens.merging import within_bounds
from slimvit.prune.costs.base import Costs
from slimvit.prune.criteria.scores import PartScores

Floats = npt.NDArray[np.float64]

POINTS = 48
"""Numbers of tokens gone that are tried."""
PRICES = 64
"""Prices of a unit of cost, between merging nothing and merging everything."""
MIXES = 4
"""Steps between two schedules of neighbouring prices."""
LARGEST = 3
"""One in so many of the tokens left is merged by one block at most, since the rest of the pairs is dissimilar."""


@dataclass(frozen=True)
class Schedule:
    """The number of tokens that each block merges, and the estimated rise of the loss."""

    merges: tuple[int, ...]
    rise: float


def merges_in(plan: SlimPlan) -> list[int]:
    """Return the number of tokens that each block of a plan merges."""
    return [len(block.of(TOKENS.name).removed) for block in plan.blocks]


def most_of(plan: SlimPlan) -> int:
    """Return the largest number of tokens that one block of a plan could merge if no other did."""
    return max(block.of(TOKENS.name).total for block in plan.blocks)


def most_merging(plan: SlimPlan) -> list[int]:
    """Return the schedule in which each block in turn merges as many tokens as it can without changing the others."""
    merges, most = merges_in(plan), most_of(plan)
    for i in range(len(merges)):
        while within_bounds(most, more := [*merges[:i], merges[i] + 1, *merges[i + 1 :]]) == more:
            merges = more
    return merges


def schedules(plan: SlimPlan, scores: Sequence[PartScores], costs: Costs) -> list[Schedule]:
    """Return the best schedules in falling order of cost, from the present one to the most merging.

    Args:
        plan: The plan of the scored model.
        scores: Scores of the tokens, block by block.
        costs: Costs of the model's parts.
    """
    curves = [np.concatenate([[0.0], np.cumsum(block.costs)]) for block in scores]
    grid = _Grid(plan, curves, costs)
    extremes = [_schedule(plan, curves, merges) for merges in (merges_in(plan), most_merging(plan))]
    best = sorted({tuple(grid.best(price)) for price in grid.prices()} | {s.merges for s in extremes}, key=sum)
    between = (merges for pair in pairwise(best) for merges in _between(*pair))
    found = {*extremes, *(_schedule(plan, curves, merges) for merges in (*best, *between) if _possible(plan, merges))}
    ordered = sorted(found, key=lambda s: (-_cost(plan, costs, s.merges), s.rise))
    return [s for i, s in enumerate(ordered) if s in extremes or all(s.rise < o.rise for o in ordered[i + 1 :])]


def _between(few: Sequence[int], many: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Schedules between two, in which every block merges a share of the difference."""
    for share in np.arange(1, MIXES) / MIXES:
        yield tuple(round(a + share * (b - a)) for a, b in zip(few, many, strict=True))


def _possible(plan: SlimPlan, merges: Sequence[int]) -> bool:
    more = all(new >= old for new, old in zip(merges, merges_in(plan), strict=True))
    return more and within_bounds(most_of(plan), merges) == [*merges]


def _schedule(plan: SlimPlan, curves: Sequence[Floats], merges: Sequence[int]) -> Schedule:
    """A schedule with its rise; tokens that the scored model merges already cost nothing more."""
    gone = np.cumsum([0, *(new - old for new, old in zip(merges, merges_in(plan), strict=True))])
    steps = zip(curves, pairwise(gone), strict=True)
    return Schedule(tuple(merges), sum(_at(curve, after) - _at(curve, before) for curve, (before, after) in steps))


def _at(curve: Floats, gone: int) -> float:
    return float(curve[min(gone, len(curve) - 1)])


def _cost(plan: SlimPlan, costs: Costs, merges: Sequence[int]) -> float:
    left = [range(b.of(TOKENS.name).total - r) for b, r in zip(plan.blocks, merges, strict=True)]
    return costs.total(plan.keeping_parts({TOKENS.name: left}))


class _Grid:
    """Rises and costs of every block for every number of tokens gone before it and merged in it, in steps."""

    def __init__(self, plan: SlimPlan, curves: Sequence[Floats], costs: Costs) -> None:
        self.merges, most = merges_in(plan), most_of(plan)
        self.step = max(1, (2 * most - sum(self.merges)) // POINTS)
        points = (2 * most - sum(self.merges)) // self.step + 1
        shape = (len(curves), points, points)
        self.rises, self.costs = np.full(shape, np.inf), np.zeros(shape)
        for block, curve in enumerate(curves):
            kept = {name: len(plan.blocks[block].of(name).kept) for name in costs.prices}
            for gone in range(points):
                before = sum(self.merges[:block]) + gone * self.step
                room = max(0, (2 * most - before) // LARGEST - self.merges[block])
                for more in range(min(room // self.step, points - 1 - gone) + 1):
                    merged = self.merges[block] + more * self.step
                    behind = gone + more
                    self.rises[block, gone, behind] = _at(curve, behind * self.step) - _at(curve, gone * self.step)
                    self.costs[block, gone, behind] = costs.of_block(block, kept, before, merged)

    def prices(self) -> Floats:
        """Return prices from far too low to far too high."""
        rises = self.rises[np.isfinite(self.rises)]
        if not rises.max() > 0:
            return np.array([1.0])
        return np.geomspace(1e-5, 1e2, PRICES) * rises.max() / self.costs.max()

    def best(self, price: float) -> list[int]:
        """Return the schedule with the lowest sum of rise and priced cost."""
        choices, value = [], np.zeros(self.rises.shape[1])
        for rises, costs in zip(self.rises[::-1], self.costs[::-1], strict=True):
            sums = rises + price * costs + value  # [gone before, gone behind]
            choices.append(sums.argmin(1))
            value = sums.min(1)
        path, gone = [], 0
        for block, choice in enumerate(reversed(choices)):
            path.append(self.merges[block] + int(choice[gone] - gone) * self.step)
            gone = int(choice[gone])
        return path
