"""Parity check: logits of an exported file against those of the model, on the same images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

BOUNDS = {"fp32": 1e-4, "fp16": 2e-2}
"""Largest allowed difference from a logit of the fp32 model, relative to the largest logit, by precision."""

MIXED = (1, 3, 16)
"""Batch sizes to run a file for any batch size with."""


@dataclass(frozen=True)
class Parity:
    """Result of comparing an exported file with the model."""

    images: int
    batches: tuple[int, ...]
    """Batch sizes that were run."""
    difference: float
    """Largest difference of a logit, relative to the largest logit; NaN if the file outputs NaN."""
    agreement: float
    """Images with the same top-1 class, in per cent."""

    def holds(self, bound: float) -> bool:
        """Return whether the difference is at most `bound`; False for NaN."""
        return self.difference <= bound


def batches_of(images: Tensor, batch: int | None) -> list[Tensor]:
    """Split images into batches of the sizes that a file takes.

    Images are repeated to fill the last batch and to make one batch of each size.

    Args:
        images: [n, C, H, W].
        batch: Images per batch; None takes the sizes `MIXED` in turn.
    """
    total = max(len(images), 1 if batch else sum(MIXED))
    sizes = cycle((batch,) if batch else MIXED)
    batches, start = [], 0
    while start < total:
        size = next(sizes)
        batches.append(images[torch.arange(start, start + size) % len(images)])
        start += size
    return batches


def output_parity(
    model: Callable[[Tensor], Tensor], file: Callable[[Tensor], Tensor], images: Tensor, batch: int | None
) -> Parity:
    """Compare the logits of the model and of the file.

    Args:
        model: The model: images [B, C, H, W] -> logits [B, K].
        file: The exported file as a function of the same form.
        images: [n, C, H, W].
        batch: Batch size of the file; None for any batch size.
    """
    batches, n = batches_of(images, batch), len(images)
    with torch.no_grad():
        expected, actual = (torch.cat([call(batch).float() for batch in batches]) for call in (model, file))
    largest, gap = expected.abs().max().item(), (actual - expected).abs().max().item()
    return Parity(
        images=n,
        batches=tuple(sorted({len(batch) for batch in batches})),
        difference=gap / largest if largest else gap,
        agreement=100.0 * (expected[:n].argmax(1) == actual[:n].argmax(1)).double().mean().item(),
    )
