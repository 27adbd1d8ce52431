"""Models without weights: names and shapes of tensors only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

FILLING = {
    getattr(Tensor, f"{name}_") for name in ("add", "clamp", "erfinv", "fill", "mul", "normal", "uniform", "zero")
}
FILLING |= {init.constant_, init.kaiming_uniform_, init.normal_, init.uniform_}
"""Functions that write initial values into a tensor."""


class _NoValues(TorchFunctionMode):
    """Skips the initial values of meta tensors, which change nothing and need most of the time of building a model."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FILLING and (filled := args[0] if args else kwargs["tensor"]).is_meta:
            return filled
        return func(*args, **kwargs)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Build models on the meta device in the block, without memory and initial values."""
    with torch.device("meta"), _NoValues():
        yield
