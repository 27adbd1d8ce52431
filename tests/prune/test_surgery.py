import inspect

import pytest
import torch
from timm.layers import Attention
from torch import nn

from slimvit.models.empty import EmptyAttention
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.surgery import prune_model, pruned_block
from slimvit.utils.errors import PlanError

MODELS = {
    "deit_tiny_patch16_224": {},
    "deit_small_patch16_224": {},
    "deit3_small_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_base_patch32_clip_224": {},
    "vit_tiny_patch16_224": {"qk_norm": True},
    "gated": {},
}
NEEDS_GATE = pytest.mark.skipif("gated" not in inspect.signature(Attention).parameters, reason="this timm has no gate")
PLANS = {
    "uneven": lambda h: [[i for i in range(h) if i != 1], list(range(h)), [h - 1]],
    "one head left": lambda h: [[0], [1], [h - 1]],
    "a block without heads": lambda h: [list(range(1, h)), [], [1]],
}
each_model = pytest.mark.parametrize("name", [pytest.param(n, marks=NEEDS_GATE) if n == "gated" else n for n in MODELS])


@pytest.fixture
def build(vit, randomise):
    def make(name="deit_tiny_patch16_224"):
        if name != "gated":
            return vit(name, **MODELS[name])
        model = vit("vit_tiny_patch16_224")
        for block in model.blocks:
            block.attn = Attention(192, num_heads=3, qkv_bias=True, gated=True)
        return randomise(model)

    return make


def cut(model, kept_heads):
    return prune_model(model, plan_of(model).keeping(heads=kept_heads))


def outputs(model, x):
    with torch.no_grad():
        features = model.forward_features(x)
        return {"features": features, "logits": model.forward_head(features)}


@each_model
@pytest.mark.parametrize(("plan", "fused"), [(plan, True) for plan in PLANS] + [("uneven", False)])
def test_cut_equals_silenced_heads(name, plan, fused, build, masked, images, gap):
    model = build(name)
    for block in model.blocks:
        block.attn.fused_attn = fused
    kept = PLANS[plan](model.blocks[0].attn.num_heads)
    found, wanted = outputs(cut(model, kept), images(model)), outputs(masked(model, kept), images(model))
    for what in found:
        assert gap(found[what], wanted[what]) <= 1e-5, what


@each_model
def test_one_wrong_head_misses_the_bar(name, build, masked, images, gap):
    model = build(name)
    h = model.blocks[0].attn.num_heads
    wrong = [list(range(h)), list(range(1, h)), list(range(h))]
    found = outputs(cut(model, wrong), images(model))
    for head in range(1, h):
        right = [wrong[0], [i for i in range(h) if i != head], wrong[2]]
        wanted = outputs(masked(model, right), images(model))
        assert all(gap(found[what], wanted[what]) > 1e-3 for what in found)


def test_keeping_every_head_changes_nothing(build, images):
    model = build()
    same = prune_model(model, plan_of(model))
    assert torch.equal(same(images(model)), model(images(model)))


def test_the_model_given_stays_as_it_was(build):
    model = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cut(model, [[0], [], [1, 2]])
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert plan_of(model).removed_heads == 0


def test_cutting_twice_equals_cutting_once(build, images):
    model = build("deit_small_patch16_224")
    final = [[1, 4], [], [0, 5]]
    once = cut(model, final)
    twice = cut(cut(model, [[1, 2, 4], [3], [0, 3, 4, 5]]), final)
    assert plan_of(twice) == plan_of(once)
    assert torch.equal(twice(images(model)), once(images(model)))


def test_a_head_that_is_gone_cannot_come_back(build):
    model = build("deit_small_patch16_224")
    slim = cut(model, [[0, 1], [2], [3]])
    with pytest.raises(PlanError, match=r"blocks\.0: the plan keeps head 5, which was removed earlier.*\[0, 1\]"):
        prune_model(slim, plan_of(model).keeping(heads=[[5], [2], [3]]))


def test_an_emptied_block_loses_norm_and_weights(build):
    slim = cut(build(), [[], [0], [1]])
    block = slim.blocks[0]
    assert isinstance(block.attn, EmptyAttention) and isinstance(block.norm1, nn.Identity)
    assert sorted(k for k in slim.state_dict() if k.startswith("blocks.0.attn")) == [
        "blocks.0.attn.proj.bias",
        "blocks.0.attn.proj.weight",
    ]
    assert block.attn.proj.weight.shape == (192, 0)


def test_on_the_meta_device(vit):
    with torch.device("meta"):
        model = vit()
        slim = cut(model, [[], [0], [1, 2]])
    assert {p.device.type for p in slim.parameters()} == {"meta"}
    assert slim.blocks[2].attn.qkv.weight.shape == (2 * 64 * 3, 192)


def test_without_proj_bias(vit, masked, images, gap):
    model = vit("vit_tiny_patch16_224", proj_bias=False)
    kept = [[], [0, 2], [1]]
    assert gap(cut(model, kept)(images(model)), masked(model, kept)(images(model))) <= 1e-5


@pytest.mark.parametrize(("heads", "neurons"), [(2, 0), (0, 40), (3, 16), (1, 768), (0, 0), (3, 768)])
def test_a_block_alone_is_narrowed_as_in_its_model(vit, heads, neurons):
    model = vit()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    plan = plan_of(model).keeping(heads=[range(heads)] * 3, neurons=[range(neurons)] * 3)
    wanted = prune_model(model, plan).blocks[1]
    found = pruned_block(attention_blocks(model)[1], {"heads": heads, "mlp": neurons})
    x = torch.randn(2, 5, 192, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found(x), wanted(x)) and found.state_dict().keys() == wanted.state_dict().keys()
    assert all(p.equal(before[name]) for name, p in model.state_dict().items())
