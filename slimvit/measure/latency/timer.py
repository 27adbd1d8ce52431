"""How long a batch takes. All timing goes through :func:`timed`, and where models are compared, :func:`interleaved`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from slimvit.models.modes import device_of, evaluating

WARM_UP = 3
"""Batches that are run and not counted."""

AT_LEAST = 5
"""Batches that are timed however long they take."""

TURN = 0.15
"""Seconds that a model's turn in a round is to last, in as many passes as it takes: the first of many short ones still
finds the caches full of the model before it."""

PASSES = (1, 50)
"""Passes of a turn, at least and at most."""

Times = dict[str, list[list[float]]]
"""Name -> one list a round -> seconds of every pass of that turn."""


def latency(
    model: nn.Module, input_size: tuple[int, int, int], batch: int = 1, seconds: float = 1.0
) -> dict[str, float]:
    """Time ``model`` where it lives, in its own dtype, on ``batch`` images [C, H, W] = ``input_size``.

    Runs for about ``seconds``. Returns ``latency_ms`` (median milliseconds a batch) and ``throughput`` (images/s at
    that median).
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
    """Random images [batch, C, H, W] where the model lives, in its dtype."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return torch.randn(batch, *input_size, device=device_of(model), dtype=dtype)


def timed(call: Callable[..., Any], images: Tensor, **more: Any) -> float:
    """Seconds of one forward pass, waiting for the device to finish before and after; ``more`` is for the call."""
    wait = _WAIT.get(images.device.type, lambda: None)
    wait()
    start = time.perf_counter()
    call(images, **more)
    wait()
    return time.perf_counter() - start


def warm_up(call: Callable[[], float]) -> float:
    """Calls that do not count, and the seconds that the last one gave."""
    return [call() for _ in range(WARM_UP)][-1]


def interleaved(calls: Mapping[str, Callable[[], float]], rounds: Iterable[int], passes: int = 1) -> Times:
    """Every call in every round, ``passes`` times in a row; each next round goes through them the other way round.

    A call gives its seconds. What else the machine does, and what one model leaves in the caches for the next, then
    meets all alike.
    """
    times: Times = {name: [] for name in calls}
    for number in rounds:
        for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
            times[name].append([calls[name]() for _ in range(passes)])
    return times


def passes_for(seconds: float) -> int:
    """Passes in a turn of a model whose pass takes this long."""
    low, high = PASSES
    return min(high, max(low, math.ceil(TURN / max(seconds, 1e-9))))


def by_round(times: list[list[float]]) -> list[float]:
    """Seconds of one pass, a figure a round."""
    return [median(turn) for turn in times]


_WAIT: dict[str, Callable[[], None]] = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
"""What waits for a device; a CPU is done when a call returns."""
