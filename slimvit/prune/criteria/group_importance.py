"""Criteria `tp-magnitude` and `tp-taylor`: the group importances of Torch-Pruning."""

from __future__ import annotations

import copy

import torch
import torch_pruning as tp
from torch import Tensor, nn

from slimvit.data.loaders import Batches
from slimvit.models.base import TimmModule
from slimvit.models.modes import device_of
from slimvit.models.parts.base import Coupled
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import attention_blocks
from slimvit.prune.criteria.base import ScoresByPart, criterion
from slimvit.prune.criteria.calibration import NO_IMAGES, batch_loss
from slimvit.utils.errors import DataError
from slimvit.utils.progress import track


@criterion("tp-magnitude", needs_images=False)
def group_magnitude(model: TimmModule, batches: Batches, parts: tuple[str, ...]) -> ScoresByPart:
    """Group magnitude: squared L2 norm, relative to the mean of the block."""
    return _by_part(copy.deepcopy(model), "magnitude", parts)


@criterion("tp-taylor", needs_classifier=True)
def group_taylor(model: TimmModule, batches: Batches, seed: int, parts: tuple[str, ...]) -> ScoresByPart:
    """Group Taylor: abs(weight x gradient of the loss), relative to the mean of the block."""
    probe = copy.deepcopy(model).eval().requires_grad_(False)
    for block in attention_blocks(probe):
        for layer in (m for branch in (block.attn, block.mlp) for m in branch.modules() if isinstance(m, nn.Linear)):
            layer.weight.requires_grad_(True)
            layer.weight.grad = torch.zeros_like(layer.weight)
    generator, images_seen = torch.Generator().manual_seed(seed), 0
    with torch.enable_grad():
        for images, labels in track(batches, f"scoring {' and '.join(parts)}"):
            images_seen += len(images)
            batch_loss(probe, images.to(device_of(probe)), labels, "labels", generator).backward()
    if images_seen == 0:
        raise DataError(NO_IMAGES)
    return _by_part(probe, "taylor", parts)


def _by_part(probe: nn.Module, kind: str, parts: tuple[str, ...]) -> ScoresByPart:
    """Importances of all parts; changes `probe`, a copy of the model."""
    scores = {}
    for name in parts:
        part = PARTS[name]
        scores[name] = [
            group_importance(part.coupled(view), kind) if part.count(view) else torch.zeros(0)
            for view in attention_blocks(probe)
        ]
    return scores


def group_importance(coupled: Coupled, kind: str) -> Tensor:
    """Return Torch-Pruning's importance of each unit [units].

    Args:
        coupled: The layer with the units as channels, and the module for the dependency graph.
        kind: `magnitude` (squared L2 norm) or `taylor` (abs(weight x gradient)). `taylor` needs weights with gradients.
    """
    importance = {
        "magnitude": tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": tp.importance.GroupTaylorImportance(),
    }[kind]
    layer = coupled.layer
    example = torch.zeros(1, 2, coupled.width, device=layer.weight.device, dtype=layer.weight.dtype)
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(coupled.module, example_inputs=example)
    prune = tp.prune_linear_out_channels if coupled.outputs else tp.prune_linear_in_channels
    channels = layer.out_features if coupled.outputs else layer.in_features
    by_channel = importance(graph.get_pruning_group(layer, prune, idxs=list(range(channels))))
    return coupled.by_unit(by_channel)
