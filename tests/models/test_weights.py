"""Weight files: layouts that are read, the choice among sets, arguments from shapes, and errors with advice."""

import argparse
import datetime
import enum
import os
import pickle
import random
import re
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from slimvit.models.build import build_model
from slimvit.models.weights.geometry import adapted_stem, input_size_in, windows_in
from slimvit.models.weights.layouts import layout_of
from slimvit.models.weights.sets import class_names_in, read_checkpoint, weight_sets
from slimvit.utils.errors import ModelError

NAME = "deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def state(vit):
    return dict(vit(depth=1).state_dict())


def shifted(state):
    return {k: v + 1 for k, v in state.items()}


def prefixed(state, prefix):
    return {f"{prefix}{k}": v for k, v in state.items()}


def saved(content, path, **how):
    torch.save(content, path, **how)
    return path


def same(found, state):
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


def refused(file, key=None):
    with pytest.raises(ModelError) as caught:
        read_checkpoint(file, key)
    text = str(caught.value)
    assert "\n" not in text and len(text) <= 400 + len(str(file)) and text.startswith(str(file))
    assert "weights_only=False" not in text and "safe_globals" not in text
    return text


KEYS = ["state_dict", "model", "model_state_dict", "net", "weights", "params", "ema", "state_dict_ema", "model_ema"]


@pytest.mark.parametrize("key", [*KEYS, "anything"])
def test_the_only_set_is_found_under_any_key(key, state, tmp_path):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2, 3))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2, 3)
    optimizer.step()
    content = {key: state, "epoch": 3, "best": torch.tensor(0.5), "optimizer": optimizer.state_dict()}
    found = read_checkpoint(saved(content, tmp_path / "w.pth"))
    assert same(found.weights.tensors, state) and found.others == () and found.summary() == ""


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "backbone.", "encoder.", "net.", "0.", "_orig_mod.", "module._orig_mod.", "vit.",
               "model.backbone.", "_orig_mod.module.model."]
)  # fmt: skip
def test_a_prefix_common_to_all_names_goes(prefix, state, tmp_path):
    found = read_checkpoint(saved({"state_dict": prefixed(state, prefix)}, tmp_path / "w.pth"))
    assert same(found.weights.tensors, state)


@pytest.mark.parametrize("name", ["w.pth", "w.PTH", "w.pt", "w.ckpt", "w.bin", "w.pth.tar", "weights", "w.Model"])
def test_the_content_decides_not_the_suffix(name, state, tmp_path):
    assert same(read_checkpoint(saved({"state_dict": state}, tmp_path / name)).weights.tensors, state)


@pytest.mark.parametrize("name", ["w.safetensors", "w.SAFETENSORS", "w.bin"])
def test_safetensors(name, state, tmp_path):
    save_file(state, tmp_path / name, metadata={"format": "pt", "classes": '["a", "b"]'})
    found = read_checkpoint(tmp_path / name)
    assert same(found.weights.tensors, state) and found.class_names == ("a", "b")


