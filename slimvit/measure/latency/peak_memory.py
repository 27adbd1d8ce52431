"""Peak memory of a forward pass: torch's allocations on a GPU, a process of its own on a CPU."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slimvit.measure.latency.timer import images_for
from slimvit.models.modes import evaluating
from slimvit.utils.device import proc_bytes

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def process_peak() -> int | None:
    """Return the most bytes that this process has held so far; None where the system does not report them.

    On Linux this is VmHWM, since `ru_maxrss` starts with the memory of the parent process.
    """
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return proc_bytes(STATUS, "VmHWM")


def peak_on_gpu(model: nn.Module, call: Callable[[Tensor], Any], input_size: tuple[int, int, int], batch: int) -> int:
    """Measure the bytes of a model's weights and of one forward pass on a GPU.

    Args:
        model: The model, on the GPU.
        call: The model or its compilation, which maps images [B, C, H, W] to outputs.
        input_size: Channels, height and width of one image.
        batch: Images per batch.
    """
    held = torch.cuda.memory_allocated()  # other models may be there too
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        call(images_for(model, input_size, batch))
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - held + weight_bytes(model)


def peak_on_cpu(
    build: Callable[[], nn.Module], input_size: tuple[int, int, int], batch: int, dtype: torch.dtype
) -> int | None:
    """Measure the most bytes that a fresh process needs to build a model and run one batch.

    Args:
        build: Builds the model in that process, so it must be picklable.
        input_size: Channels, height and width of one image.
        batch: Images per batch.
        dtype: Type of weights and images.

    Returns:
        The bytes beyond those that Python and torch held before; None where the system does not report them, or
        where the process was killed.
    """
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_peak_here, build, input_size, batch, dtype, threads).result()
        except BrokenProcessPool:  # killed, most likely because memory ran out
            return None


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of the parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _peak_here(
    build: Callable[[], nn.Module], input_size: tuple[int, int, int], batch: int, dtype: torch.dtype, threads: int
) -> int | None:
    torch.set_num_threads(threads)
    before = _forget_peak()
    model = build().to(dtype)
    with evaluating(model):
        model(images_for(model, input_size, batch))
    after = process_peak()
    return None if before is None or after is None else max(after - before, 0)


def _forget_peak() -> int | None:
    """Reset the process's peak where the system allows it, and return the bytes it holds now."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return process_peak()
    return proc_bytes(STATUS, "VmRSS")
