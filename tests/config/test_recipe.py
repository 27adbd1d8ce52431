import re

import pytest
from pydantic import ValidationError

from slimvit.config.recipe import Recipe
from slimvit.utils.errors import RecipeError

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
        ({"prune": {"zzz": 1}}, ["unknown key prune.zzz; known: ratio, heads, mlp_ratio, target_macs"]),
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
        (
            {"finetune": {"optimizer": "adamww"}},
            ["finetune: optimizer is 'adamww', which timm does not know (did you mean adamw"],
        ),
        ({"finetune": {"optimizer": "adahessian"}}, ["finetune: optimizer adahessian needs second derivatives"]),
        ({"finetune": {"momentum": 0.9}}, ["finetune: optimizer adamw has no momentum; drop it"]),
        ({"finetune": {"optimizer": "sgd", "eps": 1e-8}}, ["finetune: optimizer sgd has no eps; drop it"]),
        ({"finetune": {"betas": [0.9]}}, ["finetune: betas is [0.9], but adamw takes 2 numbers of 0 or more and"]),
        ({"finetune": {"betas": [0.9, 1.0]}}, ["finetune: betas is [0.9, 1.0], but adamw takes 2 numbers"]),
        ({"finetune": {"layer_decay": 1.5}}, ["finetune.layer_decay is 1.5, but must be less than or equal to 1"]),
        ({"finetune": {"ema_decay": 1.0}}, ["finetune.ema_decay is 1.0, but must be less than 1"]),
        ({"finetune": {"accumulate": 0}}, ["finetune.accumulate is 0, but must be greater than 0"]),
        ({"finetune": {"lr": 1e-5, "min_lr": 1e-4}}, ["finetune: min_lr is above lr; give a smaller min_lr"]),
        ({"finetune": {"lr": 1e-5, "warmup_lr": 1e-4}}, ["finetune: warmup_lr is above lr"]),
        ({"finetune": {"ema_warmup": True}}, ["finetune: ema_warmup without ema_decay; give both or neither"]),
        (
            {"finetune": {"sampler": "balanced", "repeated_aug": 3}},
            ["finetune: sampler balanced and repeated_aug both"],
        ),
        ({"finetune": {"mixup_prob": 0.5}}, ["finetune: mixup_prob without mixup or cutmix"]),
        ({"finetune": {"switch_prob": 0.1, "mixup": 1}}, ["finetune: switch_prob switches between mixup and cutmix"]),
        ({"finetune": {"train": "head", "layer_decay": 0.9}}, ["finetune: train head leaves", "drop layer_decay"]),
        ({"finetune": {"train": "head", "drop_path": 0.1}}, ["finetune: train head leaves", "drop drop_path"]),
        ({"finetune": {"train": "body"}}, ["finetune.train is 'body', but must be 'all' or 'head'"]),
        ({"finetune": {"distill": False, "distill_kind": "hard"}}, ["finetune: distill_kind hard without distill"]),
        ({"finetune": {"distill_kind": "hard", "temperature": 3}}, ["finetune: temperature is for soft distillation"]),
        ({"finetune": {"distill_kind": "features", "train": "head"}}, ["finetune: train head", "cannot be learnt"]),
        (
            {"finetune": {"distill_kind": "logits"}},
            ["finetune.distill_kind is 'logits', but must be 'soft', 'hard' or"],
        ),
        ({"adapt": {"train": "head"}}, ["adapt: train is for fine-tuning; here mode says what is trained"]),
        ({"adapt": {"optimizer": "sgd", "accumulate": 2}}, ["adapt: optimizer and accumulate without mode all"]),
        (
            {"dense": {"mix": "layer"}, "finetune": {"train": "head", "epochs": 1}},
            ["finetune.train is head, but the mixes of dense are in the body; give train all"],
        ),
        ({"model": {"name": "x", "mean": [123.7]}}, ["model: mean is [123.7], but must be numbers from 0 to 1"]),
        ({"model": {"name": "x", "std": [0.5, 0]}}, ["model: std is [0.5, 0.0], but must be numbers above 0"]),
        ({"model": {"name": "x", "std": [float("nan")]}}, ["model: std is [nan], but must be"]),
        (
            {"model": {"name": "x", "crop_pct": 95}},
            ["model: crop_pct is 95.0, but must be a number above 0 and at most 2"],
        ),
        (
            {"model": {"name": "x", "interpolation": "cubic"}},
            ["model.interpolation is 'cubic', but must be 'nearest', "],
        ),
        ({"model": {"name": "x", "weights_key": "ema"}}, ["model: weights_key chooses among", "give weights"]),
        (
            {"model": {"name": "x", "args": {"a": "None"}}},
            ["model: args.a is the text 'None', which counts as true; write null"],
        ),
        (
            {"model": {"name": "x", "class_order": "string"}, "adapt": {"epochs": 1}},
            ["model.class_order is for a classifier that adapt.epochs replaces"],
        ),
        ({"model": {"name": "x", "heads": 2}}, ["model: heads 2 builds a network without weights; give pretrained"]),
        (
            {"model": {"name": "x", "heads": [2, 0], "pretrained": False}},
            ["model: heads is [2, 0], but every block needs"],
        ),
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


