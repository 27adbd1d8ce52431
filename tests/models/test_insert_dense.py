"""Dense attention in timm's models: whatever is done with them, earlier values take part."""

import copy
import shutil

import pytest
import timm
import torch
from timm.layers import DropPath, set_reentrant_ckpt
from timm.models._features import FeatureGetterNet, FeatureHookNet, FeatureListNet
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay

from slimvit.models.base import State
from slimvit.models.insert_dense import (
    can_mix,
    dense_mix,
    insert_dense_attention,
    mixes_in,
    mixes_of,
    remove_dense_attention,
)
from slimvit.models.linked import LinkedBlocks
from slimvit.models.modes import evaluating
from slimvit.models.registry import attention_blocks, plan_of, steps
from slimvit.prune.criteria.registry import CRITERIA, score_parts
from slimvit.prune.refit import TARGETS_OF_REFIT, refit
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import ModelError, PlanError

KEPT = {"vit": [[0, 2], [1, 2], [], [0, 1, 2]], "swin": [[0, 1], [], [0, 1], [0, 2, 3], [1], [1, 2, 3]]}
each_mix = pytest.mark.parametrize("mix", ["layer", "head"])
each_fusing = pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])


@pytest.fixture(params=["vit", "swin"])
def family(request):
    return request.param


@pytest.fixture
def build(vit, swin):
    """A small uncut model of a family."""

    def make(family, **kwargs):
        if family == "vit":
            return vit("vit_tiny_patch16_224", **({"depth": 4, "embed_dim": 24} | kwargs))
        return swin(**({"depths": (3, 3), "drop_path_rate": 0.0} | kwargs))

    return make


@pytest.fixture
def model(family, build):
    return build(family)


@pytest.fixture
def dense(model):
    """One mix a pair and head, drawn from N(0, 1)."""
    return insert_dense_attention(model, "head", "normal")


def cut(model, kept_heads):
    return prune_model(model, plan_of(model).keeping(heads=kept_heads))


def mixes(model):
    return {name: p for name, p in model.named_parameters() if name.endswith("attn.mix")}


def fuse(model, fused):
    for view in attention_blocks(model):
        view.attn.fused_attn = fused
    return model


def stages(model):
    """The containers of the blocks of each stage."""
    return [stage.blocks for stage in model.layers] if hasattr(model, "layers") else [model.blocks]


def entering(blocks, n):
    """A random stream [n, ..., C] for the first of a stage's blocks."""
    return torch.randn(n, *getattr(blocks[0], "input_resolution", (5,)), blocks[0].attn.proj.out_features)


def same(found, wanted):
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


# --- inserting


@each_mix
@each_fusing
@pytest.mark.parametrize("pruned", [False, True], ids=["uncut", "pruned"])
def test_inserting_changes_no_bit(family, pruned, mix, fused, model, images):
    if pruned:
        model = cut(model, KEPT[family])
    dense = insert_dense_attention(fuse(model, fused), mix)
    assert mixes_in(dense) > 0
    assert torch.equal(dense.forward_features(images(model)), model.forward_features(images(model)))
    assert torch.equal(dense(images(model)), model(images(model)))


def test_inserting_changes_no_bit_of_a_training_step(family, build, images):
    model = build(family, drop_path_rate=0.3, proj_drop_rate=0.1, attn_drop_rate=0.1).train()
    dense = insert_dense_attention(model)
    outputs = []
    for net in (model, dense):
        torch.manual_seed(0)
        outputs.append(net(images(net)))
        outputs[-1].square().sum().backward()
    assert dense.training and torch.equal(*outputs)
    for name, parameter in model.named_parameters():
        assert torch.equal(dense.get_parameter(name).grad, parameter.grad), name


@each_mix
def test_the_gradient_reaches_every_mix(mix, model, images):
    dense = insert_dense_attention(model, mix)
    dense(images(model)).square().sum().backward()
    assert mixes(dense)
    assert all((p.grad != 0).all() for p in mixes(dense).values())


def test_the_model_given_stays_as_it_was(model, images):
    before, classes = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    output = model(images(model))
    dense = insert_dense_attention(model, "head", "normal")
    assert not torch.equal(dense(images(model)), output)
    assert [type(m) for m in model.modules()] == classes and torch.equal(model(images(model)), output)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_no_module_is_shared_with_the_model_given(model, dense):
    assert not {id(m) for m in model.modules()} & {id(m) for m in dense.modules()}
    assert not {id(p) for p in model.parameters()} & {id(p) for p in dense.parameters()}


