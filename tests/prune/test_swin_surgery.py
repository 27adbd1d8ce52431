"""Cutting, scoring and refitting Swins: windows, shifts, padding and bias tables, and stages of different widths."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slimvit.models.empty import EmptyAttention
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.prune.criteria.calibration import observe
from slimvit.prune.criteria.registry import CRITERIA, score_parts
from slimvit.prune.criteria.statistics import MomentSums
from slimvit.prune.refit import TARGETS_OF_REFIT, refit
from slimvit.prune.surgery import prune_model

FOUR_STAGES = {"img_size": 56, "window_size": 7}
MODELS = {
    "swin_tiny_patch4_window7_224": {
        **FOUR_STAGES, "depths": (1, 2, 3, 1), "num_heads": (3, 6, 12, 24), "embed_dim": 12
    },
    "swin_small_patch4_window7_224": {
        **FOUR_STAGES, "depths": (1, 1, 4, 1), "num_heads": (3, 6, 12, 24), "embed_dim": 12
    },
    "swin_base_patch4_window7_224": {
        **FOUR_STAGES, "depths": (2, 1, 3, 2), "num_heads": (4, 8, 16, 32), "embed_dim": 16
    },
    "swin_large_patch4_window7_224": {
        **FOUR_STAGES, "depths": (1, 2, 3, 1), "num_heads": (6, 12, 24, 48), "embed_dim": 12
    },
    "swin_base_patch4_window12_384": {
        "img_size": 96, "window_size": 12, "depths": (2, 2, 1, 1), "num_heads": (2, 4, 4, 4), "embed_dim": 8
    },
    "swin_s3_tiny_224": {
        "img_size": 56, "window_size": (7, 7, 14, 7), "depths": (2, 2, 2, 1), "num_heads": (3, 3, 6, 6),
        "embed_dim": 12, "head_dim": 5,
    },
}  # fmt: skip
SHAPES = {
    "plain": ({}, (32, 32)),
    "padded": ({"img_size": 72}, (72, 72)),
    "larger than built for": ({"strict_img_size": False}, (56, 44)),
    "smaller than built for": ({"strict_img_size": False, "img_size": 48}, (20, 36)),
    "always partition": ({"always_partition": True, "img_size": 24}, (24, 24)),
    "windows not square": ({"img_size": 40, "window_size": (3, 4)}, (40, 40)),
    "narrow heads": ({"head_dim": 3}, (32, 32)),
    "without qkv bias": ({"qkv_bias": False, "img_size": 72}, (72, 72)),
}
PLANS = {
    "uneven": lambda i, b: [h for h in range(b.heads) if (h + i) % 3 or h == i % b.heads],
    "one head left": lambda i, b: [i % b.heads],
    "a block without heads": lambda i, b: range(1, b.heads) if i != 1 else [],
    "a stage without heads": lambda i, b: range(b.heads - 1) if b.stage != 1 else [],
    "no heads at all": lambda i, b: [],
}
KEPT = [[1], [], [0, 2, 3], [1]]
each_shape = pytest.mark.parametrize(("kwargs", "size"), SHAPES.values(), ids=SHAPES.keys())


def planned(model, plan):
    return [list(PLANS[plan](i, b)) for i, b in enumerate(plan_of(model).blocks)]


def fuse(model, fused):
    for view in attention_blocks(model):
        view.attn.fused_attn = fused
    return model


def cut(model, kept_heads):
    return prune_model(model, plan_of(model).keeping(heads=kept_heads))


def draw(size, n=2):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(0))


def outputs(model, x):
    with torch.no_grad():
        features = model.forward_features(x)
        return {"features": features, "logits": model.forward_head(features)}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", MODELS)
def test_cut_equals_silenced_heads(name, plan, swin, masked, images, gap):
    model = swin(name, **MODELS[name])
    kept = planned(model, plan)
    found, wanted = outputs(cut(model, kept), images(model, 1)), outputs(masked(model, kept), images(model, 1))
    for what in found:
        assert gap(found[what], wanted[what]) <= 1e-5, what


@pytest.mark.parametrize(("plan", "fused"), [(plan, False) for plan in PLANS] + [("uneven", True)])
@each_shape
def test_cut_equals_silenced_heads_whatever_the_windows(kwargs, size, plan, fused, swin, masked, gap):
    model = fuse(swin(**kwargs), fused)
    kept = planned(model, plan)
    found, wanted = outputs(cut(model, kept), draw(size)), outputs(masked(model, kept), draw(size))
    for what in found:
        assert gap(found[what], wanted[what]) <= 1e-5, what


@pytest.mark.parametrize("block", range(4))
def test_one_wrong_head_misses_the_bar(block, swin, masked, images, gap):
    model = swin()
    every = [list(range(b.heads)) for b in plan_of(model).blocks]
    wrong = [every[i][1:] if i == block else every[i] for i in range(4)]
    for head in every[block][1:]:
        right = [[h for h in every[i] if h != head] if i == block else every[i] for i in range(4)]
        found, wanted = outputs(cut(model, wrong), images(model)), outputs(masked(model, right), images(model))
        assert all(gap(found[what], wanted[what]) > 1e-3 for what in found)


@pytest.mark.parametrize("block", range(4))
def test_one_wrong_column_of_the_bias_table_misses_the_bar(block, swin, masked, images, gap):
    model = swin()
    kept = [[0], [0], [0, 1, 2], [0, 1, 2]]
    slim, wanted = cut(model, kept), outputs(masked(model, kept), images(model))
    columns = [*kept[block][:-1], kept[block][-1] + 1]
    wrong = attention_blocks(model)[block].attn.relative_position_bias_table.detach()[:, columns]
    attention_blocks(slim)[block].attn.relative_position_bias_table = nn.Parameter(wrong)
    assert gap(outputs(slim, images(slim))["features"], wanted["features"]) > 1e-3


def test_what_is_left_are_timms_modules_with_their_heads_of_everything(swin):
    model = swin()
    slim = cut(model, KEPT)
    for before, after, kept in zip(attention_blocks(model), attention_blocks(slim), KEPT, strict=True):
        if not kept:
            assert type(after.attn) is EmptyAttention
            continue
        old, new = before.attn, after.attn
        assert type(new) is type(old) and new.num_heads == len(kept)
        assert torch.equal(new.relative_position_bias_table, old.relative_position_bias_table[:, kept])
        c = old.qkv.in_features
        for name in ("weight", "bias"):
            wanted = getattr(old.qkv, name).reshape(3, old.num_heads, 8, -1)[:, kept].flatten(0, 2).squeeze(-1)
            assert torch.equal(getattr(new.qkv, name), wanted), name
        assert torch.equal(new.proj.weight, old.proj.weight.view(c, old.num_heads, 8)[:, kept].flatten(1))
        assert torch.equal(new.proj.bias, old.proj.bias)


def test_keeping_every_head_changes_nothing(swin, images):
    model = swin()
    assert torch.equal(prune_model(model, plan_of(model))(images(model)), model(images(model)))


def test_the_model_given_stays_as_it_was(swin, images):
    model = swin()
    before, output = copy.deepcopy(model.state_dict()), model(images(model))
    cut(model, KEPT)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert plan_of(model).removed_heads == 0 and torch.equal(model(images(model)), output)


def test_a_frozen_bias_table_stays_frozen(swin):
    model = swin().requires_grad_(False)
    assert not any(p.requires_grad for n, p in cut(model, KEPT).named_parameters() if "table" in n)


def test_cutting_twice_equals_cutting_once(swin, images):
    model = swin()
    once, twice = cut(model, KEPT), cut(cut(model, [[1], [0], [0, 2, 3], [0, 1, 2]]), KEPT)
    assert plan_of(twice) == plan_of(once)
    assert torch.equal(twice(images(model)), once(images(model)))


RESIZED = {
    "image": {"img_size": (48, 48)},
    "image, padded": {"img_size": (72, 40)},
    "window": {"window_size": (2, 2)},
    "image and window": {"img_size": (64, 64), "window_size": (8, 8)},
    "always partition": {"always_partition": True},
}


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:torch.searchsorted")  # timm's table resizing
@pytest.mark.parametrize("change", RESIZED.values(), ids=RESIZED.keys())
def test_set_input_size(change, swin, masked, images, gap):
    """One block has lost its heads, and with them the norm and the table that timm resizes."""
    model = swin()
    slim, full = cut(model, KEPT), masked(model, KEPT)
    for net in (slim, full):
        net.set_input_size(**change)
    assert gap(slim(images(slim)), full(images(slim))) <= 1e-5


def test_forward_intermediates(swin, masked, images, gap):
    model = swin()
    slim = cut(model, KEPT)
    final, found = slim.forward_intermediates(images(model))
    _, wanted = masked(model, KEPT).forward_intermediates(images(model))
    assert len(found) == 2 and torch.equal(final, slim.forward_features(images(model)))
    assert all(gap(a, b) <= 1e-5 for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, swin, images, gap):
    slim = cut(swin(), KEPT)
    found = copy.deepcopy(slim).to(dtype)(images(slim).to(dtype))
    assert found.dtype == dtype and gap(found.float(), slim(images(slim))) < 0.1


def test_a_training_step_reaches_every_parameter(swin, images):
    slim = cut(swin(drop_path_rate=0.0), KEPT).train()
    slim(images(slim)).square().sum().backward()
    assert [k for k, p in slim.named_parameters() if p.grad is None] == []


def test_on_the_meta_device(swin):
    with torch.device("meta"):
        import timm

        model = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1))
        slim = cut(model, [[], [0], [1, 2], [5]])
    assert {p.device.type for p in slim.parameters()} == {"meta"}
    assert slim.layers[2].blocks[0].attn.relative_position_bias_table.shape == (169, 2)


# --- scores


def table(model, data, criterion):
    return score_parts(model, data, criterion).table()


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("kwargs", [{}, {"img_size": 72}, {"strict_img_size": False}, {"head_dim": 3}])
def test_every_criterion_gives_one_finite_score_a_head(criterion, kwargs, swin, batches):
    model = swin(**kwargs)
    scores = table(model, batches(model, count=2), criterion)
    assert [len(row) for row in scores] == [2, 2, 4, 4]
    assert all(torch.tensor(row).isfinite().all() and (torch.tensor(row) > 0).all() for row in scores)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_model_that_was_cut_before(criterion, swin, batches):
    slim = cut(swin(), KEPT)
    scores = table(slim, batches(slim, count=2), criterion)
    assert [[h for h, value in enumerate(row) if value is not None] for row in scores] == KEPT


def by_multipliers(model, data):
    """dLoss/dm of a multiplier on each head's output, an image at a time: one [images, heads] a block."""
    rows = []
    for images, labels in data:
        for image, label in zip(images, labels, strict=True):
            gates = [torch.ones(view.attn.num_heads, requires_grad=True) for view in attention_blocks(model)]
            hooks = [
                view.attn.proj.register_forward_pre_hook(
                    lambda _, args, m=m, d=view.head_dim: (args[0] * m.repeat_interleave(d),)
                )
                for view, m in zip(attention_blocks(model), gates, strict=True)
            ]
            loss = F.cross_entropy(model(image[None]), label[None])
            rows.append(torch.autograd.grad(loss, gates))
            for hook in hooks:
                hook.remove()
    return [torch.stack(block).double() for block in zip(*rows, strict=True)]


