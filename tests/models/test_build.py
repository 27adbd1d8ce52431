import pytest
import timm
import torch
from safetensors.torch import save_file

from slimvit.models.build import ModelSource, build_model
from slimvit.utils.errors import ModelError

NAME = "deit_tiny_patch16_224"
SMALL = {"depth": 2}


@pytest.fixture
def state(vit):
    return {k: v.clone() for k, v in vit(depth=2).state_dict().items()}


def load(file, name=NAME, img_size=32, **kwargs):
    return build_model(name, weights=file, img_size=img_size, args=SMALL, **kwargs)


def same(model, state):
    found = model.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


def shifted(state):
    return {k: v + 1 for k, v in state.items()}


def test_an_unknown_name_is_met_with_the_nearest():
    with pytest.raises(ModelError, match="deit_tiny_patch16_223: no timm model of that name .did you mean deit_tiny_"):
        build_model("deit_tiny_patch16_223", pretrained=False)


def test_an_unknown_tag_is_met_with_the_known_ones():
    with pytest.raises(ModelError, match=r"deit_tiny_patch16_224\.nonsense: .*nonsense.*fb_in1k"):
        build_model("deit_tiny_patch16_224.nonsense", pretrained=False)


@pytest.mark.parametrize("pretrained", [True, False])
def test_unknown_arguments(pretrained):
    with pytest.raises(ModelError, match=r"timm does not take these model arguments \{'bogus': 1\}: .*bogus"):
        build_model(NAME, pretrained=pretrained, args={"bogus": 1})


def test_arguments_that_do_not_fit():
    with pytest.raises(ModelError, match="model arguments .*num_heads.* do not fit: dim should be divisible"):
        build_model(NAME, pretrained=False, args={"num_heads": 5})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"lr": 1.0}},
        lambda s: {"state_dict_ema": s, "state_dict": shifted(s)},
        lambda s: {"model_ema": s, "model": shifted(s)},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    ],
    ids=["plain", "state_dict", "model", "state_dict_ema", "model_ema", "module.", "module._orig_mod."],
)
def test_pth_as_published(wrap, state, tmp_path):
    torch.save(wrap(state), tmp_path / "w.pth")
    assert same(load(tmp_path / "w.pth"), state)


def test_safetensors(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    model = load(tmp_path / "w.safetensors")
    assert same(model, state) and model.num_classes == 5 and not model.training


def test_distilled(vit, tmp_path):
    state = vit("deit_tiny_distilled_patch16_224", depth=2).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    assert same(load(tmp_path / "w.safetensors", "deit_tiny_distilled_patch16_224"), state)


def test_position_tables_of_another_image_size_are_resampled(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    model = load(tmp_path / "w.safetensors", img_size=64)
    assert model.pos_embed.shape == (1, 17, 192)
    assert torch.allclose(model.pos_embed[:, 0], state["pos_embed"][:, 0])
    assert torch.equal(model.head.weight, state["head.weight"])


def test_the_file_decides_the_classes(state, tmp_path):
    save_file(state, tmp_path / "five.safetensors")
    save_file({k: v for k, v in state.items() if "head" not in k}, tmp_path / "none.safetensors")
    assert load(tmp_path / "five.safetensors").num_classes == 5
    assert load(tmp_path / "none.safetensors").num_classes == 0


def test_another_number_of_classes_is_an_untrained_classifier(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    model = load(tmp_path / "w.safetensors", num_classes=3)
    assert model.num_classes == 3 and model.untrained_classifier
    assert torch.equal(model.norm.weight, state["norm.weight"])
    assert not hasattr(load(tmp_path / "w.safetensors", num_classes=5), "untrained_classifier")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "norm.bias"}, r"missing norm\.bias;"),
        (lambda s: s | {"extra.weight": torch.ones(1)}, r"unexpected extra\.weight;"),
        (lambda s: s | {"norm.weight": torch.ones(7)}, r"norm\.weight has shape \[7\], expected \[192\];"),
        (lambda s: {"conv1.weight": torch.ones(64, 3, 7, 7)}, "missing .* and .* more; unexpected conv1.weight;"),
    ],
    ids=["missing", "unexpected", "shape", "another model"],
)  # fmt: skip
def test_weights_that_do_not_fit(change, told, state, tmp_path):
    torch.save(change(state), tmp_path / "w.pth")
    with pytest.raises(
        ModelError, match=rf"w\.pth: these weights do not fit {NAME}: .*{told}.*--model-arg NAME=VALUE$"
    ) as caught:
        load(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "other", ["vit_small_patch14_dinov2", "deit_small_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_weights_of_another_model(other, vit, tmp_path):
    state = vit(other).state_dict() if "swin" not in other else timm.create_model(other).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=rf"these weights do not fit {NAME}: .*\.") as caught:
        load(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000


def test_no_network_and_no_weights(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=f"{NAME}: its pretrained weights could not be fetched") as caught:
        build_model(NAME, pretrained=True, args={"cache_dir": str(tmp_path)})
    assert "--weights FILE" in str(caught.value) and "--no-pretrained" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_pretrained_weights():
    with pytest.raises(
        ModelError, match="vit_base_patch16_gap_224: timm has no pretrained weights for it; .*--weights"
    ):
        build_model("vit_base_patch16_gap_224")


def test_arguments_that_pretrained_weights_do_not_fit(state, tmp_path):
    """Another depth, say: one line, naming tensors."""
    save_file(state, tmp_path / "w.safetensors")
    published = {"file": str(tmp_path / "w.safetensors"), "num_classes": 5}
    with pytest.raises(ModelError, match=r"pretrained weights do not fit .*'depth': 1.*unexpected blocks\.1\."):
        build_model(NAME, img_size=32, args={"depth": 1, "pretrained_cfg_overlay": published})


def test_the_source_is_kept():
    model = build_model(NAME, pretrained=False, img_size=32, num_classes=4, args=SMALL)
    assert model.slim_source == ModelSource(NAME, {"depth": 2, "img_size": 32})
    assert model.num_classes == 4 and not model.training
