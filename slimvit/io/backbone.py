"""A model as the backbone of a detector or a segmenter: feature maps instead of classes."""

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
"""Maps, evenly spread, of a network whose blocks all have the same resolution."""


def backbone(
    model: nn.Module | str | Path, out_indices: int | Sequence[int] | None = None, *, norm: bool = False
) -> nn.Module:
    """A copy of ``model`` (or of that in a run folder or on the Hub) that gives a list of feature maps [B, C, H, W].

    ``out_indices``: which maps, from 0 or, negative, from the end; there is one a block, in Swins one a stage. A number
    n means the last n, None all stages of a Swin and four maps of any other. ``norm`` puts the network's last norm
    behind them. What comes after the last map is left out. ``feature_info`` has ``channels()`` and ``reduction()``, as
    timm's own ``features_only`` models.

    Raises :class:`ModelError` for a model of no known family, or maps that are not there.
    """
    net: TimmModule = load(model) if isinstance(model, str | Path) else copy.deepcopy(model)
    stages = len({block.stage for block in attention_blocks(net)})
    wanted = _maps(model_name(net), len(net.feature_info), stages, out_indices)
    return FeatureGetterNet(net.eval(), out_indices=tuple(wanted), norm=norm)


def _maps(name: str, count: int, stages: int, wanted: int | Sequence[int] | None) -> list[int]:
    """Numbers of maps, in the order in which the network makes them."""
    every = list(range(count))
    if wanted is None:
        spread = {(i + 1) * count // FROM_ONE_STAGE - 1 for i in range(FROM_ONE_STAGE)}
        return every if stages > 1 or count < FROM_ONE_STAGE else sorted(spread)
    asked = [-i for i in range(1, wanted + 1)] if isinstance(wanted, int) else list(wanted)
    if not asked or any(i not in range(-count, count) for i in asked):
        raise ModelError(f"{name}: out_indices {wanted} does not fit its maps 0-{count - 1}")
    return sorted({every[i] for i in asked})
