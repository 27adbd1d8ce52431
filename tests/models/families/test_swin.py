from types import SimpleNamespace

import pytest
import timm
import torch
from timm.models.swin_transformer import window_partition
from torch import nn

from slimvit.models.base import State
from slimvit.models.families.swin import image_to_windows, padded_size, windows_to_image
from slimvit.models.modes import evaluating
from slimvit.models.registry import attention_blocks, family_of, plan_of, steps
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import ModelError

SHAPES = {
    "plain": ({}, (32, 32)),
    "padded": ({"img_size": 72}, (72, 72)),
    "padded twice, not square": ({"img_size": (72, 40), "depths": (2, 2, 2), "num_heads": (2, 4, 4)}, (72, 40)),
    "windows not square": ({"img_size": 40, "window_size": (3, 4)}, (40, 40)),
    "windows by stage": ({"img_size": 40, "window_size": ((4, 4), (3, 2))}, (40, 40)),
    "larger than built for": ({"strict_img_size": False}, (56, 44)),
    "smaller than built for": ({"strict_img_size": False, "img_size": 48}, (20, 36)),
    "always partition": ({"always_partition": True, "img_size": 24}, (24, 24)),
    "always partition, any size": ({"always_partition": True, "strict_img_size": False}, (12, 44)),
    "narrow heads": ({"head_dim": 3}, (32, 32)),
    "without qkv bias": ({"qkv_bias": False, "img_size": 72}, (72, 72)),
}
each_shape = pytest.mark.parametrize(("kwargs", "size"), SHAPES.values(), ids=SHAPES.keys())


def draw(size, n=2):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(0))


def walk(model, x):
    state = State(x)
    for step in steps(model):
        state = step.apply(state)
    return state.stream


@each_shape
@pytest.mark.parametrize("pruned", [False, True], ids=["uncut", "pruned"])
def test_the_steps_are_the_forward_pass(kwargs, size, pruned, swin):
    model = swin(**kwargs)
    if pruned:
        kept = [[0], [], [1, 2], [0], [0, 3], []]
        model = prune_model(model, plan_of(model).keeping(heads=kept[: len(plan_of(model).blocks)]))
    with evaluating(model):
        assert torch.equal(model.norm(walk(model, draw(size))), model.forward_features(draw(size)))


def test_features_come_back_token_by_token(swin):
    """Through the last layer of a branch, in the stream's layout, they give the branch's output."""
    model = swin(img_size=72)
    state = State(draw((72, 72)))
    with evaluating(model):
        for step in steps(model):
            if hasattr(step, "out"):
                output = step.run(state).output
                features, _ = step.run_with_features(state)
                assert features.shape[:-1] == state.stream.shape[:-1]
                assert torch.allclose(step.out(features), output, atol=1e-6)
                assert not step.out._forward_pre_hooks
            state = step.apply(state)


WINDOWS = [
    ((8, 8), (4, 4), (0, 0)),
    ((8, 8), (4, 4), (2, 2)),
    ((18, 9), (4, 4), (2, 2)),
    ((5, 7), (4, 3), (2, 1)),
    ((3, 10), (3, 4), (0, 2)),
    ((7, 2), (4, 2), (2, 0)),
    ((2, 3), (7, 7), (3, 3)),
    ((1, 1), (1, 1), (0, 0)),
    ((6, 6), (1, 5), (0, 2)),
]


