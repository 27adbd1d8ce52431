"""Every shipped recipe says how it is run, parses, and runs at toy size with its real model class."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import slimvit
from slimvit.commands.run import command
from slimvit.embedded import EMBEDDED
from slimvit.models.family import plan_of
from slimvit.options import Options
from slimvit.recipe import AdaptSection, ModelSection, Recipe
from slimvit.shipped import header, recipe_files
from slimvit.train.state import TrainState
from slimvit.training import TrainSection

NAMES = list(recipe_files())


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures cost as much as the small runs here; test_pipeline.py looks at them."""
    for name in ("head_map", "stage_accuracy", "mix_map"):
        monkeypatch.setattr(f"slimvit.report.plots.{name}", lambda *args: args[-1].touch())


def test_there_are_recipes() -> None:
    assert {f.stem for f in (Path(__file__).parents[1] / "recipes").iterdir()} == set(NAMES) and NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_runs_it_and_the_second_says_what_it_does(name: str) -> None:
    first, second, *_ = header(recipe_files()[name])
    words = shlex.split(first)
    assert words[:3] == ["slimvit", "run", name]
    given = command.make_context("run", words[2:]).params
    assert given["out"] is not None
    assert len(second.split()) >= 4 and second.endswith(".")


@pytest.mark.parametrize("name", [n for n in NAMES if "imagenet" in n or "cifar" in n])
def test_the_long_ones_say_what_they_cost_and_what_to_read_them_against(name: str) -> None:
    told = " ".join(header(recipe_files()[name]))
    for words in ("Units: ", "Effective batch ", " GPU-hours (estimate: ", "Read it against "):
        assert words in told
    recipe = Recipe.read(recipe_files()[name])
    batches = [s.accumulate * recipe.data.batch_size for s in (recipe.adapt, recipe.finetune) if s.epochs]
    assert f"Effective batch {batches[0]}" in told


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of the optimizer that every training took."""
    found: list[int] = []
    real = TrainState.update

    def update(state: TrainState) -> None:
        real(state)
        if state.updates == 1:
            found.append(0)
        found[-1] += 1

    monkeypatch.setattr(TrainState, "update", update)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str, digit_folder: Any, tmp_path: Path, updates: list[int]) -> None:
    recipe = Recipe.read(recipe_files()[name])
    now = slimvit.run(_toy(recipe, digit_folder, tmp_path), Options(out=tmp_path / "run"))
    wanted = ["original"] + ["pruned", "refit"] * recipe.prune.wanted
    wanted += ["dense"] * bool(recipe.dense.mix) + ["finetuned"] * bool(recipe.finetune.epochs)
    assert [s.stage for s in now.report.stages] == wanted
    trainings = [name for name, s in (("adapt", recipe.adapt), ("finetune", recipe.finetune)) if _walks(s)]
    assert list(now.histories) == trainings and len(updates) == len(trainings)
    assert all(2 <= n <= 4 for n in updates)
    assert all(torch.isfinite(p).all() for p in now.model.parameters())
    _has_the_heads(recipe, now.model)
    again = slimvit.load(tmp_path / "run")
    assert again.slim_plan == plan_of(now.model)
    assert (again.num_classes, type(again)) == (now.data.num_classes, type(now.model))


def _walks(section: TrainSection) -> bool:
    """Whether a section trains through the network, not on stored features."""
    return bool(section.epochs) and not (isinstance(section, AdaptSection) and section.mode == "head")


def _has_the_heads(recipe: Recipe, model: Any) -> None:
    """A number of heads that the recipe names is what every block ends with, stage by stage."""
    heads = recipe.prune.heads or recipe.model.heads
    if heads is not None:
        for block in plan_of(model).blocks:
            assert len(block.kept_heads) == (heads if isinstance(heads, int) else heads[block.stage])


def _toy(recipe: Recipe, digit_folder: Any, tmp_path: Path) -> Recipe:
    """The same recipe on a handful of digits, few pixels and blocks, one epoch of two steps; the rest as it is."""
    tree = recipe.model_dump()
    tree["data"] |= {"train_images": 8, "eval_images": 4, "batch_size": 4}
    if recipe.data.name != "digits":
        tree["data"] |= {"name": str(digit_folder(tmp_path / "data", train=4, val=2)), "root": None}
    if recipe.model.name not in EMBEDDED and recipe.data.name != "digits":
        tree["model"] |= _toy_model(recipe.model, tmp_path)
    for section in ("adapt", "finetune"):
        tree[section]["epochs"] = min(1, tree[section]["epochs"])
        if tree[section]["accumulate"] > 1:  # a run's other training, with the same batch_size, takes four steps then
            tree[section]["accumulate"] = 2
            tree["data"]["batch_size"] = 2
    tree["prune"]["calibration_images"] = 4
    return Recipe.parse(tree)


def _toy_model(section: ModelSection, tmp_path: Path) -> dict[str, Any]:
    """Few pixels, two blocks a stage, and made-up weights where they would be fetched."""
    swin = section.name.startswith("swin")
    size = {"img_size": 28 if "patch14" in section.name else 32}
    args = section.args | ({"depths": [2, 2, 2, 2], "embed_dim": 48} if swin else {"depth": 2})
    if not section.pretrained:
        return {**size, "args": args, "num_classes": 3}
    classes = 0 if "dinov2" in section.name else 3
    torch.save(timm.create_model(section.name, num_classes=classes, **size, **args).state_dict(), tmp_path / "w.pth")
    return {**size, "args": args, "weights": str(tmp_path / "w.pth")}
