"""What comes out of a cut is an ordinary timm model, whatever is done with it."""

import copy

import pytest
import torch
from timm.layers import DropPath

from slimvit.models.registry import plan_of
from slimvit.prune.surgery import prune_model

KEPT = [[0, 2], [], [1]]


@pytest.fixture
def slim(vit):
    model = vit()
    return prune_model(model, plan_of(model).keeping(heads=KEPT))


def test_reset_classifier(slim, images):
    slim.reset_classifier(7)
    assert slim(images(slim)).shape == (4, 7)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_set_input_size(name, vit, images, masked, gap):
    model = vit(name)
    full = masked(model, KEPT)
    slim = prune_model(model, plan_of(model).keeping(heads=KEPT))
    side = model.patch_embed.img_size[0] * 2
    for net in (full, slim):
        net.set_input_size(img_size=(side, side))
    assert images(slim).shape[-1] == side
    assert gap(slim(images(slim)), full(images(full))) <= 1e-5


def test_forward_intermediates(slim, masked, vit, images, gap):
    x = images(slim)
    final, found = slim.forward_intermediates(x)
    _, wanted = masked(vit(), KEPT).forward_intermediates(x)
    assert len(found) == 3 and torch.equal(final, slim.forward_features(x))
    assert all(gap(a, b) <= 1e-5 for a, b in zip(found, wanted, strict=True))


def test_an_attention_mask_reaches_every_block(slim, masked, vit, images, gap):
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    found = slim(images(slim), attn_mask=mask)
    assert gap(found, masked(vit(), KEPT)(images(slim), attn_mask=mask)) <= 1e-5
    assert gap(found, slim(images(slim))) > 1e-3


def test_deepcopy(slim, images):
    twin = copy.deepcopy(slim)
    assert torch.equal(twin(images(slim)), slim(images(slim)))
    assert plan_of(twin) == plan_of(slim)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(slim, images, gap, dtype):
    wanted = slim(images(slim))
    found = copy.deepcopy(slim).to(dtype)(images(slim).to(dtype))
    assert found.dtype == dtype
    assert gap(found.float(), wanted) < 0.05


def test_training_step_reaches_every_parameter(slim, images):
    slim.train()
    slim(images(slim)).square().sum().backward()
    assert [k for k, p in slim.named_parameters() if p.grad is None] == []


def test_drop_path_sees_the_batch(vit):
    """In a block without heads the branch is a constant, yet drop-path must choose image by image."""
    model = vit(drop_path_rate=0.5)
    slim = prune_model(model, plan_of(model).keeping(heads=[[0], [0], []]))
    assert isinstance(slim.blocks[2].drop_path1, DropPath)
    slim.train()
    torch.manual_seed(0)
    stream = torch.zeros(64, 5, 192)
    branch = slim.blocks[2].drop_path1(slim.blocks[2].ls1(slim.blocks[2].attn(stream)))
    dropped = (branch == 0).flatten(1).all(1)
    assert 0 < dropped.sum() < 64
    assert (branch[~dropped] != 0).all()


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
def test_compile(slim, images, fused):
    for block in slim.blocks:
        block.attn.fused_attn = fused
    compiled = torch.compile(slim, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images(slim)), slim(images(slim)))


def test_gradient_checkpointing(slim, images):
    wanted = slim(images(slim))
    slim.set_grad_checkpointing(True)
    assert torch.equal(slim(images(slim)), wanted)
