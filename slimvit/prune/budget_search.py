"""From scores and a target to a plan: one search over the units of all parts and whole branches.

Every part of every block is a track: the stops at which it may end, what each has saved and what it has cost. The
search moves one track at a time, always to the stop that costs least for what it saves, until the target is met.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slimvit.models.parts.base import Limits
from slimvit.models.parts.branches import BRANCHES
from slimvit.models.parts.registry import PARTS, limits_of, may_go
from slimvit.models.plan import SlimPlan
from slimvit.prune.costs.base import Costs, Price
from slimvit.prune.criteria.scores import PartScores, Scores
from slimvit.utils.errors import PlanError

Floats = npt.NDArray[np.float64]


@dataclass
class Track:
    """One part of one block, and where the search stands with it."""

    block: int
    part: str
    order: tuple[int, ...]
    stops: list[int]
    """Units that stay, stop by stop, from all to the fewest allowed."""
    cost: Floats
    """Estimated rise of the loss at each stop."""
    saved: Floats
    """What each stop saves."""
    at: int = 0

    @property
    def kept(self) -> list[int]:
        """Positions of the units that stay."""
        return sorted(self.order[len(self.order) - self.stops[self.at] :])

    def gains(self) -> Floats:
        """What each later stop saves beyond the present one."""
        return self.saved[self.at + 1 :] - self.saved[self.at]

    def move(self, at_most: float = np.inf) -> tuple[float, int] | None:
        """The later stop that costs least for what it saves, of those that save no more than `at_most`: cost per
        unit saved, stop."""
        gains = self.gains()
        allowed = (gains > 0) & (gains <= at_most)
        if not allowed.any():
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.where(allowed, (self.cost[self.at + 1 :] - self.cost[self.at]) / gains, np.inf)
        best = int(slopes.argmin())
        return float(slopes[best]), self.at + 1 + best

    def step(self) -> tuple[float, int] | None:
        """The next stop that saves anything, ranked by the share of the part that is then gone."""
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
    """The plan that costs at most `target`, in the unit of `costs`, and little less.

    Args:
        scores: Of the parts that may go.
        costs: What the parts cost.
        target: What the model may cost.
        parts: What may go, such as `heads`, `mlp` (its neurons), `branches` (a block's whole attention, or its whole
            MLP); by default all parts that were scored.
        scope: With `global` whatever costs the loss least for what it saves, with `uniform` the same share of every
            part of every block.
        limits: How far each part of a block may be cut; by default as far as a recipe without limits lets it.

    Raises:
        PlanError: The target cannot be reached (the message says the least that can), or is met already.
    """
    parts = tuple(scores.parts) if parts is None else parts
    limits = limits or limits_of()
    plan = scores.plan
    now = costs.total(plan)
    if now <= target:
        raise PlanError(
            f"the model costs {now:.6g} {costs.unit} already, and the target is {target:.6g}; nothing to cut"
        )
    least = reachable(plan, costs, parts, limits)
    if least > target:
        raise PlanError(f"{least:.6g} {costs.unit} is the least that can be reached, the target is {target:.6g}")
    tracks = [
        _track(b, part, scores.of(part)[b], costs.of(part)[b], stops) for part, b, stops in _ways(plan, parts, limits)
    ]
    over = -(_alike if scope == "uniform" else _cheapest)(tracks, now - target)
    _give_back(tracks, over)
    return _result(plan, tracks)


def reachable(plan: SlimPlan, costs: Costs, parts: Sequence[str], limits: Mapping[str, Limits]) -> float:
    """The least that a plan may cost, whatever the scores."""
    total = costs.total(plan)
    for part, block, stops in _ways(plan, parts, limits):
        price = costs.of(part)[block]
        total += min(price(n) for n in stops) - price(stops[0])
    return total


def _ways(plan: SlimPlan, parts: Sequence[str], limits: Mapping[str, Limits]) -> Iterator[tuple[str, int, list[int]]]:
    """Part, block, and the numbers of units that may stay there, falling."""
    for name, part in PARTS.items():
        if not may_go(part, parts):
            continue
        for i, block in enumerate(plan.blocks):
            now = len(block.of(name).kept)
            stops = [now, *(limits[name].stops(now) if name in parts else [])]
            yield name, i, [*stops, 0] if BRANCHES.ends(part, parts) and stops[-1] else stops


def _track(block: int, part: str, scores: PartScores, price: Price, stops: list[int]) -> Track:
    gone = np.concatenate([[0.0], np.cumsum(scores.costs)])
    cost = gone[[stops[0] - n for n in stops]]
    saved = np.array([price(stops[0]) - price(n) for n in stops])
    return Track(block, part, scores.order, stops, cost, saved)


def _cheapest(tracks: list[Track], wanted: float) -> float:
    """Move whichever track costs least for what it saves; near the end only by what overshoots little. Gives what is
    `wanted` still, 0 or less."""
    queue = [(slope, i, stop) for i, t in enumerate(tracks) if (move := t.move()) for slope, stop in [move]]
    heapq.heapify(queue)
    while queue and wanted > 0:
        _, i, stop = heapq.heappop(queue)
        track = tracks[i]
        if track.saved[stop] - track.saved[track.at] > wanted:
            break
        wanted -= _go(track, stop)
        if (move := track.move()) is not None:
            heapq.heappush(queue, (move[0], i, move[1]))
    while wanted > 0:
        small = min(float(g[g > 0].min()) for t in tracks if ((g := t.gains()) > 0).any())
        moves = [(*move, i) for i, t in enumerate(tracks) if (move := t.move(max(wanted, small))) is not None]
        _, stop, i = min(moves)
        wanted -= _go(tracks[i], stop)
    return wanted


def _alike(tracks: list[Track], wanted: float) -> float:
    """The same, but always with the track that has lost the smallest share."""
    while wanted > 0:
        small = min(float(g[g > 0][0]) for t in tracks if ((g := t.gains()) > 0).any())
        steps = [(*step, i) for i, t in enumerate(tracks) if (step := t.step()) is not None]
        fitting = [s for s in steps if tracks[s[2]].gains()[s[1] - tracks[s[2]].at - 1] <= max(wanted, small)]
        _, stop, i = min(fitting, key=lambda s: (s[0], s[2]))
        wanted -= _go(tracks[i], stop)
    return wanted


def _give_back(tracks: list[Track], over: float) -> None:
    """Where more was saved than had to be, take back what fits and is worth most."""
    while True:
        ways = [
            (float(t.cost[t.at] - t.cost[stop]), -i, -stop)
            for i, t in enumerate(tracks)
            for stop in range(t.at)
            if 0 < t.saved[t.at] - t.saved[stop] <= over
        ]
        if not ways:
            return
        _, i, stop = max(ways)
        over += _go(tracks[-i], -stop)


def _go(track: Track, stop: int) -> float:
    """Move, and say what it saved."""
    saved = float(track.saved[stop] - track.saved[track.at])
    track.at = stop
    return saved


def _result(plan: SlimPlan, tracks: list[Track]) -> SlimPlan:
    kept: dict[str, list[Sequence[int]]] = {part: [b.of(part).kept for b in plan.blocks] for part in plan.parts}
    for track in tracks:
        ids = kept[track.part][track.block]
        kept[track.part][track.block] = [ids[i] for i in track.kept]
    return plan.keeping_parts(kept)
