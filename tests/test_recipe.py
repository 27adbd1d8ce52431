import re

import pytest
from pydantic import ValidationError

from slimvit.errors import RecipeError
from slimvit.recipe import Recipe

MINIMAL = {"model": {"name": "deit_tiny_patch16_224"}, "data": {"name": "digits"}}


def recipe(**sections):
    return Recipe.parse(MINIMAL | sections, "r.yaml")


def refused(*told):
    return pytest.raises(RecipeError, match="^r.yaml: " + ".*".join(re.escape(t) for t in told))


def test_the_smallest_recipe():
    found = recipe()
    assert not found.prune.wanted and found.finetune.epochs == 0 and found.refit.target == "stream"


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"prun": {}}, ["unknown key prun (did you mean prune?)"]),
        ({"prune": {"ration": 0.5}}, ["unknown key prune.ration (did you mean ratio?)"]),
        ({"prune": {"zzz": 1}}, ["unknown key prune.zzz; known: ratio, heads, target_macs, plan"]),
        (
            {"finetune": {"teacher": {"name": "x", "wieghts": "y"}}},
            ["unknown key finetune.teacher.wieghts (did you mean weights?)"],
        ),
        ({"model": {}}, ["model.name is missing"]),
        ({"prune": {"ratio": 0}}, ["prune: ratio is 0.0, but must lie between 0 and 1, both excluded"]),
        ({"prune": {"ratio": 1.0}}, ["prune: ratio is 1.0, but must lie between 0 and 1"]),
        ({"prune": {"ratio": -0.5}}, ["prune: ratio is -0.5, but must lie between 0 and 1"]),
        ({"prune": {"ratio": "half"}}, ["prune.ratio is 'half', but must be a valid number"]),
        ({"prune": {"target_macs": 1.5}}, ["prune: target_macs is 1.5, but must lie between 0 and 1"]),
        ({"prune": {"ratio": 0.5, "heads": 2}}, ["prune: ratio and heads were both given; one of ratio, heads,"]),
        ({"prune": {"heads": -1}}, ["prune: heads is -1, but a block cannot keep fewer than 0 heads"]),
        ({"prune": {"heads": [2, -1]}}, ["prune: heads is [2, -1], but a block"]),
        ({"prune": {"heads": "two"}}, ["prune.heads is 'two', but must be a valid integer"]),
        ({"prune": {"scope": "local"}}, ["prune.scope is 'local', but must be 'uniform' or 'global'"]),
        ({"refit": {"ridge": 0}}, ["refit.ridge is 0, but must be greater than 0"]),
        ({"seed": -1}, ["seed is -1, but must be greater than or equal to 0"]),
    ],
)
def test_every_defect_is_named_with_its_place(sections, told):
    with refused(*told) as caught:
        recipe(**sections)
    assert "\n" not in str(caught.value)


def test_several_defects_in_one_line():
    with refused("data.train_images is 0", "; prune.ratio is 'x'", "; unknown key sede") as caught:
        recipe(sede=1, prune={"ratio": "x"}, data={"name": "digits", "train_images": 0})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("found", [None, [], "text", 3])
def test_not_a_mapping(found):
    with refused("expected a mapping with model: and data:, found"):
        Recipe.parse(found, "r.yaml")


def test_round_trip_through_yaml(tmp_path):
    wanted = recipe(
        model={"name": "vit_tiny_patch16_224", "img_size": 64, "args": {"qk_norm": True}},
        prune={"heads": [1, 2], "scope": "uniform", "criterion": "taylor", "min_heads": 0},
        refit={"target": "none"},
        adapt={"epochs": 3, "mode": "all"},
        finetune={"epochs": 2, "lr": 1e-4, "teacher": {"name": "deit_tiny_patch16_224"}},
        seed=7,
    )
    (tmp_path / "r.yaml").write_text(wanted.to_yaml())
    assert Recipe.read(tmp_path / "r.yaml") == wanted


def test_defects_of_a_recipe_file(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml: no such recipe; `slimvit recipes list`"):
        Recipe.read(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("model: [\n")
    with pytest.raises(RecipeError, match=r"bad\.yaml: not readable as YAML: ") as caught:
        Recipe.read(tmp_path / "bad.yaml")
    assert "\n" not in str(caught.value)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"bytes\.yaml: not readable as YAML: "):
        Recipe.read(tmp_path / "bytes.yaml")


def test_a_yaml_file_cannot_run_code(tmp_path):
    (tmp_path / "r.yaml").write_text(f"model: !!python/object/apply:os.mkdir ['{tmp_path / 'burst'}']\n")
    with pytest.raises(RecipeError, match="not readable as YAML"):
        Recipe.read(tmp_path / "r.yaml")
    assert not (tmp_path / "burst").exists()


def test_a_recipe_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        recipe().seed = 3
