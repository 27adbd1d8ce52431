"""hf-hub: names: what is fetched, what never is, and what a name means later."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save as safetensors

import slimvit
from slimvit.config.recipe import ModelSection, Recipe
from slimvit.io.embedded import EMBEDDED
from slimvit.io.hub.name import HubName, hub_name
from slimvit.io.open import open_model, teacher_on_hub
from slimvit.models.registry import plan_of
from slimvit.utils.errors import ModelError, SlimvitError, StoreError
from slimvit.workflows.bench.models import open_bench_models

Invoke = Callable[..., Any]
VIT = {path.name: path.read_bytes() for path in EMBEDDED["vit_digits"].iterdir()}
NAME = "hf-hub:you/vit"


def edited(**changes: Any) -> dict[str, bytes]:
    return VIT | {"slim.json": json.dumps(json.loads(VIT["slim.json"]) | changes).encode()}


# names


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("hf-hub:user/name", HubName("user/name")),
        ("hf-hub:user/name@v1.0", HubName("user/name", "", "v1.0")),
        ("hf-hub:user/name/best@refs/pr/1", HubName("user/name", "best", "refs/pr/1")),
    ],
)
def test_names(name: str, parsed: HubName) -> None:
    assert hub_name(name) == parsed and str(parsed) == name
    assert not parsed.is_pinned and parsed.at("a" * 40).is_pinned


@pytest.mark.parametrize(
    "name",
    ["", "name", "/name", "user/", "user/name/other", "user/../name", "us er/name", "user/na--me", "user/name@"]
    + ["user/name@a b", "user/name@../../x", "user/name@a@b", "user/name.git", "user/" + "n" * 100],
)  # fmt: skip
def test_names_that_name_nothing(name: str, slimvit_: Invoke) -> None:
    with pytest.raises(ModelError, match=f"^{re.escape('hf-hub:' + name)}: ") as caught:
        slimvit.load(f"hf-hub:{name}")
    assert "\n" not in str(caught.value)


# what is fetched


def test_nothing_but_the_model_is_fetched(hub: Any) -> None:
    others = {"pytorch_model.bin": b"\x80\x04evil", "modeling_vit.py": b"import os", "evil.pkl": b"\x80", "a/b": b"c"}
    hub.put("you/vit", VIT | others | {"../../escape.txt": b"x", "/etc/evil": b"x"})
    model = slimvit.load(NAME)
    assert hub.fetched() == {"slim.json", "model.safetensors"}
    wanted = slimvit.load(EMBEDDED["vit_digits"]).state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in model.state_dict().items())


def test_a_commit_in_the_cache_asks_nobody(hub: Any) -> None:
    pinned = f"{NAME}@{hub.put('you/vit', VIT)}"
    slimvit.load(pinned)
    asked = len(hub.asked)
    slimvit.load(pinned)
    assert len(hub.asked) == asked


def test_a_revision_is_that_revision(hub: Any) -> None:
    first = hub.put("you/vit", VIT)
    hub.repos["you/vit"].branches["v1"] = first
    hub.put("you/vit", edited(class_names=list("abcdefghij")))
    assert slimvit.load(NAME).class_names[0] == "a"
    assert slimvit.load(f"{NAME}@v1").class_names[0] == slimvit.load(f"{NAME}@{first}").class_names[0] == "0"


def test_a_newer_push_is_what_the_name_means_then(hub: Any) -> None:
    hub.put("you/vit", VIT)
    slimvit.load(NAME)
    hub.put("you/vit", edited(class_names=list("abcdefghij")))
    assert slimvit.load(NAME).class_names[0] == "a"


def test_offline_what_was_fetched_has_to_do(hub: Any, offline: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sha = hub.put("you/vit", VIT)
    slimvit.load(NAME)
    offline()
    asked = len(hub.asked)
    assert slimvit.load(NAME).num_classes == 10 and len(hub.asked) == asked
    assert f"using the files fetched earlier: {NAME}@{sha}" in capsys.readouterr().err
    with pytest.raises(ModelError, match=r"hf-hub:you/other: .*HF_HUB_OFFLINE=1.*no earlier fetch of it is cached"):
        slimvit.load("hf-hub:you/other")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (VIT | {"slim.json": b"{"}, "slim.json: damaged"),
        (edited(model="hf-hub:evil/vit"), "has no model hf-hub:evil/vit"),
        (edited(model_args={"depth": 10**9}), "model_args.depth is 1000000000"),
        (edited(weights_sha256="0" * 64), "model.safetensors: damaged: its checksum"),
        (VIT | {"model.safetensors": b"junk"}, "model.safetensors: damaged"),
        ({"slim.json": VIT["slim.json"], "model.bin": b""}, "holds no model.safetensors"),
        ({"README.md": b""}, "no model of slimvit or timm"),
        ({"config.json": b'{"architectures": ["ViTModel"]}'}, "config.json names no architecture"),
        ({"config.json": b'{"architecture": "evil_net"}'}, "config.json names the architecture 'evil_net'"),
        ({"config.json": b"[[["}, "config.json is damaged"),
        ({"config.json": b'{"architecture": "vit_tiny_patch16_224", "model_args": {"checkpoint_path": "/x"}}'},
         "model_args.checkpoint_path is no argument"),
        ({"config.json": b'{"architecture": "vit_tiny_patch16_224"}', "pytorch_model.bin": b"\x80"},
         "holds no model.safetensors, and other weight formats are not read"),
    ],
)  # fmt: skip
def test_hostile_repositories(files: dict[str, bytes], told: str, hub: Any) -> None:
    hub.put("you/vit", files)
    with pytest.raises(SlimvitError, match=f"^{NAME}.*{re.escape(told)}") as caught:
        open_model(ModelSection(name=NAME))
    assert "\n" not in str(caught.value) and "/snapshots/" not in str(caught.value)
    assert hub.fetched() <= {"slim.json", "config.json", "model.safetensors"}


@pytest.mark.parametrize(("file", "size"), [("slim.json", 65 * 2**20), ("model.safetensors", 4 * 2**20)])
def test_what_is_too_large_is_not_fetched(file: str, size: int, hub: Any) -> None:
    hub.put("you/vit", VIT)
    hub.repos["you/vit"].sizes[file] = size
    with pytest.raises(
        ModelError, match=rf"{NAME}.*: {file} has {size:,} bytes, more than the [\d,]+ allowed; nothing was"
    ):
        slimvit.load(NAME)
    assert file not in hub.fetched()


def test_a_size_that_was_a_lie(hub: Any) -> None:
    hub.put("you/vit", VIT | {"model.safetensors": b"\0" * (6 * 2**20)})
    hub.repos["you/vit"].sizes["model.safetensors"] = 1000
    with pytest.raises(SlimvitError, match="hf-hub:you/vit"):
        slimvit.load(NAME)


def gate(hub: Any, patch: pytest.MonkeyPatch) -> None:
    hub.repos["you/vit"].gated = True


def hide(hub: Any, patch: pytest.MonkeyPatch) -> None:
    hub.repos["you/vit"].private = True
    patch.delenv("HF_TOKEN")


@pytest.mark.parametrize(
    ("name", "spoil", "told"),
    [
        ("hf-hub:you/none", None, "the Hub has no such model, or a private one that you may not see"),
        (NAME, hide, "the Hub has no such model, or a private one that you may not see; check the name, or log in: hf"),
        (f"{NAME}@v9", None, "the repository has no such branch, tag or commit"),
        (NAME, gate, "is gated; ask for access"),
        (NAME, lambda hub, patch: patch.setenv("HF_TOKEN", "nonsense"), "does not know your token"),
        (NAME, lambda hub, patch: hub.broken.update({"/api/models": 503}), "the Hub has a server error (503)"),
    ],
)
def test_refused_in_one_line(
    name: str, spoil: Any, told: str, hub: Any, slimvit_: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("you/vit", VIT)
    if spoil is not None:
        spoil(hub, monkeypatch)
    line = slimvit_("inspect", name, code=1).stderr.strip().splitlines()[-1]
    assert line.startswith(f"Error: {name}") and told in line


# timm's own repositories


@pytest.fixture
def tiny(randomise: Any) -> tuple[Any, dict[str, bytes]]:
    """A timm model and its repository as timm writes it, beside a pickle."""
    args = {"img_size": 32, "depth": 2}
    model = randomise(timm.create_model("deit_tiny_patch16_224", num_classes=5, **args))
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "input_size": [3, 32, 32], "url": "http://evil", "file": "/etc/x"}
    config = {"architecture": "deit_tiny_patch16_224", "num_classes": 5, "model_args": args, "pretrained_cfg": cfg}
    config["label_names"] = list("abcde")
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": safetensors(model.state_dict())}
    return model, files | {"pytorch_model.bin": b"\x80\x04evil"}


def test_a_timm_model_on_the_hub(hub: Any, tiny: Any, images: Any, tmp_path: Path) -> None:
    model, files = tiny
    hub.put("timm/tiny", files)
    found: Any = open_model(ModelSection(name="hf-hub:timm/tiny"))
    assert torch.equal(found(images(model)), model(images(model))) and found.class_names == tuple("abcde")
    assert found.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    assert hub.fetched() == {"config.json", "model.safetensors"}
    slimvit.save(found, tmp_path / "saved")
    assert torch.equal(slimvit.load(tmp_path / "saved")(images(model)), model(images(model)))
    with pytest.raises(StoreError, match="for a timm model on the Hub use slimvit.create_model"):
        slimvit.load("hf-hub:timm/tiny")
    hub.put("you/vit", VIT)
    with pytest.raises(ModelError, match=f"{NAME}: holds a model saved by slimvit; load it with slimvit.load"):
        slimvit.create_model(NAME)
    again = slimvit.create_model("hf-hub:timm/tiny", num_classes=3)
    assert again.num_classes == 3 and again.untrained_classifier


def test_shapes_alone_need_no_weights(hub: Any, tiny: Any, slimvit_: Invoke) -> None:
    hub.put("timm/tiny", tiny[1])
    found = json.loads(slimvit_("inspect", "hf-hub:timm/tiny", "--json").stdout)
    assert (found["num_classes"], len(found["blocks"])) == (5, 2) and hub.fetched() == {"config.json"}


def test_weights_of_a_timm_model_that_cannot_be_its_own(hub: Any, tiny: Any) -> None:
    hub.put("timm/tiny", tiny[1])
    hub.repos["timm/tiny"].sizes["model.safetensors"] = 10**9
    with pytest.raises(ModelError, match=r"model.safetensors has 1,000,000,000 bytes, more than the"):
        open_model(ModelSection(name="hf-hub:timm/tiny"))
    hub.repos["timm/tiny"].sizes.clear()
    hub.put("timm/tiny", tiny[1] | {"model.safetensors": safetensors({"norm.weight": torch.ones(7)})})
    with pytest.raises(ModelError, match="^hf-hub:timm/tiny@.*: holds no weights"):
        open_model(ModelSection(name="hf-hub:timm/tiny"))


# in every command

FEW = ("--data", "digits", "--train-images", 64, "--eval-images", 40)
CUT = ("--ratio", 0.25, "--criterion", "magnitude", "--refit", "none")


def test_commands_take_a_model_on_the_hub(hub: Any, slimvit_: Invoke, tmp_path: Path) -> None:
    sha = hub.put("you/vit", VIT)
    report = json.loads(slimvit_("prune", NAME, *FEW, *CUT, "--out", tmp_path / "run", "--json").stdout)
    assert report["model"] == f"{NAME}@{sha}"
    assert Recipe.read(tmp_path / "run" / "recipe.yaml").model.name == f"{NAME}@{sha}"
    told = json.loads(slimvit_("evaluate", NAME, "--data", "digits", "--eval-images", 40, "--json").stdout)
    assert told["model"] == f"{NAME}@{sha}" and told["top1"] > 90
    assert json.loads(slimvit_("inspect", NAME, "--json").stdout)["heads"] == [36, 36]
    (timed,) = open_bench_models([NAME])
    hub.put("you/vit", {"slim.json": b"moved"})
    assert timed.build().num_classes == 10 and timed.name == NAME and timed.folder is None
    hub.put("you/vit", VIT)
    words = ("--format", "timm", "--data", "digits", "--eval-images", 8, "--out", tmp_path / "plain")
    assert "checked on 8 images" in slimvit_("export", NAME, *words).stdout
    card = slimvit_("push", tmp_path / "run", "me/half", "--dry-run").stdout
    assert "base_model: you/vit" in card
    assert slimvit.backbone(NAME, out_indices=1) is not None


def test_predict(hub: Any, digit_folder: Any, slimvit_: Invoke, tmp_path: Path) -> None:
    hub.put("you/vit", VIT)
    photos = digit_folder(tmp_path, classes=1, train=1, val=1)
    told = json.loads(slimvit_("predict", NAME, photos / "val", "--compare", "vit_digits", "--json").stdout)
    assert told[NAME] == told["vit_digits"]


def test_a_run_repeats_what_it_was(hub: Any, slimvit_: Invoke, tmp_path: Path) -> None:
    """The recipe names the commit, so a repository that moves on does not change it."""
    hub.put("you/vit", VIT)
    slimvit_("prune", NAME, *FEW, *CUT, "--out", tmp_path / "run")
    hub.put("you/vit", {"slim.json": b"moved"})
    slimvit_("run", tmp_path / "run" / "recipe.yaml", "--out", tmp_path / "again")
    one, other = (torch.cat([p.flatten() for p in slimvit.load(tmp_path / r).parameters()]) for r in ("run", "again"))
    assert torch.equal(one, other)


def test_a_sweep_keeps_to_the_commit_it_began_with(hub: Any, slimvit_: Invoke, tmp_path: Path) -> None:
    sha = hub.put("you/vit", VIT)
    base = {"model": {"name": NAME}, "data": {"name": "digits", "train_images": 64, "eval_images": 40}}
    base |= {"prune": {"criterion": "magnitude", "calibration_images": 8}, "refit": {"target": "none"}}
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps({"base": base, "grid": {"prune.ratio": [0.25]}}))
    slimvit_("sweep", file, "--out", tmp_path / "out")
    shelf = sorted(path.name for path in (tmp_path / "out" / "shelf").iterdir())
    hub.put("you/vit", {"slim.json": b"moved"})
    file.write_text(json.dumps({"base": base, "grid": {"prune.ratio": [0.25, 0.5]}}))
    told = slimvit_("sweep", file, "--out", tmp_path / "out").stderr
    assert f"{NAME}: pinned to the commit of this sweep's first call, {NAME}@{sha}" in told
    assert "1 of them done already" in told
    assert sorted(path.name for path in (tmp_path / "out" / "shelf").iterdir()) == shelf
    assert {r["model"] for r in json.loads(slimvit_("report", tmp_path / "out", "--json").stdout)["rows"]} == {
        f"{NAME}@{sha}"
    }


def test_finetune(hub: Any, run: Path, slimvit_: Invoke, tmp_path: Path, capsys: Any) -> None:
    """The model that the run on the Hub started from is the teacher, where anybody has it."""
    files = {path.name: path.read_bytes() for path in run.iterdir()}
    sha = hub.put("you/vit", files)
    train = ("finetune", NAME, "--epochs", 1, "--no-augment")
    assert "Missing option '--data'" in slimvit_(*train, "--out", tmp_path / "x", code=2).stderr
    slimvit_(*train, *FEW, "--out", tmp_path / "tuned")
    recipe = Recipe.read(tmp_path / "tuned" / "recipe.yaml")
    assert recipe.model.name == f"{NAME}@{sha}" and recipe.finetune.teacher is not None
    assert recipe.finetune.teacher.name == "vit_digits"
    elsewhere = files["recipe.yaml"].replace(b"name: vit_digits", b"name: /home/you/x")
    sha = hub.put("you/vit", files | {"recipe.yaml": elsewhere})
    assert teacher_on_hub(f"{NAME}@{sha}") is None
    assert "its uncut network is not on the Hub, so there is none to learn from" in capsys.readouterr().err
    sha = hub.put("you/vit", files | {f"original/{name}": content for name, content in VIT.items()})
    teacher = teacher_on_hub(f"{NAME}@{sha}")
    assert teacher is not None and teacher.name == f"hf-hub:you/vit/original@{sha}"
    assert plan_of(slimvit.load(teacher.name)).removed_heads == 0


def test_report(hub: Any, run: Path, slimvit_: Invoke) -> None:
    hub.put("you/vit", {path.name: path.read_bytes() for path in run.iterdir()})
    assert slimvit_("report", NAME).stdout == slimvit_("report", run).stdout
    rows = json.loads(slimvit_("report", NAME, run, "--json").stdout)["rows"]
    assert sum(row["kind"] == "point" for row in rows) >= 1
    assert not {"model.safetensors", "head_map.png"} & hub.fetched()
    hub.put("you/other", VIT)
    assert "holds no report.json" in slimvit_("report", "hf-hub:you/other", code=1).stderr
    assert plan_of(slimvit.load(NAME)).kept_heads == 18


def test_a_cache_that_cannot_be_written(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.put("you/vit", VIT)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(ModelError, match=rf"^{NAME}.*: .*Not a directory.*HF_HOME"):
        slimvit.load(NAME)
