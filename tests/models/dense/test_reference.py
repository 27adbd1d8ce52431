"""Dense attention against its definition: out_l = A_l V_l + sum over i < l of w_li A_l V_i, one product each."""

import copy
import inspect

import pytest
import torch
from timm.layers import Attention
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from slimvit.models.insert_dense import insert_dense_attention
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.surgery import prune_model

NEEDS_GATE = pytest.mark.skipif("gated" not in inspect.signature(Attention).parameters, reason="this timm has no gate")
each_mix = pytest.mark.parametrize("mix", ["layer", "head"])
each_path = pytest.mark.parametrize(("mix", "fused"), [("layer", False), ("head", True)])


# --- the reference, token by token and head by head


def two_sided(model, x):
    """Features before the final norm. ``model`` has dense attention, of which only the parameters are used."""
    kept = {b.name: b.kept_heads for b in plan_of(model).blocks}
    if isinstance(model, SwinTransformer):
        x = model.patch_embed(x)
        for i, stage in enumerate(model.layers):
            names = [f"layers.{i}.blocks.{j}" for j in range(len(stage.blocks))]
            x = walk_stage(model, names, kept, stage.downsample(x), swin_attention)
        return x
    x = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    return walk_stage(model, [f"blocks.{i}" for i in range(len(model.blocks))], kept, x, vit_attention)


def walk_stage(model, names, kept, x, attention):
    """Blocks one after the other, each with the values [B, H, N, d] of all earlier ones and their original ids."""
    earlier = []
    for name in names:
        block = model.get_submodule(name)
        branch, values = block.attn.proj.bias, None
        if kept[name]:
            branch, values = attention(block, block.norm1(x), kept[name], earlier)
        x = x + getattr(block, "ls1", nn.Identity())(branch)
        x = x + getattr(block, "ls2", nn.Identity())(block.mlp(block.norm2(x)))
        earlier.append((kept[name], values))
    return x


def attend(block, matrices, own, extra, heads, earlier):
    """``matrices`` [B, H, N, N + P], ``own`` [B, H, N, d] and ``extra`` [B, H, P, d] (padding) -> [B, N, H * d]."""
    n = own.shape[2]
    weights = iter(block.attn.mix.unbind()) if block.attn.mix is not None else iter(())
    out = list((matrices @ torch.cat([own, extra], 2)).unbind(1))
    for theirs, values in earlier:
        shared = [h for h in heads if h in theirs]
        one = next(weights) if shared and not block.attn.per_head else None
        for head in shared:
            here, there = heads.index(head), theirs.index(head)
            weight = one if one is not None else next(weights)
            out[here] = out[here] + weight * (matrices[:, here, :, :n] @ values[:, there])
    assert next(weights, None) is None
    return torch.stack(out, 2).flatten(2)


def split(features, parts, heads):
    """[..., parts * heads * d] -> ``parts`` tensors [..., heads, d]."""
    return features.unflatten(-1, (parts, heads, -1)).unbind(-3)


def vit_attention(block, x, heads, earlier):
    attn = block.attn
    q, k, v = (t.transpose(1, 2) for t in split(attn.qkv(x), 3, len(heads)))
    q, k = attn.q_norm(q), attn.k_norm(k)
    matrices = (q @ k.mT / v.shape[-1] ** 0.5).softmax(-1)
    out = attend(block, matrices, v, v[:, :, :0], heads, earlier)
    if getattr(attn, "gate", None) is not None:
        out = out * attn.gate(x).sigmoid()
    return attn.proj(out), v


def swin_attention(block, x, heads, earlier):
    """Every token of the unshifted image against every other and against the padding."""
    attn, (b, h, w, _) = block.attn, x.shape
    rows, columns, real = places(block, h, w)
    padding = rows.new_zeros(b, int((~real).sum()), x.shape[-1]).to(x)  # timm pads what the norm gives with zeros
    tokens = torch.cat([x.reshape(b, h * w, -1), padding], 1)
    q, k, v = (t.transpose(1, 2) for t in split(attn.qkv(tokens), 3, len(heads)))
    scores = q @ k.mT / v.shape[-1] ** 0.5 + position_bias(block, rows, columns)
    scores = scores.masked_fill(~together(block, rows, columns, h, w), -torch.inf)
    n = h * w
    out = attend(block, scores.softmax(-1)[:, :, :n], v[:, :, :n], v[:, :, n:], heads, earlier)
    return attn.proj(out).view(b, h, w, -1), v[:, :, :n]