def test_every_key_but_the_mixes_is_timms(model, dense):
    state, found = model.state_dict(), dense.state_dict()
    assert found.keys() - state.keys() == mixes(dense).keys() and state.keys() <= found.keys()
    assert all(torch.equal(v, found[k]) for k, v in state.items())
    assert type(dense) is type(model) and plan_of(dense) == plan_of(model)


@pytest.mark.parametrize(
    ("name", "layer", "head"),
    [
        ("deit_tiny_patch16_224", 66, 66 * 3),
        ("swin_tiny_patch4_window7_224", 18, 1 * 3 + 1 * 6 + 15 * 12 + 1 * 24),
        ("swin_small_patch4_window7_224", 156, 1 * 3 + 1 * 6 + 153 * 12 + 1 * 24),
    ],
)
def test_number_of_mixes(name, layer, head):
    with torch.device("meta"):
        model = timm.create_model(name)
        found = {mix: mixes_in(insert_dense_attention(model, mix)) for mix in ("layer", "head")}
    assert found == {"layer": layer, "head": head}
    assert mixes_in(model) == 0


def test_blocks_that_share_no_head_do_not_mix(vit):
    dense = insert_dense_attention(cut(vit(depth=4), [[0], [1, 2], [], [0, 2]]), "head")
    assert mixes_of(dense).keys() == {("blocks.3", "blocks.0", 0), ("blocks.3", "blocks.1", 2)}
    assert [p.numel() for p in mixes(dense).values()] == [2] and list(mixes(dense)) == ["blocks.3.attn.mix"]


def test_blocks_that_neither_give_nor_take_stay_timms(vit):
    model = cut(vit(depth=4), [[0], [1], [], [0]])
    dense = insert_dense_attention(model)
    for i in (1, 2):
        assert type(dense.blocks[i]) is type(model.blocks[i])
        assert type(dense.blocks[i].attn) is type(model.blocks[i].attn)


def test_stages_do_not_mix(swin):
    dense = insert_dense_attention(swin(depths=(2, 3)))
    pairs = {(block, earlier) for block, earlier, _ in mixes_of(dense)}
    assert pairs == {
        ("layers.0.blocks.1", "layers.0.blocks.0"),
        ("layers.1.blocks.1", "layers.1.blocks.0"),
        ("layers.1.blocks.2", "layers.1.blocks.0"),
        ("layers.1.blocks.2", "layers.1.blocks.1"),
    }


def test_normal_draws_by_seed(model):
    first, again, other = (insert_dense_attention(model, "head", "normal", seed=s) for s in (1, 1, 2))
    assert mixes_of(first) == mixes_of(again) != mixes_of(other)
    drawn = torch.tensor(list(mixes_of(first).values()))
    assert 0.5 < drawn.std() < 1.5 and len(set(drawn.tolist())) == len(drawn)


@each_mix
def test_what_a_model_says_of_itself(mix, model):
    assert dense_mix(model) is None and mixes_of(model) == {} and mixes_in(model) == 0
    assert dense_mix(insert_dense_attention(model, mix)) == mix


@each_mix
def test_mixes_can_be_read_and_set(mix, family, model, images):
    model = cut(model, KEPT[family])
    dense = insert_dense_attention(model, mix, "normal")
    again = insert_dense_attention(model, mix, mixes=mixes_of(dense))
    assert mixes_of(again) == mixes_of(dense)
    assert torch.equal(again(images(model)), dense(images(model)))


def test_one_mix_a_pair_is_one_for_each_of_its_heads(family, model, images, gap):
    model = cut(model, KEPT[family])
    dense = insert_dense_attention(model, "layer", "normal")
    spread = insert_dense_attention(model, "head", mixes=mixes_of(dense))
    assert mixes_of(spread) == mixes_of(dense) and mixes_in(spread) > mixes_in(dense)
    assert gap(spread(images(model)), dense(images(model))) <= 1e-6


def test_mixes_keep_the_precision_of_the_model(model):
    dense = insert_dense_attention(model.double(), "head")
    for i, p in enumerate(mixes(dense).values()):
        p.data.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64))
    assert mixes_of(prune_model(dense, plan_of(dense))) == mixes_of(dense)


