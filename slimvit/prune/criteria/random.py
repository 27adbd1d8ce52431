"""Criterion of chance: what the others must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from slimvit.data.loaders import Batches
from slimvit.models.base import AttentionBlock, TimmModule
from slimvit.models.parts.base import Part
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import attention_blocks
from slimvit.prune.criteria.base import Found, criterion


@criterion("random", needs_images=False)
def random(model: TimmModule, batches: Batches, seed: int, parts: tuple[str, ...]) -> Found:
    """A number drawn for every unit, smaller by as much as the unit costs less than one of the first part, so that all
    parts go at the same rate."""
    generator = torch.Generator().manual_seed(seed)
    first = PARTS[parts[0]]
    blocks = attention_blocks(model)
    return {name: [_drawn(PARTS[name], first, view, generator) for view in blocks] for name in parts}


def _drawn(part: Part, first: Part, view: AttentionBlock, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(part.count(view), generator=generator)
    return drawn if part is first else drawn * part.macs(view).unit / first.macs(view).unit