@pytest.mark.parametrize(("size", "window", "shift"), WINDOWS)
@pytest.mark.parametrize("k", [0, 1, 5])
def test_windows_to_image_inverts_image_to_windows(size, window, shift, k):
    block = SimpleNamespace(window_size=window, shift_size=shift)
    image = torch.randn(3, *size, k)
    windows = image_to_windows(block, image)
    rows, columns = (-(-side // w) for side, w in zip(size, window, strict=True))
    assert windows.shape == (3 * rows * columns, window[0] * window[1], k)
    assert torch.equal(windows_to_image(block, windows, size), image)
    assert padded_size(block, size) == (rows * window[0], columns * window[1])


@pytest.mark.parametrize(("size", "window", "shift"), WINDOWS)
def test_padding_is_zero_and_every_token_has_one_place(size, window, shift):
    block = SimpleNamespace(window_size=window, shift_size=shift)
    places = image_to_windows(block, torch.arange(1.0, 1 + size[0] * size[1]).view(1, *size, 1)).flatten()
    assert places.sort().values[-size[0] * size[1] :].tolist() == list(range(1, 1 + size[0] * size[1]))
    assert (places == 0).sum() == len(places) - size[0] * size[1]


@each_shape
def test_windows_are_those_that_timm_attends_in(kwargs, size, swin):
    """timm's own shift, padding and partition, seen at the input of its attention."""
    model = swin(**kwargs)
    seen, entered = [], []
    for view in attention_blocks(model):
        view.block.norm1.register_forward_hook(lambda _, args, normed: entered.append(normed))
        view.attn.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with evaluating(model):
        model(draw(size))
    for view, normed, windows in zip(attention_blocks(model), entered, seen, strict=True):
        assert torch.equal(image_to_windows(view.block, normed), windows)


def test_without_shift_or_padding_it_is_timms_partition():
    block = SimpleNamespace(window_size=(4, 2), shift_size=(0, 0))
    image = torch.randn(2, 8, 6, 3)
    assert torch.equal(image_to_windows(block, image), window_partition(image, (4, 2)).flatten(1, 2))


def test_a_new_model_keeps_every_head(swin):
    plan = plan_of(swin())
    assert plan.model == "swin_tiny_patch4_window7_224"
    assert [(b.name, b.heads, b.stage) for b in plan.blocks] == [
        ("layers.0.blocks.0", 2, 0),
        ("layers.0.blocks.1", 2, 0),
        ("layers.1.blocks.0", 4, 1),
        ("layers.1.blocks.1", 4, 1),
    ]


def test_tokens_include_the_padding_and_windows_are_those_of_the_stage(swin):
    """18 x 18 patches in windows of 4 are padded to 20 x 20; merged, 9 x 9 to 12 x 12."""
    assert [(b.tokens, b.window) for b in attention_blocks(swin(img_size=72))] == [(400, 16)] * 2 + [(144, 16)] * 2
    assert [(b.tokens, b.window) for b in attention_blocks(swin(img_size=24))] == [(64, 16)] * 2 + [(9, 9)] * 2


def test_heads_may_be_of_any_width(swin):
    assert {b.head_dim for b in attention_blocks(swin(head_dim=3))} == {3}
    assert {b.head_dim for b in attention_blocks(swin())} == {8}


def test_swin_v2_cr_is_refused_by_name():
    name = "swinv2_cr_tiny_224"
    with torch.device("meta"):
        model = timm.create_model(name, depths=(1, 1), num_heads=(2, 4), embed_dim=16)
    with pytest.raises(ModelError, match=rf"^{name}: .*SwinTransformerV2Cr is not a model slimvit can prune.*swin_\*"):
        family_of(model)


class OtherBlock(nn.Module):
    attn = mlp = None


def foreign_block(model):
    model.layers[1].blocks[0] = OtherBlock()


def foreign_attention(model):
    model.layers[0].blocks[1].attn = nn.MultiheadAttention(16, 2)


def foreign_mlp(model):
    model.layers[1].blocks[1].mlp = nn.Linear(32, 32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (foreign_block, r"layers\.1\.blocks\.0 is a OtherBlock, not timm's SwinTransformerBlock"),
        (foreign_attention, r"layers\.0\.blocks\.1\.attn is a \S+MultiheadAttention, not timm's WindowAttention"),
        (foreign_mlp, r"layers\.1\.blocks\.1\.mlp is a Linear without a linear fc2"),
    ],
    ids=["block", "attention", "mlp"],
)
def test_foreign_parts_are_refused_by_name(change, reason, swin):
    model = swin()
    change(model)
    with pytest.raises(ModelError, match=rf"^swin_tiny_patch4_window7_224: {reason}; supported: .*timm SwinTransf"):
        family_of(model)
