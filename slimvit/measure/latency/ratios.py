"""Ratios of times of the same rounds: the median and its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
"""Samples of the bootstrap."""


@dataclass(frozen=True)
class Ratio:
    """A median over rounds with its 95 % interval."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}-{self.high:.2f})"

    def of_the_gain(self, promised: float) -> Ratio:
        """Return the share of the gain that a `promised` speed-up means: (this - 1) / (promised - 1)."""
        low, high = sorted((bound - 1) / (promised - 1) for bound in (self.low, self.high))
        return Ratio((self.middle - 1) / (promised - 1), low, high)


def median_ratio(above: Sequence[float], below: Sequence[float], seed: int = 0) -> Ratio:
    """Return the median of `above[i] / below[i]` over the rounds i, with its 95 % bootstrap interval."""
    ratios = np.array(above, dtype=float) / np.array(below, dtype=float)
    draws = np.random.default_rng(seed).choice(ratios, (DRAWS, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return Ratio(float(np.median(ratios)), float(low), float(high))