REFUSED = {
    "mix": (lambda m: insert_dense_attention(m, "block"), "dense mix 'block' is not known; choose from layer, head"),
    "init": (
        lambda m: insert_dense_attention(m, init="one"),
        "dense init 'one' is not known; choose from zero, normal",
    ),
    "twice": (
        lambda m: insert_dense_attention(insert_dense_attention(m, "head")),
        r"the model has dense attention already \(mix head\)",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_line(what, model):
    act, told = REFUSED[what]
    with pytest.raises(ModelError, match=f"^{told}$"):
        act(model)


@pytest.mark.parametrize(
    ("family", "kept"),
    [
        ("vit", [[0], [1], [], [2]]),
        ("vit", [[0, 1, 2], [], [], []]),
        ("swin", [[0], [1], [], [0, 1], [2], [3]]),
        ("swin", [[], [], [0, 1], [], [], [0]]),
    ],
)
def test_nothing_to_mix_is_refused(family, kept, build):
    slim = cut(build(family), kept)
    assert not can_mix(plan_of(slim))
    with pytest.raises(ModelError, match="^dense attention has nothing to mix: no two blocks of a stage share a head$"):
        insert_dense_attention(slim)


def test_a_model_of_no_family_is_refused():
    with pytest.raises(ModelError, match="ResNet is not a model slimvit can prune"):
        insert_dense_attention(timm.create_model("resnet10t"))


# --- removing


@each_mix
def test_removing_gives_the_plain_model_back(mix, family, model, images):
    model = cut(model, KEPT[family])
    plain = remove_dense_attention(insert_dense_attention(model, mix, "normal"))
    assert [type(m) for m in plain.modules()] == [type(m) for m in model.modules()]
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert plan_of(plain) == plan_of(model) and dense_mix(plain) is None
    assert torch.equal(plain(images(model)), model(images(model)))


def test_removing_leaves_the_dense_model_as_it_was(dense, images):
    before = dense(images(dense))
    remove_dense_attention(dense)
    assert dense_mix(dense) == "head" and torch.equal(dense(images(dense)), before)


# --- optimizers


GROUPS = {
    "weight decay": lambda m: param_groups_weight_decay(m, 0.05),
    "layer decay": lambda m: param_groups_layer_decay(m, 0.05, layer_decay=0.7),
    "optimizer": lambda m: create_optimizer_v2(m, "adamw", weight_decay=0.05).param_groups,
    "optimizer with layer decay": lambda m: (
        create_optimizer_v2(m, "adamw", weight_decay=0.05, layer_decay=0.7).param_groups
    ),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_timm_puts_no_weight_decay_on_mixes(kind, dense):
    groups = GROUPS[kind](dense)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(dense.parameters()))
    assert {decay[id(p)] for p in mixes(dense).values()} == {0.0}
    assert {decay[id(view.attn.proj.weight)] for view in attention_blocks(dense)} == {0.05}


# --- values travel from block to block, and nowhere else


def test_deepcopy(dense, images):
    twin, before = copy.deepcopy(dense), dense(images(dense))
    assert torch.equal(twin(images(dense)), before) and mixes_of(twin) == mixes_of(dense)
    for p in mixes(twin).values():
        p.data.zero_()
    assert torch.equal(dense(images(dense)), before) and not torch.equal(twin(images(dense)), before)


def test_two_forwards_at_once(dense, images):
    """Two images walk through the blocks in turns."""
    for blocks in stages(dense):
        a, b = entering(blocks, 2), entering(blocks, 3)
        wanted = blocks(a), blocks(b)
        for first, second in zip(blocks, blocks, strict=True):
            a, b = first(a), second(b)
        assert torch.equal(a, wanted[0]) and torch.equal(b, wanted[1])


def test_a_second_forward_does_not_see_the_first(dense, images):
    x, y = images(dense, seed=1), images(dense, seed=2)
    wanted = dense(y)
    dense(x)
    assert torch.equal(dense(y), wanted)
    both = dense(torch.cat([x, y]))
    assert torch.allclose(both[len(x) :], wanted, atol=1e-5)


def test_walking_gives_the_blocks_themselves(dense):
    for blocks in stages(dense):
        assert isinstance(blocks, LinkedBlocks)
        for i, block in enumerate(blocks):
            assert block.attn is blocks[i].attn and block.mlp is blocks[i].mlp


def test_modules_replaced_while_walking_are_replaced(dense):
    for blocks in stages(dense):
        for block in blocks:
            block.drop_path1 = DropPath(0.1)
        assert all(isinstance(blocks[i].drop_path1, DropPath) for i in range(len(blocks)))


def test_a_block_without_the_values_it_needs_says_so(dense):
    for blocks in stages(dense):
        stream = entering(blocks, 2)
        with pytest.raises(ModelError, match=r"needs the values of block 0 of its stage and got none; call the whole"):
            blocks[1](stream)
        _, carried = blocks[0](stream)
        blocks[1](stream, carried=carried)
        with pytest.raises(ModelError, match="needs the values of block 1 of its stage and got none"):
            blocks[2](stream, carried=carried.adding(None))


def test_walking_from_the_middle_says_so(dense):
    for blocks in stages(dense):
        _, second, *_ = blocks
        with pytest.raises(ModelError, match="needs the values of block 0"):
            second(entering(blocks, 2))


def test_the_steps_are_the_forward_pass(family, dense, images):
    dense = cut(dense, KEPT[family])
    state = State(images(dense))
    with evaluating(dense):
        for step in steps(dense):
            state = step.apply(state)
        assert torch.equal(dense.norm(state.stream), dense.forward_features(images(dense)))


# --- compilers


@pytest.mark.parametrize(("backend", "fused"), [("eager", False), ("aot_eager", True)])
def test_compile(backend, fused, dense, images, gap):
    """Of a model that has never run, and with gradients."""
    torch.compiler.reset()
    compiled = torch.compile(fuse(copy.deepcopy(dense), fused), backend=backend, fullgraph=True)
    found, wanted = compiled(images(dense)), fuse(dense, fused)(images(dense))
    assert gap(found, wanted) <= 1e-6
    found.square().sum().backward()
    wanted.square().sum().backward()
    for name, p in dense.named_parameters():
        assert gap(compiled._orig_mod.get_parameter(name).grad, p.grad) <= 1e-4, name


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compile_with_inductor(vit, images, gap):
    dense = insert_dense_attention(vit("vit_tiny_patch16_224", depth=2, embed_dim=24), "layer", "normal")
    torch.compiler.reset()
    with torch.no_grad():
        wanted = dense(images(dense))
        assert gap(torch.compile(dense, fullgraph=True)(images(dense)), wanted) <= 1e-5


def test_export(dense, images):
    x = images(dense)
    exported = torch.export.export(dense, (x,)).module()
    assert torch.equal(exported(x), dense(x))


def test_export_for_any_number_of_images(dense, images):
    batch = torch.export.Dim("batch", min=2, max=2**20)
    exported = torch.export.export(dense, (images(dense, 3),), dynamic_shapes={"x": {0: batch}}).module()
    assert torch.equal(exported(images(dense, 5)), dense(images(dense, 5)))


# --- gradient checkpointing


def test_gradient_checkpointing(dense, images, gap):
    dense.train()
    saving = copy.deepcopy(dense)
    saving.set_grad_checkpointing(True)
    found, wanted = (net(images(net)).square().sum() for net in (saving, dense))
    assert torch.equal(found, wanted)
    found.backward()
    wanted.backward()
    for name, p in dense.named_parameters():
        assert p.grad is not None and gap(saving.get_parameter(name).grad, p.grad) <= 1e-5, name


def test_gradient_checkpointing_with_stochastic_depth(family, build, images):
    """What is recomputed draws the same blocks."""
    dense = insert_dense_attention(build(family, drop_path_rate=0.5), "head", "normal").train()
    assert any(isinstance(m, DropPath) for m in dense.modules())
    gradients = []
    for checkpointing in (False, True):
        dense.set_grad_checkpointing(checkpointing)
        dense.zero_grad()
        torch.manual_seed(0)
        dense(images(dense)).square().sum().backward()
        gradients.append([p.grad for p in dense.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*gradients, strict=True))


@pytest.fixture
def reentrant():
    set_reentrant_ckpt(True)
    yield
    set_reentrant_ckpt(False)


def test_reentrant_checkpointing_is_refused(dense, images, reentrant):
    dense.train().set_grad_checkpointing(True)
    with pytest.raises(ModelError, match="need non-reentrant checkpointing: unset TIMM_REENTRANT"):
        dense(images(dense)).sum().backward()


def test_without_checkpointing_the_setting_does_no_harm(dense, images, reentrant):
    wanted = dense(images(dense))
    wanted.sum().backward()
    final, _ = dense.forward_intermediates(images(dense))
    assert torch.equal(dense.forward_head(final), wanted)


# --- timm's other ways through a model


@pytest.fixture
def masked_vit(build):
    return insert_dense_attention(build("vit"), "head", "normal")


def masks():
    blocked = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    blocked.fill_diagonal_(False)
    return {
        "boolean": {"attn_mask": ~blocked},
        "additive": {"attn_mask": torch.randn(5, 5, generator=torch.Generator().manual_seed(1))},
        "minus infinity": {"attn_mask": torch.zeros(5, 5).masked_fill(blocked, -torch.inf)},
        "by image and head": {"attn_mask": torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(2))},
        "causal": {"is_causal": True},
    }


@pytest.mark.parametrize("kind", masks())
def test_a_mask_on_the_fused_path_is_that_of_the_other(kind, masked_vit, images, gap):
    x, mask = images(masked_vit), masks()[kind]
    found = fuse(masked_vit, True).forward_features(x, **mask)
    assert gap(found, fuse(masked_vit, False).forward_features(x, **mask)) <= 1e-5
    assert gap(found, masked_vit.forward_features(x)) > 1e-3


@each_fusing
@pytest.mark.parametrize("kind", masks())
def test_a_mask_does_what_it_does_in_timm(kind, fused, build, images):
    model = fuse(build("vit"), fused)
    found = insert_dense_attention(model).forward_features(images(model), **masks()[kind])
    assert torch.equal(found, model.forward_features(images(model), **masks()[kind]))


@each_fusing
def test_a_mask_of_zeros_masks_nothing(fused, masked_vit, images, gap):
    x = images(fuse(masked_vit, fused))
    assert gap(masked_vit.forward_features(x, attn_mask=torch.zeros(5, 5)), masked_vit.forward_features(x)) <= 1e-6


def test_masks_that_say_the_same_are_the_same(masked_vit, images, gap):
    x = images(masked_vit)
    boolean, infinite = (masked_vit.forward_features(x, **masks()[kind]) for kind in ("boolean", "minus infinity"))
    assert gap(boolean, infinite) <= 1e-6
    causal = masked_vit.forward_features(x, is_causal=True)
    assert gap(masked_vit.forward_features(x, attn_mask=torch.ones(5, 5).tril().bool()), causal) <= 1e-6


def streams(dense, x):
    """What leaves each block of a ViT, each stage of a Swin, in the plain forward pass."""
    seen = []
    taps = list(dense.layers) if hasattr(dense, "layers") else [dense.blocks[i] for i in range(len(dense.blocks))]
    hooks = [tap.register_forward_hook(lambda _, args, output: seen.append(output)) for tap in taps]
    dense(x)
    for hook in hooks:
        hook.remove()
    return [s if isinstance(s, torch.Tensor) else s[0] for s in seen]


def as_maps(streams):
    """timm's NCHW, without prefix tokens."""
    return [s.permute(0, 3, 1, 2) if s.ndim == 4 else s[:, 1:].mT.unflatten(2, (2, 2)) for s in streams]


def test_forward_intermediates(dense, images):
    x = images(dense)
    final, found = dense.forward_intermediates(x)
    assert torch.equal(final, dense.forward_features(x))
    assert same(found, as_maps(streams(dense, x)))


@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("pruned", [False, True], ids=["uncut", "pruned"])
def test_forward_intermediates_of_some_blocks(stop_early, pruned, family, dense, images):
    if pruned:
        dense = cut(dense, KEPT[family])
    x, indices = images(dense), [1, 2] if family == "vit" else [0]
    found = dense.forward_intermediates(x, indices=indices, stop_early=stop_early, intermediates_only=True)
    wanted = as_maps(streams(dense, x))
    assert same(found, [wanted[i] for i in indices])


def test_forward_intermediates_with_checkpointing_and_with_a_mask(masked_vit, images):
    x, mask = images(masked_vit), torch.ones(5, 5).tril().bool()
    wanted = masked_vit.forward_features(x, attn_mask=mask)
    assert torch.equal(masked_vit.forward_intermediates(x, attn_mask=mask)[0], wanted)
    masked_vit.set_grad_checkpointing(True)
    assert torch.equal(masked_vit.forward_intermediates(x)[0], masked_vit.forward_features(x))


def test_features_only_of_a_vit(build, images):
    dense = insert_dense_attention(build("vit"), "head", "normal")
    x, indices = images(dense), [0, 2]
    wanted = as_maps(streams(dense, x))
    assert isinstance(timm.create_model("vit_tiny_patch16_224", depth=3, features_only=True), FeatureGetterNet)
    found = FeatureGetterNet(copy.deepcopy(dense), out_indices=indices)(x)
    assert same(found, [wanted[i] for i in indices])
    hooked = FeatureHookNet(copy.deepcopy(dense), out_indices=indices)(x)
    assert same(as_maps(hooked), [wanted[i] for i in indices])


def test_features_only_of_a_swin(build, images):
    dense = insert_dense_attention(build("swin"), "head", "normal")
    x = images(dense)
    wanted = streams(dense, x)
    plain = timm.create_model("swin_tiny_patch4_window7_224", depths=(1,), num_heads=(1,), features_only=True)
    assert isinstance(plain, FeatureListNet)
    assert same(FeatureListNet(copy.deepcopy(dense), out_indices=(0, 1), flatten_sequential=True)(x), wanted)
    assert same(FeatureGetterNet(copy.deepcopy(dense), out_indices=[0])(x), as_maps(wanted[:1]))


def test_reset_classifier(dense, images):
    x = images(dense)
    features = dense.forward_features(x)
    dense.reset_classifier(7)
    assert torch.equal(dense.forward_features(x), features)
    assert torch.equal(dense(x), dense.forward_head(features)) and dense(x).shape == (4, 7)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:torch.searchsorted")  # timm's table resizing
@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_set_input_size(size, family, model, images):
    """Before or after inserting is the same."""
    model = cut(model, KEPT[family])
    dense = insert_dense_attention(model, "head", "normal")
    dense.set_input_size(img_size=size)
    model.set_input_size(img_size=size)
    wanted = insert_dense_attention(model, "head", mixes=mixes_of(dense))
    assert images(dense).shape[-2:] == size
    assert torch.equal(dense(images(dense)), wanted(images(dense)))


def test_bfloat16_autocast(model, dense, images, gap):
    x = images(dense)
    with torch.autocast("cpu", torch.bfloat16):
        found, plain = dense(x), model(x)
    assert gap(found.float(), dense(x)) < 0.05 < gap(found.float(), plain.float())


def test_a_training_step_under_autocast_reaches_every_parameter(dense, images, gap):
    dense.train()
    dense(images(dense)).square().sum().backward()
    wanted = {name: p.grad for name, p in mixes(dense).items()}
    dense.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = dense(images(dense)).float().square().sum()
    loss.backward()
    assert [n for n, p in dense.named_parameters() if p.grad is None] == []
    scale = max(g.abs().max() for g in wanted.values())
    for name, p in mixes(dense).items():
        assert (p.grad - wanted[name]).abs().max() / scale < 0.1, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, dense, images, gap):
    found = copy.deepcopy(dense).to(dtype)(images(dense).to(dtype))
    assert found.dtype == dtype and gap(found.float(), dense(images(dense))) < 0.1


