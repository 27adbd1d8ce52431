"""Greedy search for a plan that meets a budget, over the units of all parts and whole branches.

Each part of each block is a track. Its stops are the allowed numbers of kept units. Each stop has a cost (the estimated
rise of the loss) and a saving (MACs, parameters or milliseconds). The search moves one track at a time, to the stop
with the lowest cost per unit saved, until the target is met.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product

import numpy as np
import numpy.typing as npt

from slimvit.models.parts.base import Limits
from slimvit.models.parts.branches import BRANCHES
from slimvit.models.parts.registry import PARTS, limits_of, may_go
from slimvit.models.parts.tokens import TOKENS
from slimvit.models.plan import SlimPlan
from slimvit.prune.costs.base import Costs
from slimvit.prune.criteria.scores import PartScores, Scores
from slimvit.prune.merging_schedules import Schedule, merges_in, most_merging, schedules
from slimvit.utils.errors import PlanError

Floats = npt.NDArray[np.float64]


class Present:
    """The numbers of kept units and of merged tokens in the search, and the costs that follow from them."""

    def __init__(self, plan: SlimPlan, costs: Costs) -> None:
        self.costs = costs
        self.kept = [{name: len(block.of(name).kept) for name in costs.prices} for block in plan.blocks]
        self.merges: Sequence[int] = merges_in(plan)

    def of_block(self, block: int, kept: Mapping[str, int]) -> float:
        """Return the cost of a block with these numbers of units, while as many tokens are merged as at present."""
        return self.costs.of_block(block, {**self.kept[block], **kept}, sum(self.merges[:block]), self.merges[block])

    def with_merges(self, merges: Sequence[int]) -> float:
        """Return the cost of all blocks when they merge these numbers of tokens."""
        befores = accumulate(merges, initial=0)
        each = enumerate(zip(self.kept, befores, merges, strict=False))
        return sum(self.costs.of_block(i, kept, before, merged) for i, (kept, before, merged) in each)


@dataclass(eq=False)
class Track:
    """One part of one block in the search."""

    block: int
    part: str
    order: tuple[int, ...]
    stops: list[int]
    """Number of kept units at each stop, from all to the fewest allowed."""
    cost: Floats
    """Estimated rise of the loss at each stop."""
    present: Present
    at: int = 0
    """Index of the present stop."""
    _saved: tuple[object, Floats] | None = None

    @property
    def saved(self) -> Floats:
        """Saving of each stop, while the other tracks stay where they are."""
        others = self.others()
        if self._saved is None or self._saved[0] != others:
            costs = np.array([self.price(stop) for stop in range(len(self.stops))])
            self._saved = (others, costs[0] - costs)
        return self._saved[1]

    def others(self) -> object:
        """Return all that the savings depend on besides the stop."""
        present, i = self.present, self.block
        return present.kept[i] | {self.part: None}, sum(present.merges[:i]), present.merges[i]

    def price(self, stop: int) -> float:
        """Return the cost of everything that depends on this track."""
        return self.present.of_block(self.block, {self.part: self.stops[stop]})

    def go(self, stop: int) -> None:
        """Move to a stop."""
        self.at = stop
        self.present.kept[self.block][self.part] = self.stops[stop]

    @property
    def kept(self) -> list[int]:
        """Positions of the kept units at the present stop."""
        return sorted(self.order[len(self.order) - self.stops[self.at] :])

    def gains(self) -> Floats:
        """Return the savings of the later stops beyond that of the present one."""
        saved = self.saved
        return saved[self.at + 1 :] - saved[self.at]

    def move(self, at_most: float = np.inf) -> tuple[float, int] | None:
        """Find the later stop with the lowest cost per unit saved, among those that save no more than `at_most`.

        Returns:
            The cost per unit saved, and the index of the stop; None if no stop qualifies.
        """
        gains = self.gains()
        allowed = (gains > 0) & (gains <= at_most)
        if not allowed.any():
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.where(allowed, (self.cost[self.at + 1 :] - self.cost[self.at]) / gains, np.inf)
        best = int(slopes.argmin())
        return float(slopes[best]), self.at + 1 + best

    def step(self) -> tuple[float, int] | None:
        """Find the next stop that saves anything.

        Returns:
            The removed share of the part at that stop, and the index of the stop; None if no stop is left.
        """
        gains = self.gains()
        if not (gains > 0).any():
            return None
        stop = self.at + 1 + int((gains > 0).argmax())
        return 1 - self.stops[stop] / self.stops[0], stop


@dataclass(eq=False)
class MergingTrack(Track):
    """The tokens that all blocks merge. Its stops are schedules."""

    schedules: list[Schedule] = field(default_factory=list)

    def others(self) -> object:
        return [dict(kept) for kept in self.present.kept]

    def price(self, stop: int) -> float:
        return self.present.with_merges(self.schedules[stop].merges)

    def go(self, stop: int) -> None:
        self.at = stop
        self.present.merges = self.schedules[stop].merges


def plan_budget(
    scores: Scores,
    costs: Costs,
    target: float,
    *,
    parts: Sequence[str] | None = None,
    scope: str = "global",
    limits: Mapping[str, Limits] | None = None,
) -> SlimPlan:
    """Find a plan whose cost is at most `target`, and close to it.

    Args:
        scores: Scores of all parts that may be cut.
        costs: Costs of the model's parts.
        target: The most that the pruned model may cost, in the unit of `costs`.
        parts: The parts that may be cut: `heads`, `mlp` (neurons), `branches` (whole attentions and MLPs). The default
            is all scored parts.
        scope: `global` removes the units with the lowest score per unit saved; `uniform` removes the same share of
            every part of every block.
        limits: Limits of the cut in every block, by part; by default those of a recipe without limits.

    Raises:
        PlanError: The target cannot be reached (the message names the lowest reachable cost), or is met already.
    """
    parts = tuple(scores.parts) if parts is None else parts
    limits = limits or limits_of()
    plan = scores.plan
    cost = costs.total(plan)
    if cost <= target:
        raise PlanError(
            f"the model costs {cost:.6g} {costs.unit} already, and the target is {target:.6g}; nothing to cut"
        )
    lowest = reachable(plan, costs, parts, limits)
    if lowest > target:
        raise PlanError(f"the lowest reachable cost is {lowest:.6g} {costs.unit}, the target is {target:.6g}")
    tracks = _tracks(scores, costs, parts, limits)
    excess = -(_move_evenly if scope == "uniform" else _move_cheapest)(tracks, cost - target)
    _undo_moves(tracks, excess)
    return _result(plan, tracks)


def reachable(plan: SlimPlan, costs: Costs, parts: Sequence[str], limits: Mapping[str, Limits]) -> float:
    """Return the lowest cost of any plan within the limits."""
    stops = {(block, part): allowed for part, block, allowed in _stops(plan, parts, limits)}
    still, merging = Present(plan, costs), Present(plan, costs)
    if may_go(TOKENS, parts):
        merging.merges = most_merging(plan)
    return costs.rest + min(_lowest(present, stops) for present in (still, merging))


def _lowest(present: Present, stops: Mapping[tuple[int, str], list[int]]) -> float:
    """The lowest cost of all blocks that merge as many tokens as at present."""
    lowest = 0.0
    for block in range(len(present.kept)):
        least = present.of_block(block, {})
        for group in _groups([part for b, part in stops if b == block]):
            every = product(*(stops[block, part] for part in group))
            costs = [present.of_block(block, dict(zip(group, counts, strict=True))) for counts in every]
            least += min(costs) - costs[0]
        lowest += least
    return lowest


def _groups(parts: Sequence[str]) -> list[list[str]]:
    """The parts by what their costs depend on: a part together with those inside it."""
    outer = {part: PARTS[part].within for part in parts}
    inside = {part: within.name for part, within in outer.items() if within is not None and within.name in parts}
    return [[part, *(p for p, name in inside.items() if name == part)] for part in parts if part not in inside]


def _stops(plan: SlimPlan, parts: Sequence[str], limits: Mapping[str, Limits]) -> Iterator[tuple[str, int, list[int]]]:
    """Yield part, block index, and allowed numbers of kept units in falling order."""
    for name, part in PARTS.items():
        if part is TOKENS or not may_go(part, parts):
            continue
        for i, block in enumerate(plan.blocks):
            count = len(block.of(name).kept)
            stops = [count, *(limits[name].stops(count) if name in parts else [])]
            yield name, i, [*stops, 0] if BRANCHES.ends(part, parts) and stops[-1] else stops


def _tracks(scores: Scores, costs: Costs, parts: Sequence[str], limits: Mapping[str, Limits]) -> list[Track]:
    present = Present(scores.plan, costs)
    tracks = [
        _track(block, part, scores.of(part)[block], stops, present)
        for part, block, stops in _stops(scores.plan, parts, limits)
    ]
    return tracks + ([_merging_track(scores, present)] if may_go(TOKENS, parts) else [])


def _merging_track(scores: Scores, present: Present) -> MergingTrack:
    found = schedules(scores.plan, scores.of(TOKENS.name), present.costs)
    total = scores.plan.total_of(TOKENS.name)
    stops, rises = [total - sum(s.merges) for s in found], np.array([s.rise for s in found])
    return MergingTrack(0, TOKENS.name, (), stops, rises, present, schedules=found)


def _track(block: int, part: str, scores: PartScores, stops: list[int], present: Present) -> Track:
    total = np.concatenate([[0.0], np.cumsum(scores.costs)])
    cost = total[[stops[0] - n for n in stops]]
    return Track(block, part, scores.order, stops, cost, present)


def _move_cheapest(tracks: list[Track], missing: float) -> float:
    """Move the tracks with the lowest cost per unit saved until `missing` is saved.

    Moves that save more than the missing rest come last. Returns the missing rest: 0 or less.
    """
    queue = [(slope, i, stop) for i, t in enumerate(tracks) if (move := t.move()) for slope, stop in [move]]
    heapq.heapify(queue)
    while queue and missing > 0:
        slope, i, stop = heapq.heappop(queue)
        track = tracks[i]
        move = track.move()
        if move is not None and move != (slope, stop):  # another track's move has lowered its savings since
            heapq.heappush(queue, (move[0], i, move[1]))
        if move != (slope, stop):
            continue
        if track.saved[stop] - track.saved[track.at] > missing:
            break
        missing -= _move_to(track, stop)
        if (move := track.move()) is not None:
            heapq.heappush(queue, (move[0], i, move[1]))
    while missing > 0:
        smallest = min(float(g[g > 0].min()) for t in tracks if ((g := t.gains()) > 0).any())
        moves = [(*move, i) for i, t in enumerate(tracks) if (move := t.move(max(missing, smallest))) is not None]
        _, stop, i = min(moves)
        missing -= _move_to(tracks[i], stop)
    return missing


def _move_evenly(tracks: list[Track], missing: float) -> float:
    """Move the track with the smallest removed share, until `missing` is saved; returns the missing rest."""
    while missing > 0:
        smallest = min(float(g[g > 0][0]) for t in tracks if ((g := t.gains()) > 0).any())
        steps = [(*step, i) for i, t in enumerate(tracks) if (step := t.step()) is not None]
        fitting = [s for s in steps if tracks[s[2]].gains()[s[1] - tracks[s[2]].at - 1] <= max(missing, smallest)]
        _, stop, i = min(fitting, key=lambda s: (s[0], s[2]))
        missing -= _move_to(tracks[i], stop)
    return missing


def _undo_moves(tracks: list[Track], excess: float) -> None:
    """Undo the moves of highest cost whose savings fit into `excess`, the saving beyond the target."""
    while True:
        moves = [
            (float(t.cost[t.at] - t.cost[stop]), -i, -stop)
            for i, t in enumerate(tracks)
            for saved in [t.saved]
            for stop in range(t.at)
            if 0 < saved[t.at] - saved[stop] <= excess
        ]
        if not moves:
            return
        _, i, stop = max(moves)
        excess += _move_to(tracks[-i], -stop)


def _move_to(track: Track, stop: int) -> float:
    """Move a track to a stop and return the additional saving."""
    before = track.saved
    saved = float(before[stop] - before[track.at])
    track.go(stop)
    return saved


def _result(plan: SlimPlan, tracks: list[Track]) -> SlimPlan:
    kept: dict[str, list[Sequence[int]]] = {part: [b.of(part).kept for b in plan.blocks] for part in plan.parts}
    for track in tracks:
        if isinstance(track, MergingTrack):
            merges = track.schedules[track.at].merges
            kept[track.part] = [range(b.of(track.part).total - r) for b, r in zip(plan.blocks, merges, strict=True)]
            continue
        ids = kept[track.part][track.block]
        kept[track.part][track.block] = [ids[i] for i in track.kept]
    return plan.keeping_parts(kept)
