"""From scores and a fraction to a plan: units are dropped one by one, always the one that costs least.

Budgets in MACs, parameters or milliseconds are met in budget.py.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from slimvit.models.plan import SlimPlan
from slimvit.prune.criteria.registry import PartScores, Scores
from slimvit.utils.errors import PlanError


def plan_heads(
    scores: Scores,
    *,
    ratio: float | None = None,
    heads: int | Sequence[int] | None = None,
    head_macs: Sequence[int] | None = None,
    scope: str = "global",
    min_heads: int = 1,
) -> SlimPlan:
    """The plan that meets one budget of heads: ``ratio`` or ``heads``.

    ``ratio``: fraction of the model's heads to remove. With scope ``uniform`` every block loses the same share of
    its heads, nearest to the ratio; with ``global`` the cheapest heads go, wherever they are.
    ``heads``: heads that every block keeps, or one number a stage; blocks that have fewer stay as they are.
    ``head_macs``: MACs of one head of each block, to weigh blocks of different cost against each other.
    ``min_heads``: heads every block keeps at least.

    Raises :class:`PlanError` when the budget removes nothing, or more than ``min_heads`` allows.
    """
    plan = scores.plan
    if (ratio is None) == (heads is None):
        raise PlanError("give a budget of heads, and one only: ratio or heads decides how many go")
    if plan.kept == 0:
        raise PlanError("the model has no heads left to remove")
    search = _Search(scores.heads, head_macs or [1] * len(plan.blocks), min_heads)
    if heads is not None:
        for block, keep in enumerate(heads_per_block(plan, heads)):
            if keep < min_heads:
                raise PlanError(f"heads {_listed(heads)} is below min_heads {min_heads}; give a smaller --min-heads")
            search.drop_in_block(block, max(0, len(plan.blocks[block].kept_heads) - keep))
        if search.removed == 0:
            most = max(len(b.kept_heads) for b in plan.blocks)
            raise PlanError(f"heads {_listed(heads)} removes nothing: no block has more; the largest has {most} heads")
    elif ratio is not None and scope == "uniform":
        _uniform(search, plan, ratio, min_heads)
    elif ratio is not None:
        _global(search, plan, ratio, min_heads)
    blocks = zip(plan.blocks, search.kept(), strict=True)
    return plan.keeping(heads=[[b.kept_heads[i] for i in kept] for b, kept in blocks])


def plan_neurons(scores: Scores, plan: SlimPlan, ratio: float, scope: str = "global", group: int = 8) -> SlimPlan:
    """``plan`` with a fraction ``ratio`` of the model's hidden neurons gone too, in groups of ``group``.

    With scope ``uniform`` every block loses the same share of its neurons, nearest to the ratio; with ``global`` the
    cheapest go, wherever they are. A group stays in every block. Raises :class:`PlanError` when nothing goes, or more
    than that would.
    """
    counts = [len(b.kept_neurons) for b in plan.blocks]
    groups = [max(0, (n - 1) // group) for n in counts]  # that may go: what does not divide stays
    search = _Search([_in_groups(s, group, n) for s, n in zip(scores.mlp, groups, strict=True)], [1] * len(counts), 0)
    wanted = [_nearest_count(ratio * n / group) for n in counts]
    if scope == "global":
        wanted = [_nearest_count(ratio * sum(counts) / group)]
    if sum(wanted) <= 0:
        raise PlanError(f"mlp-ratio {ratio} of {sum(counts)} neurons, in groups of {group}, rounds to nothing")
    most = [sum(groups)] if scope == "global" else groups
    if any(w > m for w, m in zip(wanted, most, strict=True)):
        raise PlanError(
            f"mlp-ratio {ratio} removes more neurons than may go: {group} stay in every block "
            f"(ratio {group * sum(groups) / max(1, sum(counts)):.3f} at the most); give a smaller ratio"
        )
    if scope == "global":
        search.drop_anywhere(wanted[0])
    else:
        for block, count in enumerate(wanted):
            search.drop_in_block(block, count)
    kept = [sorted(s.order[gone * group :]) for s, gone in zip(scores.mlp, search.gone, strict=True)]
    return plan.keeping(neurons=[[b.kept_neurons[i] for i in k] for b, k in zip(scores.plan.blocks, kept, strict=True)])


def _in_groups(scores: PartScores, group: int, groups: int) -> PartScores:
    """The first ``groups`` times ``group`` units to go, as units of their own."""
    sums = tuple(sum(scores.costs[i * group : (i + 1) * group]) for i in range(groups))
    return PartScores(tuple(range(groups)), sums, sums)


class _Search:
    """How many units of each block are gone; they go in the order of the scores."""

    def __init__(self, scores: Sequence[PartScores], unit_macs: Sequence[int], min_kept: int) -> None:
        self.scores = scores
        self.unit_macs = unit_macs
        self.gone = [0] * len(scores)
        self.may_go = [max(0, len(s.order) - min_kept) for s in scores]

    @property
    def removed(self) -> int:
        return sum(self.gone)

    def drop_in_block(self, block: int, count: int) -> None:
        self.gone[block] += count

    def drop_anywhere(self, count: int) -> None:
        """``count`` times, drop the unit of the network that costs least per MAC; no more than may go."""
        queue = [(self._next(b), b) for b in range(len(self.scores)) if self.may_go[b]]
        heapq.heapify(queue)
        for _ in range(min(count, sum(self.may_go))):
            block = heapq.heappop(queue)[1]
            self.gone[block] += 1
            if self.gone[block] < self.may_go[block]:
                heapq.heappush(queue, (self._next(block), block))

    def _next(self, block: int) -> float:
        return self.scores[block].costs[self.gone[block]] / self.unit_macs[block]

    def kept(self) -> list[list[int]]:
        """Positions of the units that stay, block by block."""
        return [sorted(s.order[gone:]) for s, gone in zip(self.scores, self.gone, strict=True)]


def heads_per_block(plan: SlimPlan, heads: int | Sequence[int]) -> list[int]:
    """Heads every block is to keep; ``heads``: one number, or one a stage."""
    if isinstance(heads, int):
        return [heads] * len(plan.blocks)
    stages = sorted({b.stage for b in plan.blocks})
    if len(heads) not in (1, len(stages)):
        raise PlanError(
            f"heads {_listed(heads)} gives {len(heads)} numbers, but the model has {len(stages)} "
            f"stage{'s' if len(stages) > 1 else ''}; give one number, or one a stage"
        )
    numbers = list(heads) * len(stages) if len(heads) == 1 else list(heads)
    return [numbers[stages.index(b.stage)] for b in plan.blocks]


def _listed(heads: int | Sequence[int]) -> str:
    return str(heads) if isinstance(heads, int) else ",".join(map(str, heads))


def _nearest_count(share: float) -> int:
    """Rounded half up."""
    return int(share + 0.5)


def _uniform(search: _Search, plan: SlimPlan, ratio: float, min_heads: int) -> None:
    counts = [_nearest_count(ratio * len(b.kept_heads)) for b in plan.blocks]
    if max(counts) <= 0:
        widest = max(len(b.kept_heads) for b in plan.blocks)
        raise PlanError(
            f"ratio {ratio} of {widest} heads a block rounds to nothing; the smallest ratio that removes a head "
            f"everywhere alike is {_up(0.5 / widest)}, or use --scope global"
        )
    for block, count in zip(plan.blocks, counts, strict=True):
        if count and len(block.kept_heads) - count < min_heads:
            raise PlanError(
                f"ratio {ratio} removes {count} of the {len(block.kept_heads)} heads of {block.name}, but min_heads is "
                f"{min_heads}; give a smaller ratio or a smaller --min-heads"
            )
    for i, count in enumerate(counts):
        search.drop_in_block(i, count)


def _global(search: _Search, plan: SlimPlan, ratio: float, min_heads: int) -> None:
    count = _nearest_count(ratio * plan.kept)
    if count <= 0:
        raise PlanError(
            f"ratio {ratio} of {plan.kept} heads rounds to nothing; the smallest ratio that does not is "
            f"{_up(0.5 / plan.kept)}"
        )
    removable = sum(max(0, len(b.kept_heads) - min_heads) for b in plan.blocks)
    if count > removable:
        raise PlanError(
            f"ratio {ratio} removes {count} of {plan.kept} heads, but with min_heads {min_heads} at most {removable} "
            f"may go (ratio {removable / plan.kept:.3f}); give a smaller ratio or a smaller --min-heads"
        )
    search.drop_anywhere(count)


def _up(value: float) -> float:
    """Rounded up to four digits, so that the number printed does what is said of it."""
    return math.ceil(round(value * 10_000, 6)) / 10_000
