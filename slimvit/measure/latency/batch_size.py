"""The batch that fills a machine: grown until no model makes more images a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from math import log

from slimvit.measure.latency.timer import by_round, interleaved, passes_for

GAIN = 1.03
"""A batch is worth it while some model makes this many times as many images a second as at its best before."""

PATIENCE = 2
"""Batches in a row that are not worth it, before the growth ends: one may have met other work on the machine."""

LARGEST = 1024
"""Images at most."""

SLOWEST = 2.0
"""Seconds that a pass of the slowest model may take; larger batches would take hours."""

ROUNDS = 3
"""Rounds in which a batch is tried."""


@dataclass
class Growth:
    """The batches that were tried, in order."""

    speeds: dict[int, dict[str, float]] = field(default_factory=dict)
    """Batch -> model -> images/s."""
    ended: str = ""
    """Why no larger batch was tried, in words."""

    @property
    def best(self) -> int:
        """The batch at which all models together are fastest, by the geometric mean of their images/s."""
        return max(self.speeds, key=lambda batch: sum(map(log, self.speeds[batch].values())))


class OutOfMemory(Exception):
    """The device has no room for a batch."""


def find_batch_size(
    calls_for: Callable[[int], Mapping[str, Callable[[], float]]], batches: Sequence[int] = ()
) -> Growth:
    """Try 1, 2, 4, ... images (or all of ``batches``) on all models alike, until it does not pay any more.

    ``calls_for``: from a batch to what times one pass of each model, warmed up. It, and they, may raise
    :class:`OutOfMemory`, which ends the growth.
    """
    growth = Growth()
    for batch in sorted(batches) or _doubling():
        try:
            calls = calls_for(batch)
            passes = passes_for(max(call() for call in calls.values()))
            times = interleaved(calls, range(ROUNDS), passes)
        except OutOfMemory:
            growth.ended = f"the device's memory ends before {batch} images"
            break
        seconds = {name: min(by_round(turns)) for name, turns in times.items()}
        growth.speeds[batch] = {name: batch / s for name, s in seconds.items()}
        if not batches and (reason := _enough(growth, batch, max(seconds.values()))):
            growth.ended = reason
            break
    return growth


def _doubling() -> Iterable[int]:
    return takewhile(lambda batch: batch <= LARGEST, (2**n for n in range(64)))


def _enough(growth: Growth, batch: int, slowest: float) -> str:
    """Why growing ends here; nothing while it goes on."""
    speeds = list(growth.speeds.values())
    if len(speeds) > PATIENCE and not any(map(_worth_it, [speeds[: n + 1] for n in _last(speeds)])):
        return f"{batch} images a batch gain no model {GAIN - 1:.0%}, nor did half as many"
    if 2 * slowest > SLOWEST:
        return f"a pass of more than {batch} images would take longer than {SLOWEST:g} s"
    return f"{LARGEST} images are the most that is tried" if batch == LARGEST else ""


def _last(speeds: Sequence[object]) -> range:
    return range(len(speeds) - PATIENCE, len(speeds))


def _worth_it(speeds: Sequence[dict[str, float]]) -> bool:
    """Whether the last batch gained some model enough over its best before."""
    *before, now = speeds
    return any(speed >= GAIN * max(b[name] for b in before) for name, speed in now.items())
