"""Greedy search for a plan that meets a budget, over the units of all parts and whole branches.

Each part of each block is a track. Its stops are the allowed numbers of kept units. Each stop has a cost (the estimated
rise of the loss) and a saving (MACs, parameters or milliseconds). The search moves one track at a time, to the stop
with the lowest cost per unit saved, until the target is met.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import numpy.typing as npt

from slimvit.models.parts.base import Limits
from slimvit.models.parts.branches import BRANCHES
from slimvit.models.parts.registry import PARTS, limits_of, may_go
from slimvit.models.plan import SlimPlan
from slimvit.prune.costs.base import Costs
from slimvit.prune.criteria.scores import PartScores, Scores
from slimvit.utils.errors import PlanError

Floats = npt.NDArray[np.float64]


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
    price: Floats
    """Price of the part at each stop, in the unit of the budget; for a part inside another one, per unit of that."""
    at: int = 0
    """Index of the present stop."""
    outer: Track | None = None
    """The track of the part whose every unit has these units."""
    inner: list[Track] = field(default_factory=list)
    """The tracks of the parts inside this one."""

    @property
    def saved(self) -> Floats:
        """Saving of each stop, while the other tracks stay where they are."""
        saved = self.price[0] - self.price
        if self.outer is not None:
            return saved * self.outer.stops[self.outer.at]
        for track in self.inner:
            saved = saved + track.price[track.at] * (self.stops[0] - np.array(self.stops))
        return saved

    @property
    def kept(self) -> list[int]:
        """Positions of the kept units at the present stop."""
        return sorted(self.order[len(self.order) - self.stops[self.at] :])

    def gains(self) -> Floats:
        """Return the savings of the later stops beyond that of the present one."""
        saved = self.saved
        return saved[self.at + 1 :] - saved[self.at]

    def together(self) -> list[Track]:
        """Return this track and those whose savings depend on where it stands."""
        return [self, *self.inner, *([] if self.outer is None else [self.outer])]

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
    total = costs.total(plan)
    for block, part in stops:
        if _outer(part, block, stops) is None:
            together = [p for b, p in stops if b == block and (p == part or _outer(p, b, stops) == part)]
            now = {name: len(plan.blocks[block].of(name).kept) for name in costs.prices}
            counts = product(*(stops[block, p] for p in together))
            least = min(costs.of_block(block, now | dict(zip(together, kept, strict=True))) for kept in counts)
            total += least - costs.of_block(block, now)
    return total


def _outer(part: str, block: int, found: Container[tuple[int, str]]) -> str | None:
    """The part that has the units of `part` inside, where `found` has it for the block."""
    outer = PARTS[part].within
    return outer.name if outer is not None and (block, outer.name) in found else None


def _stops(plan: SlimPlan, parts: Sequence[str], limits: Mapping[str, Limits]) -> Iterator[tuple[str, int, list[int]]]:
    """Yield part, block index, and allowed numbers of kept units in falling order."""
    for name, part in PARTS.items():
        if not may_go(part, parts):
            continue
        for i, block in enumerate(plan.blocks):
            count = len(block.of(name).kept)
            stops = [count, *(limits[name].stops(count) if name in parts else [])]
            yield name, i, [*stops, 0] if BRANCHES.ends(part, parts) and stops[-1] else stops


def _tracks(scores: Scores, costs: Costs, parts: Sequence[str], limits: Mapping[str, Limits]) -> list[Track]:
    tracks: dict[tuple[int, str], Track] = {}
    for part, block, stops in _stops(scores.plan, parts, limits):
        price = np.array([costs.of(part)[block](n) for n in stops], dtype=float)
        tracks[block, part] = _track(block, part, scores.of(part)[block], price, stops)
    for (block, part), track in tracks.items():
        outer, name = PARTS[part].within, _outer(part, block, tracks)
        if name is not None:
            track.outer = tracks[block, name]
            track.outer.inner.append(track)
        elif outer is not None:
            track.price = track.price * len(scores.plan.blocks[block].of(outer.name).kept)
    return list(tracks.values())


def _track(block: int, part: str, scores: PartScores, price: Floats, stops: list[int]) -> Track:
    total = np.concatenate([[0.0], np.cumsum(scores.costs)])
    cost = total[[stops[0] - n for n in stops]]
    return Track(block, part, scores.order, stops, cost, price)


def _move_cheapest(tracks: list[Track], missing: float) -> float:
    """Move the tracks with the lowest cost per unit saved until `missing` is saved.

    Moves that save more than the missing rest come last. Returns the missing rest: 0 or less.
    """
    queue = [(slope, i, stop) for i, t in enumerate(tracks) if (move := t.move()) for slope, stop in [move]]
    heapq.heapify(queue)
    place = {id(t): i for i, t in enumerate(tracks)}
    while queue and missing > 0:
        slope, i, stop = heapq.heappop(queue)
        track = tracks[i]
        if (slope, stop) != track.move():  # a move of another track has changed its savings since
            continue
        if track.saved[stop] - track.saved[track.at] > missing:
            break
        missing -= _move_to(track, stop)
        for changed in track.together():
            if (move := changed.move()) is not None:
                heapq.heappush(queue, (move[0], place[id(changed)], move[1]))
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
    track.at = stop
    return saved


def _result(plan: SlimPlan, tracks: list[Track]) -> SlimPlan:
    kept: dict[str, list[Sequence[int]]] = {part: [b.of(part).kept for b in plan.blocks] for part in plan.parts}
    for track in tracks:
        ids = kept[track.part][track.block]
        kept[track.part][track.block] = [ids[i] for i in track.kept]
    return plan.keeping_parts(kept)