class Kind(enum.Enum):
    ONE = 1


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before torch 1.6"])
def test_data_of_python_and_numpy_beside_the_weights(new, state, tmp_path):
    beside = {
        "best": np.float64(0.7), "epoch": np.int64(3), "losses": np.arange(3.0), "names": np.array(["a", "b"]),
        "out": Path("runs"), "args": argparse.Namespace(lr=1e-3, out=Path("x")), "counts": defaultdict(list, a=[1]),
        "when": datetime.date(2026, 1, 1), "set": {1}, "kind": Kind.ONE,
    }  # fmt: skip
    file = saved({"state_dict": OrderedDict(state)} | beside, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    assert same(read_checkpoint(file).weights.tensors, state)


def test_weights_as_arrays(state, tmp_path):
    arrays = {k: v.numpy() for k, v in state.items()}
    assert same(read_checkpoint(saved({"params": arrays}, tmp_path / "w.pth")).weights.tensors, state)


class Settings(dict):
    """A configuration of a training library."""


def test_an_unknown_class_is_replaced_without_running_it(state, tmp_path, monkeypatch):
    file = saved({"state_dict": state, "config": Settings(lr=1)}, tmp_path / "w.pth")
    monkeypatch.setattr(Settings, "__init__", lambda *_: pytest.fail("run"))
    assert same(read_checkpoint(file).weights.tensors, state)


class Bomb:
    def __init__(self, function, path):
        self.what = function, (str(path),)

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("function", [os.mkdir, Path.mkdir, eval, exec])
def test_code_in_a_file_is_never_run(function, new, state, tmp_path):
    target = tmp_path / "burst"
    bomb = Bomb(function, target if function in (os.mkdir, Path.mkdir) else f"open({str(target)!r}, 'w')")
    file = saved({"state_dict": state, "bomb": bomb}, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    try:
        read_checkpoint(file)
    except ModelError as error:
        assert "without running its code" in str(error)
    assert not target.exists()


def test_the_average_is_taken_and_what_else_is_there_is_said(state, tmp_path):
    file = saved({"state_dict": shifted(state), "state_dict_ema": state}, tmp_path / "w.pth")
    found = read_checkpoint(file)
    assert same(found.weights.tensors, state)
    assert found.summary() == "loaded state_dict_ema, not state_dict (--weights-key)"
    assert same(read_checkpoint(file, "state_dict").weights.tensors, shifted(state))


def test_teacher_and_student_are_chosen_by_name(state, tmp_path):
    def network(tensors):
        return prefixed(tensors, "module.backbone.") | {"module.head.mlp.0.weight": torch.ones(2, 2)}

    file = saved({"student": network(shifted(state)), "teacher": network(state)}, tmp_path / "w.pth")
    assert "student, teacher; choose one with --weights-key KEY" in refused(file)
    found = read_checkpoint(file, "teacher")
    assert same(found.weights.tensors, state)
    assert "left out head.mlp.0.weight, outside the network" in str(found.summary())
    assert "--weights-key pupil: no such set of weights; sets in the file: student, teacher" in refused(file, "pupil")


def test_two_networks_in_one_state_dict(state, tmp_path):
    both = prefixed(state, "teacher.backbone.") | prefixed(shifted(state), "student.backbone.")
    file = saved({"state_dict": both | {"loss.center": torch.ones(1, 4)}}, tmp_path / "w.ckpt")
    assert "choose one with --weights-key" in refused(file)
    assert same(read_checkpoint(file, "state_dict.student").weights.tensors, shifted(state))
    averaged = prefixed(shifted(state), "model.") | prefixed(state, "ema_model.module.")
    found = read_checkpoint(saved({"state_dict": averaged}, tmp_path / "ema.ckpt"))
    assert same(found.weights.tensors, state) and found.others == ("state_dict.model",)


def test_what_lies_beside_a_wrapped_network_is_left_out_and_said(state, tmp_path):
    content = {"state_dict": prefixed(state, "model.") | {"criterion.weight": torch.ones(3)}}
    found = read_checkpoint(saved(content, tmp_path / "w.ckpt"))
    assert same(found.weights.tensors, state) and found.summary() == "left out criterion.weight, outside the network"


def test_towers_of_larger_models_are_left_to_timm(state):
    both = prefixed(state, "visual.trunk.") | {"text.weight": torch.ones(2, 2)}
    assert weight_sets(both)[0].tensors.keys() == both.keys()


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"classes": ["b", "a"]}, ("b", "a")),
        ({"class_to_idx": {"a": 1, "b": 0}}, ("b", "a")),
        ({"hyper_parameters": {"idx_to_class": {0: "b", 1: "a"}}}, ("b", "a")),
        ({"meta": {"CLASSES": ("b", "a")}}, ("b", "a")),
        ({"args": argparse.Namespace(class_names=["b", "a"])}, ("b", "a")),
        ({"classes": np.array(["b", "a"])}, ("b", "a")),
        ({"class_to_idx": {"a": np.int64(1), "b": np.int64(0)}}, ("b", "a")),
        ({"classes": 2, "class_to_idx": {"a": 5}, "labels": [1, 2]}, ()),
    ],
)
def test_class_names(content, names):
    assert class_names_in(content) == names


