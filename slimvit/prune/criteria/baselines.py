"""Criteria `magnitude` and `random`, which need no images."""

from __future__ import annotations

import torch
from torch import Tensor

from slimvit.data.loaders import Batches
from slimvit.models.base import AttentionBlock, TimmModule
from slimvit.models.parts.base import Part
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import attention_blocks
from slimvit.prune.criteria.base import ScoresByPart, criterion


@criterion("magnitude", needs_images=False)
def magnitude(model: TimmModule, batches: Batches, parts: tuple[str, ...]) -> ScoresByPart:
    """L2 norm of all weights of a unit (Han et al., NeurIPS 2015)."""
    return {part: [PARTS[part].squares(view).sqrt() for view in attention_blocks(model)] for part in parts}


@criterion("random", needs_images=False)
def random(model: TimmModule, batches: Batches, seed: int, parts: tuple[str, ...]) -> ScoresByPart:
    """Draw a uniform number per unit, times its MACs relative to those of a unit of the first part.

    With this factor, a budget in MACs removes all parts at the same rate.
    """
    generator = torch.Generator().manual_seed(seed)
    first = PARTS[parts[0]]
    blocks = attention_blocks(model)
    return {name: [_drawn(PARTS[name], first, view, generator) for view in blocks] for name in parts}


def _drawn(part: Part, first: Part, view: AttentionBlock, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(part.count(view), generator=generator)
    return drawn if part is first else drawn * part.macs(view).unit / first.macs(view).unit
