"""BEiT, EVA, DINOv3, SigLIP, CLIP, Perception Encoders, mixed rotary positions and Swin V2, each as a tiny variant."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import timm
import torch
from torch import nn

import slimvit
from slimvit.measure.flops.count import count_macs
from slimvit.measure.flops.parts import count_params
from slimvit.models.base import State
from slimvit.models.empty import EmptyNorm
from slimvit.models.insert_dense import insert_dense_attention, mixes_in, remove_dense_attention
from slimvit.models.modes import evaluating
from slimvit.models.registry import attention_blocks, family_of, plan_of, steps
from slimvit.prune.costs import latency_profile
from slimvit.prune.costs.macs import macs_costs
from slimvit.prune.costs.params import params_costs
from slimvit.prune.criteria.registry import score_parts
from slimvit.prune.refit import TARGETS_OF_REFIT, refit
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import ModelError

SMALL = {"embed_dim": 48, "num_heads": 3}
NETWORKS = {
    "siglip": ("vit", {"name": "vit_base_patch16_siglip_224", **SMALL}),
    "clip": ("vit", {"name": "vit_base_patch32_clip_224", **SMALL}),
    "beit": ("vit", {"name": "beit_base_patch16_224", **SMALL}),
    "beit, all biases": (
        "vit",
        {
            "name": "beitv2_base_patch16_224", **SMALL, "use_shared_rel_pos_bias": True, "use_abs_pos_emb": True,
            "swiglu_mlp": True, "init_values": None,
        },
    ),
    "eva": ("vit", {"name": "eva_large_patch14_196", **SMALL}),
    "eva02": ("vit", {"name": "eva02_tiny_patch14_224", **SMALL, "num_reg_tokens": 2}),
    "eva02, separate": ("vit", {"name": "eva02_base_patch14_224", **SMALL}),
    "post-norm": ("vit", {"name": "eva02_enormous_patch14_clip_224", **SMALL}),
    "dinov3": ("vit", {"name": "vit_small_patch16_dinov3", **SMALL}),
    "pe": ("vit", {"name": "vit_pe_core_tiny_patch16_384", **SMALL}),
    "mixed rope": ("vit", {"name": "vit_small_patch16_rope_mixed_224", **SMALL}),
    "swin v2": ("swin", {"name": "swinv2_tiny_window8_256"}),
    "swin v2, padded": ("swin", {"name": "swinv2_tiny_window8_256", "img_size": 40}),
}  # fmt: skip
DENSE = ["siglip", "beit", "beit, all biases", "eva02", "eva02, separate", "dinov3", "pe", "mixed rope"]
each = pytest.mark.parametrize("network", NETWORKS)


@pytest.fixture(scope="session")
def build(vit, swin):
    return cache(lambda network: {"vit": vit, "swin": swin}[NETWORKS[network][0]](**NETWORKS[network][1]))


def planned(model, what):
    """`heads`: another choice in every block, one of them without any; `neurons`: the same of neurons, where they can
    go; `everything`: no head and no neuron is left."""
    blocks = plan_of(model).blocks
    if what == "everything":
        return plan_of(model).keeping(heads=[()] * len(blocks), neurons=[()] * len(blocks))
    heads = [b.kept_heads for b in blocks]
    if "heads" in what:
        heads = [[h for h in b.kept_heads if h % 3 != (i + 1) % 3] if i != 1 else [] for i, b in enumerate(blocks)]
    neurons = [b.kept_neurons for b in blocks]
    if "neurons" in what:
        neurons = [b.kept_neurons[i + 1 :: 2] if i != 2 else () for i, b in enumerate(blocks)]
    return plan_of(model).keeping(heads=heads, neurons=neurons)


def silenced(model, plan, masked):
    """The whole model, with the neurons and heads that the plan drops giving zero."""
    model = masked(model, [b.kept_heads for b in plan.blocks])
    for view, block in zip(attention_blocks(model), plan.blocks, strict=True):
        if block.neurons:
            keep = torch.zeros(block.neurons).index_fill(0, torch.tensor(block.kept_neurons, dtype=torch.long), 1)
            view.mlp.fc2.register_forward_pre_hook(lambda _, args, m=keep: (args[0] * m,))
    return model


def outputs(model, x):
    with torch.no_grad():
        features = model.forward_features(x)
        return features, model.forward_head(features)


@each
@pytest.mark.parametrize("what", ["heads", "neurons", "heads and neurons", "everything"])
def test_cut_equals_silenced(network, what, build, masked, images, gap):
    model = build(network)
    plan, x = planned(model, what), images(model, 2)
    found, wanted = outputs(prune_model(model, plan), x), outputs(silenced(model, plan, masked), x)
    assert all(gap(f, w) <= 1e-5 for f, w in zip(found, wanted, strict=True))


@each
def test_one_wrong_head_misses_the_bar(network, build, masked, images, gap):
    """Without fused attention, which the other tests have."""
    model = copy.deepcopy(build(network))
    for view in attention_blocks(model):
        view.attn.fused_attn = False
    heads = [b.heads for b in plan_of(model).blocks]
    last, others = [range(1, h) for h in heads], [[0, *range(2, h)] for h in heads]
    x = images(model, 2)
    found = outputs(prune_model(model, plan_of(model).keeping(heads=last)), x)[0]
    assert gap(found, outputs(masked(model, last), x)[0]) <= 1e-5
    assert gap(found, outputs(masked(model, others), x)[0]) > 1e-3


@each
def test_the_steps_are_the_forward_pass(network, build, images, gap):
    for model in (build(network), prune_model(build(network), planned(build(network), "heads and neurons"))):
        with evaluating(model):
            state = State(images(model, 2))
            for step in steps(model):
                state = step.apply(state)
            assert gap(model.norm(state.stream), model.forward_features(images(model, 2))) <= 1e-6


@each
def test_cutting_twice_equals_cutting_once(network, build, images):
    model = build(network)
    final = planned(model, "heads and neurons")
    first = plan_of(model).keeping(heads=[sorted({*b.kept_heads, 0}) for b in final.blocks])
    twice = prune_model(prune_model(model, first), final)
    assert plan_of(twice) == final
    assert torch.equal(twice(images(model, 2)), prune_model(model, final)(images(model, 2)))


@each
def test_save_and_load(network, build, images, tmp_path):
    model = build(network)
    slim = prune_model(model, planned(model, "heads and neurons"))
    if network in DENSE:
        slim = insert_dense_attention(slim, "head", "normal")
    slimvit.save(slim, tmp_path / "slim")
    again = slimvit.load(tmp_path / "slim")
    assert plan_of(again) == plan_of(slim) and torch.equal(again(images(model, 2)), slim(images(model, 2)))


@each
def test_counters_agree_and_prices_add_up(network, build):
    model = build(network)
    whole = count_macs(model)
    assert all(block["qkv"] > 0 and block["attention"] > 0 for block in whole.by_block)
    for what in ("heads and neurons", "everything")[: 2 if network in ("post-norm", "swin v2") else 1]:
        slim = prune_model(model, planned(model, what))
        count = count_macs(slim)
        for one in (whole, count):
            assert one.disagreement() is None and one.closed_form is not None and one.torch_counter is not None
        assert macs_costs(model, whole.total).total(plan_of(slim)) == count.total
        assert params_costs(model).total(plan_of(slim)) == count_params(slim)


@each
@pytest.mark.parametrize("target", TARGETS_OF_REFIT)
def test_refitting_what_is_whole_changes_nothing(network, target, build, batches, images, gap):
    model = build(network)
    again = refit(model, model, batches(model, count=1, size=2), target=target, ridge=1e-3)
    assert gap(again(images(model, 2)), model(images(model, 2))) <= 1e-4


@each
@pytest.mark.parametrize("what", ["heads", "everything"])
def test_the_refit_repairs(network, what, build, batches, images):
    model = build(network)
    slim = prune_model(model, planned(model, what))
    error = {}
    for target in ("none", *(TARGETS_OF_REFIT if what == "heads" else ("stream",))):
        found = slim if target == "none" else refit(slim, model, batches(model), target=target, ridge=1e-2)
        x = images(model, seed=1)  # one of the calibration images
        with torch.no_grad():
            error[target] = (found.forward_features(x) - model.forward_features(x)).square().mean()
    assert error["stream"] < 0.7 * error["none"] and error["stream"] <= 1.02 * min(error.values()), error


@pytest.mark.parametrize("criterion", ["residual", "magnitude", "tp-taylor"])
@pytest.mark.parametrize("network", ["beit, all biases", "eva02, separate", "pe", "swin v2, padded"])
def test_a_head_that_does_nothing_goes_first(network, criterion, build, batches):
    model = copy.deepcopy(build(network))
    view = attention_blocks(model)[0]
    with torch.no_grad():
        view.attn.proj.weight[:, : view.head_dim] = 0
        if criterion == "magnitude":  # everything that goes with the head
            for rows in view.head_parts.rows:
                rows.layer.weight[rows.of([0])] = 0
            for part in view.head_parts.slices:
                getattr(view.attn, part.name).movedim(part.dim, 0)[: part.width] = 0
    parts = ("heads", "mlp") if all(b.neurons for b in plan_of(model).blocks) else ("heads",)
    scores = score_parts(model, batches(model, count=1), criterion, parts=parts)
    assert scores.of("heads")[0].order[0] == 0
    if criterion != "tp-taylor":  # it counts what is left of the group
        assert scores.of("heads")[0].alone[0] == pytest.approx(0, abs=1e-9 * scores.of("heads")[0].alone[1])


def test_where_neurons_stay_it_is_said(build, batches):
    with pytest.raises(ModelError, match=r"blocks\.0: .*it normalises across them \(scale_mlp\); cut heads alone"):
        score_parts(build("eva02, separate"), batches(build("eva02, separate")), "magnitude", parts=("heads", "mlp"))


@pytest.mark.parametrize("network", ["beit", "dinov3", "mixed rope", "swin v2"])
def test_narrow_models_train(network, build, images):
    slim = prune_model(build(network), planned(build(network), "heads and neurons")).train()
    slim(images(slim, 2)).square().sum().backward()
    blocks = [p for view in attention_blocks(slim) for p in view.block.parameters() if p.numel()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in blocks)
    assert plan_of(copy.deepcopy(slim)) == plan_of(slim)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:torch.searchsorted")  # timm's table resizing
@pytest.mark.parametrize("network", ["beit, all biases", "eva02", "mixed rope", "swin v2"])
def test_a_cut_model_takes_another_input_size(network, build, masked, images, gap):
    model = copy.deepcopy(build(network))
    slim = prune_model(model, planned(model, "heads"))
    side = 2 * model.patch_embed.img_size[0]
    for m in (model, slim):
        m.set_input_size(img_size=(side, side))
    wanted = masked(model, [b.kept_heads for b in plan_of(slim).blocks])
    assert gap(slim(images(slim, 1)), wanted(images(slim, 1))) <= 1e-5
    assert count_macs(slim).disagreement() is None


def test_images_of_any_size(build, masked, gap):
    model = build("dinov3")
    plan = planned(model, "heads")
    x = torch.randn(1, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    slim = prune_model(model, plan)
    assert gap(slim(x), masked(model, [b.kept_heads for b in plan.blocks])(x)) <= 1e-5
    assert all(b.attn.num_heads == len(p.kept_heads) for b, p in zip(slim.blocks, plan.blocks, strict=True))


def test_what_is_left_of_a_post_norm_branch_is_its_constant(build):
    model = build("post-norm")
    slim = prune_model(model, planned(model, "everything"))
    for before, after in zip(model.blocks, slim.blocks, strict=True):
        assert type(after.norm1) is EmptyNorm and type(after.norm2) is (
            EmptyNorm if plan_of(model).neurons else nn.LayerNorm
        )
        assert torch.equal(after.attn.proj.bias, before.norm1(before.attn.proj.bias))


@pytest.mark.parametrize("network", DENSE)
def test_dense_attention_changes_nothing_until_it_learns(network, build, images):
    model = prune_model(build(network), plan_of(build(network)).keeping(heads=[[0, 1, 2], [1, 2], [0, 2]]))
    x = images(model, 2)
    dense = insert_dense_attention(model, "layer")
    assert mixes_in(dense) == 3 and torch.equal(dense(x), model(x))
    assert count_macs(dense).disagreement() is None
    plain = remove_dense_attention(dense)
    assert torch.equal(plain(x), model(x))
    assert [type(m) for m in plain.modules()] == [type(m) for m in model.modules()]
    shaken = insert_dense_attention(model, "head", "normal")
    cut = prune_model(shaken, plan_of(model).keeping(heads=[[1, 2], [1, 2], [2]]))
    assert mixes_in(shaken) == 5 and mixes_in(cut) == 4 and not torch.allclose(shaken(x), model(x))
    with evaluating(shaken):
        state = State(x)
        for step in steps(shaken):
            state = step.apply(state)
        assert torch.allclose(shaken.norm(state.stream), shaken.forward_features(x), atol=1e-5)


@pytest.mark.parametrize("network", ["beit", "beit, all biases", "eva02, separate", "pe"])
def test_dense_attention_is_timms_with_other_values(network, build, images, gap):
    """timm's own attention, whose values are changed on their way out of the layer that makes them."""
    model = copy.deepcopy(build(network))
    dense = insert_dense_attention(model, "layer", "normal")
    seen = []

    def add(attn, biased):
        def hook(_, args, output):
            own = output[..., -attn.proj.in_features :]
            values = own + attn.v_bias if biased else own.clone()
            if (mix := dense.get_submodule(names[len(seen)]).attn.mix) is not None:
                own += sum(w * v for w, v in zip(mix, seen, strict=True))
            seen.append(values)

        return hook

    names = [view.name for view in attention_blocks(model)]
    for view in attention_blocks(model):
        attn = view.attn
        biased = getattr(attn, "q_bias", None) is not None
        attn.qkv_bias_separate = True  # so that the layer is called
        (attn.v_proj if attn.qkv is None else attn.qkv).register_forward_hook(add(attn, biased))
    with torch.no_grad():
        assert gap(model(images(model, 2)), dense(images(model, 2))) <= 1e-5
    assert len(seen) == 3


