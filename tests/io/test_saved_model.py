import copy
import errno
import json
import math
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import slimvit
from slimvit.io.saved_model import load_folder, save
from slimvit.io.slim_file import DESCRIPTION, is_saved
from slimvit.io.weight_file import WEIGHTS
from slimvit.models.build import build_model
from slimvit.models.registry import is_uncut_form, model_name, plan_of
from slimvit.prune.surgery import prune_model
from slimvit.utils.errors import SlimvitError, StoreError

KEPT = [[0, 2], [], [1]]


def cut(model, kept=KEPT):
    return prune_model(model, plan_of(model).keeping(heads=kept))


@pytest.fixture
def slim(vit):
    return cut(vit())


@pytest.fixture
def folder(slim, tmp_path):
    save(slim, tmp_path / "run", class_names=("a", "b", "c", "d", "e"))
    return tmp_path / "run"


def identical(found, wanted, images):
    assert plan_of(found) == plan_of(wanted)
    assert found.state_dict().keys() == wanted.state_dict().keys()
    assert all(torch.equal(v, wanted.state_dict()[k]) for k, v in found.state_dict().items())
    return torch.equal(found(images(found)), wanted(images(found)))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("deit_tiny_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_small_patch14_reg4_dinov2", {}),
        ("vit_base_patch32_clip_224", {"depth": 3}),
        ("vit_tiny_patch16_224", {"qk_norm": True, "proj_bias": False}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"num_classes": 0}),
        ("vit_tiny_patch16_224", {"drop_path_rate": 0.1, "in_chans": 3, "img_size": (32, 48)}),
    ],
)
@pytest.mark.parametrize("pruned", [True, False], ids=["pruned", "uncut"])
def test_saved_and_loaded_bit_for_bit(name, kwargs, pruned, vit, images, tmp_path):
    """Models that timm's own create_model built, too."""
    model = cut(vit(name, **kwargs)) if pruned else vit(name, **kwargs)
    save(model, tmp_path / "run")
    assert identical(load_folder(tmp_path / "run"), model, images)


def test_a_model_of_ours(images, randomise, tmp_path):
    model = build_model(
        "deit_tiny_patch16_224.fb_in1k", pretrained=False, img_size=48, num_classes=4, args={"depth": 2}
    )
    slim = cut(randomise(model), [[0], []])
    save(slim, tmp_path / "run")
    found = load_folder(tmp_path / "run")
    assert identical(found, slim, images)
    assert found.slim_source.name == "deit_tiny_patch16_224.fb_in1k"


def test_what_is_loaded(folder):
    model = load_folder(folder)
    assert type(model) is timm.models.VisionTransformer and not model.training
    assert {p.device.type for p in model.parameters()} == {"cpu"} and all(p.requires_grad for p in model.parameters())
    assert model.class_names == ("a", "b", "c", "d", "e") and model.num_classes == 5
    assert is_saved(folder) and not is_saved(folder.parent)


def test_a_second_round(folder, images, tmp_path):
    model = cut(load_folder(folder), [[2], [], [1]])
    save(model, tmp_path / "again")
    assert identical(load_folder(tmp_path / "again"), model, images)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.reset_classifier(3),
        lambda m: m.reset_classifier(0),
        lambda m: m.reset_classifier(3, global_pool="avg"),
        lambda m: m.set_input_size(img_size=(64, 48)),
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.train(),
    ],
    ids=["classes", "no classifier", "pooling", "input size", "half", "bfloat16", "train"],
)
def test_what_timm_lets_one_change(change, slim, images, tmp_path):
    change(slim)
    save(slim, tmp_path / "run")
    found = load_folder(tmp_path / "run")
    assert identical(found.float(), slim.float().eval(), images)
    assert found.patch_embed.img_size == slim.patch_embed.img_size and found.global_pool == slim.global_pool


def test_preprocessing_travels(slim, tmp_path):
    slim.pretrained_cfg = dict(slim.pretrained_cfg, mean=(0.1, 0.2, 0.3), crop_pct=0.5)
    save(slim, tmp_path / "run")
    config = timm.data.resolve_model_data_config(load_folder(tmp_path / "run"))
    assert config["mean"] == (0.1, 0.2, 0.3) and config["crop_pct"] == 0.5 and config["input_size"] == (3, 32, 32)