# --- cutting, scoring and refitting a model that has dense attention


def without_shared_mixes(dense, kept):
    """A copy in which the mixes of every pair and head that one of the two blocks is to lose are zero."""
    names = {b.name: k for b, k in zip(plan_of(dense).blocks, kept, strict=True)}
    weights = {
        (block, earlier, head): w if head in names[block] and head in names[earlier] else 0.0
        for (block, earlier, head), w in mixes_of(dense).items()
    }
    return insert_dense_attention(remove_dense_attention(dense), "head", mixes=weights)


@each_mix
@each_fusing
def test_cut_equals_masked_heads(mix, fused, family, model, masked, images, gap):
    kept, dense = KEPT[family], insert_dense_attention(fuse(model, fused), mix, "normal")
    wanted = masked(without_shared_mixes(dense, kept), kept)
    slim = cut(dense, kept)
    assert dense_mix(slim) == mix and plan_of(slim).removed_heads > 0
    x = images(model)
    assert gap(slim.forward_features(x), wanted.forward_features(x)) <= 1e-5
    assert gap(slim(x), wanted(x)) <= 1e-5


def test_a_mix_left_behind_misses_the_bar(family, dense, masked, images, gap):
    kept, x = KEPT[family], images(dense)
    assert gap(masked(dense, kept).forward_features(x), cut(dense, kept).forward_features(x)) > 1e-3


