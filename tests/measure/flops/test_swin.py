import copy

import pytest
import timm
import torch

from slimvit.measure.flops.count import count_macs
from slimvit.measure.flops.parts import count_params, params_by_part
from slimvit.models.parts.heads import HEADS
from slimvit.models.registry import attention_blocks, closed_form, plan_of
from slimvit.prune.surgery import prune_model

SMALL = {
    "plain": {},
    "padded": {"img_size": 72},
    "padded, not square": {"img_size": (72, 40), "depths": (2, 2, 2), "num_heads": (2, 4, 4)},
    "windows not square": {"img_size": 40, "window_size": (3, 4)},
    "always partition": {"always_partition": True, "img_size": 24},
    "any size": {"strict_img_size": False},
    "narrow heads": {"head_dim": 3},
    "without qkv bias": {"qkv_bias": False},
    "no classifier": {"num_classes": 0},
    "no pooling": {"global_pool": "", "num_classes": 0},
}
PLANS = {
    "uncut": None,
    "uneven": [[1], [0, 1], [0, 2, 3], [1]],
    "a block without heads": [[1], [], [0, 2, 3], [1]],
    "a stage without heads": [[0, 1], [0, 1], [], []],
}


def cut(model, kept_heads):
    return prune_model(model, plan_of(model).keeping(heads=kept_heads))


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


CASES = [(shape, "a block without heads") for shape in SMALL] + [("padded", plan) for plan in PLANS]


@pytest.mark.parametrize(("shape", "plan"), sorted(set(CASES)))
def test_three_counts_are_one(shape, plan, swin):
    model = swin(**SMALL[shape])
    blocks = plan_of(model).blocks
    if PLANS[plan] is not None:
        model = cut(model, PLANS[plan] + [[3]] * (len(blocks) - 4))
    count = count_macs(model)
    assert count.without_norm == count.closed_form == count.torch_counter, count.disagreement()
    assert count.agrees and count.uncounted == () and count.disagreement() is None
    assert sum(count.by_part.values()) == count.total and count.by_part["other"] == 0
    assert len(count.by_block) == len(blocks)
    assert sum(params_by_part(model).values()) == count_params(model)


@pytest.mark.parametrize("shape", ["plain", "padded"])
def test_fused_and_unfused_count_the_same(shape, swin):
    fused, unfused = swin(**SMALL[shape]), swin(**SMALL[shape])
    for net, flag in ((fused, True), (unfused, False)):
        for view in attention_blocks(net):
            view.attn.fused_attn = flag
    assert count_macs(fused) == count_macs(unfused)


@pytest.mark.parametrize("shape", ["padded, not square", "windows not square", "narrow heads"])
def test_head_macs_are_what_a_head_saves(shape, swin):
    model = swin(**SMALL[shape])
    before, after = count_macs(model), count_macs(cut(model, [range(1, b.heads) for b in plan_of(model).blocks]))
    saved = [sum(b[part] - a[part] for part in b) for b, a in zip(before.by_block, after.by_block, strict=True)]
    assert saved == [HEADS.macs(b).unit for b in attention_blocks(model)]
    assert before.without_norm - after.without_norm == sum(saved)


def test_the_last_head_saves_as_much_as_the_first(swin):
    model = cut(swin(img_size=72), [[1], [0, 1], [0, 2, 3], [1]])
    without = cut(model, [[], [0, 1], [0, 2, 3], [1]])
    assert (
        count_macs(model).without_norm - count_macs(without).without_norm == HEADS.macs(attention_blocks(model)[0]).unit
    )


def test_a_block_without_heads_still_has_its_mlp(swin):
    before, after = count_macs(swin()), count_macs(cut(swin(), [[0, 1], [], [0, 1, 2, 3], [0, 1, 2, 3]]))
    assert {part: after.by_block[1][part] for part in ("qkv", "attention", "proj")} == dict.fromkeys(
        ("qkv", "attention", "proj"), 0
    )
    assert after.by_block[1]["mlp"] == before.by_block[1]["mlp"] > 0
    assert after.by_block[1]["norm"] < before.by_block[1]["norm"]


def test_padded_tokens_cost_attention_and_no_mlp(swin):
    """18 x 18 patches are padded to 20 x 20; an MLP sees 324 tokens, qkv, proj and attention 400."""
    block = count_macs(swin(img_size=72)).by_block[0]
    assert block["mlp"] == 324 * 2 * 16 * 64
    assert (block["qkv"], block["proj"], block["attention"]) == (400 * 16 * 48, 400 * 16 * 16, 400 * 2 * 16 * 16)


@pytest.mark.parametrize("size", [(3, 56, 44), (3, 20, 36)])
def test_other_sizes_than_the_model_was_built_for(size, swin):
    count = count_macs(swin(strict_img_size=False), size)
    assert count.without_norm == count.closed_form == count.torch_counter


def test_the_input_size_set_later_counts(swin):
    model = swin()
    model.set_input_size(img_size=(64, 64), window_size=(4, 4))
    assert (
        closed_form(model, (3, 64, 64)) == closed_form(swin(img_size=64), (3, 64, 64)) == count_macs(model).without_norm
    )


def test_the_model_is_left_as_it_was(swin):
    model = swin().train()
    before = copy.deepcopy(model.state_dict())
    count_macs(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("swin_tiny_patch4_window7_224", 4.5e9),
        ("swin_small_patch4_window7_224", 8.7e9),
        ("swin_base_patch4_window7_224", 15.4e9),
        ("swin_base_patch4_window12_384", 47.0e9),
    ],
)
def test_published_models_in_closed_form(name, published):
    """Liu et al., Swin Transformer, ICCV 2021, Table 1."""
    assert closed_form(on_meta(name), timm.get_pretrained_cfg(name).input_size) == pytest.approx(published, rel=0.01)


def test_swin_tiny_is_counted_three_ways():
    count = count_macs(on_meta("swin_tiny_patch4_window7_224"))
    assert count.closed_form == count.torch_counter == count.without_norm == pytest.approx(4.5e9, rel=0.01)
    assert count.agrees and count.uncounted == () and len(count.by_block) == 12


def test_half_of_swin_tinys_heads_saves_what_they_cost():
    model = on_meta("swin_tiny_patch4_window7_224")
    kept = [list(range(b.heads))[::2] for b in plan_of(model).blocks]
    gone = [b.heads - len(k) for b, k in zip(plan_of(model).blocks, kept, strict=True)]
    size, slim = (3, 224, 224), cut(model, kept)
    saved = sum(n * HEADS.macs(view).unit for n, view in zip(gone, attention_blocks(model), strict=True))
    assert closed_form(model, size) - closed_form(slim, size) == saved
