"""Every shipped recipe says how it is run, parses, and runs at toy size with its real model class."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

import slimvit
from slimvit.commands.run import command
from slimvit.embedded import EMBEDDED
from slimvit.models.family import plan_of
from slimvit.options import Options
from slimvit.recipe import Recipe
from slimvit.shipped import header, recipe_files

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


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str, digit_folder: Any, tmp_path: Path) -> None:
    recipe = Recipe.read(recipe_files()[name])
    now = slimvit.run(_toy(recipe, digit_folder, tmp_path), Options(out=tmp_path / "run"))
    wanted = ["original"] + ["pruned", "refit"] * recipe.prune.wanted
    wanted += ["dense"] * bool(recipe.dense.mix) + ["finetuned"] * bool(recipe.finetune.epochs)
    assert [s.stage for s in now.report.stages] == wanted
    again = slimvit.load(tmp_path / "run")
    assert again.slim_plan == plan_of(now.model)
    assert (again.num_classes, type(again)) == (now.data.num_classes, type(now.model))


def _toy(recipe: Recipe, digit_folder: Any, tmp_path: Path) -> Recipe:
    """The same recipe on a handful of digits, one epoch, random weights where they would be fetched."""
    tree = recipe.model_dump()
    few = {"train_images": 8, "eval_images": 4, "batch_size": 4}
    if recipe.data.name != "digits":
        few |= {"name": str(digit_folder(tmp_path / "data", train=4, val=2)), "root": None}
    tree["data"] |= few
    if recipe.model.name not in EMBEDDED:
        tree["model"]["pretrained"] = False
    for section in ("adapt", "finetune"):
        tree[section]["epochs"] = min(1, tree[section]["epochs"])
    tree["prune"]["calibration_images"] = 4
    return Recipe.parse(tree)