def test_a_whole_pickled_model(vit, tmp_path):
    model = vit(depth=1)
    for content in (model, {"model": model, "epoch": 1}):
        text = refused(saved(content, tmp_path / "w.pth"))
        assert "a whole pickled VisionTransformer" in text and "torch.save(model.state_dict(), 'weights.pth')" in text


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_files_of_other_kinds(state, tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt")
    assert "TorchScript" in refused(tmp_path / "w.pt")
    np.savez(tmp_path / "w.npz", a=np.ones((2, 2)))
    assert "an archive of NumPy" in refused(tmp_path / "w.npz")
    (tmp_path / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    assert "HDF5" in refused(tmp_path / "w.h5")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("readme", "text")
    assert "a zip archive" in refused(tmp_path / "w.zip")
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({k: v.numpy() for k, v in state.items()}, protocol=4))
    assert "torch.save(model.state_dict(), 'weights.pth')" in refused(tmp_path / "w.pkl")
    assert "is a folder" in refused(tmp_path)
    assert "no such weight file" in refused(tmp_path / "none.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_files(suffix, state, tmp_path):
    file = tmp_path / f"w.{suffix}"
    torch.save(state, file) if suffix == "pth" else save_file(state, file)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"text", bytes(100)):
        file.write_bytes(content)
        assert "not a readable weight file: " in refused(file)


def test_a_checkpoint_that_holds_itself_is_searched_once(state, tmp_path):
    content = {"state_dict": state, "classes": list("abcde")}
    content |= {f"again{i}": content for i in range(1000)}
    found = read_checkpoint(saved(content, tmp_path / "w.pth"))
    assert same(found.weights.tensors, state) and found.others == () and found.class_names == tuple("abcde")


def test_a_file_without_weights(tmp_path):
    assert "holds no weights" in refused(saved({"epoch": 3, "best": torch.tensor(1.0)}, tmp_path / "w.pth"))
    assert "holds no weights" in refused(saved([torch.ones(2, 2)], tmp_path / "w.pth"))


LAYOUTS = {
    "encoder.layers.encoder_layer_0.self_attention.in_proj_weight": "a ViT of torchvision",
    "features.1.0.attn.qkv.weight": "a Swin of torchvision",
    "vit.encoder.layer.0.attention.attention.query.weight": "a model of Hugging Face transformers",
    "backbone.layers.0.ffn.layers.0.0.weight": "a model of MMPretrain",
    "transformer.layers.0.0.to_qkv.weight": "a model of vit-pytorch",
    "base_model.model.blocks.0.attn.qkv.lora_A.default.weight": "LoRA adapters",
    "layer1.0.conv1.weight": "a convolutional network",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_other_layouts_are_named(name, tmp_path):
    file = saved({name: torch.ones(2, 2)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=rf"do not fit {NAME}: .* those of {LAYOUTS[name]}.*docs/guides/weights\.md"):
        build_model(NAME, weights=file)


def test_names_of_timm_are_nobody_elses(vit, swin, state):
    for known in (state, swin().state_dict(), vit("beit_base_patch16_224", num_heads=2, embed_dim=16).state_dict()):
        assert layout_of(known) is None


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("deit_tiny_patch16_224", {"img_size": 48}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 70}),
        ("vit_small_patch14_dinov2", {"img_size": 42}),
        ("beit_base_patch16_224", {"img_size": 80}),
        ("eva02_tiny_patch14_224", {"img_size": 70}),
    ],
)
def test_the_input_size_follows_from_the_positions(name, given, vit):
    assert input_size_in(vit(name, depth=1, **given).state_dict()).pixels == given["img_size"]


@pytest.mark.parametrize(
    ("name", "size", "window"),
    [("swin_tiny_patch4_window7_224", 56, 7), ("swin_tiny_patch4_window7_224", 32, 4)],
)
def test_the_input_size_of_a_swin_follows_from_its_windows(name, size, window, swin):
    state = swin(name, img_size=size, window_size=window).state_dict()
    assert windows_in(state) == [window, window] and input_size_in(state).pixels == size


def test_a_mask_of_shifted_windows_tells_more(swin):
    model = swin(img_size=64, window_size=4)
    mask = model.layers[0].blocks[1].attn_mask
    assert input_size_in(model.state_dict() | {"layers.0.blocks.1.attn_mask": mask}).pixels == 64


def test_no_input_size_is_made_up(state):
    assert input_size_in({}) is None
    assert input_size_in({k: v for k, v in state.items() if k != "pos_embed"}) is None
    assert input_size_in(state | {"pos_embed": torch.ones(1, 7, 192)}) is None
    assert input_size_in(state | {"pos_embed": torch.ones(1, 1000**2 + 1, 1)}) is None


def test_stems_for_other_channels_compute_the_same():
    weight, grey = torch.randn(4, 3, 2, 2), torch.randn(1, 1, 2, 2)
    image = grey.repeat(1, 3, 1, 1)
    whole = nn.functional.conv2d(image, weight)
    assert torch.allclose(nn.functional.conv2d(grey, adapted_stem(weight, 1)), whole, atol=1e-6)
    back = adapted_stem(adapted_stem(weight, 1), 3)
    assert torch.allclose(nn.functional.conv2d(image, back), whole, atol=1e-6)
    assert adapted_stem(torch.randn(4, 4, 2, 2), 3).shape == (4, 3, 2, 2)


