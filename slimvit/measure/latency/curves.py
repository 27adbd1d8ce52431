"""Times by width as a curve that never falls, and what it says between the widths that were measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

Curve: TypeAlias = list[tuple[int, float]]
"""Width, milliseconds; widths rise and begin with 0, where the branch is gone and costs nothing."""


def spread_widths(most: int, unit: int, points: int) -> list[int]:
    """About so many widths from ``unit`` to ``most``, evenly, in whole units but for the last."""
    even = (round(most * i / points / unit) * unit for i in range(1, points + 1))
    return sorted({min(unit, most), most, *(width for width in even if 0 < width < most)})


def rising(times: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls: neighbours in the wrong order meet at their mean, and so do those that
    are then in the wrong order. Noise must not make less work look dearer."""
    pools: list[list[float]] = []
    for time in times:
        pools.append([time])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    return [_mean(pool) for pool in pools for _ in pool]


def curve_of(widths: Sequence[int], times: Sequence[float]) -> Curve:
    """What each width, from 0 on, costs beyond the width 0."""
    smooth = rising(times)
    return [(width, time - smooth[0]) for width, time in zip(widths, smooth, strict=True)]


def read_off(curve: Curve) -> Callable[[int], float]:
    """Width -> milliseconds, on straight lines between the points."""
    widths, times = zip(*curve, strict=True)
    return lambda width: float(np.interp(width, widths, times))


def _mean(pool: Sequence[float]) -> float:
    return sum(pool) / len(pool)