@pytest.mark.parametrize("kwargs", [{}, {"img_size": 72}, {"head_dim": 3}], ids=["plain", "padded", "narrow heads"])
def test_taylor_and_fisher_equal_explicit_multipliers(kwargs, swin, batches):
    model = swin(**kwargs)
    data = batches(model, count=2, size=3)
    wanted = by_multipliers(model, data)
    for taylor, fisher, gradients in zip(
        table(model, data, "taylor"), table(model, data, "fisher"), wanted, strict=True
    ):
        assert torch.allclose(torch.tensor(taylor).double(), gradients.abs().mean(0), rtol=1e-3, atol=1e-7)
        assert torch.allclose(torch.tensor(fisher).double(), gradients.square().mean(0), rtol=1e-3, atol=1e-9)


def test_magnitude_includes_the_bias_table(swin):
    model = swin().requires_grad_(False)
    for view, row in zip(attention_blocks(model), table(model, [], "magnitude"), strict=True):
        attn, d = view.attn, view.head_dim
        for head, score in enumerate(row):
            own = slice(head * d, (head + 1) * d)
            parts = [attn.qkv.weight.view(3, attn.num_heads, d, -1)[:, head], attn.proj.weight[:, own]]
            parts.append(attn.relative_position_bias_table[:, head])
            assert score == pytest.approx(sum(float(p.square().sum()) for p in parts) ** 0.5, rel=1e-5)


