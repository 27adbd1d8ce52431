"""Narrower queries and keys: exact at full rank, the best of their rank, counted and cut like other parts."""

from __future__ import annotations

import copy

import pytest
import torch

from slimvit.measure.flops.count import count_macs
from slimvit.measure.flops.parts import count_params
from slimvit.models.insert_dense import insert_dense_attention, remove_dense_attention
from slimvit.models.parts.query_key import QK
from slimvit.models.query_key import (
    QueryKeySums,
    low_rank_maps,
    moments_of_weights,
    query_key_rows,
    with_own_layers,
    write_query_key,
)
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.budget_search import plan_budget
from slimvit.prune.costs.macs import macs_costs
from slimvit.prune.costs.params import params_costs
from slimvit.prune.criteria.registry import score_parts
from slimvit.prune.refit import refit
from slimvit.prune.surgery import prune_model

FAMILIES = ("vit", "beit", "swin")


@pytest.fixture(params=FAMILIES)
def model(request):
    """A small network of a family whose heads have 16 or 24 channels."""
    import timm

    torch.manual_seed(0)
    sizes = {
        "vit": ("deit_tiny_patch16_224", {"img_size": 32, "embed_dim": 48, "num_heads": 2, "depth": 3}),
        "beit": ("beit_base_patch16_224", {"img_size": 32, "embed_dim": 48, "num_heads": 2, "depth": 2}),
        "swin": (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "window_size": 4, "embed_dim": 32, "num_heads": (2, 4), "depths": (2, 2)},
        ),
    }
    name, arguments = sizes[request.param]
    model = timm.create_model(name, num_classes=5, **arguments).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3 if p.ndim < 2 else 1.5 * p.shape[-1] ** -0.5)
    return model


@pytest.fixture
def images(model):
    size = model.patch_embed.img_size
    return torch.randn(6, 3, *size, generator=torch.Generator().manual_seed(1))


def narrow(model, width):
    plan = plan_of(model)
    return plan.keeping(qk_channels=[range(width)] * len(plan.blocks))


@torch.no_grad()
def test_full_rank_is_the_same_network(model, images):
    turned = copy.deepcopy(model)
    for view in attention_blocks(turned):
        maps = low_rank_maps(moments_of_weights(view), view.qk_dim)
        rows, cls = query_key_rows(view.attn), view.head_parts.narrow_qk
        view.block.attn = with_own_layers(view.attn, cls)
        write_query_key(view.block.attn, rows, maps)
    assert torch.allclose(turned(images), model(images), atol=1e-5)
    q, k = (
        t.double() for t in (turned.get_submodule(attention_blocks(turned)[0].name).attn.q_proj.weight, rows[0].weight)
    )
    assert q.shape[0] > 0 and not torch.equal(q[:1, :1], k.flatten(0, 1)[:1, :1].to(q))


@torch.no_grad()
def test_products_are_the_best_of_their_rank():
    """Against the singular values of the products themselves, on the tokens that gave the moments."""
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(50, 3 * 8, generator=g) @ torch.randn(24, 24, generator=g) for _ in range(2))
    k = k - k.mean(0)  # what is constant over keys does not count
    sums = QueryKeySums()
    sums.add(q, k, 3)
    maps = low_rank_maps(sums.mean(), 5)
    for head in range(3):
        a, b = (t.double().view(50, 3, 8)[:, head] for t in (q, k))
        products = a @ b.T
        short = (a @ maps.queries[head].T) @ (b @ maps.keys[head].T).T
        sizes = torch.linalg.svdvals(products)
        assert torch.allclose((products - short).norm(), sizes[5:].square().sum().sqrt(), rtol=1e-4)
        assert torch.allclose(maps.sizes[head] * 50, sizes[:8], rtol=1e-4)


def test_costs_are_those_of_the_cut_model(model):
    heads = plan_of(model).keeping(heads=[range(len(b.kept_heads) - 1) for b in plan_of(model).blocks])
    for plan in (narrow(model, 8), heads.keeping(qk_channels=[range(8)] * len(heads.blocks))):
        cut = prune_model(model, plan)
        count = count_macs(cut)
        assert count.without_norm == count.closed_form == count.torch_counter
        assert macs_costs(model, count_macs(model).total).total(plan_of(cut)) == count.total
        assert params_costs(model).total(plan_of(cut)) == count_params(cut)


@torch.no_grad()
def test_it_is_cut_again_and_with_dense_attention(model, images):
    once = prune_model(model, narrow(model, 8))
    heads = [b.kept_heads[:1] for b in plan_of(once).blocks]
    twice = prune_model(once, plan_of(once).keeping(heads=heads))
    both = prune_model(model, narrow(model, 8).keeping(heads=heads))
    assert torch.allclose(twice(images), both(images), atol=1e-5)
    dense = insert_dense_attention(once)
    assert torch.equal(dense(images), once(images))
    again = prune_model(dense, plan_of(dense).keeping(heads=heads))
    assert torch.allclose(again(images), twice(images), atol=1e-5)
    assert torch.equal(remove_dense_attention(dense)(images), once(images))


@torch.no_grad()
def test_scored_cut_and_refitted(model, images):
    """Together with heads to a target; the refit fits the products to the images, which brings the outputs closer."""
    batches = [(part, torch.full((len(part),), -1)) for part in images.split(3)]
    scores = score_parts(model, batches, parts=("heads", "qk"))
    for scored, block in zip(scores.of("qk"), plan_of(model).blocks, strict=True):
        assert scored.order == tuple(reversed(range(block.qk_channels))) and min(scored.costs) >= 0
    costs = macs_costs(model, count_macs(model).total)
    plan = plan_budget(scores, costs, 0.9 * count_macs(model).total)
    assert plan.removed_qk_channels and all(len(b.kept_qk_channels) % 8 == 0 for b in plan.blocks if b.kept_heads)
    cut = prune_model(model, narrow(model, 8))
    fitted = refit(cut, model, batches, ridge=1e9)  # so large a ridge leaves proj and fc2 alone
    errors = [(net(images) - model(images)).square().mean() for net in (cut, fitted)]
    assert errors[1] < errors[0]


def test_who_keeps_the_width():
    import timm

    for name, reason in (
        ("swinv2_tiny_window8_256", "cosine attention"),
        ("eva02_tiny_patch14_224", "rotary positions"),
        ("vit_tiny_patch16_224", "qk_norm"),
    ):
        arguments = {"qk_norm": True} if reason == "qk_norm" else {}
        view = attention_blocks(timm.create_model(name, **arguments))[0]
        assert QK.count(view) == 0 and reason in (QK.why_not(view) or "")


@torch.no_grad()
def test_saved_and_loaded(tmp_path):
    """Cut again after loading, since the plan alone gives the shapes."""
    import slimvit

    whole = slimvit.load("vit_digits")
    cut = prune_model(whole, narrow(whole, 8).keeping(heads=[[0, 1]] * 6))
    slimvit.save(cut, tmp_path / "run")
    again, images = slimvit.load(tmp_path / "run"), torch.randn(2, *whole.pretrained_cfg["input_size"])
    assert torch.equal(again(images), cut(images)) and plan_of(again) == plan_of(cut)
