"""Time as a function of width: a curve that never falls, interpolated between the measured widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

Curve: TypeAlias = list[tuple[int, float]]
"""Pairs of width and milliseconds. The widths rise from 0, where the branch is gone and costs nothing."""


def rising(times: Sequence[float]) -> list[float]:
    """Return the nearest sequence that never falls (isotonic regression by pooling adjacent violators).

    Without it noise could make less work look more expensive.
    """
    pools: list[list[float]] = []
    for time in times:
        pools.append([time])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    return [_mean(pool) for pool in pools for _ in pool]


def curve_of(widths: Sequence[int], times: Sequence[float]) -> Curve:
    """Return the cost of each width beyond that of the first, which is 0."""
    smooth = rising(times)
    return [(width, time - smooth[0]) for width, time in zip(widths, smooth, strict=True)]


def read_off(curve: Curve) -> Callable[[int], float]:
    """Return the function width -> milliseconds, linear between the points of a curve."""
    widths, times = zip(*curve, strict=True)
    return lambda width: float(np.interp(width, widths, times))


def _mean(pool: Sequence[float]) -> float:
    return sum(pool) / len(pool)
