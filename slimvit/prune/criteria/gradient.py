"""Criteria `taylor` and `fisher`: gradients of the loss with respect to a gate m, a factor of a unit's output."""

from __future__ import annotations

from slimvit.data.loaders import Batches
from slimvit.models.base import TimmModule
from slimvit.prune.criteria.base import ScoresByPart, criterion
from slimvit.prune.criteria.calibration import observe
from slimvit.prune.criteria.statistics import GateSums


@criterion("taylor", needs_classifier=True)
def taylor(model: TimmModule, batches: Batches, seed: int, parts: tuple[str, ...]) -> ScoresByPart:
    """Mean over images of abs(dLoss/dm) (Michel, Levy and Neubig, NeurIPS 2019)."""
    gates = observe(model, batches, "labels", GateSums, seed, parts)
    return {part: [g.absolute for g in gates[part]] for part in parts}


@criterion("fisher", needs_classifier=True)
def fisher(model: TimmModule, batches: Batches, seed: int, parts: tuple[str, ...]) -> ScoresByPart:
    """Mean over images of (dLoss/dm)^2 (Kwon et al., NeurIPS 2022)."""
    gates = observe(model, batches, "labels", GateSums, seed, parts)
    return {part: [g.square for g in gates[part]] for part in parts}
