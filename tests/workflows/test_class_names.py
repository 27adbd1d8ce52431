"""Runs on data whose classes have other names or another order than the model's: right, or refused."""

import json

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import slimvit
from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.io.embedded import EMBEDDED
from slimvit.io.saved_model import read_description
from slimvit.utils.errors import DataError, ModelError, RecipeError
from slimvit.workflows.evaluate import evaluate_model

NAMES = tuple(str(n) for n in range(1, 11))
STRING = tuple(sorted(NAMES))
VAL, TRAIN = 6, 4


def write_digits(root, names):
    """Digit d in the class names[d]."""
    digits = load_digits()
    for digit, name in enumerate(names):
        for i, image in enumerate((digits.images[digits.target == digit][: VAL + TRAIN] * 15.9).astype("uint8")):
            path = root / ("val" if i < VAL else "train") / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("photos"), NAMES)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """vit_digits with its outputs in string order of `NAMES`, without and with their names."""
    folder = tmp_path_factory.mktemp("weights")
    model = slimvit.load("vit_digits")
    state = model.state_dict()
    places = [NAMES.index(name) for name in STRING]
    state |= {key: state[key][places] for key in ("head.weight", "head.bias")}
    torch.save({"state_dict": state}, folder / "mine.pth")
    torch.save({"state_dict": state, "class_to_idx": {n: i for i, n in enumerate(STRING)}}, folder / "named.pth")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory, weights):
    """A saved model that names its classes, in string order."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    slimvit.save(slimvit.create_model("vit_digits", weights=weights / "named.pth"), folder)
    assert json.loads((folder / "slim.json").read_text())["class_names"] == list(STRING)
    return folder


def recipe(model, data, **more):
    section = model if isinstance(model, dict) else {"name": str(model)}
    return Recipe.parse({"model": section, "data": {"name": str(data)}} | more)


def top1(model, data):
    return evaluate_model(recipe(model, data), Options(device="cpu"))["top1"]


INFO = read_description(EMBEDDED["vit_digits"])
SHAPE = {k: v for k, v in INFO.model_args.items() if k not in ("num_classes", "img_size", "in_chans")}
VALUES = {k: [sum(INFO.preprocessing[k]) / len(INFO.preprocessing[k])] for k in ("mean", "std")}


def from_file(file, **more):
    """The architecture of vit_digits for grey images; input size and channels follow from the file."""
    return {"name": INFO.model, "args": SHAPE, "weights": str(file)} | VALUES | more


def test_weights_without_names_are_asked_for_their_order(photos, weights, capsys):
    with pytest.raises(DataError, match=r"class 1 of .* is 2 in natural order .* and 10 in string order"):
        top1(from_file(weights / "mine.pth"), photos)
    assert top1(from_file(weights / "mine.pth", class_order="string"), photos) > 90
    capsys.readouterr()
    assert top1(from_file(weights / "mine.pth", class_order="natural"), photos) < 50
    order = weights / "classes.txt"
    order.write_text("\n".join(STRING))
    assert top1(from_file(weights / "mine.pth", class_order=str(order)), photos) > 90


def test_names_in_the_file_count(photos, weights):
    assert top1(from_file(weights / "named.pth"), photos) > 90


def test_a_saved_model_is_matched_by_name(photos, saved, tmp_path):
    assert top1(saved, photos) > 90
    assert slimvit.evaluate(saved, photos).accuracy["top1"] > 90
    assert slimvit.prune(saved, photos, ratio=0.2, refit="none").figures["original"].accuracy["top1"] > 90
    out = tmp_path / "run"
    state = slimvit.run(
        recipe(saved, photos, prune={"ratio": 0.1}, finetune={"epochs": 1, "crop_scale": 1, "hflip": 0}),
        Options(out=out, device="cpu"),
    )
    assert state.report.stages[-1].accuracy["top1"] > 85
    assert json.loads((out / "slim.json").read_text())["class_names"] == list(STRING)


def test_a_teacher_is_matched_by_name(photos, saved):
    """It knows the same classes in another order than the network that learns."""
    made = recipe(saved, photos, finetune={"epochs": 1, "teacher": {"name": str(saved)}, "hflip": 0})
    natural = made.model_copy(update={"adapt": made.adapt.model_copy(update={"epochs": 1})})  # a new classifier
    state = slimvit.run(natural, Options(device="cpu"))
    assert state.context.data.class_names == NAMES == tuple(state.original.class_names)
    assert state.stages[0].accuracy["top1"] > 90


@pytest.mark.parametrize("way", ["evaluate", "finetune", "prune", "Python evaluate", "Python prune"])
def test_other_classes_of_the_same_number_are_refused(way, saved, tmp_path):
    other = write_digits(tmp_path / "other", ("one", *NAMES[1:]))
    ways = {
        "evaluate": lambda: top1(saved, other),
        "finetune": lambda: slimvit.run(recipe(saved, other, finetune={"epochs": 1})),
        "prune": lambda: slimvit.run(recipe(saved, other, prune={"ratio": 0.5})),
        "Python evaluate": lambda: slimvit.evaluate(saved, other),
        "Python prune": lambda: slimvit.prune(saved, other, ratio=0.5),
    }
    with pytest.raises(DataError, match=r"other classes than .* has: 1 only there and one only in .*--adapt-epochs"):
        ways[way]()


def test_a_renamed_class_is_taken_with_a_file_of_names(saved, tmp_path):
    other = write_digits(tmp_path / "other", ("one", *NAMES[1:]))
    order = tmp_path / "classes.txt"
    order.write_text("\n".join("one" if name == "1" else name for name in STRING))
    assert top1({"name": str(saved), "class_order": str(order)}, other) > 90
    assert slimvit.evaluate(saved, other, class_order=str(order)).accuracy["top1"] > 90


def test_an_original_that_guesses_is_said_loudly(photos, weights, capsys):
    model = slimvit.load("vit_digits")
    state = model.state_dict()
    state |= {key: state[key].roll(1, 0) for key in ("head.weight", "head.bias")}
    torch.save(state, weights / "rolled.pth")
    section = from_file(weights / "rolled.pth", class_order="natural")
    state = slimvit.run(recipe(section, photos, prune={"ratio": 0.1}, refit={"target": "none"}), Options(device="cpu"))
    said = capsys.readouterr().err
    warning = "WARNING: top-1 is 0.0 % of 60 images, no better than guessing (10.0 %)"
    assert warning in said and "--class-order" in said and "--mean" in said and "--weights-key" in said
    assert any(note.startswith(warning) for note in state.report.notes)
    assert top1(section, photos) == 0 and warning in capsys.readouterr().err
    assert top1("vit_digits", "digits") > 90 and "WARNING" not in capsys.readouterr().err


def test_own_mean_and_std_are_used_and_saved(photos, tmp_path, capsys):
    model = slimvit.load("vit_digits")
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    values = {"mean": [0.25], "std": [0.75], "interpolation": "nearest", "crop_pct": 0.8}
    section = from_file(tmp_path / "mine.pth", class_order="natural", **values)
    state = slimvit.run(
        recipe(section, photos, prune={"ratio": 0.1}, refit={"target": "none"}),
        Options(out=tmp_path / "run", device="cpu"),
    )
    assert "assumed" not in capsys.readouterr().err
    made = state.context.preprocessing
    assert (made.mean, made.std, made.interpolation, made.crop_pct) == ((0.25,), (0.75,), "nearest", 0.8)
    written = json.loads((tmp_path / "run" / "slim.json").read_text())["preprocessing"]
    assert written["mean"] == [0.25] and written["std"] == [0.75] and written["crop_pct"] == 0.8
    with pytest.raises(ModelError, match="mean has 3 numbers, but the images have 1 channels"):
        evaluate_model(recipe(section | {"mean": [0.5, 0.5, 0.5]}, photos), Options(device="cpu"))


def test_arguments_that_could_not_be_saved_are_refused_before_the_work():
    section = {"name": EMBEDDED["vit_digits"].name, "pretrained": False, "args": {"checkpoint_path": "x"}}
    with pytest.raises(RecipeError, match="checkpoint_path is no argument of a network"):
        slimvit.run(recipe(section, "digits", adapt={"epochs": 20}))
