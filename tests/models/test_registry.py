import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock
from torch import nn

import slimvit
from slimvit.models.base import Branch, State
from slimvit.models.build import check_timm
from slimvit.models.modes import evaluating
from slimvit.models.registry import attention_blocks, family_of, is_uncut_form, plan_of, steps
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import ModelError

REFUSED = {
    "xcit_nano_12_p16_224": ({}, "Xcit is not a model slimvit can prune"),
    "vit_relpos_small_patch16_224": ({}, "VisionTransformerRelPos is not a model slimvit can prune"),
    "resnet18": ({}, "ResNet is not a model slimvit can prune"),
    "vit_tiny_patch16_224": (
        {"scale_attn_norm": True},
        r"blocks\.0\.attn normalises across its heads \(scale_norm\), so a head cannot be removed exactly",
    ),
    "vit_small_patch16_224": (
        {"block_fn": ParallelScalingBlock},
        r"blocks\.0 is a ParallelScalingBlock, not timm's pre-norm Block",
    ),
    "vit_base_patch16_224": ({"block_fn": ResPostBlock}, r"blocks\.0 is a ResPostBlock, not timm's pre-norm Block"),
    "deit_tiny_patch16_224": ({"attn_layer": "diff"}, r"blocks\.0\.attn is a \S+DiffAttention, not timm's Attention"),
    "deit_small_patch16_224": ({"mlp_layer": lambda **_: nn.Linear(384, 384)}, "without a linear fc2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_with_what_is_supported(name):
    kwargs, reason = REFUSED[name]
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    with pytest.raises(ModelError, match=rf"^{name}: .*{reason}; supported: timm VisionTransformers.*deit_\*"):
        family_of(model)


@pytest.mark.parametrize("version", ["1.0.22", "0.9.16", "1.0.22.dev0"])
def test_an_old_timm_is_refused(version):
    with pytest.raises(ModelError, match=rf"timm {version} is too old: slimvit needs timm >= 1\.0\.23; pip install"):
        check_timm(version)


@pytest.mark.parametrize("version", ["1.0.23", "1.0.31", "1.1", "2.0.0.dev0"])
def test_a_newer_timm_is_taken(version):
    check_timm(version)


def test_a_new_model_keeps_every_head(vit):
    plan = plan_of(vit("deit_small_patch16_224"))
    assert plan.model == "deit_small_patch16_224"
    assert [(b.name, b.heads, b.kept_heads, b.stage) for b in plan.blocks] == [
        (f"blocks.{i}", 6, (0, 1, 2, 3, 4, 5), 0) for i in range(3)
    ]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("deit_tiny_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_small_patch14_reg4_dinov2", {}),
        ("vit_tiny_r_s16_p8_224", {}),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
    ],
)
def test_the_steps_are_the_forward_pass(name, kwargs, vit, images, gap):
    model = vit(name, **kwargs)
    model = prune_model(model, plan_of(model).keeping(heads=[[0, 2], [], [1]]))
    x = images(model)
    with evaluating(model):
        state = State(x)
        for step in steps(model):
            state = step.apply(state)
        assert gap(model.norm(state.stream), model.forward_features(x)) <= 1e-6


def test_a_branch_gives_the_input_of_its_last_layer(vit, images):
    model = vit()
    state = State(torch.randn(2, 5, 192))
    for branch in steps(model)[1:]:
        assert isinstance(branch, Branch)
        features, _ = branch.run_with_features(state)
        assert torch.equal(branch.out(features), branch.run(state).output)
        assert not branch.out._forward_pre_hooks


def test_tokens_are_counted_with_their_prefix(vit):
    assert {b.tokens for b in attention_blocks(vit("vit_small_patch14_reg4_dinov2"))} == {4 + 1 + 4}
    assert {b.tokens for b in attention_blocks(vit("deit_tiny_distilled_patch16_224"))} == {4 + 2}


def test_evaluating_puts_every_flag_back(vit):
    model = vit().train()
    model.blocks[1].eval()
    before = [m.training for m in model.modules()]
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(m.training for m in model.modules())
        assert not torch.ones(1, requires_grad=True).mul(2).requires_grad
        raise RuntimeError
    assert [m.training for m in model.modules()] == before


def test_the_plan_travels_with_copies(vit):
    slim = prune_model(vit(), plan_of(vit()).keeping(heads=[[0], [1], [2]]))
    assert plan_of(copy.deepcopy(slim)).kept_heads == 3


def test_the_uncut_form_of_a_model(vit, swin):
    for build in (vit, swin):
        model = build()
        plan = plan_of(model)
        small = slimvit.prune_model(model, plan.keeping(heads=[b.kept_heads[:-1] for b in plan.blocks]))
        dense = slimvit.insert_dense_attention(small)
        assert all(is_uncut_form(model, m) for m in (model, small, dense)) and is_uncut_form(small, dense)
        assert not is_uncut_form(small, model)
    assert not is_uncut_form(vit(depth=2), vit()) and not is_uncut_form(vit(), vit("deit_small_patch16_224"))
    assert not is_uncut_form(swin(), vit()) and not is_uncut_form(timm.create_model("resnet18"), vit())
