"""Where the time of a forward pass goes, by kind of operator, as torch's profiler sees it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

PASSES = 3
"""That are profiled, after one that is not."""

MATRIX = "matrix products"
"""What multiply-accumulates count: linear layers, attention (its softmax included where it is fused), convolutions."""

KINDS = (
    (MATRIX, ("addmm", "baddbmm", "bmm", "::mm", "linear", "conv", "scaled_dot_product", "flash_attention",
              "efficient_attention", "cudnn_attention")),
    ("norms", ("norm",)),
    ("softmax", ("softmax",)),
    ("activations", ("gelu", "relu", "silu", "sigmoid", "tanh")),
    ("arithmetic", ("::add", "::mul", "::sub", "::div", "mean", "sum")),
    ("copies", ("copy", "clone", "cat", "roll", "pad", "index", "contiguous", "fill", "zero", "stack", "::to")),
)  # fmt: skip
"""Kind -> parts of the names of its operators. The first match wins; what matches none is `other`."""


def time_shares(call: Callable[[Tensor], Any], images: Tensor) -> dict[str, float]:
    """Kind of operator -> its share (0-1) of the time of a pass; the largest first.

    On a GPU the time of the kernels, on a CPU that of the operators themselves. The shares are those of an uncompiled
    model: a compiled one merges operators of several kinds.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its profiler reports every start and stop as an error
    cuda = images.is_cuda
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with torch.inference_mode():
        call(images)
        with profile(activities=activities) as found:
            for _ in range(PASSES):
                call(images)
    spent: dict[str, float] = {}
    for event in found.key_averages():
        if event.device_type == DeviceType.CPU:  # kernels are listed once more, by themselves
            time = event.self_device_time_total if cuda else event.self_cpu_time_total
            spent[operator_kind(event.key)] = spent.get(operator_kind(event.key), 0.0) + time
    total = sum(spent.values())
    return {kind: time / total for kind, time in sorted(spent.items(), key=lambda item: -item[1]) if time}


def system_share(call: Callable[[Tensor], Any], images: Tensor) -> float:
    """The share (0-1) of a pass's processor time that the system takes: on a CPU, to hand out memory."""
    with torch.inference_mode():
        call(images)
        before = os.times()
        for _ in range(PASSES):
            call(images)
    after = os.times()
    system, user = after.system - before.system, after.user - before.user
    return system / (system + user) if system else 0.0


def operator_kind(operator: str) -> str:
    """``aten::addmm`` -> ``matrix products``."""
    return next((kind for kind, parts in KINDS if any(part in operator for part in parts)), "other")


def amdahl(share: float, speedup: float) -> float:
    """How much faster the whole becomes when this share of its time (0-1) becomes ``speedup`` times faster."""
    return 1 / (1 - share + share / speedup)
