import copy

import pytest
import torch
from timm.layers import GluMlp, Mlp, SwiGLU, SwiGLUPacked
from torch import nn

import slimvit
from slimvit.measure.flops.count import count_macs
from slimvit.models.empty import EmptyMlp, EmptyNorm
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.criteria.registry import CRITERIA, score_parts
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import ModelError, PlanError
from slimvit.utils.ranges import from_ranges

NETWORKS = {
    "deit": ("vit", {}),
    "dinov2": ("vit", {"name": "vit_small_patch14_dinov2"}),
    "packed glu": ("vit", {"name": "vit_tiny_patch16_224", "mlp_layer": SwiGLUPacked}),
    "glu": ("vit", {"name": "vit_tiny_patch16_224", "mlp_layer": GluMlp}),
    "swiglu": ("vit", {"name": "vit_tiny_patch16_224", "mlp_layer": SwiGLU}),
    "swin": ("swin", {}),
    "padded swin": ("swin", {"img_size": 40}),
}
KEPT = {
    "neurons": lambda n, h: ([None] * 4, ["1-7,9", f"0-{n - 1}", f"{n // 2}", "0,2,4-20"]),
    "neurons and heads": lambda n, h: ([[0], None, [h - 1], None], ["3", "1-5", f"0-{n - 2}", f"0-{n - 1}"]),
    "branches": lambda n, h: ([[], None, [0], None], [f"0-{n - 1}", "", "2-9", ""]),
    "everything": lambda n, h: ([[]] * 4, [""] * 4),
}
each = pytest.mark.parametrize("network", NETWORKS)


@pytest.fixture
def build(vit, swin):
    def make(network, **of_vit):
        kind, settings = NETWORKS[network]
        return vit(**settings, **of_vit) if kind == "vit" else swin(**settings)

    return make


def planned(model, heads, neurons):
    blocks = plan_of(model).blocks
    heads = [b.kept_heads if h is None else [i for i in h if i < b.heads] for b, h in zip(blocks, heads, strict=False)]
    fits = [from_ranges(n, 10_000) for n in neurons]
    neurons = [[i for i in n if i < b.neurons] for b, n in zip(blocks, fits, strict=False)]
    return plan_of(model).keeping(heads=heads, neurons=neurons)


def of(name, model):
    block = plan_of(model).blocks[0]
    return planned(model, *KEPT[name](block.neurons, block.heads))


def silenced(model, plan, masked):
    """The whole model, with the neurons and heads that the plan drops giving zero."""
    model = masked(model, [b.kept_heads for b in plan.blocks])
    for view, block in zip(attention_blocks(model), plan.blocks, strict=True):
        keep = torch.zeros(block.neurons).index_fill(0, torch.tensor(block.kept_neurons, dtype=torch.long), 1)
        view.mlp.fc2.register_forward_pre_hook(lambda _, args, m=keep: (args[0] * m,))
    return model


@each
@pytest.mark.parametrize("kept", KEPT)
def test_cut_equals_silenced(network, kept, build, masked, images, gap):
    model = build(network)
    plan, x = of(kept, model), images(model)
    with torch.no_grad():
        found, wanted = prune_model(model, plan)(x), silenced(model, plan, masked)(x)
    assert gap(found, wanted) <= 1e-5


@each
def test_one_wrong_neuron_misses_the_bar(network, build, masked, images, gap):
    model = build(network)
    n = plan_of(model).blocks[0].neurons
    full = [f"0-{b.neurons - 1}" for b in plan_of(model).blocks[1:]]
    with torch.no_grad():
        right = planned(model, [None] * 4, [f"1-{n - 1}", *full])
        wrong = planned(model, [None] * 4, [f"0,2-{n - 1}", *full])
        x = images(model)
        assert gap(prune_model(model, right)(x), silenced(model, wrong, masked)(x)) > 1e-4


@each
def test_save_and_load(network, build, images, tmp_path):
    kind, settings = NETWORKS[network]
    if "mlp_layer" in settings:
        pytest.skip("an MLP given as a class cannot be written down")
    model = build(network)
    slim = prune_model(model, of("branches", model))
    slimvit.save(slim, tmp_path / "slim")
    again = slimvit.load(tmp_path / "slim")
    assert plan_of(again) == plan_of(slim) and torch.equal(again(images(model)), slim(images(model)))


