from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from slimvit.train import adapt
from slimvit.train.adapt import fit_head

Build = Callable[..., Any]

NAMES = ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_base_patch16_siglip_224")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("old_classes", [5, 0])
def test_the_classifier_is_the_probe_on_standardised_features(
    vit: Build, images: Build, monkeypatch: pytest.MonkeyPatch, name: str, old_classes: int
) -> None:
    small = {"embed_dim": 48, "num_heads": 4} if "base" in name else {}
    model = vit(name, num_classes=old_classes, **small)
    before = copy.deepcopy(model)
    pictures = images(model, 12)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(pictures), pre_logits=True)
    found: list[Any] = []
    real = adapt._linear_probe
    monkeypatch.setattr(adapt, "_linear_probe", lambda *a: found.append((a[0], real(*a))) or found[-1][1])

    adapted = fit_head(model, features, torch.arange(12) % 3, 3, epochs=20, seed=0)
    standardised, (weight, bias) = found[0]
    assert torch.allclose(standardised.std(0, correction=0), torch.ones(features.shape[1]), atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(adapted(pictures), standardised @ weight.T + bias, atol=1e-3)
    assert adapted.num_classes == 3 and model.num_classes == old_classes
    for key, value in before.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
        assert "head" in key or torch.equal(value, adapted.state_dict()[key])


def test_the_probe_learns_and_repeats() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    x = torch.randn(300, 8, generator=generator)
    x[:, :3] += 6 * torch.nn.functional.one_hot(labels, 3)
    first, again, other = (adapt._linear_probe(x, labels, 3, 40, seed) for seed in (0, 0, 1))
    assert ((x @ first[0].T + first[1]).argmax(1) == labels).float().mean() > 0.98
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and not torch.equal(first[0], other[0])


def test_constant_features_do_not_break_the_classifier(vit: Build) -> None:
    model = vit()
    features = torch.ones(6, model.num_features)
    adapted = fit_head(model, features, torch.arange(6) % 2, 2, epochs=2, seed=0)
    assert all(p.isfinite().all() for p in adapted.parameters())


def test_balanced_classes_weigh_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 380 + [1] * 20)
    x = torch.randn(400, 2, generator=generator) + labels[:, None]
    recall = {}
    for balanced in (False, True):
        weight, bias = adapt._linear_probe(x, labels, 2, 20, 0, balanced)
        recall[balanced] = ((x @ weight.T + bias).argmax(1) == labels)[380:].float().mean().item()
    assert recall[True] > recall[False] + 0.3
    drawn = adapt._order(labels, True, generator)
    assert labels[drawn].float().mean().item() == pytest.approx(0.5, abs=0.1)