def test_what_a_file_decides_and_what_is_assumed_is_said(vit, tmp_path, capsys):
    state = dict(vit(img_size=48, depth=1, num_classes=2).state_dict())
    file = saved({"model": state, "model_ema": shifted(state), "classes": ["cat", "dog"]}, tmp_path / "w.pth")
    model = build_model(NAME, weights=file, weights_key="model", args={"depth": 1})
    assert model.patch_embed.img_size == (48, 48) and model.class_names == ("cat", "dog")
    said = capsys.readouterr().err
    assert "input 48 px from pos_embed; loaded model, not model_ema" in said
    assert "mean 0.485,0.456,0.406" in said and "--mean --std --interpolation --crop-pct" in said
    values = {"mean": [0.5], "std": [0.5], "interpolation": "bilinear", "crop_pct": 1.0}
    model = build_model(NAME, weights=file, args={"depth": 1}, preprocessing=values, img_size=32)
    said = capsys.readouterr().err
    assert "assumed" not in said and "input 32 px as given, trained at 48 px" in said
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5) and model.pretrained_cfg["crop_pct"] == 1.0


def test_a_swin_gets_its_windows(swin, tmp_path, capsys):
    settings = {"depths": (2, 2), "num_heads": (2, 4), "embed_dim": 16}
    state = swin(img_size=32, window_size=4).state_dict()
    model = build_model("swin_tiny_patch4_window7_224", weights=saved(state, tmp_path / "w.pth"), args=settings)
    assert model.patch_embed.img_size == (32, 32) and same(model.state_dict(), state)
    assert "input 32 px from the relative position tables" in capsys.readouterr().err


def test_stems_of_one_and_of_four_channels(vit, tmp_path, capsys):
    grey = saved(vit(depth=1, in_chans=1).state_dict(), tmp_path / "grey.pth")
    assert build_model(NAME, weights=grey, args={"depth": 1}).patch_embed.proj.in_channels == 1
    assert "images are turned to grey" in capsys.readouterr().err
    coloured = build_model(NAME, weights=grey, args={"depth": 1, "in_chans": 3})
    assert coloured.patch_embed.proj.in_channels == 3
    assert "in_chans of the stem adapted from 1 to 3 as timm does" in capsys.readouterr().err
    four = saved(vit(depth=1, in_chans=4).state_dict(), tmp_path / "four.pth")
    with pytest.raises(ModelError, match=r"for images of 4 channels.*--model-arg in_chans=3"):
        build_model(NAME, weights=four, args={"depth": 1})
    assert build_model(NAME, weights=four, args={"depth": 1, "in_chans": 3}).patch_embed.proj.in_channels == 3
    as_it_is = build_model(NAME, weights=four, args={"depth": 1, "in_chans": 4})
    assert same(as_it_is.state_dict(), torch.load(four)) and as_it_is.pretrained_cfg["first_conv"] == "patch_embed.proj"


def test_names_for_another_number_of_classes_are_not_used(state, tmp_path, capsys):
    file = saved({"state_dict": state, "classes": ["a", "b"]}, tmp_path / "w.pth")
    assert not getattr(build_model(NAME, weights=file, args={"depth": 1}), "class_names", ())
    assert "names 2 classes for a classifier of 5" in capsys.readouterr().err


def test_torchvisions_vit_under_the_names_of_the_guide(tmp_path):
    from torchvision.models import VisionTransformer

    guide = (Path(__file__).parents[2] / "docs/guides/weights.md").read_text()
    program: dict = {}
    exec(next(block for block in re.findall(r"```python\n(.*?)```", guide, re.S) if "to_timm" in block), program)
    torch.manual_seed(0)
    settings = {"image_size": 32, "patch_size": 16, "num_layers": 2, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768}
    theirs = VisionTransformer(num_classes=5, **settings).eval()
    nn.init.normal_(theirs.heads.head.weight)
    with pytest.raises(ModelError, match="a ViT of torchvision"):
        build_model(NAME, weights=saved(theirs.state_dict(), tmp_path / "theirs.pth"), args={"depth": 2})
    file = saved(program["to_timm"](theirs.state_dict()), tmp_path / "mine.pth")
    ours = build_model(NAME, weights=file, args={"depth": 2})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-4)


@pytest.mark.parametrize("kind", ["zip", "before torch 1.6", "safetensors"])
def test_mutated_files_are_read_or_refused_in_one_line(kind, state, tmp_path):
    file, draw = tmp_path / "w.pth", random.Random(0)
    content = {"state_dict": {k: v[:2].clone() for k, v in state.items()}, "best": np.float64(1), "classes": ["a"]}
    if kind == "safetensors":
        save_file(content["state_dict"], file)
    else:
        saved(content, file, _use_new_zipfile_serialization=kind == "zip")
    whole = file.read_bytes()
    for _ in range(50):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 8, 64])):
            damaged[draw.randrange(draw.choice([len(damaged), min(4000, len(damaged))]))] = draw.randrange(256)
        file.write_bytes(damaged)
        try:
            read_checkpoint(file)
        except ModelError:
            refused(file)