@pytest.mark.parametrize("network", ["post-norm", "swin v2"])
def test_families_without_dense_attention_say_why(network, build):
    with pytest.raises(ModelError, match=r"takes no dense attention: its norms stand behind .*; leave dense out"):
        insert_dense_attention(build(network))


@pytest.mark.parametrize("network", ["beit, all biases", "mixed rope", "swin v2"])
def test_blocks_of_every_width_can_be_timed(network, build, monkeypatch):
    def timed(module, *args, **kwargs):
        """Run, and as long as it has parameters: real times would fail on a busy machine."""
        module(*args, **kwargs)
        return 1e-6 * sum(p.numel() for p in module.parameters())

    monkeypatch.setattr(latency_profile, "ROUNDS", (1, 1))
    monkeypatch.setattr(latency_profile, "TURN", 1e-9)
    monkeypatch.setattr(latency_profile, "timed", timed)
    table = latency_profile.time_branches(build(network), 1)
    assert all(len(curve) > 1 for curve in table.curves.values()) and len(table.curves) >= 2


REFUSED = {
    "eva02_base_patch16_clip_224": (
        {},
        r"blocks\.0\.attn normalises across its heads \(scale_attn_inner\), so a head cannot be removed exactly",
    ),
    "eva02_small_patch14_224": (
        {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 2},
        r"blocks\.0\.attn shares keys and values between its heads \(num_kv_heads\), so none goes on its own",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    kwargs, reason = REFUSED[name]
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    with pytest.raises(ModelError, match=rf"^{name}: {reason}; supported: .*beitv2_\*"):
        family_of(model)


@pytest.mark.parametrize("network", ["post-norm", "swin v2"])
def test_another_norm_behind_the_branches_is_refused(network, build):
    model = copy.deepcopy(build(network))
    view = attention_blocks(model)[1]
    view.block.norm2 = nn.RMSNorm(view.attn.proj.out_features)
    with pytest.raises(ModelError, match=rf"{view.name} is normalised by a RMSNorm, not by a LayerNorm; supported"):
        family_of(model)