def places(block, h, w):
    """Row and column in the shifted and padded image of every pixel of the image, then of the padding; which is
    which."""
    (wh, ww), (up, left) = block.window_size, block.shift_size
    high, wide = -(-h // wh) * wh, -(-w // ww) * ww
    pixels = [((i - up) % h, (j - left) % w) for i in range(h) for j in range(w)]
    padding = [(i, j) for i in range(high) for j in range(wide) if i >= h or j >= w]
    rows, columns = torch.tensor(pixels + padding).unbind(1)
    return rows, columns, torch.arange(len(rows)) < h * w


def position_bias(block, rows, columns):
    """[H, N, N]: the bias table at the offset of each pair of tokens within a window."""
    wh, ww = block.window_size
    down = (rows % wh)[:, None] - (rows % wh) + wh - 1
    right = (columns % ww)[:, None] - (columns % ww) + ww - 1
    return block.attn.relative_position_bias_table[down * (2 * ww - 1) + right].permute(2, 0, 1)


def together(block, rows, columns, h, w):
    """[N, N]: same window, and on the same side of where the shift joins opposite edges of the image."""
    allowed = torch.ones(len(rows), len(rows), dtype=torch.bool)
    for place, window, shift, side in zip((rows, columns), block.window_size, block.shift_size, (h, w), strict=True):
        padded = -(-side // window) * window
        wrapped = place >= padded - shift if shift else torch.zeros_like(place, dtype=torch.bool)
        for what in (place // window, wrapped):
            allowed &= what[:, None] == what
    return allowed


# --- the comparisons


def found_by(model, x):
    """Features before the final norm, as the model computes them."""
    seen = []
    hook = model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.forward_features(x)
    hook.remove()
    return seen[0]


def fuse(model, fused):
    for view in attention_blocks(model):
        view.attn.fused_attn = fused
    return model


def make_dense(model, mix, kept=None):
    """In float64, with mixes drawn from N(0, 1)."""
    if kept is not None:
        model = prune_model(model, plan_of(model).keeping(heads=kept))
    return insert_dense_attention(model.double(), mix, "normal", seed=1)


def draw(model, size=None, n=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, *(size or model.patch_embed.img_size), generator=generator, dtype=torch.float64)


def gradients(model, features):
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(2), dtype=features.dtype)
    parameters = {name: p for name, p in model.named_parameters() if p.numel()}  # a block without heads has none
    found = torch.autograd.grad((features * direction).sum(), list(parameters.values()), allow_unused=True)
    return {name: grad for name, grad in zip(parameters, found, strict=True) if grad is not None}


def check(dense, x, gap):
    found, wanted = found_by(dense, x), two_sided(dense, x)
    assert gap(found, wanted) <= 1e-10
    with torch.no_grad():
        assert gap(found_by(without_mixes(dense), x), wanted) > 1e-3
    mine, theirs = gradients(dense, found), gradients(dense, wanted)
    assert mine.keys() == theirs.keys() and any("mix" in name for name in mine)
    scale = max(grad.abs().max() for grad in theirs.values())
    for name, grad in theirs.items():
        assert (mine[name] - grad).abs().max() <= 1e-10 * scale, name


def without_mixes(dense):
    plain = copy.deepcopy(dense)
    for name, parameter in plain.named_parameters():
        if name.endswith("attn.mix"):
            parameter.data.zero_()
    return plain


VIT_PLANS = {
    "uncut": None,
    "even": [[0, 2]] * 4,
    "uneven": [[0, 2], [1, 2], [0, 1, 2], [0]],
    "a block without heads": [[0, 1], [], [1, 2], [0, 2]],
}


@each_path
@pytest.mark.parametrize("plan", VIT_PLANS)
def test_vit(plan, mix, fused, vit, gap):
    dense = fuse(make_dense(vit(depth=4), mix, VIT_PLANS[plan]), fused)
    check(dense, draw(dense), gap)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("deit3_small_patch16_224", {"init_values": 0.3}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_small_patch14_reg4_dinov2", {}),
        ("vit_tiny_patch16_224", {"qk_norm": True}),
        pytest.param("vit_tiny_patch16_224", {"gate": True}, marks=NEEDS_GATE),
    ],
)
@each_mix
def test_every_kind_of_vit(name, kwargs, mix, vit, randomise, gap):
    model = vit(name, **{k: v for k, v in kwargs.items() if k != "gate"})
    if "gate" in kwargs:
        for block in model.blocks:
            block.attn = Attention(192, num_heads=3, qkv_bias=True, gated=True)
        randomise(model)
    dense = make_dense(model, mix, [[0, 2], [1, 2], [0, 1]])
    check(dense, draw(dense), gap)


SWINS = {
    "no shift": ({"depths": (3, 2), "img_size": 16}, None),
    "shift": ({"depths": (4, 3)}, None),
    "padded": ({"depths": (4, 3), "img_size": 40}, None),
    "padded, windows not square": ({"depths": (3, 3), "img_size": (36, 28), "window_size": (3, 4)}, None),
    "larger than built for": ({"depths": (3, 3), "strict_img_size": False}, (40, 44)),
    "smaller than built for": ({"depths": (3, 3), "strict_img_size": False}, (20, 24)),
    "always partition": ({"depths": (3, 3), "img_size": 20, "always_partition": True}, None),
    "narrow heads": ({"depths": (4, 3), "head_dim": 3}, None),
    "without qkv bias": ({"depths": (4, 3), "img_size": 40, "qkv_bias": False}, None),
}
SWIN_PLANS = {
    "uncut": lambda i, b: range(b.heads),
    "even": lambda i, b: range(1, b.heads),
    "uneven": lambda i, b: [h for h in range(b.heads) if (h + i) % 3] or [0],
    "a block without heads": lambda i, b: range(b.heads) if i != 1 else [],
}
SWIN_CASES = [(shape, "uneven") for shape in SWINS] + [("padded", plan) for plan in SWIN_PLANS if plan != "uneven"]


@each_path
@pytest.mark.parametrize(("shape", "plan"), SWIN_CASES)
def test_swin(shape, plan, mix, fused, swin, gap):
    kwargs, size = SWINS[shape]
    model = swin(**({"num_heads": (3, 4), "embed_dim": 12} | kwargs))
    kept = [list(SWIN_PLANS[plan](i, b)) for i, b in enumerate(plan_of(model).blocks)]
    dense = fuse(make_dense(model, mix, kept), fused)
    check(dense, draw(dense, size), gap)


def test_the_shape_named_shift_has_shifts_and_no_shift_has_none(swin):
    def shifts(shape):
        return {v.block.shift_size for v in attention_blocks(swin(**SWINS[shape][0]))}

    assert shifts("shift") == {(0, 0), (2, 2)} and shifts("no shift") == {(0, 0)}


@each_mix
@pytest.mark.parametrize("kept", [None, [[0, 2], [1, 2], [], [0, 1, 2]]], ids=["uncut", "uneven"])
def test_one_window_for_the_stage_without_shift_and_bias_is_a_plain_vit(kept, mix, randomise, gap):
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "num_classes": 5}
    window = SwinTransformer(**settings, window_size=4, depths=(4,), num_heads=(3,), norm_layer=nn.LayerNorm)
    plain = VisionTransformer(
        **settings, depth=4, num_heads=3, class_token=False, pos_embed="none", pre_norm=True, global_pool="avg",
        fc_norm=False, norm_layer=nn.LayerNorm,
    )  # fmt: skip
    randomise(window)
    window.patch_embed.proj.bias.data.zero_()  # timm's ViT has none in front of a norm
    for view in attention_blocks(window):
        view.attn.relative_position_bias_table.data.zero_()
    renamed = {"layers.0.": "", "patch_embed.norm": "norm_pre", "head.fc": "head"}
    state = {}
    for name, value in window.state_dict().items():
        if name != "patch_embed.proj.bias" and not name.endswith("table"):
            for before, after in renamed.items():
                name = name.replace(before, after)
            state[name] = value
    plain.load_state_dict(state, strict=True)
    plain, window = (make_dense(net.eval(), mix, kept) for net in (plain, window))
    x = draw(window)
    assert gap(window.forward_features(x).flatten(1, 2), plain.forward_features(x)) <= 1e-10
    assert gap(window(x), plain(x)) <= 1e-10
