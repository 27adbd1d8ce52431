"""The batch size that fills a machine: doubled until no model gains images per second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from math import log

from slimvit.measure.latency.timer import by_round, interleaved, passes_for

GAIN = 1.03
"""A larger batch pays if some model gains this factor over its best images per second so far."""

PATIENCE = 2
"""Batch sizes in a row that must not pay before the search ends; a single one may be noise."""

LARGEST = 1024
"""Largest batch that is tried."""

SLOWEST = 2.0
"""Longest pass of the slowest model, in seconds."""

ROUNDS = 3
"""Rounds per batch size."""


@dataclass
class Growth:
    """The batch sizes that were tried, in order."""

    speeds: dict[int, dict[str, float]] = field(default_factory=dict)
    """Batch size -> model -> images per second."""
    ended: str = ""
    """Why no larger batch was tried."""

    @property
    def best(self) -> int:
        """The batch size with the largest geometric mean of the models' images per second."""
        return max(self.speeds, key=lambda batch: sum(map(log, self.speeds[batch].values())))


class OutOfMemory(Exception):
    """The device has no room for a batch."""


def find_batch_size(
    calls_for: Callable[[int], Mapping[str, Callable[[], float]]], batches: Sequence[int] = ()
) -> Growth:
    """Try 1, 2, 4, ... images on all models alike until a larger batch does not pay any more.

    Args:
        calls_for: Maps a batch size to a call for each model, warmed up, that returns the seconds of one pass.
            `OutOfMemory`, raised by it or by a call, ends the search.
        batches: Batch sizes to try instead, all of them.
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
        if not batches and (reason := _why_stop(growth, batch, max(seconds.values()))):
            growth.ended = reason
            break
    return growth


def _doubling() -> Iterable[int]:
    return takewhile(lambda batch: batch <= LARGEST, (2**n for n in range(64)))


def _why_stop(growth: Growth, batch: int, slowest: float) -> str:
    """Why the search ends here; empty while it goes on."""
    speeds = list(growth.speeds.values())
    if len(speeds) > PATIENCE and not any(map(_pays, [speeds[: n + 1] for n in _last(speeds)])):
        return f"{batch} images per batch gain no model {GAIN - 1:.0%}, nor did half as many"
    if 2 * slowest > SLOWEST:
        return f"a pass of more than {batch} images would take longer than {SLOWEST:g} s"
    return f"{LARGEST} images are the largest batch that is tried" if batch == LARGEST else ""


def _last(speeds: Sequence[object]) -> range:
    return range(len(speeds) - PATIENCE, len(speeds))


def _pays(speeds: Sequence[dict[str, float]]) -> bool:
    """Whether some model gained enough at the last batch over its best so far."""
    *before, last = speeds
    return any(speed >= GAIN * max(b[name] for b in before) for name, speed in last.items())