def test_in_another_process(folder, slim, images, tmp_path):
    x = images(slim)
    save_file({"x": x, "y": slim(x).detach()}, tmp_path / "io.safetensors")
    script = (
        "import slimvit, sys; from safetensors.torch import load_file; io = load_file(sys.argv[2]);"
        "model = slimvit.load(sys.argv[1]); assert (model(io['x']) == io['y']).all(); print('same')"
    )
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "io.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "same\n", done.stderr


def test_nothing_is_ever_unpickled(slim, tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", forbidden)
    save(slim, tmp_path / "run")
    load_folder(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [WEIGHTS, DESCRIPTION]


# --- damage


def edit(folder, **changes):
    data = json.loads((folder / DESCRIPTION).read_text()) | changes
    (folder / DESCRIPTION).write_text(json.dumps({k: v for k, v in data.items() if v != "drop"}))


def edit_block(folder, **changes):
    plan = json.loads((folder / DESCRIPTION).read_text())["plan"]
    plan["blocks"][0] |= changes
    edit(folder, plan=plan)


def edit_args(folder, **changes):
    edit(folder, model_args=json.loads((folder / DESCRIPTION).read_text())["model_args"] | changes)


def edit_weights(folder, change):
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)


def flip(folder, place):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[place] ^= 1
    (folder / WEIGHTS).write_bytes(data)


DAMAGE = {
    "version": (lambda f: edit(f, format_version=2), "slim.json: format_version is 2, this slimvit reads 1"),
    "no version": (lambda f: edit(f, format_version="drop"), "slim.json: format_version is None"),
    "missing key": (lambda f: edit(f, num_classes="drop"), "slim.json: damaged: num_classes: Field required"),
    "extra key": (lambda f: edit(f, extra=1), "slim.json: damaged: extra: Extra inputs are not permitted"),
    "wrong type": (lambda f: edit(f, num_classes="5"), "slim.json: damaged: num_classes: Input should be a valid int"),
    **{
        f"{key} {value}": (
            lambda f, k=key, v=value: edit(f, preprocessing={k: v}),
            f"slim.json: damaged: .*{key} is .*must be",
        )
        for key, value in [
            ("mean", [math.nan]),
            ("mean", [-0.1]),
            ("mean", [123.675]),
            ("mean", "text"),
            ("mean", []),
            ("std", [0.0]),
            ("std", [-0.5]),
            ("std", [math.inf]),
            ("std", ["0.5"]),
            ("std", 0.5),
            ("interpolation", "cubic"),
            ("interpolation", 3),
            ("crop_pct", 0),
            ("crop_pct", math.nan),
            ("crop_pct", "0.9"),
            ("crop_pct", 95),
            ("crop_mode", "top"),
            ("input_size", [3, 0, 32]),
            ("input_size", [3.5, 32, 32]),
            ("input_size", "32"),
        ]
    },
    "not JSON": (lambda f: (f / DESCRIPTION).write_text("{"), "slim.json: damaged: "),
    "not text": (lambda f: (f / DESCRIPTION).write_bytes(b"\xff\xfe"), "slim.json: damaged: "),
    "not an object": (lambda f: (f / DESCRIPTION).write_text("[]"), "slim.json: format_version is None"),
    "model": (lambda f: edit(f, model="deit_teeny"), r"slim.json: timm \S+ has no model deit_teeny"),
    "model to fetch": (lambda f: edit(f, model="hf-hub:evil/vit"), r"slim.json: timm \S+ has no model hf-hub:evil/vit"),
    "other family": (lambda f: edit(f, model="resnet18", model_args={}), "slim.json: .*ResNet is not a model"),
    "arguments": (lambda f: edit_args(f, bogus=1), "slim.json: timm cannot build deit_tiny_patch16_224 with .*bogus"),
    "width": (lambda f: edit_args(f, embed_dim=100), "slim.json: timm cannot build deit_tiny_patch16_224 with .*divis"),
    "depth": (lambda f: edit_args(f, depth=4), "slim.json: the plan has 3 blocks .*, but the model has 4"),
    "head out of range": (
        lambda f: edit_block(f, kept_heads=[0, 3]),
        r"slim.json: plan: blocks\.0: the plan keeps head 3, but the block has heads 0-2",
    ),
    "plan of another width": (
        lambda f: edit_block(f, heads=4),
        r"slim.json: blocks\.0: the plan is for 4 heads, but the model's block has 3",
    ),
    "plan is nonsense": (lambda f: edit_block(f, stage="x"), r"slim.json: plan: blocks\[0\]\.stage: expected"),
    "plan of other weights": (
        lambda f: edit_block(f, kept_heads=[0]),
        r"model.safetensors: does not fit slim.json: blocks\.0\.attn\.qkv\.weight has shape \[384, 192\]",
    ),
    "no description": (lambda f: (f / DESCRIPTION).unlink(), "holds no slim.json, so it is no saved model"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "model.safetensors: missing"),
    "truncated": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]),
        "model.safetensors: damaged: ",
    ),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "model.safetensors: damaged: "),
    "flipped byte": (
        lambda f: flip(f, -1000),
        "model.safetensors: damaged: its checksum is not the one in slim.json",
    ),
    "flipped header": (lambda f: flip(f, 20), "model.safetensors: "),
    "wrong shape": (
        lambda f: edit_weights(f, lambda s: s.update({"norm.weight": torch.ones(7)})),
        r"model.safetensors: does not fit slim.json: norm.weight has shape \[7\], expected \[192\]",
    ),
    "missing tensor": (
        lambda f: edit_weights(f, lambda s: s.pop("norm.weight")),
        "model.safetensors: does not fit slim.json: norm.weight is missing",
    ),
    "extra tensor": (
        lambda f: edit_weights(f, lambda s: s.update(extra=torch.ones(1))),
        "model.safetensors: does not fit slim.json: extra is unexpected",
    ),
    "many": (
        lambda f: edit_weights(f, lambda s: [s.pop(k) for k in list(s)[:10]]),
        "is missing; .* is missing; and 2 more",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_in_one_line(what, folder):
    damage, told = DAMAGE[what]
    damage(folder)
    with pytest.raises(StoreError, match=f"^{folder}.*{told}") as caught:
        load_folder(folder)
    assert "\n" not in str(caught.value)


def test_no_such_folder(tmp_path):
    with pytest.raises(StoreError, match="none: no such folder"):
        load_folder(tmp_path / "none")


# --- writing


def test_a_folder_in_use(folder, slim, images):
    with pytest.raises(StoreError, match="run: the output folder is in use"):
        save(slim, folder)
    slim.reset_classifier(2)
    save(slim, folder, force=True)
    assert identical(load_folder(folder), slim, images)


def test_a_model_may_replace_itself(folder, images):
    model = load_folder(folder)
    save(model, folder, force=True)
    assert identical(load_folder(folder), model, images)


@pytest.mark.parametrize("file", [WEIGHTS, DESCRIPTION])
def test_a_full_disk(file, folder, slim, tmp_path, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    target = "slimvit.io.saved_model.save_file" if file == WEIGHTS else "pathlib.Path.write_text"
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="run: the disk is full; nothing was written"):
        patch.setattr(target, full)
        save(slim, folder, force=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_safetensors_own_word_for_a_full_disk(slim, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("slimvit.io.saved_model.save_file", full)
    with pytest.raises(StoreError, match="run: the disk is full"):
        save(slim, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def widen(model):
    model.blocks[0].mlp.fc1 = nn.Linear(192, 100)
    model.blocks[0].mlp.fc2 = nn.Linear(100, 192)


def swap(model):
    model.blocks[1].mlp.act = nn.ReLU()


def test_a_timm_that_keeps_no_arguments(tmp_path, monkeypatch):
    """As before 1.0.31: a model with timm's own arguments is written, another is refused with the way out."""
    refused = "does not keep the arguments .*; build it with slimvit.create_model"
    for args, told in (({}, None), ({"depth": 2}, refused)):
        model = timm.create_model("test_vit", **args)
        monkeypatch.delattr(model, "_model_args", raising=False)
        if told is None:
            save(model, tmp_path / "run")
            continue
        with pytest.raises(StoreError, match=f"^test_vit: timm .* {told}"):
            save(model, tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m.register_parameter("extra", nn.Parameter(torch.ones(1))), "extra is unexpected"),
        (widen, r"blocks\.0\.mlp\.fc1\.weight has shape \[100, 192\], expected \[768, 192\]"),
        (swap, r"blocks\.1\.mlp\.act is ReLU"),
        (lambda m: setattr(m, "norm", nn.Identity()), r"norm\.weight is missing"),
    ],
    ids=["parameter", "width", "activation", "norm"],
)
def test_a_model_changed_after_timm_built_it(change, told, slim, tmp_path):
    change(slim)
    with pytest.raises(StoreError, match=f"deit_tiny_patch16_224: this model was changed after timm built it.*{told}"):
        save(slim, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_model_not_built_by_create_model(tmp_path):
    model = timm.models.VisionTransformer(img_size=32, embed_dim=48, depth=1, num_heads=3)
    with pytest.raises(StoreError, match="VisionTransformer: not built by timm's create_model.*slimvit.create_model"):
        save(model, tmp_path / "run")


def test_arguments_that_are_no_data(vit, tmp_path):
    model = vit(norm_layer=nn.LayerNorm)
    with pytest.raises(StoreError, match="deit_tiny_patch16_224: its model arguments .* cannot be written as JSON"):
        save(model, tmp_path / "run")


def test_the_public_names(vit, images, tmp_path):
    """A model of timm's, cut, saved and loaded with what `import slimvit` offers."""
    model = vit()
    plan = slimvit.plan_units(slimvit.score_parts(model, [], "magnitude"), ratio=0.5)
    slim = slimvit.prune_model(model, plan)
    slimvit.save(slim, tmp_path / "run")
    assert identical(slimvit.load(tmp_path / "run"), slim, images)


def test_training_leaves_a_model_that_can_be_saved(slim, tmp_path):
    from timm.layers import DropPath

    trained = copy.deepcopy(slim)
    trained.blocks[2].drop_path1 = DropPath(0.1)
    save(trained, tmp_path / "run")
    assert isinstance(load_folder(tmp_path / "run").blocks[2].drop_path1, nn.Identity)


@pytest.mark.parametrize("name", ["vit_digits", "swin_digits"])
def test_embedded_models_keep_their_names(name, tmp_path):
    """Built or loaded, cut, made dense, saved and loaded again."""
    model = slimvit.create_model(name)
    loaded = slimvit.load(name)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    plan = plan_of(model).keeping(heads=[b.kept_heads[:2] for b in plan_of(model).blocks])
    slimvit.save(slimvit.insert_dense_attention(slimvit.prune_model(model, plan)), tmp_path / "slim")
    slim = slimvit.load(tmp_path / "slim")
    assert {model_name(m) for m in (model, loaded, slim)} == {name} == {plan_of(slim).model}
    assert is_uncut_form(model, slim)
    untrained = slimvit.create_model(name, pretrained=False, num_classes=3)
    assert model_name(untrained) == name and untrained.num_classes == 3


def test_runs_of_earlier_versions_have_no_name(tmp_path):
    """Such a run loads, goes by its timm name, and is known to come from the embedded model."""
    model = slimvit.load("vit_digits")
    slimvit.save(model, tmp_path / "run")
    file = tmp_path / "run" / "slim.json"
    file.write_text(file.read_text().replace(' "name": "vit_digits",\n', ""))
    earlier = slimvit.load(tmp_path / "run")
    assert model_name(earlier) == "vit_tiny_patch16_224" and is_uncut_form(model, earlier)


@pytest.mark.parametrize("build", [slimvit.create_model, slimvit.load])
def test_a_misspelt_embedded_model(build):
    with pytest.raises(SlimvitError, match="did you mean vit_digits"):
        build("vit_digit")
