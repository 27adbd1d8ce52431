"""From scores and a target to a plan: one search over heads, neurons and whole branches.

Every part of every block is a track: the stops at which it may end, what each has saved and what it has cost. The
search moves one track at a time, always to the stop that costs least for what it saves, until the target is met.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slimvit.models.plan import SlimPlan
from slimvit.prune.costs.base import NEURON_GROUP, PRICED_PARTS, Costs, Price
from slimvit.prune.criteria.registry import PartScores, Scores
from slimvit.utils.errors import PlanError

WHOLE = "branches"

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
        """The later stop that costs least for what it saves, of those that save no more than ``at_most``: cost per
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
    parts: Sequence[str] = PRICED_PARTS,
    scope: str = "global",
    min_heads: int = 1,
    neuron_group: int = NEURON_GROUP,
) -> SlimPlan:
    """The plan that costs at most ``target``, in the unit of ``costs``, and little less.

    ``parts``: what may go: `heads`, `mlp` (its neurons), `branches` (a block's whole attention, or its whole MLP).
    ``scope``: with `global` whatever costs the loss least for what it saves, with `uniform` the same share of every
    part of every block. ``min_heads`` stay in every block that keeps its attention, and ``neuron_group`` neurons,
    which go in groups of as many, in every block that keeps its MLP.

    Raises :class:`PlanError` when the target cannot be reached, with the least that can, or is met already.
    """
    plan = scores.plan
    now = costs.total(plan)
    if now <= target:
        raise PlanError(
            f"the model costs {now:.6g} {costs.unit} already, and the target is {target:.6g}; nothing to cut"
        )
    least = reachable(plan, costs, parts, min_heads, neuron_group)
    if least > target:
        raise PlanError(f"{least:.6g} {costs.unit} is the least that can be reached, the target is {target:.6g}")
    tracks = [
        _track(b, part, scores.of(part)[b], costs.of(part)[b], stops)
        for part, b, stops in _ways(plan, parts, min_heads, neuron_group)
    ]
    over = -(_alike if scope == "uniform" else _cheapest)(tracks, now - target)
    _give_back(tracks, over)
    return _result(plan, tracks)


def reachable(plan: SlimPlan, costs: Costs, parts: Sequence[str], min_heads: int, neuron_group: int) -> float:
    """The least that a plan may cost, whatever the scores."""
    total = costs.total(plan)
    for part, block, stops in _ways(plan, parts, min_heads, neuron_group):
        price = costs.of(part)[block]
        total += min(price(n) for n in stops) - price(stops[0])
    return total


def _ways(
    plan: SlimPlan, parts: Sequence[str], min_heads: int, neuron_group: int
) -> Iterator[tuple[str, int, list[int]]]:
    """Part, block, and the numbers of units that may stay there, falling."""
    for part in PRICED_PARTS:
        if part not in parts and WHOLE not in parts:
            continue
        for i, block in enumerate(plan.blocks):
            now = len(block.kept_heads if part == "heads" else block.kept_neurons)
            lower = range(now - 1, min_heads - 1, -1)
            if part == "mlp":
                lower = range((now - 1) // neuron_group * neuron_group, neuron_group - 1, -neuron_group)
            stops = [now, *(lower if part in parts else [])]
            yield part, i, [*stops, 0] if WHOLE in parts and stops[-1] else stops


def _track(block: int, part: str, scores: PartScores, price: Price, stops: list[int]) -> Track:
    gone = np.concatenate([[0.0], np.cumsum(scores.costs)])
    cost = gone[[stops[0] - n for n in stops]]
    saved = np.array([price(stops[0]) - price(n) for n in stops])
    return Track(block, part, scores.order, stops, cost, saved)


def _cheapest(tracks: list[Track], wanted: float) -> float:
    """Move whichever track costs least for what it saves; near the end only by what overshoots little. Gives what is
    ``wanted`` still, 0 or less."""
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
    heads = [list(b.kept_heads) for b in plan.blocks]
    neurons = [list(b.kept_neurons) for b in plan.blocks]
    for track in tracks:
        into = heads if track.part == "heads" else neurons
        into[track.block] = [into[track.block][i] for i in track.kept]
    return plan.keeping(heads, neurons)
