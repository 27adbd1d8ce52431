"""The patches of an image that share a token behind the last block of a model that merges tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slimvit.models.base import State, TimmModule
from slimvit.models.insert_merging import merges_of
from slimvit.models.modes import evaluating
from slimvit.models.registry import attention_blocks, model_name, steps
from slimvit.utils.errors import ModelError


def check_merges_tokens(model: nn.Module) -> None:
    """Raise `ModelError` for a model that merges no tokens."""
    if not any(merges_of(model)):
        raise ModelError(f"{model_name(model)} merges no tokens; cut it with --parts tokens, or name a run that was")


def token_groups(model: TimmModule, images: Tensor) -> Tensor:
    """Return the number of the token that holds each patch behind the last block.

    Args:
        model: A model that merges tokens.
        images: [B, C, H, W], normalised as the model expects.

    Returns:
        int64 [B, rows, columns]; patches of the same number share a token.

    Raises:
        ModelError: The model merges no tokens.
    """
    check_merges_tokens(model)
    state = State(images)
    with evaluating(model), torch.inference_mode():
        for step in steps(model):
            state = step.apply(state)
    assert state.carried.tokens is not None
    rows, columns = model.patch_embed.dynamic_feat_size(images.shape[-2:])
    return state.carried.tokens.sources[:, attention_blocks(model)[0].prefix :].unflatten(1, (rows, columns))
