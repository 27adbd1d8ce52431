"""Token merging in timm's models: whatever is done with them, later blocks see the merged tokens."""

import copy

import pytest
import torch
from torch.nn.functional import cosine_similarity

import slimvit
from slimvit.config.recipe import ModelSection
from slimvit.io.backbone import backbone
from slimvit.measure.flops.count import count_macs
from slimvit.models.base import State
from slimvit.models.insert_dense import dense_mix, insert_dense_attention, remove_dense_attention
from slimvit.models.insert_merging import merges_of
from slimvit.models.linked import LinkedBlocks
from slimvit.models.modes import evaluating
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import plan_of, steps
from slimvit.prune.costs.macs import macs_costs
from slimvit.prune.criteria.registry import score_parts
from slimvit.prune.surgery import prune_model
from slimvit.report.run.model_table import inspection_text
from slimvit.utils.errors import ModelError, PlanError
from slimvit.workflows.inspect import inspect_model

MERGES = (0, 5, 3)
MODELS = {
    "deit": {"name": "deit_tiny_patch16_224", "img_size": 64},
    "distilled": {"name": "deit_tiny_distilled_patch16_224", "img_size": 64},
    "registers": {"name": "vit_small_patch14_reg4_dinov2", "img_size": 56},
    "average": {"name": "vit_base_patch16_siglip_224", "img_size": 64, "global_pool": "avg", "class_token": False},
    "attention pooling": {"name": "vit_base_patch16_siglip_224", "img_size": 64},
    "qk_norm": {"name": "vit_tiny_patch16_224", "img_size": 64, "qk_norm": True},
    "odd": {"name": "vit_tiny_patch16_224", "img_size": 80},
}
each_model = pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS.keys())


def merging(model, merges=MERGES, **kept):
    """The model cut to a plan in which each block merges so many tokens."""
    plan = plan_of(model)
    return prune_model(model, plan.keeping(tokens=_left(plan, merges), **kept))


def _left(plan, merges):
    return [range(b.tokens - r) for b, r in zip(plan.blocks, merges, strict=True)]


@pytest.fixture
def model(vit):
    return vit(img_size=64)


@pytest.fixture
def merged(model):
    return merging(model)


# --- against one image in loops


def reference(model, image, merges):
    """The normed stream [N, C] of one image, with lists of tokens and groups of original ones."""
    x = steps(model)[0].apply(State(image[None])).stream[0]
    groups, values = [[i] for i in range(len(x))], []
    for block, r in zip(model.blocks.children(), merges, strict=True):
        out, keys, own = _attend(block.attn, block.norm1(x), [len(g) for g in groups], values)
        values.append(own)
        x = x + block.ls1(out)
        x, groups, values = _merge(x, groups, values, keys, model.num_prefix_tokens, r)
        x = x + block.ls2(block.mlp(block.norm2(x)))
    places = {i: p for p, group in enumerate(groups) for i in group}
    return model.norm(x[[places[i] for i in range(len(places))]])


def _attend(attn, x, sizes, values):
    """Output [n, C], mean keys [n, d] and own values [n, k]; every key counts as often as its size says."""
    if not attn.num_heads:
        return attn(x), None, None
    parts = attn.qkv(x).chunk(3, -1) if attn.qkv is not None else (attn.q_proj(x), attn.k_proj(x), attn.v_proj(x))
    q, k, own = (t.unflatten(-1, (attn.num_heads, -1)) for t in parts)
    v = own
    mixes = [] if getattr(attn, "mix", None) is None else list(zip(attn.pairs, attn.mix, strict=True))
    for pair, weight in mixes:
        v = v + weight * values[pair.earlier]
    q, k, outs = attn.q_norm(q), attn.k_norm(k), []
    for h in range(attn.num_heads):
        weights = (q[:, h] @ k[:, h].T * attn.scale).exp() * torch.tensor(sizes)
        outs.append(weights / weights.sum(-1, keepdim=True) @ v[:, h])
    return attn.proj(torch.cat(outs, -1)), k.mean(1), own


