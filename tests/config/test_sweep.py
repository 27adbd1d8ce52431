"""The sweep file: what its points are, what they are called, and everything that is wrong with it at once."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from slimvit.config.shipped import header, recipe_files, sweep_files
from slimvit.config.sweep import Sweep, points_of
from slimvit.utils.errors import RecipeError

BASE = {"model": {"name": "vit_digits"}, "data": {"name": "digits"}}


def points(**content: Any) -> list[Any]:
    return points_of(Sweep.parse(content))


def test_a_grid_gives_every_combination_and_seeds_share_a_name():
    found = points(base=BASE, grid={"prune.ratio": [0.25, 0.5], "refit.target": ["none", "stream"], "seed": [0, 1]})
    assert len({p.id for p in found}) == len(found) == 8
    settings = {(p.recipe.prune.ratio, p.recipe.refit.target, p.recipe.seed) for p in found}
    assert settings == {(r, t, s) for r in (0.25, 0.5) for t in ("none", "stream") for s in (0, 1)}
    assert len({p.name for p in found}) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", p.id) for p in found)


def test_points_change_a_recipe_and_meet_the_grid():
    found = points(
        base="digits_half",
        points=[{"name": "as it is"}, {"name": "dense", "change": {"dense.mix": "layer"}}],
        grid={"seed": [3]},
    )
    assert [(p.name, p.id) for p in found] == [("as it is", "as-it-is-seed-3"), ("dense", "dense-seed-3")]
    plain, dense = (p.recipe for p in found)
    assert plain.finetune == dense.finetune and plain.finetune.epochs == 3 and dense.dense.mix == "layer"


def test_a_point_may_name_its_own_recipe():
    (found,) = points(points=[{"name": "a", "recipe": "digits_half"}])
    assert found.recipe.prune.ratio == 0.5


def test_data_from_outside_is_for_every_point():
    sweep = Sweep.parse({"base": BASE, "grid": {"prune.ratio": [0.3, 0.5]}})
    assert {p.recipe.data.eval_images for p in points_of(sweep, data={"eval_images": 7})} == {7}


def test_budgets_and_what_may_go_are_named_as_on_the_command_line():
    grid = {"prune.target_macs": [0.5, 0.75], "prune.parts": [None, ["heads", "mlp", "branches"]]}
    found = points(base=BASE, grid=grid)
    assert [p.name for p in found[:2]] == [
        "target macs 0.5, parts as needed",
        "target macs 0.5, parts heads,mlp,branches",
    ]
    assert found[3].id == "target-macs-0.75-parts-heads-mlp-branches"
    assert found[3].recipe.prune.parts == ["heads", "mlp", "branches"]
    assert points(base=BASE, grid={"prune.mlp_ratio": [0.25]})[0].name == "mlp ratio 0.25"
    assert points(base=BASE, grid={"prune.heads": [[2, 4]]})[0].name == "heads 2,4"


def test_two_settings_with_one_last_word_are_told_apart():
    (found,) = points(base=BASE, grid={"finetune.lr": [1e-4], "adapt.lr": [1e-3], "prune.ratio": [0.5]})
    assert "finetune.lr 0.0001" in found.name and "adapt.lr 0.001" in found.name


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"base": BASE}, "nothing to sweep over"),
        ({"grid": {"seed": [0]}}, "base is missing"),
        ({"base": BASE, "grid": {"seed": []}}, "seed has no values"),
        ({"base": BASE, "gird": {"seed": [0]}}, "unknown key gird (did you mean grid?)"),
        ({"base": BASE, "points": [{"name": "a"}, {"name": "a"}]}, "two points are called 'a'"),
        ({"base": BASE, "grid": {"prune.rato": [0.5]}}, "unknown key prune.rato (did you mean ratio?)"),
        ({"base": BASE, "grid": {"prune.ratio": [0.5, 0.5]}}, "is the same run as"),
        ({"base": BASE | {"seed": 1}, "grid": {"seed.more": [1, 2]}}, "no section"),
        ({"base": "digits_haf", "grid": {"seed": [0]}}, "no such recipe (did you mean digits_half"),
        (
            {"base": BASE, "points": [{"name": "a b"}, {"name": "a/b", "change": {"prune.ratio": 0.5}}]},
            "folder would be",
        ),
        (
            {"base": BASE, "points": [{"name": "a"}], "claims": [{"point": "b", "top1": 9.0, "source": "x"}]},
            "a claim names 'b'",
        ),
        ({"base": BASE, "points": [{"name": "a"}], "claims": [{"point": "a", "source": "x"}]}, "needs top1 or change"),
        ({"base": BASE, "points": [{"nam": "a"}]}, "unknown key points.0.nam (did you mean name?)"),
        ([], "expected a mapping"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(content, told):
    with pytest.raises(RecipeError) as caught:
        points_of(Sweep.parse(content))
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"grid": {"prune": [{"ratio": 0.5}], "prune.ratio": [0.25]}}, "prune and prune.ratio set the same; give one"),
        (
            {"points": [{"name": "a", "change": {"prune.ratio": 0.5, "prune": {"ratio": 0.25}}}]},
            "prune and prune.ratio",
        ),
        (
            {"points": [{"name": "a", "change": {"prune.ratio": 0.25}}], "grid": {"prune.ratio": [0.5]}},
            "prune.ratio is set by a point and by the grid; give one of them",
        ),
        (
            {"points": [{"name": "a", "change": {"prune.ratio": 0.25}}], "grid": {"prune": [{"ratio": 0.5}]}},
            "prune and prune.ratio set the same; give one of them",
        ),
    ],
)
def test_a_setting_given_twice(content, told):
    with pytest.raises(RecipeError) as caught:
        points(base=BASE, **content)
    assert str(caught.value).count(told) == 1


def test_all_defects_of_all_points_are_told_at_once():
    with pytest.raises(RecipeError, match=r"ratio 2: .*lie between.*; ratio 3: .*lie between"):
        points(base=BASE, grid={"prune.ratio": [2, 3]})


@pytest.mark.parametrize("name", sweep_files())
def test_every_shipped_sweep_can_be_carried_out(name):
    path = sweep_files()[name]
    command, what, *_ = header(path)
    assert command.startswith(f"slimvit sweep {name} ") and what.endswith(".")
    sweep = Sweep.read(path)
    assert points_of(sweep, str(path))
    assert {p.recipe for p in sweep.points if p.recipe} <= set(recipe_files())


@pytest.mark.parametrize("data", ["imagenet", "cifar10", "cifar100"])
def test_the_papers_tables_hold_its_three_arms_for_each_network(data):
    sweep = Sweep.read(sweep_files()[f"paper_{data}"])
    found = points_of(sweep)
    for network in ("deit_tiny", "deit_small", "swin_tiny", "swin_small"):
        full, fewer, dense = (p.recipe for p in found if p.recipe.model.name.startswith(network))
        assert full.model.heads is None and not full.prune.wanted and full.dense.mix is None
        assert (fewer.model.heads, fewer.prune) == (dense.model.heads, dense.prune) and fewer.dense.mix is None
        assert (fewer.model.heads or fewer.prune.heads) and dense.dense.mix == "layer"
        assert full.finetune == fewer.finetune == dense.finetune
    assert sweep.claims and all(claim.source == "the paper's abstract" for claim in sweep.claims)


def test_the_file_in_a_sweeps_folder_reads_back(tmp_path):
    sweep = Sweep.read(sweep_files()["quick"])
    (tmp_path / "sweep.yaml").write_text(sweep.to_yaml())
    assert Sweep.read(tmp_path / "sweep.yaml") == sweep
    assert yaml.safe_load(sweep.to_yaml())["grid"] == sweep.grid


def test_a_grid_is_bounded_before_it_is_built():
    grid = {f"data.args{i}": list(range(1000)) for i in range(20)}
    with pytest.raises(RecipeError, match="runs, at most 1,000 are allowed; give fewer"):
        Sweep.parse({"base": BASE, "grid": grid})