def test_contradictions_of_all_sections_are_told_at_once():
    sections = {
        "adapt": {"mode": "all", "optimizer": "adamv", "ema_warmup": True},
        "finetune": {"optimizer": "sgd", "betas": [0.9, 0.9], "mixup_prob": 0.5},
    }
    told = ["adapt: ema_warmup", "; adapt: optimizer is 'adamv'", "; finetune: mixup_prob", "; finetune: optimizer sgd"]
    with refused(*told) as caught:
        recipe(**sections)
    assert "\n" not in str(caught.value)


def test_contradictions_are_told_beside_unknown_keys_and_wrong_values():
    sections = {
        "model": {"name": "m", "heads": [2, 0], "weights": "w.pth", "sise": 3},
        "prune": {"ratio": 2, "target_macs": -1, "scop": "x"},
        "dense": {"mix": "layer", "initial": "zero"},
        "finetune": {"train": "head", "epochs": 1, "drop_path": 0.1, "clip_grad": "no", "teacher": {"heads": 2}},
    }
    told = [
        "unknown key model.sise",
        "; unknown key prune.scop (did you mean scope?)",
        "; unknown key dense.initial (did you mean init?)",
        "; finetune.teacher.name is missing",
        "; finetune.clip_grad is 'no', but must be",
        "; unknown key sede (did you mean seed?)",
        "; model: heads is [2, 0], but every block needs",
        "; model: heads [2, 0] builds a network without weights",
        "; prune: ratio and target_macs were both given",
        "; prune: ratio is 2.0, but",
        "; prune: target_macs is -1.0, but",
        "; finetune.teacher: heads 2 builds a network without weights",
        "; finetune: train head leaves the body as it is; drop drop_path",
        "; finetune.train is head, but the mixes of dense are in the body",
    ]
    with pytest.raises(RecipeError) as caught:
        recipe(sede=1, **sections)
    assert "\n" not in str(caught.value)
    assert [clause for clause in told if clause not in "; " + str(caught.value)] == []


@pytest.mark.parametrize(
    ("finetune", "told"),
    [
        ({"ema_warmup": True, "ema_deca": 0.9}, "unknown key finetune.ema_deca (did you mean ema_decay?)"),
        ({"mixup_prob": 0.5, "mixup": "much"}, "finetune.mixup is 'much', but must be a valid number"),
        ({"betas": [0.9, "x"], "optimizer": "sgd"}, "finetune.betas.1 is 'x', but must be a valid number"),
    ],
)
def test_what_may_contradict_nothing_but_a_slip_is_not_told(finetune, told):
    with pytest.raises(RecipeError) as caught:
        recipe(finetune=finetune)
    assert str(caught.value).startswith(f"r.yaml: {told}") and "finetune: " not in str(caught.value)


@pytest.mark.parametrize("tree", [{}, {"model": 3, "data": None}, {"model": {}, "data": {}}, {1: 2, "data": []}])
def test_the_rest_of_a_file_without_model_and_data_is_judged_too(tree):
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(tree | {"finetune": {"ema_warmup": True}}, "r.yaml")
    for told in ("model", "data", "finetune: ema_warmup without ema_decay"):
        assert told in str(caught.value)


def test_every_optimizer_of_timm_is_known():
    from timm.optim import list_optimizers

    for name in ("sgd", "lamb", "lion", "AdamW", "lookahead_adamw"):
        assert recipe(finetune={"optimizer": name}).finetune.optimizer == name
    assert len(list_optimizers()) > 50


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
        finetune={"epochs": 2, "lr": 1e-4, "teacher": {"name": "deit_tiny_patch16_224"}, "betas": [0.9, 0.99]},
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
