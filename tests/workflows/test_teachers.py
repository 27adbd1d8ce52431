"""Whom a run learns from: the uncut network, or any model that the recipe names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import slimvit
from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.models.registry import model_name, plan_of
from slimvit.utils.errors import SlimvitError
from slimvit.workflows import run, training
from slimvit.workflows.run_folder import recipe_of

Tree = dict[str, Any]
DATA: Tree = {"name": "digits", "train_images": 32, "eval_images": 20, "batch_size": 16}
CUT: Tree = {"heads": 3, "calibration_images": 16, "criterion": "magnitude"}
RESNET: Tree = {
    "name": "resnet18", "pretrained": False, "num_classes": 10, "args": {"in_chans": 1, "channels": [8, 8, 8, 8]},
}  # fmt: skip


def recipe(teacher: Tree | None = None, model: Tree | None = None, **sections: Tree) -> Recipe:
    finetune = {"epochs": 1, "crop_scale": 1.0, "hflip": 0.0} | sections.pop("finetune", {})
    tree: Tree = {"model": model or {"name": "vit_digits"}, "data": DATA, "prune": CUT}
    return Recipe.parse(tree | {"finetune": finetune | ({} if teacher is None else {"teacher": teacher})} | sections)


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The teacher of every training, and what its images look like beside the student's."""
    found: list[Any] = []
    real = training.finetune

    def spy(model: Any, loader: Any, section: Any, **given: Any) -> Any:
        batch = next(iter(loader))[0]
        teacher = given["teacher"]
        found.append((teacher and teacher.model, batch, batch if teacher is None else teacher.view(batch)))
        return real(model, loader, section, **given)

    monkeypatch.setattr(training, "finetune", spy)
    return found


def test_the_uncut_network_teaches_where_nobody_is_named(taught: list[Any]) -> None:
    now = slimvit.run(recipe())
    ((teacher, batch, seen),) = taught
    assert teacher is now.original and plan_of(teacher).kept_heads == 36 and seen is batch


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_named_teacher_takes_its_place_and_nothing_else(taught: list[Any], kind: str) -> None:
    now = slimvit.run(recipe({"name": "swin_digits"}, finetune={"distill_kind": kind}))
    ((teacher, _, _),) = taught
    assert model_name(teacher).startswith("swin") and not teacher.training
    assert [s.stage for s in now.report.stages] == ["original", "pruned", "refit", "finetuned"]
    assert [s.units["heads"] for s in now.report.stages] == [36, 18, 18, 18]
    alone = slimvit.run(recipe())
    assert now.report.stages[2].loss == alone.report.stages[2].loss  # the refit still aims at the uncut network
    assert now.report.stages[3].loss != alone.report.stages[3].loss


def test_a_convolutional_teacher_gets_images_of_its_own_size_and_scale(taught: list[Any]) -> None:
    slimvit.run(recipe(RESNET))
    ((teacher, batch, seen),) = taught
    assert type(teacher).__name__ == "ResNet"
    assert batch.shape[1:] == (1, 16, 16) and seen.shape[1:] == (1, 224, 224)
    scale = sum((0.229, 0.224, 0.225)) / 3 / 0.5  # ImageNet's, a grey channel takes the mean
    spread = (batch.amax() - batch.amin()).item()
    assert (seen.amax() - seen.amin()).item() == pytest.approx(spread / scale, rel=0.25)


def test_a_model_that_is_not_cut_stays_its_own_original(taught: list[Any]) -> None:
    now = slimvit.run(recipe({"name": "swin_digits"}, prune={}))
    assert [s.stage for s in now.report.stages] == ["original", "finetuned"]
    assert {s.units["heads"] for s in now.report.stages} == {36} and model_name(taught[0][0]).startswith("swin")


@pytest.mark.parametrize("name", ["vit_digits", "swin_digits"])
def test_features_of_the_uncut_network_are_learnt(taught: list[Any], name: str) -> None:
    more: Tree = {"prune": {**CUT, "heads": [2, 4] if "swin" in name else 3}, "dense": {"mix": "layer"}}
    now = slimvit.run(recipe(None, {"name": name}, finetune={"distill_kind": "features", "lr": 1e-4}, **more))
    before, after = now.report.stages[-2:]
    assert after.stage == "finetuned" and after.feature_error != before.feature_error
    assert taught[0][0] is now.original


