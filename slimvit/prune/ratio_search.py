"""Plans for a ratio or a number of units: removes the units with the lowest scores.

budget_search.py meets budgets in MACs, parameters or milliseconds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from slimvit.config.choices import SCOPES
from slimvit.models.parts.base import Limits, Part
from slimvit.models.parts.registry import everywhere, limits_of, part_of
from slimvit.models.plan import SlimPlan
from slimvit.prune.criteria.scores import PartScores, Scores
from slimvit.utils.errors import PlanError, nearest


def plan_units(
    scores: Scores,
    *,
    part: str | None = None,
    ratio: float | None = None,
    keep: int | Sequence[int] | None = None,
    plan: SlimPlan | None = None,
    unit_macs: Sequence[int] | None = None,
    scope: str = "global",
    limits: Limits | None = None,
) -> SlimPlan:
    """Find the plan that meets a budget of units of one part: `ratio` or `keep`.

    Args:
        scores: Scores of the part.
        part: Name of the part; by default `heads`.
        ratio: Fraction of the model's units to remove.
        keep: Number of units that every block keeps, or one number per stage. Blocks with fewer do not change.
        plan: The plan to take the other parts from; by default that of the scored model.
        unit_macs: MACs of one unit, block by block; scores are divided by them. The default is 1.
        scope: `global` removes the units with the lowest scores of the whole model; `uniform` removes the same share
            of every block.
        limits: Limits of the cut in every block; by default those of a recipe without limits.

    Raises:
        PlanError: The budget removes nothing, or more than `limits` allow.
    """
    chosen = part_of(part or everywhere()[0])
    if (ratio is None) == (keep is None):
        raise PlanError(f"give a budget of {chosen.units}, and one only: a ratio or the {chosen.units} to keep")
    if ratio is not None and not 0 < ratio < 1:
        raise PlanError(f"ratio is {ratio:g}, but must lie between 0 and 1, both excluded")
    if scope not in SCOPES:
        raise PlanError(f"scope {scope!r} is not known{nearest(scope, SCOPES)}; choose from {', '.join(SCOPES)}")
    if scores.plan.kept_of(chosen.name) == 0:
        raise PlanError(f"the model has no {chosen.units} left to remove")
    search = _Search(scores, chosen, limits or limits_of()[chosen.name], unit_macs)
    if keep is not None:
        search.keep(keep)
    elif ratio is not None and scope == "uniform":
        search.drop_evenly(ratio)
    elif ratio is not None:
        search.drop_cheapest(ratio)
    return (plan or scores.plan).keeping_parts({chosen.name: search.kept()})


class _Search:
    """A search that counts the removed groups of each block. Units are removed in the order of their scores."""

    def __init__(self, scores: Scores, part: Part, limits: Limits, unit_macs: Sequence[int] | None) -> None:
        self.plan, self.part, self.limits = scores.plan, part, limits
        self.scores = scores.of(part.name)
        self.counts = [len(s.order) for s in self.scores]
        self.gone = [0] * len(self.counts)
        self.may_go = [limits.may_go(n) for n in self.counts]
        self.costs = [_by_group(s, limits.group) for s in self.scores]
        self.unit_macs = unit_macs or [1] * len(self.counts)

    def keep(self, keep: int | Sequence[int]) -> None:
        """Keep the given number of units in every block."""
        units, key = self.part.units, f"{self.part.units} {_listed(keep)}"
        for block, number in enumerate(units_per_block(self.plan, keep, units)):
            if number < self.limits.least:
                limit = self.part.limit_key or "the limit"
                raise PlanError(f"{key} is below {limit} {self.limits.least}; give a smaller {_option(limit)}")
            self.gone[block] = max(0, self.counts[block] - number) // self.limits.group
        if sum(self.gone) == 0:
            raise PlanError(f"{key} removes nothing: no block has more; the largest has {max(self.counts)} {units}")

    def drop_evenly(self, ratio: float) -> None:
        """Remove the same share of every block, rounded to whole groups."""
        group, part = self.limits.group, self.part
        counts = [_nearest_count(ratio * n / group) for n in self.counts]
        if max(counts) <= 0:
            widest = max(self.counts)
            raise PlanError(
                f"{self._option_value(ratio)} of {widest} {part.units} a block{self._grouped} rounds to nothing; the "
                f"smallest ratio that removes a {part.unit} everywhere alike is {_up(0.5 * group / widest)}, "
                "or use --scope global"
            )
        for i, (count, most) in enumerate(zip(counts, self.may_go, strict=True)):
            if count > most:
                raise PlanError(
                    f"{self._option_value(ratio)} removes {count * group} of the {self.counts[i]} {part.units} of "
                    f"{self.plan.blocks[i].name}, but {self._limit} is {self.limits.least}; {self._advice}"
                )
        self.gone = counts

    def drop_cheapest(self, ratio: float) -> None:
        """Remove the groups with the lowest scores of the whole model."""
        group, total, units = self.limits.group, sum(self.counts), self.part.units
        count, most = _nearest_count(ratio * total / group), sum(self.may_go)
        if count <= 0:
            raise PlanError(
                f"{self._option_value(ratio)} of {total} {units}{self._grouped} rounds to nothing; the smallest ratio "
                f"that does not is {_up(0.5 * group / total)}"
            )
        if count > most:
            raise PlanError(
                f"{self._option_value(ratio)} removes {count * group} of {total} {units}, but with {self._limit} "
                f"{self.limits.least} at most {most * group} may go (ratio {most * group / total:.3f}); {self._advice}"
            )
        self._drop(count)

    def _drop(self, count: int) -> None:
        """Remove `count` groups, each time the one with the lowest score per MAC."""
        queue = [(self._next(b), b) for b in range(len(self.gone)) if self.may_go[b]]
        heapq.heapify(queue)
        for _ in range(count):
            block = heapq.heappop(queue)[1]
            self.gone[block] += 1
            if self.gone[block] < self.may_go[block]:
                heapq.heappush(queue, (self._next(block), block))

    def _next(self, block: int) -> float:
        return self.costs[block][self.gone[block]] / self.unit_macs[block]

    def kept(self) -> list[list[int]]:
        """Return the original ids of the kept units, block by block."""
        kept = []
        for block, scores, gone in zip(self.plan.blocks, self.scores, self.gone, strict=True):
            ids = block.of(self.part.name).kept
            kept.append(sorted(ids[i] for i in scores.order[gone * self.limits.group :]))
        return kept

    def _option_value(self, ratio: float) -> str:
        """Option and value, as in `mlp-ratio 0.5`."""
        return f"{_option(self.part.ratio_key or 'ratio').removeprefix('--')} {ratio}"

    @property
    def _grouped(self) -> str:
        return f", in groups of {self.limits.group}," if self.limits.group > 1 else ""

    @property
    def _limit(self) -> str:
        return self.part.limit_key or "the limit"

    @property
    def _advice(self) -> str:
        key = self.part.limit_key
        return "give a smaller ratio" + (f" or a smaller {_option(key)}" if key else "")


def _by_group(scores: PartScores, group: int) -> list[float]:
    """The score of each group, in the order of removal."""
    return [sum(scores.costs[i : i + group]) for i in range(0, len(scores.costs), group)]


def units_per_block(plan: SlimPlan, keep: int | Sequence[int], units: str) -> list[int]:
    """Return the number of units that each block keeps.

    Args:
        plan: The model's plan.
        keep: One number, or one per stage.
        units: The word for the units in messages.
    """
    if isinstance(keep, int):
        return [keep] * len(plan.blocks)
    stages = sorted({b.stage for b in plan.blocks})
    if len(keep) not in (1, len(stages)):
        raise PlanError(
            f"{units} {_listed(keep)} gives {len(keep)} numbers, but the model has {len(stages)} "
            f"stage{'s' if len(stages) > 1 else ''}; give one number, or one per stage"
        )
    numbers = list(keep) * len(stages) if len(keep) == 1 else list(keep)
    return [numbers[stages.index(b.stage)] for b in plan.blocks]


def _listed(keep: int | Sequence[int]) -> str:
    return str(keep) if isinstance(keep, int) else ",".join(map(str, keep))


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _nearest_count(share: float) -> int:
    """Rounded half up."""
    return int(share + 0.5)


def _up(value: float) -> float:
    """Rounded up to four digits, so that the printed ratio removes at least one unit."""
    return math.ceil(round(value * 10_000, 6)) / 10_000
