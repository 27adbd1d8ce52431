import pytest

from slimvit.measure.flops.count import count_macs
from slimvit.measure.flops.parts import count_params
from slimvit.models.parts.heads import HEADS
from slimvit.models.parts.mlp import MLP
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.costs.macs import macs_costs
from slimvit.prune.costs.params import params_costs
from slimvit.prune.surgery import prune_model


@pytest.fixture(params=["deit_tiny_patch16_224", "vit_small_patch14_dinov2", "swin", "padded swin"])
def model(request, vit, swin):
    if "swin" in request.param:
        return swin(img_size=40 if "padded" in request.param else 32)
    return vit(request.param)


def plans(model):
    full = plan_of(model)
    few = [[range(0, b.neurons, 3), [1], [], range(b.neurons)][i] for i, b in enumerate(full.blocks)]
    return [
        full,
        full.keeping(neurons=few),
        full.keeping(heads=[b.kept_heads[1:] for b in full.blocks]),
        full.keeping(heads=[b.kept_heads[i:] if i < 2 else [] for i, b in enumerate(full.blocks)], neurons=few),
        full.keeping(heads=[[]] * len(few), neurons=[[]] * len(few)),
    ]


def test_prices_are_what_the_cut_model_costs(model):
    macs, params = macs_costs(model, count_macs(model).total), params_costs(model)
    for plan in plans(model):
        slim = prune_model(model, plan)
        assert macs.total(plan) == count_macs(slim).total
        assert params.total(plan) == count_params(slim)


def test_prices_of_a_model_that_was_cut_before(model):
    first, last = plans(model)[1], plans(model)[3]
    slim = prune_model(model, first)
    assert macs_costs(slim, count_macs(slim).total).total(first) == count_macs(slim).total
    smaller = last.keeping(
        neurons=[set(a.kept_neurons) & set(b.kept_neurons) for a, b in zip(first.blocks, last.blocks, strict=True)]
    )
    assert params_costs(slim).total(smaller) == count_params(prune_model(slim, smaller))


def test_what_one_unit_saves(vit):
    """qkv and proj: 4 x tokens x d x C; the two attention products: 2 x tokens^2 x d; fc1 and fc2: 2 x tokens x C."""
    model = vit()  # 2 x 2 patches and a class token, 3 heads of width 64
    for block in attention_blocks(model):
        assert HEADS.macs(block).unit == 5 * 64 * (4 * 192 + 2 * 5) and MLP.macs(block).unit == 2 * 5 * 192
        assert HEADS.params(block).unit == 4 * 64 * 192 + 3 * 64 and MLP.params(block).unit == 2 * 192 + 1
