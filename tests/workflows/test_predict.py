"""What is said of single image files."""

import json

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import slimvit
from slimvit.io.embedded import EMBEDDED
from slimvit.workflows.predict import image_files, predict

DIGITS = load_digits()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Ten digits, one in a folder below, and what they are."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "more").mkdir()
    for i in range(10):
        name = f"more/{i}.png" if i == 9 else f"{i}.png"
        Image.fromarray((DIGITS.images[i] * 15.9).astype("uint8")).save(folder / name)
    return folder


def test_the_likeliest_classes_and_their_probabilities(digits):
    model = slimvit.load(EMBEDDED["vit_digits"])
    files = image_files([digits])
    answers = predict(model, files, top=10)
    assert len(files) == 10 and not answers.unreadable
    for guesses in answers.guesses.values():
        assert sum(share for _, share in guesses) == pytest.approx(1, abs=1e-5)
        assert [share for _, share in guesses] == sorted((share for _, share in guesses), reverse=True)
    right = sum(answers.guesses[f][0][0] == model.class_names[int(f[-5])] for f in files)
    assert right >= 8


def test_command(slimvit_, digits, tmp_path):
    told = slimvit_("predict", "vit_digits", str(digits), "--compare", "swin_digits", "--top", "2").stdout
    assert "vit_digits" in told and "swin_digits" in told and "%" in told
    assert "of 10 images" in told.splitlines()[-1]
    found = json.loads(slimvit_("predict", "vit_digits", str(digits / "0.png"), "--json").stdout)
    assert len(found["vit_digits"]["guesses"][str(digits / "0.png")]) == 3


def test_images_that_cannot_be_read_are_told_of_and_the_others_shown(slimvit_, digits, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes((digits / "0.png").read_bytes()[:60])
    result = slimvit_("predict", "vit_digits", str(broken), str(digits / "1.png"), code=1)
    assert "1.png" in result.stdout and f"{broken}: not a readable image" in result.stderr
    assert "1 of 2 images could not be read" in result.stderr


def test_images_of_a_folder(digits, tmp_path, capsys):
    for place in ("a/b/0.png", ".ipynb_checkpoints/0.png", "__MACOSX/0.png", "a/._0.png", "a/1.jfif", "a/notes.cr2"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes((digits / "0.png").read_bytes())
    assert image_files([tmp_path]) == [str(tmp_path / "a/1.jfif"), str(tmp_path / "a/b/0.png")]
    assert capsys.readouterr().err == f"{tmp_path}: 1 file is left out: notes.cr2\n"
    hidden = str(tmp_path / ".ipynb_checkpoints" / "0.png")
    assert image_files([hidden, tmp_path / ".ipynb_checkpoints"]) == [hidden]  # both are named


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("vit_digits", "nothing.png"), "nothing.png: no such file or folder"),
        (("vit_digits", "EMPTY"), "holds no images"),
        (("no_such_model", "PICTURE"), "no_such_model: no timm model of that name"),
    ],
)
def test_bad_input_is_one_line(slimvit_, digits, tmp_path, words, told):
    places = {"EMPTY": str(tmp_path), "PICTURE": str(digits / "0.png")}
    result = slimvit_("predict", *(places.get(w, w) for w in words), code=1)
    assert told in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_a_classifier_that_nobody_trained_is_no_help(vit, digits):
    model = vit(num_classes=0)
    with pytest.raises(slimvit.SlimvitError, match="no trained classifier"):
        predict(model, [str(digits / "0.png")])


def test_classes_are_numbers_where_there_are_no_names(vit, digits):
    model = vit()
    guesses = predict(model, [str(digits / "0.png")], top=5).guesses[str(digits / "0.png")]
    assert {name for name, _ in guesses} == set("01234") and torch.tensor([s for _, s in guesses]).sum() > 0.999