def _merge(x, groups, values, keys, prefix, r):
    keys = x if keys is None else keys
    every = list(range(prefix, len(x)))
    best = {}
    for i in every[::2]:
        alike = {j: float(cosine_similarity(keys[i], keys[j], dim=0)) for j in every[1::2]}
        best[i] = max(alike.items(), key=lambda pair: pair[1])
    gone = sorted(best, key=lambda i: -best[i][1])[:r]
    new = {i: [i] for i in range(len(x)) if i not in gone}
    for i in gone:
        new[best[i][0]].append(i)

    def mean(t):
        if t is None:
            return None
        rows = [sum(t[i] * len(groups[i]) for i in ids) / sum(len(groups[i]) for i in ids) for ids in new.values()]
        return torch.stack(rows)

    return mean(x), [[o for i in ids for o in groups[i]] for ids in new.values()], [mean(v) for v in values]


@each_model
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
def test_the_network_is_that_of_one_image_in_loops(settings, fused, vit, images):
    net = merging(vit(**settings))
    for block in net.blocks.children():
        block.attn.fused_attn = fused
    x = images(net)
    with torch.no_grad():
        found = net.forward_features(x)
        for i, image in enumerate(x):
            assert torch.allclose(found[i], reference(net, image, MERGES), atol=2e-5)
    assert net.forward_head(found).shape == net(x).shape and torch.equal(net.forward_head(found), net(x))


@pytest.mark.parametrize(
    "kept",
    [
        {"heads": [[0, 2], [1, 2], []]},
        {"neurons": [range(100), (), range(7)]},
        {"qk_channels": [range(16), range(32), range(64)]},
    ],
    ids=["heads", "neurons", "query/key width"],
)
@pytest.mark.parametrize("mixes", [False, True], ids=["plain", "dense"])
def test_with_other_parts_and_dense_attention(kept, mixes, model, images):
    net = merging(model, (4, 1, 2), **kept)
    if mixes:
        net = insert_dense_attention(net, "layer", "normal")
    x = images(net)
    if mixes and "heads" in kept:  # unequal heads: mixed by the steps alike
        _check_steps(net, x)
        return
    with torch.no_grad():
        for i, image in enumerate(x):
            assert torch.allclose(net.forward_features(x)[i], reference(net, image, (4, 1, 2)), atol=5e-5)


def _check_steps(net, x):
    with evaluating(net):
        state = steps(net)[0].apply(State(x))
        for step in steps(net)[1:]:
            state = step.apply(state)
        assert torch.equal(net.norm(state.stream.gather(1, _index(state))), net.forward_features(x))


def _index(state):
    return state.carried.tokens.sources[..., None].expand(-1, -1, state.stream.shape[-1])


def test_a_batch_is_its_images_one_by_one(merged, images):
    x = images(merged)
    with torch.no_grad():
        assert torch.allclose(merged(x), torch.cat([merged(image[None]) for image in x]), atol=1e-6)


# --- what stays as it was


def test_merging_nothing_changes_no_bit_and_no_class(model, images):
    net = merging(model, (0, 0, 0))
    assert [type(m) for m in net.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(net(images(net)), model(images(model)))


def test_blocks_before_the_first_merging_stay_timms(model, merged):
    assert type(merged.blocks[0]) is type(model.blocks[0]) and isinstance(merged.blocks, LinkedBlocks)
    assert merged.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in merged.state_dict().items())


def test_the_model_given_stays_as_it_was(model, images):
    before, classes = model(images(model)), [type(m) for m in model.modules()]
    net = merging(model)
    assert not torch.equal(net(images(net)), before) and torch.equal(model(images(model)), before)
    assert [type(m) for m in model.modules()] == classes


def test_copies_and_two_forwards_do_not_see_each_other(merged, images):
    x, y = images(merged, seed=1), images(merged, seed=2)
    wanted = merged(y)
    twin = copy.deepcopy(merged)
    merged(x)
    assert torch.equal(merged(y), wanted) and torch.equal(twin(y), wanted)


# --- timm's ways through the blocks


def test_maps_have_a_copy_in_every_place(merged, images):
    x = images(merged)
    last, maps = merged.forward_intermediates(x, norm=True)
    assert [m.shape[1:] for m in maps] == [(192, 4, 4)] * 3 and torch.equal(last, merged.forward_features(x))
    assert torch.equal(maps[-1].flatten(2).transpose(1, 2), last[:, 1:])
    for m, distinct in zip(maps, (16, 11, 8), strict=True):
        assert len(torch.unique(m[0].flatten(1).detach(), dim=1).T) == distinct
    found = backbone(merged, [0, 2], norm=True)(x)
    assert all(torch.allclose(a, maps[i], atol=1e-6) for a, i in zip(found, (0, 2), strict=True))


