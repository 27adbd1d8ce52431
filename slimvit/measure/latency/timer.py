"""Timing: `timed` times one pass, `latency` one model, `interleaved` several in turns; `median_ratio` compares two."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimvit.models.modes import device_of, evaluating

WARM_UP = 3
"""Batches that are run before timing starts."""

AT_LEAST = 5
"""Fewest batches that are timed."""

TURN = 0.15
"""Seconds of a model's turn in a round. Short passes are repeated, since the first ones of a turn find the caches full
of the previous model."""

PASSES = (1, 50)
"""Fewest and most passes of a turn."""

DRAWS = 2000
"""Samples of the bootstrap."""

Times = dict[str, list[list[float]]]
"""Name -> one list per round -> seconds of every pass of that turn."""


def latency(
    model: nn.Module, input_size: tuple[int, int, int], batch: int = 1, seconds: float = 1.0
) -> dict[str, float]:
    """Time a model on its device and in its dtype.

    Args:
        model: The model.
        input_size: Channels, height and width of one image.
        batch: Images per batch.
        seconds: Approximate duration of the measurement.

    Returns:
        `latency_ms`, the median milliseconds per batch, and `throughput`, images per second at that median.
    """
    images = images_for(model, input_size, batch)
    with evaluating(model):
        call = partial(timed, model, images)
        warm_up(call)
        times: list[float] = []
        while len(times) < AT_LEAST or sum(times) < seconds:
            times.append(call())
    middle = median(times)
    return {"latency_ms": 1000 * middle, "throughput": batch / middle}


def images_for(model: nn.Module, input_size: tuple[int, int, int], batch: int) -> Tensor:
    """Draw random images [batch, C, H, W] on the model's device and in its dtype."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return torch.randn(batch, *input_size, device=device_of(model), dtype=dtype)


def timed(call: Callable[..., Any], images: Tensor, **more: Any) -> float:
    """Time one forward pass of `images` [B, C, H, W] in seconds, waiting for the device before and after.

    Args:
        call: The model, or one block of it with its stream for `images`.
        images: The first argument of the call.
        more: Keyword arguments of the call.
    """
    wait = _WAIT.get(images.device.type, lambda: None)
    wait()
    start = time.perf_counter()
    call(images, **more)
    wait()
    return time.perf_counter() - start


def warm_up(call: Callable[[], float]) -> float:
    """Call a few times before timing, and return the seconds of the last call."""
    return [call() for _ in range(WARM_UP)][-1]


def interleaved(calls: Mapping[str, Callable[[], float]], rounds: Iterable[int], passes: int = 1) -> Times:
    """Time several calls in turns, so that other work on the machine and the caches affect all of them alike.

    Args:
        calls: Name -> a call that returns its seconds.
        rounds: Numbers of the rounds. Every second round goes through the calls in reverse.
        passes: Times that a call runs in a row.
    """
    times: Times = {name: [] for name in calls}
    for number in rounds:
        for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
            times[name].append([calls[name]() for _ in range(passes)])
    return times


def passes_for(seconds: float) -> int:
    """Return the passes in a turn of a model whose pass takes this many seconds."""
    low, high = PASSES
    return min(high, max(low, math.ceil(TURN / max(seconds, 1e-9))))


def by_round(times: list[list[float]]) -> list[float]:
    """Return the median seconds of one pass for every round."""
    return [median(turn) for turn in times]


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


_WAIT: dict[str, Callable[[], None]] = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
"""Device -> a function that waits for it. A CPU has finished when a call returns."""
