"""Whether a written file computes what the model computes: the same images through both, in the batches it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

BOUNDS = {"fp32": 1e-4, "fp16": 2e-2}
"""Precision -> how far a logit may lie from the fp32 model's, over the largest logit."""

MIXED = (1, 3, 16)
"""Batches that a file for any number of images is tried with."""


@dataclass(frozen=True)
class Parity:
    images: int
    batches: tuple[int, ...]
    """Sizes that were run."""
    difference: float
    """Largest difference of a logit over the largest logit; NaN where the file gives none."""
    agreement: float
    """Images with the same best class, per cent."""

    def holds(self, bound: float) -> bool:
        return self.difference <= bound


def batches_of(images: Tensor, batch: int | None) -> list[Tensor]:
    """Images [n, C, H, W] in batches that a file takes: ``batch`` each, or :data:`MIXED`. Where they do not fill the
    last one, or one of each, they begin anew."""
    total = max(len(images), 1 if batch else sum(MIXED))
    sizes = cycle((batch,) if batch else MIXED)
    found, start = [], 0
    while start < total:
        size = next(sizes)
        found.append(images[torch.arange(start, start + size) % len(images)])
        start += size
    return found


def output_parity(
    wanted: Callable[[Tensor], Tensor], found: Callable[[Tensor], Tensor], images: Tensor, batch: int | None
) -> Parity:
    """Run the model and the file on images [n, C, H, W], in batches that the file takes; both give logits [B, K]."""
    batches, n = batches_of(images, batch), len(images)
    with torch.no_grad():
        mine, theirs = (torch.cat([call(batch).float() for batch in batches]) for call in (wanted, found))
    largest, gap = mine.abs().max().item(), (theirs - mine).abs().max().item()
    return Parity(
        images=n,
        batches=tuple(sorted({len(batch) for batch in batches})),
        difference=gap / largest if largest else gap,
        agreement=100.0 * (mine[:n].argmax(1) == theirs[:n].argmax(1)).double().mean().item(),
    )
