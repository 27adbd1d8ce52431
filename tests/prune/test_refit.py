import copy

import pytest
import torch

from slimvit.models.registry import plan_of, steps
from slimvit.prune import refit as refit_module
from slimvit.prune.refit import TARGETS_OF_REFIT, bytes_per_image, refit
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import PlanError

SETTINGS = [{}, {"init_values": 0.1}]
"""Without and with LayerScale."""


@pytest.fixture
def data(batches):
    """Enough tokens to determine a layer: the random images of one model, 5 tokens each."""

    def draw(model):
        return batches(model, count=4, size=32)

    return draw


def cut(model, kept):
    return prune_model(model, plan_of(model).keeping(heads=kept))


def error(model, original, data):
    """Squared error of the features over their variance."""
    with torch.no_grad():
        found = torch.cat([model.forward_features(x) for x, _ in data])
        wanted = torch.cat([original.forward_features(x) for x, _ in data])
    return float((found - wanted).square().sum() / (wanted - wanted.mean((0, 1))).square().sum())


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "layerscale"])
@pytest.mark.parametrize("target", TARGETS_OF_REFIT)
def test_nothing_removed_nothing_changed(settings, target, vit, data, gap):
    model = vit(**settings)
    same = refit(prune_model(model, plan_of(model)), model, data(model), target)
    x = data(model)[0][0]
    assert gap(same(x), model(x)) <= 1e-4


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "layerscale"])
def test_every_target_reduces_the_error_and_stream_the_most(settings, vit, data):
    model = vit(**settings)
    slim = cut(model, [[0, 2], [1], [0, 1]])
    images = data(model)
    before = error(slim, model, images)
    after = {t: error(refit(slim, model, images, t, ridge=0.01), model, images) for t in TARGETS_OF_REFIT}
    assert all(e < before for e in after.values())
    assert min(after, key=after.__getitem__) == "stream"


@pytest.mark.parametrize("target", TARGETS_OF_REFIT)
def test_a_huge_ridge_leaves_the_weights(target, vit, data):
    model = vit()
    slim = cut(model, [[0, 2], [1], [0, 1]])
    fitted = refit(slim, model, data(model), target, ridge=1e9)
    for name, before in slim.state_dict().items():
        if name.endswith("weight"):
            assert torch.allclose(fitted.state_dict()[name], before, atol=1e-5), name


@pytest.mark.parametrize("target", TARGETS_OF_REFIT)
def test_only_the_last_layer_of_each_branch_changes(target, vit, data):
    model = vit()
    slim = cut(model, [[0, 2], [1], [0, 1]])
    after = refit(slim, model, data(model), target).state_dict()
    changed = {k.rsplit(".", 2)[1] for k, v in slim.state_dict().items() if not torch.equal(v, after[k])}
    assert changed <= {"proj", "fc2"} and "proj" in changed


@pytest.mark.parametrize("target", TARGETS_OF_REFIT)
def test_with_and_without_cache(target, vit, data):
    model = vit(init_values=0.1)
    slim = cut(model, [[0, 2], [], [0, 1]])
    cached = refit(slim, model, data(model), target, cache=True).state_dict()
    recomputed = refit(slim, model, data(model), target, cache=False).state_dict()
    assert all(torch.allclose(cached[k], recomputed[k], rtol=1e-3, atol=1e-4) for k in cached)


@pytest.mark.parametrize(("free", "kept"), [(10**6, False), (10**9, True), (None, True)])
def test_the_cache_is_left_out_where_memory_is_short(free, kept, vit, data, monkeypatch, capsys):
    model = vit(init_values=0.1)
    slim, walks = cut(model, [[0, 2], [], [0, 1]]), []
    real = refit_module._CachedWalk
    monkeypatch.setattr(refit_module, "_CachedWalk", lambda *args: walks.append(1) or real(*args))
    monkeypatch.setattr(refit_module, "free_bytes", lambda _: free)
    found = refit(slim, model, data(model)).state_dict()
    assert bool(walks) is kept and ("calibration images" in capsys.readouterr().err) is not kept
    wanted = refit(slim, model, data(model), cache=kept).state_dict()
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_what_the_cache_takes_is_known_before(family, vit, swin, data, monkeypatch):
    """Against what the cache really holds of an image."""
    model, held = {"vit": vit, "swin": swin}[family](), []
    real = refit_module._CachedWalk.advance

    def advance(walk, i):
        tensors = [t for s in (*walk.slim_states, *walk.original_states) for t in (s.stream, *s.carried.values)] + [
            t for p in walk.features for t in p
        ]
        held.append(sum(t.numel() * t.element_size() for t in tensors if t is not None))
        real(walk, i)

    monkeypatch.setattr(refit_module._CachedWalk, "advance", advance)
    refit(model, model, data(model), cache=True)
    images = sum(len(x) for x, _ in data(model))
    assert bytes_per_image(steps(model), next(iter(data(model)))[0][:1]) == max(held) / images
    assert (refit_module.free_bytes(torch.device("cpu")) or 2**30) > 2**20


@pytest.mark.parametrize("target", TARGETS_OF_REFIT)
def test_a_block_without_heads_gets_the_mean_as_bias(target, vit, data, images):
    model = vit()
    slim = cut(model, [[], [0, 1, 2], [0, 1, 2]])
    fitted = refit(slim, model, data(model), target)
    seen = []
    hook = model.blocks[0].attn.proj.register_forward_hook(lambda _, args, output: seen.append(output.detach()))
    for x, _ in data(model):
        model(x)
    hook.remove()
    assert torch.allclose(fitted.blocks[0].attn.proj.bias, torch.cat(seen).mean((0, 1)), atol=1e-4)
    assert fitted.blocks[0].attn.proj.weight.shape == (192, 0)


def test_without_biases(vit, data):
    """Layers that have no bias get none: the model must stay one that timm can build."""
    model = vit("vit_tiny_patch16_224", proj_bias=False)
    slim = cut(model, [[0, 2], [], [0, 1]])
    fitted = refit(slim, model, data(model))
    assert fitted.state_dict().keys() == slim.state_dict().keys()
    assert error(fitted, model, data(model)) < error(slim, model, data(model))


def test_the_models_given_stay_as_they_were(vit, data):
    model = vit()
    slim = cut(model, [[0, 2], [1], [0, 1]]).train()
    model.blocks[1].eval()
    before = copy.deepcopy((model.state_dict(), slim.state_dict()))
    flags = [m.training for net in (model, slim) for m in net.modules()]
    fitted = refit(slim, model, data(model))
    assert flags == [m.training for net in (model, slim) for m in net.modules()]
    for old, net in zip(before, (model, slim), strict=True):
        assert all(torch.equal(v, old[k]) for k, v in net.state_dict().items())
    assert plan_of(fitted) == plan_of(slim)
    assert all(p.requires_grad and not p.is_inference() for p in fitted.parameters())


def test_an_unknown_target(vit):
    with pytest.raises(PlanError, match="refit target 'flow' is not known; choose from own, teacher, stream, none"):
        refit(vit(), vit(), [], "flow")