@pytest.mark.parametrize(
    ("teacher", "finetune", "told"),
    [
        (RESNET | {"num_classes": 7}, {}, "resnet18: the teacher knows 7 classes, but 10 are learnt; name another"),
        (RESNET | {"args": {}}, {}, "resnet18 cannot teach vit_digits: images of 1 channels cannot be converted to"),
        ({"name": "swin_digits", "num_classes": 0}, {}, "swin_digits: the teacher knows 0 classes, but 10 are learnt"),
        ({"name": "swin_digits"}, {"distill_kind": "features"}, "distill_kind features: swin_.* has 8 blocks ending"),
        (RESNET, {"distill_kind": "features"}, "resnet18: .*ResNet is not a model slimvit can prune"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, teacher: Tree, finetune: Tree, told: str
) -> None:
    monkeypatch.setattr(run, "measure", lambda *args: pytest.fail("too late"))
    with pytest.raises(SlimvitError, match=told) as caught:
        slimvit.run(recipe(teacher, finetune=finetune))
    assert "\n" not in str(caught.value)


def test_an_untrained_classifier_cannot_teach(digit_folder: Any, tmp_path: Path) -> None:
    data = DATA | {"name": str(digit_folder(tmp_path / "three")), "train_images": None}
    three = recipe({"name": "swin_digits", "num_classes": 3}, data=data, adapt={"epochs": 1})
    with pytest.raises(SlimvitError, match="^swin_digits: the teacher's classifier for 3 classes is untrained; name"):
        slimvit.run(three)
    ten = recipe({"name": "swin_digits"}, data=data, adapt={"epochs": 1})
    with pytest.raises(SlimvitError, match="^swin_digits: the teacher knows 10 classes, but 3 are learnt"):
        slimvit.run(ten)


def test_features_of_another_width_cannot_be_learnt_without_a_classifier() -> None:
    model = {"name": "vit_digits", "num_classes": 0}
    with pytest.raises(SlimvitError, match="^swin_digits: the teacher gives 80 features, but vit_digits 72; name"):
        slimvit.run(recipe({"name": "swin_digits", "num_classes": 0}, model))


RANDOM: Tree = {
    "name": "vit_tiny_patch16_224", "pretrained": False, "img_size": 16, "num_classes": 10,
    "args": {"patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3, "in_chans": 1},
}  # fmt: skip


def test_a_network_with_random_weights_does_not_teach_itself(taught: list[Any]) -> None:
    untrained = recipe(None, RANDOM, prune={}, dense={"mix": "layer", "init": "normal"})
    with pytest.raises(SlimvitError, match="random weights, so it cannot teach .*; name a teacher, or give distill fa"):
        slimvit.run(untrained)
    slimvit.run(recipe({"name": "vit_digits"}, RANDOM, prune={}, dense={"mix": "layer", "init": "normal"}))
    assert model_name(taught[0][0]) == "vit_digits" and plan_of(taught[0][0]).kept_heads == 36


def test_a_teacher_that_is_never_asked_is_refused() -> None:
    for idle in ({"epochs": 0}, {"distill": False}):
        with pytest.raises(SlimvitError, match="finetune.teacher teaches nothing without"):
            recipe({"name": "swin_digits"}, finetune=idle)


def test_later_fine_tuning_goes_back_to_the_uncut_network(
    slimvit_: Callable[..., Any], tmp_path: Path, taught: list[Any]
) -> None:
    slimvit.run(recipe({"name": "swin_digits"}), Options(out=tmp_path / "run"))
    slimvit_("finetune", tmp_path / "run", "--epochs", 1, "--out", tmp_path / "tuned")
    assert model_name(taught[1][0]).startswith("vit") and plan_of(taught[1][0]).kept_heads == 36
    scratch = recipe(None, RANDOM, prune={}, dense={"mix": "layer"}, finetune={"distill": False})
    slimvit.run(scratch, Options(out=tmp_path / "scratch"))
    slimvit_("finetune", tmp_path / "scratch", "--epochs", 1, "--out", tmp_path / "more")
    made_by = recipe_of(tmp_path / "more")
    assert made_by is not None and made_by.finetune.teacher is None and taught[3][0] is None


def test_the_seed_decides_random_weights() -> None:
    runs = [
        slimvit.run(recipe(None, RANDOM, prune={}, finetune={"distill": False}, seed=seed)).model.state_dict()
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())
    assert not torch.equal(runs[0]["head.weight"], runs[2]["head.weight"])
