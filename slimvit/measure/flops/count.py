"""Multiply-accumulates (MACs), counted three ways that must agree: fvcore's trace, torch's counter, the closed form."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slimvit.measure.flops.meta import mix_macs, torch_count
from slimvit.measure.flops.parts import FLOP_PARTS, in_order
from slimvit.measure.flops.trace import counts_by_block, trace
from slimvit.models.base import ImageSize
from slimvit.models.closed_form import stem_of
from slimvit.models.registry import closed_form
from slimvit.utils.errors import ModelError

TOLERANCE = 1e-3
"""Counters agree when their totals differ by no more than this share."""


@dataclass(frozen=True)
class MacCount:
    """MACs of one image. A count that is not known is None."""

    total: int
    """fvcore's count, norms included, and the mixes of dense attention from their formula."""
    by_part: dict[str, int]
    """MACs by part (`FLOP_PARTS`), adding up to `total`."""
    by_block: tuple[dict[str, int], ...]
    """One dict per transformer block: qkv, attention, proj, mlp, norm."""
    closed_form: int | None
    """From the shapes of the layers alone, without norms; None for a model of no family."""
    torch_counter: int | None
    """torch.utils.flop_counter, halved, without norms; None when this torch version does not see attention."""
    uncounted: tuple[str, ...] = ()
    """Names of operators that were skipped although they may multiply; normally none."""

    @property
    def without_norm(self) -> int:
        """fvcore's count without norms and mixes, which the other counters do not see."""
        return self.total - self.by_part["norm"] - self.by_part.get("mixes", 0)

    @property
    def agrees(self) -> bool:
        """Whether all known counts, without norms, lie within 0.1 % of each other."""
        known = list(self._counts().values())
        return max(known) - min(known) <= TOLERANCE * max(known)

    def disagreement(self) -> str | None:
        """Return one sentence for the report when counters disagree or operators were skipped, else None."""
        parts = []
        if not self.agrees:
            figures = ", ".join(f"{name} {count / 1e9:.4f} G" for name, count in self._counts().items())
            parts.append(f"the MAC counters disagree by more than 0.1 % (without norms: {figures})")
        if self.uncounted:
            parts.append(f"the MAC count leaves out operators it does not know: {', '.join(self.uncounted)}")
        return "; ".join(parts) or None

    def _counts(self) -> dict[str, int]:
        counts = {"fvcore": self.without_norm, "closed form": self.closed_form, "torch": self.torch_counter}
        return {name: count for name, count in counts.items() if count is not None}


def count_macs(model: nn.Module, input_size: ImageSize | None = None) -> MacCount:
    """Count the MACs of one image in eval mode.

    The model itself is neither run nor changed: copies with its shapes are.

    Args:
        model: A model on any device, meta included.
        input_size: Channels, height and width of the image; the model's own by default.

    Raises:
        ModelError: The model names no input size, or does not take the given one.
    """
    size = input_size or input_size_of(model)
    try:
        on_meta = _copy_of_shapes(model, "meta")
        by_torch, mixes = torch_count(on_meta, size), mix_macs(on_meta, size)
        own, uncounted = trace(_copy_of_shapes(model, "cpu"), size)
    except AssertionError as error:
        shape = "x".join(map(str, size))
        raise ModelError(f"{type(model).__name__} does not take images of {shape}: {error}") from error
    for name, macs in mixes.items():
        own.setdefault(name, Counter())["mixes"] += macs
    by_part: Counter[str] = Counter()
    for counts in own.values():
        by_part.update(counts)
    return MacCount(
        total=sum(by_part.values()),
        by_part=in_order(by_part, FLOP_PARTS),
        by_block=counts_by_block(own),
        closed_form=closed_form(model, size),
        torch_counter=by_torch,
        uncounted=tuple(uncounted),
    )


def input_size_of(model: nn.Module) -> ImageSize:
    """Return channels, height and width of the images that a model takes.

    Raises:
        ModelError: The model does not name them.
    """
    stem, side = stem_of(model), getattr(getattr(model, "patch_embed", None), "img_size", None)
    if stem is not None and side is not None:
        return (stem.in_channels, *side)
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if size is None:
        raise ModelError(f"{type(model).__name__} names no input size; give count_macs one, like (3, 224, 224)")
    return tuple(size)


def _copy_of_shapes(model: nn.Module, device: str) -> nn.Module:
    """A copy in eval mode with the same shapes and zeros for values; no weight is read or copied."""
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.zeros(p.shape, device=device), requires_grad=False)
    for b in model.buffers():
        dtype = torch.float32 if b.is_floating_point() else b.dtype
        memo[id(b)] = torch.zeros(b.shape, device=device, dtype=dtype)
    return copy.deepcopy(model, memo).eval()
