"""Slim models as backbones: lists of feature maps, as a detector or a segmenter wants them."""

from __future__ import annotations

import pytest
import timm
import torch

import slimvit
from slimvit.models.registry import plan_of
from slimvit.utils.errors import ModelError

NETWORKS = {
    "deit": ("vit", {"name": "deit_tiny_patch16_224", "depth": 4}),
    "dinov2": ("vit", {"name": "vit_small_patch14_reg4_dinov2", "embed_dim": 48, "num_heads": 3}),
    "beit": ("vit", {"name": "beit_base_patch16_224", "embed_dim": 48, "num_heads": 3}),
    "dinov3": ("vit", {"name": "vit_small_patch16_dinov3", "embed_dim": 48, "num_heads": 3}),
    "swin": ("swin", {}),
    "swin v2": ("swin", {"name": "swinv2_tiny_window8_256"}),
}
each = pytest.mark.parametrize("network", NETWORKS)


@pytest.fixture
def slim(vit, swin, network):
    kind, settings = NETWORKS[network]
    model = {"vit": vit, "swin": swin}[kind](**settings)
    kept = [range(1, b.heads) if i != 1 else [] for i, b in enumerate(plan_of(model).blocks)]
    return slimvit.prune_model(model, plan_of(model).keeping(heads=kept))


@each
def test_the_maps_are_those_of_the_model(network, slim, images, tmp_path):
    before = slim.state_dict()
    slimvit.save(slim, tmp_path / "slim")
    x = images(slim, 2)
    net, loaded = slimvit.backbone(slim, out_indices=[-1, 0]), slimvit.backbone(tmp_path / "slim", [0, -1])
    with torch.no_grad():
        found, again = net(x), loaded(x)
        wanted = slim.forward_intermediates(x, indices=[0, len(slim.feature_info) - 1], intermediates_only=True)
    assert all(torch.equal(f, w) and torch.equal(a, w) for f, a, w in zip(found, again, wanted, strict=True))
    assert [f.shape[1] for f in found] == net.feature_info.channels()
    assert [x.shape[-1] // f.shape[-1] for f in found] == net.feature_info.reduction()
    assert slim.state_dict().keys() == before.keys() and slim.num_classes == 5


@pytest.mark.parametrize("network", ["deit", "swin v2"])
def test_which_maps(network, slim, images):
    count = len(slim.feature_info)
    net = slimvit.backbone(slim)
    assert len(net(images(slim, 1))) == len(net.feature_info.channels()) == count
    assert [len(slimvit.backbone(slim, out)(images(slim, 1))) for out in (1, 2, (0,))] == [1, 2, 1]
    assert not any("head" in name for name, _ in net.named_parameters())
    for wrong in (0, count + 1, [count], [-count - 1], []):
        with pytest.raises(ModelError, match=rf"out_indices .* does not fit its maps 0-{count - 1}"):
            slimvit.backbone(slim, wrong)


@pytest.mark.parametrize("network", ["deit"])
def test_a_dense_backbone_with_its_norm(network, slim, images):
    dense = slimvit.insert_dense_attention(slim, init="normal")
    with torch.no_grad():
        found = slimvit.backbone(dense, [2], norm=True)(images(slim, 2))
        wanted = dense.forward_intermediates(images(slim, 2), indices=[2], norm=True, intermediates_only=True)
    assert torch.equal(found[0], wanted[0])


def test_other_models_are_refused():
    with pytest.raises(ModelError, match=r"^resnet18: .*is not a model slimvit can prune"):
        slimvit.backbone(timm.create_model("resnet18"))