def test_cutting_twice_equals_cutting_once(dense, family, images):
    once = cut(dense, KEPT[family])
    blocks = plan_of(dense).blocks
    half = [kept if i % 2 else range(blocks[i].heads) for i, kept in enumerate(KEPT[family])]
    twice = cut(cut(dense, half), KEPT[family])
    assert mixes_of(twice) == mixes_of(once) and torch.equal(twice(images(dense)), once(images(dense)))


def test_keeping_every_head_changes_nothing(dense, images):
    again = prune_model(dense, plan_of(dense))
    assert mixes_of(again) == mixes_of(dense) and torch.equal(again(images(dense)), dense(images(dense)))


def test_the_dense_model_given_stays_as_it_was(family, dense, images):
    before, output = copy.deepcopy(dense.state_dict()), dense(images(dense))
    cut(dense, KEPT[family])
    assert all(torch.equal(v, before[k]) for k, v in dense.state_dict().items())
    assert torch.equal(dense(images(dense)), output) and plan_of(dense).removed_heads == 0


def test_a_cut_that_leaves_nothing_to_mix_leaves_a_plain_model(vit, images):
    model = vit()
    dense = insert_dense_attention(model, "head", "normal")
    slim = cut(dense, [[0], [1], [2]])
    assert dense_mix(slim) is None
    assert torch.equal(slim(images(model)), cut(model, [[0], [1], [2]])(images(model)))


