"""Dense attention from the command line, in recipes, in the run folder, and built from scratch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader

import slimvit
from slimvit.config.options import Options
from slimvit.config.recipe import FinetuneSection, ModelSection, Recipe
from slimvit.io.open import open_model
from slimvit.models.insert_dense import dense_mix, mixes_in, mixes_of
from slimvit.models.registry import plan_of
from slimvit.train.finetune import finetune
from slimvit.train.loop import TrainOptions
from slimvit.utils.errors import ModelError, PlanError, RecipeError, StoreError

Invoke = Callable[..., Any]
FEW = ("--data", "digits", "--eval-images", 40, "--train-images", 64, "--calibration-images", 32, "--batch-size", 32)


def stages(run: Path) -> dict[str, dict[str, Any]]:
    return {s["stage"]: s for s in json.loads((run / "report.json").read_text())["stages"]}


@pytest.fixture(scope="module", params=["vit_digits", "swin_digits"])
def run(request: Any, slimvit_: Invoke, drawing: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dense") / "run"
    with drawing():
        slimvit_("prune", request.param, *FEW, "--ratio", 0.4, "--dense", "layer", "--finetune-epochs", 1, "--out", out)
    return out


@pytest.fixture
def dense(vit: Any) -> nn.Module:
    return slimvit.insert_dense_attention(vit(), "head", "normal")


def test_dense_attention_comes_after_the_refit_and_changes_nothing_but_the_cost(run: Path) -> None:
    found = stages(run)
    assert list(found) == ["original", "pruned", "refit", "dense", "finetuned"]
    before, after = found["refit"], found["dense"]
    assert [before[k] for k in ("heads", "top1", "loss", "agreement")] == [
        after[k] for k in ("heads", "top1", "loss", "agreement")
    ]
    model = slimvit.load(run)
    assert after["params"] - before["params"] == mixes_in(model)
    assert after["macs"] - before["macs"] == slimvit.count_macs(model).by_part["mixes"] > 0


def test_training_moves_the_mixes_and_the_run_folder_keeps_them(run: Path) -> None:
    model = slimvit.load(run)
    assert dense_mix(model) == "layer"
    assert any(value != 0 for value in mixes_of(model).values())
    assert (run / "mixes.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "slim.json").read_text())["dense"] == "layer"


def test_inspect_and_evaluate_know_it(run: Path, slimvit_: Invoke) -> None:
    told = slimvit_("inspect", run).stdout
    assert f"dense attention with {mixes_in(slimvit.load(run))} mixes" in told and "\nmixes " in told
    found = json.loads(slimvit_("evaluate", run, "--data", "digits", "--eval-images", 40, "--json").stdout)
    assert found["top1"] == pytest.approx(stages(run)["finetuned"]["top1"])


def test_a_dense_run_can_be_cut_again(run: Path, slimvit_: Invoke, tmp_path: Path) -> None:
    slimvit_("prune", run, *FEW, "--ratio", 0.3, "--out", tmp_path / "again")
    model, before = slimvit.load(tmp_path / "again"), slimvit.load(run)
    assert plan_of(model).kept_heads < plan_of(before).kept_heads
    old = mixes_of(before)
    assert all(old[key] == value for key, value in mixes_of(model).items())
    assert list(stages(tmp_path / "again")) == ["original", "pruned", "refit"]


def test_inserting_alone(slimvit_: Invoke, tmp_path: Path) -> None:
    slimvit_("prune", "vit_digits", *FEW, "--dense", "head", "--out", tmp_path / "run")
    found = stages(tmp_path / "run")
    assert list(found) == ["original", "dense"] and found["dense"]["agreement"] == 100
    assert mixes_in(slimvit.load(tmp_path / "run")) == 15 * 6


def test_finetuning_a_dense_run_has_its_teacher(slimvit_: Invoke, tmp_path: Path) -> None:
    slimvit_("prune", "vit_digits", *FEW, "--dense", "layer", "--out", tmp_path / "run")
    slimvit_("finetune", tmp_path / "run", "--epochs", 1, "--out", tmp_path / "tuned")
    assert Recipe.read(tmp_path / "tuned" / "recipe.yaml").finetune.teacher.name == "vit_digits"  # type: ignore[union-attr]


def test_dense_twice_is_refused(run: Path, slimvit_: Invoke, tmp_path: Path) -> None:
    told = slimvit_("prune", run, *FEW, "--dense", "head", "--out", tmp_path / "again", code=1).stderr
    assert "--dense head: the model has dense attention already (mix layer)" in told
    assert not (tmp_path / "again").exists()


def test_nothing_to_mix_is_said_before_the_cut(slimvit_: Invoke, tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    slimvit_("prune", "vit_digits", *FEW, "--ratio", 0.5, "--criterion", "random", "--dry-run", "--out", plan)
    tree = json.loads((plan / "plan.json").read_text())
    for i, block in enumerate(tree["blocks"]):
        block["kept_heads"] = [i]
    (plan / "plan.json").write_text(json.dumps(tree))
    words = ("--plan", plan / "plan.json", "--dense", "layer", "--out", tmp_path / "run")
    told = slimvit_("prune", "vit_digits", *FEW, *words, code=1)
    assert "no two blocks of a stage share a head" in told.stderr and "cut" not in told.stderr


def test_settings_without_a_mix_are_refused() -> None:
    with pytest.raises(RecipeError, match="dense: init and lr_scale without mix; give mix layer or head"):
        Recipe.parse({"model": {"name": "m"}, "data": {"name": "d"}, "dense": {"init": "normal", "lr_scale": 2}})


def test_a_saved_model_comes_back_bit_for_bit(dense: nn.Module, images: Any, tmp_path: Path) -> None:
    slimvit.save(dense, tmp_path / "run")
    again = slimvit.load(tmp_path / "run")
    assert torch.equal(again(images(dense)), dense(images(dense)))
    assert mixes_of(again) == mixes_of(dense)


def test_mixes_that_are_missing_or_unexpected_are_named(dense: nn.Module, vit: Any, tmp_path: Path) -> None:
    slimvit.save(dense, tmp_path / "dense")
    slimvit.save(vit(), tmp_path / "plain")
    weights = load_file(tmp_path / "dense" / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "blocks.2.attn.mix"}, tmp_path / "dense" / "model.safetensors")
    with pytest.raises(StoreError, match=r"blocks\.2\.attn\.mix is missing$"):
        slimvit.load(tmp_path / "dense")
    save_file(weights, tmp_path / "plain" / "model.safetensors")
    with pytest.raises(StoreError, match=r"blocks\.1\.attn\.mix is unexpected; blocks\.2\.attn\.mix is unexpected"):
        slimvit.load(tmp_path / "plain")


def test_a_made_up_kind_of_mix_is_damage(dense: nn.Module, tmp_path: Path) -> None:
    slimvit.save(dense, tmp_path / "run")
    file = tmp_path / "run" / "slim.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dense": "token"}))
    with pytest.raises(StoreError, match="damaged: dense: .*'layer' or 'head'"):
        slimvit.load(tmp_path / "run")


def test_states_of_two_families_do_not_mix(vit: Any, swin: Any, tmp_path: Path) -> None:
    slimvit.save(slimvit.insert_dense_attention(vit()), tmp_path / "vit")
    slimvit.save(slimvit.insert_dense_attention(swin()), tmp_path / "swin")
    (tmp_path / "vit" / "model.safetensors").write_bytes((tmp_path / "swin" / "model.safetensors").read_bytes())
    with pytest.raises(StoreError, match=r"does not fit slim\.json: .*cls_token is missing"):
        slimvit.load(tmp_path / "vit")


def test_the_mixes_have_a_learning_rate_of_their_own(vit: Any, images: Any) -> None:
    model = slimvit.insert_dense_attention(vit())

    loader = DataLoader(list(zip(images(model), [0, 1, 2, 3], strict=True)), batch_size=4)
    section = FinetuneSection(epochs=1, distill=False, warmup_epochs=0)
    moved = {}
    for scale in (1.0, 10.0):
        tuned, _ = finetune(model, loader, section, options=TrainOptions(lr=1e-4, mix_lr_scale=scale))
        moved[scale] = torch.tensor(list(mixes_of(tuned).values())).abs()
    assert torch.allclose(moved[10.0], 10 * moved[1.0], rtol=1e-3)  # Adam's first step is the learning rate


@pytest.mark.parametrize(
    ("name", "heads", "params", "macs"),
    [
        ("deit_tiny_patch16_224", 2, 5.125, 1.084),  # the paper's public model: 5.12 M, 1.08 G
        ("swin_tiny_patch4_window7_224", (2, 4, 8, 16), 25.401, 4.001),
    ],
)
def test_the_papers_form_from_scratch(name: str, heads: Any, params: float, macs: float) -> None:
    with torch.device("meta"):
        model = slimvit.create_model(name, heads=heads, dense="layer", init="normal")
    counted = slimvit.count_macs(model)
    assert counted.agrees and not counted.uncounted
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, abs=5e-4)
    assert counted.total / 1e9 == pytest.approx(macs, abs=5e-4)


def test_normal_mixes_follow_the_seed() -> None:
    def mixes(seed: int) -> list[float]:
        model = slimvit.create_model(
            "deit_tiny_patch16_224", heads=2, dense="layer", init="normal", img_size=32, args={"depth": 4}, seed=seed
        )
        return list(mixes_of(model).values())

    assert mixes(0) == mixes(0) != mixes(1)


def test_narrow_networks_are_built_without_weights() -> None:
    with pytest.raises(
        ModelError, match=r"heads=2 builds a network without weights; to cut a pretrained one, prune it"
    ):
        slimvit.create_model("deit_tiny_patch16_224", heads=2, pretrained=True)
    with pytest.raises(PlanError, match="gives 3 numbers, but the model has 4 stages"):
        slimvit.create_model("swin_tiny_patch4_window7_224", heads=(1, 2, 3))


def test_a_recipe_can_build_the_papers_form(tmp_path: Path) -> None:
    model = {"name": "swin_tiny_patch4_window7_224", "pretrained": False, "heads": [1, 2], "img_size": 16}
    args = {"in_chans": 1, "depths": [2, 2], "num_heads": [2, 4], "embed_dim": 16, "patch_size": 2, "window_size": 4}
    recipe = {
        "model": model | {"num_classes": 10, "args": args},
        "data": {"name": "digits", "train_images": 16, "eval_images": 8},
        "dense": {"mix": "layer", "init": "normal"},
        "finetune": {"epochs": 1, "distill": False},
    }
    now = slimvit.run(Recipe.parse(recipe), Options(out=tmp_path / "run"))
    assert [s.stage for s in now.report.stages] == ["original", "dense", "finetuned"]
    assert [len(b.kept_heads) for b in plan_of(slimvit.load(tmp_path / "run")).blocks] == [1, 1, 2, 2]
    again = Recipe.read(tmp_path / "run" / "recipe.yaml")
    assert again.model.heads == [1, 2]
    with pytest.raises(ModelError, match="a saved model brings its own weights and arguments; drop --no-pretrained, h"):
        open_model(ModelSection(name="vit_digits", heads=2, pretrained=False))
    with pytest.raises(PlanError, match="gives 3 numbers, but the model has 2 stages"):
        open_model(again.model.model_copy(update={"heads": [1, 1, 1]}))
