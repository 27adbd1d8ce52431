"""How long a batch takes: the median over many, after a warm-up."""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import nn

from slimvit.models.modes import device_of, evaluating

WARM_UP = 3
"""Batches that are run and not counted."""

AT_LEAST = 5
"""Batches that are timed however long they take."""


def latency(
    model: nn.Module, input_size: tuple[int, int, int], batch: int = 1, seconds: float = 1.0
) -> dict[str, float]:
    """Time ``model`` where it lives, in its own dtype, on ``batch`` images [C, H, W] = ``input_size``.

    Runs for about ``seconds``. Returns ``latency_ms`` (median milliseconds a batch) and ``throughput`` (images/s at
    that median).
    """
    device = device_of(model)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    images = torch.randn(batch, *input_size, device=device, dtype=dtype)
    with evaluating(model):
        for _ in range(WARM_UP):
            _timed(model, images)
        times: list[float] = []
        while len(times) < AT_LEAST or sum(times) < seconds:
            times.append(_timed(model, images))
    middle = median(times)
    return {"latency_ms": 1000 * middle, "throughput": batch / middle}


def _timed(model: nn.Module, images: torch.Tensor) -> float:
    """Seconds of one forward pass, waiting for the GPU to finish before and after."""
    wait = torch.cuda.synchronize if images.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    model(images)
    wait()
    return time.perf_counter() - start
