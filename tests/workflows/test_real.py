"""On real pretrained weights, where they are on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import slimvit
from slimvit.models.registry import attention_blocks, plan_of

WEIGHTS = Path(".cache/real/dinov2/model.safetensors")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not WEIGHTS.exists(), reason=f"{WEIGHTS} is not on this machine"),
]


@pytest.fixture(scope="module")
def dinov2():
    return slimvit.create_model("vit_small_patch14_dinov2", weights=WEIGHTS, img_size=112)


def test_the_weights_come_through_timms_filter(dinov2):
    assert dinov2.num_classes == 0
    assert dinov2.pos_embed.shape == (1, 65, 384)  # resampled from 518 px


def test_cut_equals_masked(dinov2):
    keep = [[0, 3], [1], [2, 3, 4], [], *[list(range(6))] * 8]
    slim = slimvit.prune_model(dinov2, plan_of(dinov2).keeping(heads=keep))
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    hooks = []
    for view, kept in zip(attention_blocks(dinov2), keep, strict=True):
        mask = torch.zeros(6).index_fill(0, torch.tensor(kept, dtype=torch.long), 1.0).repeat_interleave(64)
        hooks.append(view.attn.proj.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask,)))
    with torch.inference_mode():
        masked, cut = dinov2.forward_features(images), slim.forward_features(images)
    for hook in hooks:
        hook.remove()
    assert (masked - cut).abs().max() <= 1e-5 * masked.abs().max()
