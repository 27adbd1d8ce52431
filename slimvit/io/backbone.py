"""A model as the backbone of a detector or segmenter: it returns feature maps instead of classes."""

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

FROM_ONE_STAGE = 4
"""Number of maps, evenly spread, of a network whose blocks all have the same resolution."""


def backbone(
    model: nn.Module | str | Path, out_indices: int | Sequence[int] | None = None, *, norm: bool = False
) -> nn.Module:
    """Copy a model so that it maps images [B, C, H, W] to a list of feature maps [B, C_i, H_i, W_i].

    `feature_info` of the copy has `channels()` and `reduction()`, like timm's `features_only` models. Layers after the
    last map are removed.

    Args:
        model: A model, a run folder, or a model on the Hub.
        out_indices: Which maps, from 0, or from the end where negative. There is one per block, in Swins one per
            stage. A number n means the last n; None means all stages of a Swin, and four maps of other networks.
        norm: Whether to apply the network's last norm to the maps.

    Raises:
        ModelError: The model is of no supported family, or a map does not exist.
    """
    net: TimmModule = load(model) if isinstance(model, str | Path) else copy.deepcopy(model)
    stages = len({block.stage for block in attention_blocks(net)})
    wanted = _maps(model_name(net), len(net.feature_info), stages, out_indices)
    return FeatureGetterNet(net.eval(), out_indices=tuple(wanted), norm=norm)


def _maps(name: str, count: int, stages: int, wanted: int | Sequence[int] | None) -> list[int]:
    """Indices of the maps, in the order in which the network computes them."""
    every = list(range(count))
    if wanted is None:
        spread = {(i + 1) * count // FROM_ONE_STAGE - 1 for i in range(FROM_ONE_STAGE)}
        return every if stages > 1 or count < FROM_ONE_STAGE else sorted(spread)
    asked = [-i for i in range(1, wanted + 1)] if isinstance(wanted, int) else list(wanted)
    if not asked or any(i not in range(-count, count) for i in asked):
        raise ModelError(f"{name}: out_indices {wanted} does not fit its maps 0-{count - 1}")
    return sorted({every[i] for i in asked})
