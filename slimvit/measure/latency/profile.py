"""The time of a forward pass by kind of operator, from torch's profiler."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

PASSES = 3
"""Passes that are profiled, after one that is not."""

MATRIX = "matrix products"
"""The work that MACs count: linear layers, attention (with its softmax where that is fused), convolutions."""

KINDS = (
    (MATRIX, ("addmm", "baddbmm", "bmm", "::mm", "linear", "conv", "scaled_dot_product", "flash_attention",
              "efficient_attention", "cudnn_attention")),
    ("norms", ("norm",)),
    ("softmax", ("softmax",)),
    ("activations", ("gelu", "relu", "silu", "sigmoid", "tanh")),
    ("arithmetic", ("::add", "::mul", "::sub", "::div", "mean", "sum")),
    ("copies", ("copy", "clone", "cat", "roll", "pad", "index", "contiguous", "fill", "zero", "stack", "::to")),
)  # fmt: skip
"""Kinds, and parts of the names of their operators. The first match wins; other operators are `other`."""


def time_shares(call: Callable[[Tensor], Any], images: Tensor) -> dict[str, float]:
    """Measure each kind of operator's share of the time of a forward pass.

    A GPU counts the time of kernels, a CPU that of operators. The model must not be compiled, since compilation merges
    operators of several kinds.

    Args:
        call: The model.
        images: One batch [B, C, H, W].

    Returns:
        Kind -> share of the time (0-1), the largest first.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler logs every start and stop as an error
    cuda = images.is_cuda
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with torch.inference_mode():
        call(images)
        with profile(activities=activities) as profiler:
            for _ in range(PASSES):
                call(images)
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        if event.device_type == DeviceType.CPU:  # kernels have events of their own, in addition
            time = event.self_device_time_total if cuda else event.self_cpu_time_total
            spent[operator_kind(event.key)] = spent.get(operator_kind(event.key), 0.0) + time
    total = sum(spent.values())
    return {kind: time / total for kind, time in sorted(spent.items(), key=lambda item: -item[1]) if time}


def system_share(call: Callable[[Tensor], Any], images: Tensor) -> float:
    """Measure the system's share (0-1) of the CPU time of a pass on images [B, C, H, W], spent on memory allocation."""
    with torch.inference_mode():
        call(images)
        before = os.times()
        for _ in range(PASSES):
            call(images)
    after = os.times()
    system, user = after.system - before.system, after.user - before.user
    return system / (system + user) if system else 0.0


def operator_kind(operator: str) -> str:
    """Return the kind of an operator: `aten::addmm` -> `matrix products`."""
    return next((kind for kind, parts in KINDS if any(part in operator for part in parts)), "other")


def amdahl(share: float, speedup: float) -> float:
    """Return the speed-up of the whole when a share of its time (0-1) becomes `speedup` times faster."""
    return 1 / (1 - share + share / speedup)