def test_a_head_that_is_gone_cannot_come_back(family, dense):
    slim = cut(dense, KEPT[family])
    with pytest.raises(PlanError, match="the plan keeps head 1, which was removed earlier|keeps head 0, which was"):
        prune_model(slim, plan_of(dense))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_scores_a_dense_model(criterion, family, dense, batches):
    for net in (dense, cut(dense, KEPT[family])):
        scores = score_parts(net, batches(net, count=2), criterion).table()
        kept = [list(b.kept_heads) for b in plan_of(net).blocks]
        assert [[h for h, value in enumerate(row) if value is not None] for row in scores] == kept
        assert all(value is None or 0 <= value < float("inf") for row in scores for value in row)


def error(model, original, data):
    """Squared error of the features over their variance."""
    with torch.no_grad():
        found = torch.cat([model.forward_features(x).flatten(0, -2) for x, _ in data])
        wanted = torch.cat([original.forward_features(x).flatten(0, -2) for x, _ in data])
    return float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


@pytest.mark.parametrize("target", TARGETS_OF_REFIT)
def test_the_refit_brings_a_cut_dense_model_nearer_the_original(target, family, dense, batches):
    slim, data = cut(dense, KEPT[family]), batches(dense, count=3, size=24)
    fitted = refit(slim, dense, data, target, ridge=0.01)
    assert error(fitted, dense, data) < error(slim, dense, data)
    assert mixes_of(fitted) == mixes_of(slim)


@pytest.mark.parametrize("target", TARGETS_OF_REFIT)
def test_with_and_without_cache(target, family, dense, batches):
    slim, data = cut(dense, KEPT[family]), batches(dense, count=2, size=16)
    cached = refit(slim, dense, data, target, cache=True).state_dict()
    recomputed = refit(slim, dense, data, target, cache=False).state_dict()
    assert all(torch.allclose(cached[k], recomputed[k], rtol=1e-3, atol=1e-4) for k in cached)


@pytest.mark.parametrize("target", TARGETS_OF_REFIT)
def test_nothing_removed_nothing_changed(target, dense, batches, gap):
    data = batches(dense, count=3, size=24)
    fitted = refit(prune_model(dense, plan_of(dense)), dense, data, target, ridge=1e-6)
    assert gap(fitted.forward_features(data[0][0]), dense.forward_features(data[0][0])) <= 1e-3
