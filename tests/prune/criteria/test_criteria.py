import copy
import inspect

import pytest
import torch
from timm.layers import Attention
from torch import nn
from torch.nn import functional as F

from slimvit.models.registry import plan_of
from slimvit.prune.criteria import calibration as observe_module
from slimvit.prune.criteria.registry import CRITERIA, score_parts
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import DataError, PlanError

HAS_GATE = "gated" in inspect.signature(Attention).parameters


def values(model, batches, criterion, seed=0):
    return torch.tensor(score_parts(model, batches, criterion, seed).table(), dtype=torch.float64)


def gated(model, randomise):
    for block in model.blocks:
        block.attn = Attention(192, num_heads=3, qkv_bias=True, gated=True)
    return randomise(model)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_are_positive_finite_and_repeatable(criterion, vit, batches):
    model = vit()
    scores = score_parts(model, batches(model), criterion, seed=1)
    table = torch.tensor(scores.table())
    assert scores.criterion == criterion and table.shape == (3, 3)
    assert table.isfinite().all() and (table > 0).all()
    torch.rand(1)
    assert score_parts(model, batches(model), criterion, seed=1).table() == scores.table()


@pytest.mark.parametrize("criterion", ["random", "residual"])
def test_the_seed_matters(criterion, vit, batches):
    model = vit()
    assert not torch.equal(values(model, batches(model), criterion, 1), values(model, batches(model), criterion, 2))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_model_is_left_as_it_was(criterion, vit, batches):
    model = vit().train()
    model.blocks[1].eval()
    model.blocks[0].attn.qkv.weight.requires_grad_(False)
    model.head.requires_grad_(False)

    def condition():
        flags = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
        return *flags, hooks, [p.grad for p in model.parameters()], [type(m) for m in model.modules()]

    before, weights = condition(), copy.deepcopy(model.state_dict())
    score_parts(model, batches(model), criterion)
    assert condition() == before
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("kind", ["qk_norm", "gated", "distilled"])
def test_every_kind_of_attention(criterion, kind, vit, batches, randomise):
    if kind == "gated" and not HAS_GATE:
        pytest.skip("this timm has no gate")
    model = {
        "qk_norm": lambda: vit("vit_tiny_patch16_224", qk_norm=True),
        "gated": lambda: gated(vit(), randomise),
        "distilled": lambda: vit("deit_tiny_distilled_patch16_224"),
    }[kind]()
    table = values(model, batches(model), criterion)
    assert table.isfinite().all() and (table > 0).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_model_that_was_cut_before(criterion, vit, batches):
    model = vit()
    slim = prune_model(model, plan_of(model).keeping(heads=[[0, 2], [], [1]]))
    table = score_parts(slim, batches(slim), criterion).table()
    assert [[v is None for v in row] for row in table] == [[False, True, False], [True] * 3, [True, False, True]]


def by_multipliers(model, data):
    """dLoss/dm of a multiplier on each head's output, an image at a time: [images, blocks, heads]."""
    rows = []
    for images, labels in data:
        for image, label in zip(images, labels, strict=True):
            gates = torch.ones(3, 3, requires_grad=True)
            hooks = [
                block.attn.proj.register_forward_pre_hook(
                    lambda _, args, gate=gate: ((args[0].unflatten(-1, (3, 64)) * gate[:, None]).flatten(-2),)
                )
                for block, gate in zip(model.blocks, gates, strict=True)
            ]
            loss = F.cross_entropy(model(image[None]), label[None])
            rows.append(torch.autograd.grad(loss, gates)[0])
            for hook in hooks:
                hook.remove()
    return torch.stack(rows).double()


def test_taylor_and_fisher_equal_explicit_multipliers(vit, batches):
    model = vit()
    data = batches(model)
    gradients = by_multipliers(model, data)
    assert torch.allclose(values(model, data, "taylor"), gradients.abs().mean(0), rtol=1e-3, atol=1e-7)
    assert torch.allclose(values(model, data, "fisher"), gradients.square().mean(0), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "residual"])
def test_a_head_that_nobody_reads_scores_zero(criterion, vit, batches):
    model = vit()
    with torch.no_grad():
        model.blocks[1].attn.proj.weight[:, 64:128] = 0
    table = values(model, batches(model), criterion)
    others = torch.ones(3, 3, dtype=torch.bool)
    others[1, 1] = False
    if criterion == "residual":  # what it reads of other heads through the refit is not zero, but it is the least
        assert table[1, 1] == table[1].min()
    else:
        assert table[1, 1] == 0
    assert (table[others] > 0).all()


def squares(attn):
    q, k, v = attn.qkv.weight.detach().double().view(3, 3, 64, 192)
    found = [(part**2).sum((1, 2)) for part in (q, k, v)]
    found.append((attn.proj.weight.detach().double().view(192, 3, 64) ** 2).sum((0, 2)))
    if getattr(attn, "gate", None) is not None:
        found.append((attn.gate.weight.detach().double().view(3, 64, 192) ** 2).sum((1, 2)))
    return sum(found)


