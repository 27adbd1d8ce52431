from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

import slimvit
from slimvit.config.training import TrainSection
from slimvit.models.registry import plan_of
from slimvit.train.optimizer import build_optimizer, check_optimizer, cosine_schedule, learning_rate, parameter_groups
from slimvit.utils.errors import RecipeError

Build = Callable[..., Any]
LR, MIX_SCALE = 0.01, 10.0


def described(model: Any, section: TrainSection) -> dict[str, tuple[float, float]]:
    """Peak learning rate and weight decay of every parameter, as the optimizer and its schedule apply them."""
    optimizer = build_optimizer(parameter_groups(model, section, LR, MIX_SCALE), section, LR)
    cosine_schedule(optimizer, section, 10).step_update(0)
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], (g["lr"], g["weight_decay"])) for g in optimizer.param_groups for p in g["params"]]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)


def thinned(model: Any, dense: bool) -> Any:
    """The model without the last head of its first block, densely attending if asked."""
    plan = plan_of(model)
    kept = [b.kept_heads[: -1 if i == 0 else None] for i, b in enumerate(plan.blocks)]
    small = slimvit.prune_model(model, plan.keeping(heads=kept))
    return slimvit.insert_dense_attention(small, "layer", "normal") if dense else small


def test_no_decay_on_norms_biases_tokens_and_tables() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", depth=1, img_size=32, num_classes=3, reg_tokens=1, qk_norm=True, init_values=0.1
    )
    found = described(model, TrainSection(weight_decay=0.1))
    assert found.keys() == dict(model.named_parameters()).keys()
    decayed = {name for name, (_, decay) in found.items() if decay}
    assert {found[name][1] for name in decayed} == {0.1}
    assert decayed == {
        "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight", "head.weight",
    }  # fmt: skip


@pytest.mark.parametrize("family", ["vit", "swin"])
@pytest.mark.parametrize("dense", [False, True])
def test_layers_near_the_input_learn_slower_and_mixes_at_a_rate_of_their_own(
    request: pytest.FixtureRequest, family: str, dense: bool
) -> None:
    model = thinned(request.getfixturevalue(family)(), dense)
    found = described(model, TrainSection(weight_decay=0.1, layer_decay=0.5, warmup_epochs=0, epochs=1))
    assert found.keys() == dict(model.named_parameters()).keys()
    mixes = [name for name in found if name.endswith("attn.mix")]
    assert bool(mixes) == dense and all(found[name] == (LR * MIX_SCALE, 0.0) for name in mixes)
    blocks = sorted({name.partition(".norm1")[0] for name in found if ".norm1." in name})
    classifier = "head.weight" if family == "vit" else "head.fc.weight"
    assert found[classifier] == (LR, 0.1)
    rates = [found[f"{block}.attn.qkv.weight"][0] for block in blocks]
    assert rates == pytest.approx([LR * 0.5 ** (len(blocks) - i) for i in range(len(blocks))])
    assert found["patch_embed.proj.weight"][0] == pytest.approx(LR * 0.5 ** (len(blocks) + 1))
    for block, rate in zip(blocks, rates, strict=True):
        assert found[f"{block}.attn.proj.bias"] == pytest.approx((rate, 0.0))
    tables = [decay for name, (_, decay) in found.items() if "bias_table" in name or name == "pos_embed"]
    assert tables and not any(tables)


def test_without_layer_decay_all_learn_alike(vit: Build) -> None:
    model = thinned(vit(), dense=True)
    found = described(model, TrainSection(warmup_epochs=0, epochs=1))
    assert {rate for name, (rate, _) in found.items() if not name.endswith("attn.mix")} == {LR}


def test_the_reported_rate_is_that_of_the_last_layers(vit: Build) -> None:
    section = TrainSection(layer_decay=0.5, epochs=1, warmup_epochs=0)
    optimizer = build_optimizer(parameter_groups(vit(), section, LR, 1.0), section, LR)
    cosine_schedule(optimizer, section, 10).step_update(0)
    assert learning_rate(optimizer) == pytest.approx(LR)
    assert optimizer.param_groups[0]["lr"] < LR / 4


def test_the_first_step_has_the_rate_that_was_asked_for(vit: Build) -> None:
    section = TrainSection(epochs=2, warmup_epochs=1, warmup_lr=1e-4, min_lr=1e-5)
    optimizer = build_optimizer(parameter_groups(vit(), section, LR, 1.0), section, LR)
    schedule, rates = cosine_schedule(optimizer, section, 10), []
    for step in range(20):
        schedule.step_update(step)
        rates.append(learning_rate(optimizer))
    assert rates[0] == pytest.approx(1e-4) and rates[10] == max(rates) == pytest.approx(LR)
    assert rates[:11] == sorted(rates[:11]) and 1e-5 <= rates[-1] == min(rates[10:])


@pytest.mark.parametrize(
    ("given", "kind", "wanted"),
    [
        ({}, torch.optim.AdamW, {"betas": (0.9, 0.999), "eps": 1e-8}),
        ({"betas": [0.8, 0.9], "eps": 1e-6}, torch.optim.AdamW, {"betas": (0.8, 0.9), "eps": 1e-6}),
        ({"optimizer": "momentum", "momentum": 0.7}, torch.optim.SGD, {"momentum": 0.7, "nesterov": False}),
        ({"optimizer": "sgd"}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_the_optimizer_is_timms_with_the_arguments_given(
    vit: Build, given: dict[str, Any], kind: type, wanted: dict[str, Any]
) -> None:
    section = TrainSection(**given)
    optimizer = build_optimizer(parameter_groups(vit(), section, LR, 1.0), section, LR)
    assert type(optimizer) is kind
    assert all({k: group[k] for k in wanted} == wanted for group in optimizer.param_groups)


@pytest.mark.parametrize("name", ["lamb", "lion", "lookahead_adamw", "adan", "muon"])
def test_other_optimizers_move_the_weights(vit: Build, name: str) -> None:
    model, section = vit(depth=1), TrainSection(optimizer=name)
    check_optimizer(section)
    optimizer = build_optimizer(parameter_groups(model, section, LR, 1.0), section, LR)
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True) if p.grad.any())


def test_an_optimizer_that_cannot_run_here_is_refused_in_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine may have what it needs")
    with pytest.raises(RecipeError, match="^optimizer fusedadamw: .*; choose another, e.g. adamw$"):
        check_optimizer(TrainSection(optimizer="fusedadamw"))
