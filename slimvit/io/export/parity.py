"""Parity: the logits of a written file against those of the model, on the same images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

BOUNDS = {"fp32": 1e-4, "fp16": 2e-2}
"""Precision -> largest allowed difference from a logit of the fp32 model, over the largest logit."""

MIXED = (1, 3, 16)
"""Batch sizes that a file for any number of images is run with."""


@dataclass(frozen=True)
class Parity:
    """The comparison of a written file with the model."""

    images: int
    batches: tuple[int, ...]
    """Batch sizes that were run."""
    difference: float
    """Largest difference of a logit over the largest logit; NaN where the file gives none."""
    agreement: float
    """Share of images with the same best class, in per cent."""

    def holds(self, bound: float) -> bool:
        """Return whether the difference lies within `bound`; False for NaN."""
        return self.difference <= bound


def batches_of(images: Tensor, batch: int | None) -> list[Tensor]:
    """Split images into batches that a file takes, repeating them to fill the last batch and one batch of each size.

    Args:
        images: [n, C, H, W].
        batch: Images per batch; None takes the sizes `MIXED` in turn.
    """
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
    """Compare the logits of the model and of the file.

    Args:
        wanted: The model: images [B, C, H, W] -> logits [B, K].
        found: The file, likewise.
        images: [n, C, H, W].
        batch: Images at a time that the file takes; None is any number.
    """
    batches, n = batches_of(images, batch), len(images)
    with torch.no_grad():
        expected, actual = (torch.cat([call(batch).float() for batch in batches]) for call in (wanted, found))
    largest, gap = expected.abs().max().item(), (actual - expected).abs().max().item()
    return Parity(
        images=n,
        batches=tuple(sorted({len(batch) for batch in batches})),
        difference=gap / largest if largest else gap,
        agreement=100.0 * (expected[:n].argmax(1) == actual[:n].argmax(1)).double().mean().item(),
    )
