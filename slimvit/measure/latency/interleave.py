"""Several models timed side by side on one machine, in one precision, compiled or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slimvit.measure.latency.batch_size import OutOfMemory
from slimvit.measure.latency.timer import Times, images_for, interleaved, passes_for, timed, warm_up
from slimvit.utils.errors import ModelError
from slimvit.utils.progress import track

Size = tuple[int, int, int]
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
"""Words of torch's errors on a GPU, a CPU and an Apple GPU."""


@dataclass(frozen=True)
class InterleavedTimer:
    """Models to time in turns, all on the device, in one dtype and in eval mode."""

    models: Mapping[str, nn.Module]
    sizes: Mapping[str, Size]
    """Channels, height and width of an image of each model."""
    compiled: bool = False

    def calls(self, batch: int) -> dict[str, Callable[[], float]]:
        """Return a call for each model that times one pass of `batch` images, warmed up.

        Raises:
            OutOfMemory: The device has no room for the batch; the calls may raise it too.
            ModelError: A model cannot be compiled.
        """
        calls: dict[str, Callable[[], float]] = {}
        for name, model in self.models.items():
            call, images = self.callable_of(name), partial(images_for, model, self.sizes[name], batch)
            with _memory():
                drawn = images()
                self._first(name, call, drawn)
            calls[name] = partial(_pass, call, drawn)
            warm_up(calls[name])
        return calls

    def callable_of(self, name: str) -> Callable[[Tensor], Any]:
        """Return the function that is timed, of images [B, C, H, W]: the model or its compilation."""
        model = self.models[name]
        return torch.compile(model, dynamic=False) if self.compiled else model

    def times(self, batch: int, rounds: int) -> Times:
        """Time all models at this batch size, with the same number of passes per turn."""
        with torch.inference_mode():
            calls = self.calls(batch)
            passes = passes_for(max(call() for call in calls.values()))
            return interleaved(calls, track(range(rounds), f"timing batch {batch}", unit="rounds"), passes)

    def _first(self, name: str, call: Callable[[Tensor], Any], images: Tensor) -> None:
        """The first pass, in which a compiled model is compiled."""
        try:
            call(images)
        except RuntimeError as error:
            if not self.compiled or is_out_of_memory(error):
                raise
            raise ModelError(f"{name}: torch.compile fails on it: {_line(error)}; leave --compile out") from None


@contextmanager
def compiling() -> Iterator[None]:
    """Let torch compile every model and shape.

    By default torch gives up after a few models of the same class, and silently runs the others uncompiled.
    """
    config: Any = torch._dynamo.config
    name = next(n for n in ("recompile_limit", "cache_size_limit") if hasattr(config, n))
    try:
        with config.patch({name: 256}):
            yield
    finally:
        torch.compiler.reset()


def compile_defect(device: torch.device) -> str | None:
    """Return why torch.compile does not work on a device, in one line; None where it does."""
    layer = torch.compile(nn.Linear(8, 8).to(device))
    try:
        with torch.inference_mode():
            layer(torch.zeros(2, 8, device=device))
    except (RuntimeError, ImportError) as error:
        return _line(error)
    finally:
        torch.compiler.reset()
    return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of torch says that the device's memory is full."""
    return any(words in str(error).lower() for words in NO_MEMORY)


def _pass(call: Callable[[Tensor], Any], images: Tensor) -> float:
    with _memory():
        return timed(call, images)


@contextmanager
def _memory() -> Iterator[None]:
    """Turn torch's errors about full memory into `OutOfMemory`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise OutOfMemory(_line(error)) from None


def _line(error: Exception) -> str:
    """The first informative line of the error."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)[:300]
