"""Backbones for detectors and segmenters: models that return feature maps instead of logits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from timm.models._features import FeatureGetterNet
from torch import nn

from slimvit.io.load import load
from slimvit.models.base import TimmModule
from slimvit.models.registry import attention_blocks, model_name
from slimvit.utils.errors import ModelError

MAPS_OF_ONE_STAGE = 4
"""Default number of evenly spaced maps for networks of one resolution."""


def backbone(
    model: nn.Module | str | Path, out_indices: int | Sequence[int] | None = None, *, norm: bool = False
) -> nn.Module:
    """Copy a model so that it maps images [B, C, H, W] to a list of feature maps [B, C_i, H_i, W_i].

    `feature_info` of the copy has `channels()` and `reduction()`, like timm's `features_only` models. Layers after the
    last map are removed.

    Args:
        model: A model, a run folder, or a model on the Hub.
        out_indices: Indices of the maps; negative ones count from the end. ViTs have one map per block, Swins one per
            stage. A number n selects the last n. None selects all stages of a Swin, or four evenly spaced blocks.
        norm: Whether to apply the network's last norm to the maps.

    Raises:
        ModelError: The model's family is not supported, or a map does not exist.
    """
    net: TimmModule = load(model) if isinstance(model, str | Path) else copy.deepcopy(model)
    stages = len({block.stage for block in attention_blocks(net)})
    indices = _map_indices(model_name(net), len(net.feature_info), stages, out_indices)
    return FeatureGetterNet(net.eval(), out_indices=tuple(indices), norm=norm)


def _map_indices(name: str, count: int, stages: int, out_indices: int | Sequence[int] | None) -> list[int]:
    """Indices of the maps in forward order."""
    if out_indices is None:
        spaced = {(i + 1) * count // MAPS_OF_ONE_STAGE - 1 for i in range(MAPS_OF_ONE_STAGE)}
        return list(range(count)) if stages > 1 or count < MAPS_OF_ONE_STAGE else sorted(spaced)
    indices = [-i for i in range(1, out_indices + 1)] if isinstance(out_indices, int) else list(out_indices)
    if not indices or any(i not in range(-count, count) for i in indices):
        raise ModelError(f"{name}: out_indices {out_indices} does not fit its maps 0-{count - 1}")
    return sorted({i % count for i in indices})