def real_tokens(block, size):
    """[windows, area], True where a window of an image of ``size`` holds a token and not padding."""
    (h, w), (wh, ww) = size, block.window_size
    rows, columns = torch.arange(-(-h // wh) * wh) < h, torch.arange(-(-w // ww) * ww) < w
    return (rows[:, None] & columns).view(-1, wh, len(columns) // ww, ww).transpose(1, 2).reshape(-1, wh * ww)


def record(seen, gradients):
    """A hook for ``proj`` that keeps its inputs, and the gradients at its outputs."""

    def hook(_, args, output):
        seen.append(args[0].detach())
        output.register_hook(gradients.append)

    return hook


def test_padding_does_not_enter_the_statistics(swin, batches):
    model = swin(img_size=72)
    views, sizes = attention_blocks(model), [(18, 18), (18, 18), (9, 9), (9, 9)]
    seen, gradients = [[] for _ in views], [[] for _ in views]
    hooks = [v.attn.proj.register_forward_hook(record(seen[i], gradients[i])) for i, v in enumerate(views)]
    data = batches(model, count=2)
    for images, labels in data:
        F.cross_entropy(model(images), labels, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    for i, (view, found) in enumerate(zip(views, observe(model, data, "labels", MomentSums)["heads"], strict=True)):
        real = real_tokens(view.block, sizes[i]).repeat(len(data[0][0]), 1)
        assert not real.all()
        z, g = (torch.cat([batch[real] for batch in batches]).double() for batches in (seen[i], gradients[i]))
        assert len(z) == 8 * sizes[i][0] * sizes[i][1]
        assert torch.allclose(found.covariance, z.T.cov(correction=0), rtol=1e-3, atol=1e-4 * float(z.var()))
        z_of, g_of = z.unflatten(0, (8, -1)), g.unflatten(0, (8, -1))  # 8 images
        means = z_of.mean(1).cumsum(0) / torch.arange(1, 9)[:, None]  # each is centred by those up to it
        a = (z_of - means[:, None]).mT @ g_of
        for moment, wanted in ((found.inputs, (a @ a.mT).mean(0)), (found.outputs, (a.mT @ a).mean(0))):
            assert (moment - wanted).norm() < 1e-3 * wanted.norm()
        padded = torch.cat(seen[i]).flatten(0, 1).double().T.cov(correction=0)
        assert not torch.allclose(found.covariance, padded, rtol=1e-2, atol=1e-2 * float(z.var()))


# --- refit


@pytest.fixture(params=[{}, {"img_size": 40}, {"always_partition": True, "img_size": 24}], ids=lambda k: str(k))
def model(request, swin):
    return swin(**request.param)


@pytest.fixture
def data(batches):
    return lambda model: batches(model, count=3, size=16)


def error(model, original, data):
    """Squared error of the features over their variance."""
    with torch.no_grad():
        found = torch.cat([model.forward_features(x) for x, _ in data])
        wanted = torch.cat([original.forward_features(x) for x, _ in data])
    return float((found - wanted).square().sum() / (wanted - wanted.mean((0, 1, 2))).square().sum())


@pytest.mark.parametrize("target", TARGETS_OF_REFIT)
def test_the_refit_brings_the_features_nearer_the_original(target, model, data):
    slim = cut(model, [[1], [0], [0, 2, 3], [1, 2]])
    seen = data(model)
    assert error(refit(slim, model, seen, target, ridge=0.01), model, seen) < 0.9 * error(slim, model, seen)


@pytest.mark.parametrize("target", TARGETS_OF_REFIT)
def test_nothing_removed_nothing_changed(target, model, data, gap):
    same = refit(prune_model(model, plan_of(model)), model, data(model), target, ridge=1e-6)
    found, wanted = outputs(same, data(model)[0][0]), outputs(model, data(model)[0][0])
    assert all(gap(found[what], wanted[what]) <= 1e-4 for what in found)


@pytest.mark.parametrize("target", TARGETS_OF_REFIT)
def test_with_and_without_cache(target, model, data):
    slim, seen = cut(model, KEPT), data(model)[:2]
    cached = refit(slim, model, seen, target, cache=True).state_dict()
    recomputed = refit(slim, model, seen, target, cache=False).state_dict()
    assert all(torch.allclose(cached[k], recomputed[k], rtol=1e-3, atol=1e-4) for k in cached)


@pytest.mark.parametrize("target", TARGETS_OF_REFIT)
def test_only_the_last_layer_of_each_branch_changes(target, model, data):
    slim = cut(model, KEPT)
    after = refit(slim, model, data(model)[:1], target).state_dict()
    changed = {k.rsplit(".", 2)[1] for k, v in slim.state_dict().items() if not torch.equal(v, after[k])}
    assert changed <= {"proj", "fc2"} and "proj" in changed


def test_a_block_without_heads_gets_the_mean_over_real_tokens_as_bias(swin, data):
    model = swin(img_size=40)
    slim = cut(model, [[], [0, 1], [0, 1, 2, 3], [0, 1, 2, 3]])
    outputs = []
    model.layers[0].blocks[0].drop_path1.register_forward_hook(lambda _, args, output: outputs.append(output))
    with torch.no_grad():
        for x, _ in data(model):
            model(x)
    fitted = refit(slim, model, data(model), "own")
    assert torch.allclose(fitted.layers[0].blocks[0].attn.proj.bias, torch.cat(outputs).mean((0, 1, 2)), atol=1e-4)
