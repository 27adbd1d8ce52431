"""Criterion `magnitude`: norms of the weights; it needs no images."""

from __future__ import annotations

from slimvit.data.loaders import Batches
from slimvit.models.base import TimmModule
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import attention_blocks
from slimvit.prune.criteria.base import ScoresByPart, criterion


@criterion("magnitude", needs_images=False)
def magnitude(model: TimmModule, batches: Batches, parts: tuple[str, ...]) -> ScoresByPart:
    """L2 norm of all weights of a unit (Han et al., NeurIPS 2015)."""
    return {part: [PARTS[part].squares(view).sqrt() for view in attention_blocks(model)] for part in parts}