@each
@pytest.mark.parametrize("kept", KEPT)
def test_counters_agree(network, kept, build):
    model = build(network)
    assert count_macs(prune_model(model, of(kept, model))).disagreement() is None


def test_cutting_twice_equals_cutting_once(build, images):
    model = build("deit")
    final = planned(model, [None] * 3, ["2-5", "", "7,9"])
    twice = prune_model(prune_model(model, planned(model, [None] * 3, ["1-20", "3", "5-9"])), final)
    assert plan_of(twice) == final and torch.equal(twice(images(model)), prune_model(model, final)(images(model)))
    with pytest.raises(PlanError, match=r"blocks\.0: the plan keeps neuron 1, which was removed earlier; .*: 2-5"):
        prune_model(twice, planned(model, [None] * 3, ["1-5", "", "7"]))


def test_a_plan_of_heads_alone_leaves_the_neurons_that_are_there(build, images):
    model = build("deit")
    slim = prune_model(model, planned(model, [None] * 3, ["2-5", "", "7,9"]))
    old = slimvit.SlimPlan.from_json(
        {"format_version": 1, "blocks": [{"block": f"blocks.{i}", "heads": 3, "kept_heads": [1]} for i in range(3)]}
    )
    assert [len(b.kept_neurons) for b in plan_of(prune_model(slim, old)).blocks] == [4, 0, 2]


def test_a_branch_that_is_gone_is_a_bias(build):
    model = build("swin")
    slim = prune_model(model, of("everything", model))
    for view, block in zip(attention_blocks(slim), attention_blocks(model), strict=True):
        assert isinstance(view.mlp, EmptyMlp) and isinstance(view.block.norm2, EmptyNorm)
        assert torch.equal(view.mlp.fc2.bias, block.mlp.fc2.bias)
        assert view.mlp(torch.ones(2, 3, view.mlp.fc2.out_features)).shape == (2, 3, view.mlp.fc2.out_features)


WAYS = ("residual", "fisher", "magnitude", "tp-taylor")
"""Criteria that look at what enters a layer, at gradients of its outputs, at its weights and at coupled weights."""


@pytest.mark.parametrize(
    ("network", "criterion"),
    [("deit", name) for name in CRITERIA] + [(net, name) for net in NETWORKS if net != "deit" for name in WAYS],
)
def test_every_criterion_scores_neurons(network, criterion, build, batches):
    model = build(network, mlp_ratio=1)
    before = copy.deepcopy(model.state_dict())
    scores = score_parts(model, batches(model), criterion, parts=("heads", "mlp"))
    again = score_parts(model, batches(model), criterion, parts=("heads", "mlp"))
    assert scores == again and scores.of("heads") == score_parts(model, batches(model), criterion).of("heads")
    for part, block in zip(scores.of("mlp"), scores.plan.blocks, strict=True):
        assert sorted(part.order) == list(range(block.neurons)) and len(part.alone) == block.neurons
        assert all(c >= 0 for c in part.costs) and sum(part.costs) > 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_neuron_that_does_nothing_goes_first(build, batches):
    model = build("deit")
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight[:, 5] = 0
    for criterion in ("residual", "fisher", "taylor", "tp-taylor"):
        scores = score_parts(model, batches(model), criterion, parts=("heads", "mlp"))
        assert scores.of("mlp")[1].order[0] == 5, criterion


def test_a_norm_among_the_neurons_is_refused(vit, batches):
    model = vit()
    for block in model.blocks:
        block.mlp = Mlp(192, 768, norm_layer=nn.LayerNorm)
    assert plan_of(model).neurons == 0
    with pytest.raises(ModelError, match=r"blocks\.0: slimvit cannot remove neurons of its MLP: .*--parts heads"):
        score_parts(model, batches(model), "magnitude", parts=("heads", "mlp"))


def test_the_refit_repairs_what_an_mlp_lost(build, batches, images):
    model = build("deit")
    n = plan_of(model).blocks[0].neurons
    slim = prune_model(model, planned(model, [None] * 3, [f"0-{n // 2}", "", f"{n // 2}-{n - 1}"]))
    repaired = slimvit.refit(slim, model, batches(model, count=8), ridge=1e-3)
    with torch.no_grad():
        x = images(model, seed=1)  # one of the calibration images
        wanted = model.forward_features(x)
        cut, refitted = ((m.forward_features(x) - wanted).square().mean() for m in (slim, repaired))
    assert refitted < 0.5 * cut