def test_gradient_checkpointing(merged, images):
    x, gradients = images(merged), []
    for checkpointing in (False, True):
        net = copy.deepcopy(merged).train()
        net.set_grad_checkpointing(checkpointing)
        net(x).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-3) for a, b in zip(*gradients, strict=True))


def test_masks_are_refused(merged, images):
    with pytest.raises(ModelError, match="a model that merges tokens takes no attn_mask and no is_causal; leave them"):
        merged.forward_features(images(merged), attn_mask=torch.ones(17, 17, dtype=torch.bool))
    with pytest.raises(ModelError, match="takes no attn_mask"):
        merged.forward_features(images(merged), is_causal=True)


def test_the_steps_are_the_forward_pass(merged, images):
    _check_steps(merged, images(merged))


def test_compile(merged, images, gap):
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(merged), backend="aot_eager", fullgraph=True)
    found, wanted = compiled(images(merged)), merged(images(merged))
    assert gap(found, wanted) <= 1e-6
    found.square().sum().backward()
    wanted.square().sum().backward()
    for name, p in merged.named_parameters():
        assert gap(compiled._orig_mod.get_parameter(name).grad, p.grad) <= 1e-4, name


def test_export_for_any_number_of_images(merged, images):
    batch = torch.export.Dim("batch", min=2, max=2**20)
    exported = torch.export.export(merged, (images(merged, 3),), dynamic_shapes={"x": {0: batch}}).module()
    assert torch.equal(exported(images(merged, 5)), merged(images(merged, 5)))


# --- dense attention


def test_dense_attention_changes_no_bit_until_it_mixes(merged, images):
    dense = insert_dense_attention(merged)
    assert dense_mix(dense) == "layer" and dense_mix(merged) is None
    assert torch.equal(dense(images(dense)), merged(images(merged)))
    plain = remove_dense_attention(dense)
    assert merges_of(plain) == [*MERGES] and [type(m) for m in plain.modules()] == [type(m) for m in merged.modules()]


def test_a_dense_model_is_cut_and_its_mixes_stay(model, images):
    dense = insert_dense_attention(model, "layer", "normal")
    net = merging(dense)
    assert merges_of(net) == [*MERGES] and dense_mix(net) == "layer"
    assert torch.allclose(net.blocks[2].attn.mix, dense.blocks[2].attn.mix)
    assert torch.equal(merging(net, (0, 5, 3))(images(net)), net(images(net)))


# --- plans, costs, files


def test_plans(model, tmp_path):
    plan = plan_of(merging(model))
    assert "0 tokens merged" in plan.blocks[0].words() and "5 tokens merged" in repr(plan) and plan.removed_tokens == 8
    plan.write(tmp_path / "plan.json")
    entries = [b for b in plan.to_json()["blocks"]]
    assert [(b["mergeable_tokens"], b["merged_tokens"]) for b in entries] == [(8, 0), (8, 5), (8, 3)]
    assert SlimPlan.read(tmp_path / "plan.json").on(plan) == plan
    assert "merged_tokens" not in plan_of(model).to_json()["blocks"][0]


def test_a_missing_number_of_merged_tokens_is_0(model):
    data = plan_of(merging(model)).to_json()
    del data["blocks"][1]["merged_tokens"], data["blocks"][2]["merged_tokens"], data["blocks"][2]["mergeable_tokens"]
    net = prune_model(model, SlimPlan.from_json(data))
    assert merges_of(net) == [0, 0, 0]


@pytest.mark.parametrize(
    ("block", "key", "value", "message"),
    [
        (1, "merged_tokens", 9, r"blocks\[1\]\.merged_tokens: expected a whole number of 0 to 8, found 9"),
        (1, "merged_tokens", "5", r"blocks\[1\]\.merged_tokens: expected a whole number of 0 to 8, found '5'"),
        (1, "mergeable_tokens", 7, r"blocks\.1: the plan is for 7 tokens, but the model's block has 8"),
        (2, "merged_tokens", 6, r"blocks\.2: the plan merges 6 tokens, but at most 5, half of those that earlier"),
    ],
)
def test_wrong_plans_are_named(block, key, value, message, model):
    data = plan_of(merging(model)).to_json()
    data["blocks"][block][key] = value
    with pytest.raises(PlanError, match=message):
        prune_model(model, SlimPlan.from_json(data))