@pytest.mark.parametrize("gate", [False, pytest.param(True, marks=pytest.mark.skipif(not HAS_GATE, reason="no gate"))])
def test_magnitude_equals_the_hand_computation(gate, vit, randomise):
    model = gated(vit(), randomise) if gate else vit()
    wanted = torch.stack([squares(b.attn) for b in model.blocks])
    assert torch.allclose(values(model, [], "magnitude"), wanted.sqrt(), rtol=1e-5)
    relative = values(model, [], "tp-magnitude")  # Torch-Pruning divides by the block's mean
    assert torch.allclose(relative, wanted / wanted.mean(1, keepdim=True), rtol=1e-5)


def test_tp_taylor_equals_the_hand_computation(vit, batches):
    model = vit()
    data = batches(model)
    loss = sum(F.cross_entropy(model(x), y, reduction="sum") for x, y in data)
    wanted = []
    for block in model.blocks:
        qkv, proj = block.attn.qkv.weight, block.attn.proj.weight
        d_qkv, d_proj = torch.autograd.grad(loss, (qkv, proj), retain_graph=True)
        saliency = (qkv * d_qkv).abs().view(3, 3, 64, 192).sum((0, 2, 3))
        saliency = saliency + (proj * d_proj).abs().view(192, 3, 64).sum((0, 2))
        wanted.append(saliency.detach().double() / saliency.mean().item())
    assert torch.allclose(values(model, data, "tp-taylor"), torch.stack(wanted), rtol=1e-3)


@pytest.mark.parametrize("criterion", sorted(name for name, found in CRITERIA.items() if found.needs_classifier))
def test_what_needs_labels_says_so(criterion, vit, batches):
    model = vit()
    with pytest.raises(DataError, match=f"^criterion {criterion} needs labels, but the images have none; give "):
        score_parts(model, batches(model, labelled=False), criterion)
    model.reset_classifier(0)
    with pytest.raises(DataError, match=f"criterion {criterion} needs a classifier, but the model has none"):
        score_parts(model, batches(model), criterion)


@pytest.mark.parametrize("criterion", ["residual", "random", "magnitude", "tp-magnitude"])
def test_what_needs_no_labels_does_without_classifier_too(criterion, vit, batches):
    model = vit()
    assert (values(model, batches(model, labelled=False), criterion) > 0).all()
    model.reset_classifier(0)
    assert (values(model, batches(model, labelled=False), criterion) > 0).all()


@pytest.mark.parametrize("criterion", ["residual", "fisher", "taylor", "tp-taylor"])
def test_no_images(criterion, vit):
    with pytest.raises(DataError, match="^no images: the batches are empty"):
        score_parts(vit(), [], criterion)


def test_an_unknown_criterion_is_met_with_the_nearest(vit):
    with pytest.raises(PlanError, match=r"criterion 'tailor' is not known .did you mean taylor.*choose from residual,"):
        score_parts(vit(), [], "tailor")


@pytest.mark.parametrize("criterion", ["fisher", "taylor"])
def test_a_batch_is_split_where_memory_is_short(criterion, vit, batches, monkeypatch):
    model, passes = vit(), []
    data = batches(model, count=2, size=6)
    whole = values(model, data, criterion)
    real = observe_module.batch_loss
    monkeypatch.setattr(observe_module, "batch_loss", lambda m, x, *a: passes.append(len(x)) or real(m, x, *a))
    monkeypatch.setattr(observe_module, "free_bytes", lambda _: 10**9)
    monkeypatch.setattr(
        observe_module, "_saved_bytes", lambda forward: forward() is None or 2 * 10**8
    )  # two in half of it
    split = values(model, data, criterion)
    assert passes == [1, 2, 2, 2, 2, 2, 2]
    assert torch.allclose(split, whole, rtol=1e-4)


def test_what_a_backward_pass_keeps(vit):
    """Of two linear layers with a GELU between: what enters each of the three, and no weights."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))
    for p in net.parameters():
        p.requires_grad_(False)
    x = torch.randn(5, 8)
    assert (
        observe_module._saved_bytes(lambda: net[1:](net[0](x).requires_grad_()).sum()) == 4 * 5 * 32
    )  # the GELU's input


def test_a_function_of_ones_own(vit, batches):
    model = vit()

    def later_is_dearer(model, batches):
        return {"heads": [[3.0, 1.0, 2.0]] * 3, "mlp": [torch.arange(768.0)] * 3}

    scores = score_parts(model, batches(model), later_is_dearer, parts=("heads", "mlp"))
    assert scores.criterion == "later_is_dearer" and scores.of("heads")[0].order == (1, 2, 0)
    assert scores.of("mlp")[2].costs == tuple(map(float, range(768)))
    assert repr(scores).splitlines()[1] == "  blocks.0  3 heads (1 to 3), 768 neurons (0 to 767)"


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({}, "criterion mine gives no scores of heads, only of nothing"),
        ({"heads": [[1, 2, 3]]}, "criterion mine scores heads of 1 blocks, but the model has 3"),
        ({"heads": [[1, 2]] * 3}, "criterion mine gives 2 scores of heads in blocks.0, which has 3 heads; give one"),
        ({"heads": [[1, 2, float("nan")]] * 3}, "criterion mine gives blocks.0 a score of heads that is not a number"),
    ],
)
def test_scores_that_do_not_fit_the_model(found, told, vit, batches):
    def mine(model, batches):
        return found

    model = vit()
    with pytest.raises(PlanError, match=f"^{told}"):
        score_parts(model, batches(model), mine)
