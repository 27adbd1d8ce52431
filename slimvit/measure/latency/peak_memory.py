"""Peak memory of a forward pass: what torch allocated on a GPU, what a process of its own held on a CPU."""

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
from slimvit.utils.memory import bytes_told

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def process_peak() -> int | None:
    """Bytes that this process held at most, so far; None where the system does not tell.

    Linux's VmHWM; ``ru_maxrss`` there would begin with what the process that started this one held.
    """
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return bytes_told(STATUS, "VmHWM")


def peak_on_gpu(model: nn.Module, call: Callable[[Tensor], Any], input_size: tuple[int, int, int], batch: int) -> int:
    """Bytes of ``model``'s weights and of what one pass of ``call`` (the model, or what it was compiled to) needs."""
    held = torch.cuda.memory_allocated()  # other models may be there too
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        call(images_for(model, input_size, batch))
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - held + weight_bytes(model)


def peak_on_cpu(
    build: Callable[[], nn.Module], input_size: tuple[int, int, int], batch: int, dtype: torch.dtype
) -> int | None:
    """Bytes that a fresh process holds at most while it builds a model and runs one batch, less what Python and torch
    held before. None where that is not told, or where the process ends early.

    ``build`` is sent to that process, so it must be picklable.
    """
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_peak_here, build, input_size, batch, dtype, threads).result()
        except BrokenProcessPool:  # killed, most likely for want of memory
            return None


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers."""
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
    """Begin the process's peak anew where the system lets one; bytes that it is at now."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return process_peak()
    return bytes_told(STATUS, "VmRSS")