def test_a_merged_model_is_cut_again(model, images):
    first = merging(model, (2, 0, 0))
    net = merging(first, (3, 1, 0), heads=[[0], [1, 2], [0]])
    whole = merging(model, (3, 1, 0), heads=[[0], [1, 2], [0]])
    assert plan_of(net) == plan_of(whole) and torch.equal(net(images(net)), whole(images(net)))
    with pytest.raises(PlanError, match="which was removed earlier"):
        merging(net, (2, 1, 0))


@each_model
def test_counters_and_costs_agree(settings, vit):
    model = vit(**settings)
    costs = macs_costs(model, count_macs(model).total)
    net = merging(model, (2, 0, 3))
    count = count_macs(net)
    assert count.agrees and not count.uncounted and count.closed_form == count.without_norm
    assert count.by_part["other"] == 0 and len({tuple(parts) for parts in count.by_block}) == 1
    if settings.get("qk_norm") is None:  # the norms of queries and keys count among what no part owns
        assert costs.total(plan_of(net)) == count.total
    assert macs_costs(net, count.total).total(plan_of(net)) == count.total
    smaller = merging(model, (2, 1, 4), heads=[[0], [1, 2], [0]], neurons=[range(8), range(9), range(10)])
    if settings.get("qk_norm") is None:
        assert costs.total(plan_of(smaller)) == count_macs(smaller).total


def test_inspected(model, tmp_path):
    slimvit.save(merging(model, (2, 0, 3)), tmp_path / "saved")
    rows = inspection_text(inspect_model(ModelSection(name=str(tmp_path / "saved")))).splitlines()
    (header,) = (row for row in rows if row.startswith("block "))
    at = header.index("tokens merged")
    assert [row[at : at + 3].strip() for row in rows if row.startswith("blocks.")][:3] == ["2", "0", "3"]


def test_saved_and_loaded(merged, images, tmp_path):
    for net in (merged, insert_dense_attention(merged, "head", "normal")):
        slimvit.save(net, tmp_path / "saved", force=True)
        loaded = slimvit.load(tmp_path / "saved")
        assert merges_of(loaded) == [*MERGES] and plan_of(loaded) == plan_of(net)
        assert torch.equal(loaded(images(net)), net(images(net)))


# --- families that cannot


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("beit_base_patch16_224", "its position biases belong to pairs of tokens"),
        ("eva02_tiny_patch14_224", "its positions turn the queries and keys of single tokens"),
    ],
)
def test_other_families_say_why_not(name, reason, vit):
    model = vit(name)
    with pytest.raises(ModelError, match=f"cannot remove tokens of its block: {reason}; cut heads alone"):
        score_parts(model, [(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))], parts=["tokens"])
    with pytest.raises(PlanError, match="has no tokens that could be kept or removed"):
        plan_of(model).keeping(tokens=[range(1)] * 3)


def test_swin_says_why_not(swin):
    with pytest.raises(ModelError, match="its windows need every token"):
        score_parts(swin(), [(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))], parts=["tokens"])


def test_the_plan_follows_the_input_size(merged, images, tmp_path):
    merged.set_input_size((96, 96))
    plan = plan_of(merged)
    assert [b.tokens for b in plan.blocks] == [18] * 3 and [len(b.removed_tokens) for b in plan.blocks] == [*MERGES]
    slimvit.save(merged, tmp_path / "saved")
    loaded = slimvit.load(tmp_path / "saved")
    assert torch.equal(loaded(images(merged)), merged(images(merged)))


def test_smaller_images_are_refused(vit, images):
    net = merging(vit(img_size=64, dynamic_img_size=True), (8, 0, 0))
    with pytest.raises(ModelError, match="a block merges 8 tokens, but gets 4 of the image"):
        net(torch.zeros(1, 3, 32, 32))
    assert net(torch.zeros(1, 3, 96, 96)).isfinite().all()
