"""From scores and a budget to a plan: heads are dropped one by one, always the one that costs least per MAC saved."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

from slimvit.errors import PlanError
from slimvit.plan import SlimPlan
from slimvit.prune.criteria import BlockScores, HeadScores


def plan_heads(
    scores: HeadScores,
    *,
    ratio: float | None = None,
    heads: int | Sequence[int] | None = None,
    macs_to_save: int | None = None,
    head_macs: Sequence[int] | None = None,
    scope: str = "global",
    min_heads: int = 1,
) -> SlimPlan:
    """The plan that meets exactly one budget: ``ratio``, ``heads`` or ``macs_to_save``.

    ``ratio``: fraction of the model's heads to remove. With scope ``uniform`` every block loses the same share of
    its heads, nearest to the ratio; with ``global`` the cheapest heads go, wherever they are.
    ``heads``: heads that every block keeps, or one number a stage; blocks that have fewer stay as they are.
    ``macs_to_save``: remove heads until at least this many MACs are saved. ``head_macs``: MACs of one head of each
    block; needed for ``macs_to_save``, and to weigh blocks of different cost against each other.
    ``min_heads``: heads every block keeps at least.

    Raises :class:`PlanError` when the budget removes nothing, or more than ``min_heads`` allows.
    """
    plan = scores.plan
    if sum(budget is not None for budget in (ratio, heads, macs_to_save)) > 1:
        raise PlanError("several budgets were given; one of ratio, heads and macs_to_save decides how much goes")
    if plan.kept == 0:
        raise PlanError("the model has no heads left to remove")
    if macs_to_save is not None and head_macs is None:
        raise PlanError("macs_to_save needs head_macs, the MACs of one head of each block")
    search = _Search(scores, head_macs or [1] * len(plan.blocks), min_heads)
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
    elif macs_to_save is not None:
        _to_macs(search, plan, macs_to_save, scope)
    else:
        raise PlanError("no budget was given; one of ratio, heads, target-macs or a plan decides how much goes")
    return plan.keeping(search.kept_ids())


class _Search:
    """The heads still kept, by position, and the order in which they go."""

    def __init__(self, scores: HeadScores, head_macs: Sequence[int], min_heads: int) -> None:
        self.plan = scores.plan
        self.scores: tuple[BlockScores, ...] = scores.blocks
        self.head_macs = head_macs
        self.min_heads = min_heads
        self.kept = [list(range(len(b.kept_heads))) for b in self.plan.blocks]
        self.removed = 0
        self.saved = 0

    def cheapest(self, block: int) -> tuple[float, int]:
        """Cost per MAC and position of the head that would go next in a block."""
        costs = self.scores[block].removal_costs(self.kept[block])
        cost, head = min(zip(costs, self.kept[block], strict=True))
        return cost / self.head_macs[block], head

    def drop(self, block: int, head: int) -> None:
        self.kept[block].remove(head)
        self.removed += 1
        self.saved += self.head_macs[block]

    def drop_in_block(self, block: int, count: int) -> None:
        for _ in range(count):
            self.drop(block, self.cheapest(block)[1])

    def drop_anywhere(self, enough: Callable[[], bool]) -> None:
        """Drop the cheapest head of the network until ``enough()`` or nothing may go any more."""
        queue = [(*self.cheapest(b), b) for b in range(len(self.kept)) if self._may_lose(b)]
        heapq.heapify(queue)
        while queue and not enough():
            _, head, block = heapq.heappop(queue)
            self.drop(block, head)
            if self._may_lose(block):
                heapq.heappush(queue, (*self.cheapest(block), block))

    def _may_lose(self, block: int) -> bool:
        return len(self.kept[block]) > self.min_heads

    def kept_ids(self) -> list[list[int]]:
        """By original id."""
        return [[b.kept_heads[i] for i in kept] for b, kept in zip(self.plan.blocks, self.kept, strict=True)]


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
    search.drop_anywhere(lambda: search.removed >= count)


def _to_macs(search: _Search, plan: SlimPlan, macs_to_save: int, scope: str) -> None:
    if scope == "uniform":
        while search.saved < macs_to_save and any(search._may_lose(b) for b in range(len(plan.blocks))):
            for block in range(len(plan.blocks)):
                if search._may_lose(block):
                    search.drop_in_block(block, 1)
    else:
        search.drop_anywhere(lambda: search.saved >= macs_to_save)
    if search.saved < macs_to_save:
        raise PlanError(f"{search.saved} MACs can be saved, {macs_to_save} are wanted")


def _up(value: float) -> float:
    """Rounded up to four digits, so that the number printed does what is said of it."""
    return math.ceil(round(value * 10_000, 6)) / 10_000
