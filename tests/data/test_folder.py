from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from slimvit.data.folder import name_list, open_folder
from slimvit.utils.errors import DataError


def error(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_folder(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_labels_follow_the_class_folders(folder: Path) -> None:
    train, val, names = open_folder(folder)
    assert names == ("cat", "dog") and len(train) == 6 and len(val) == 4
    assert [train[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [val[i][0].getpixel((0, 0)) for i in range(4)] == [(v,) * 3 for v in (0, 10, 100, 110)]


@pytest.mark.parametrize("name", ["valid", "validation", "eval"])
def test_synonyms_of_val(folder: Path, name: str) -> None:
    (folder / "val").rename(folder / name)
    assert len(open_folder(folder)[1]) == 4


def test_another_split_by_its_name(folder: Path, image) -> None:
    for name in ("cat", "dog"):
        image(folder / "test" / name / "0.webp")
    assert len(open_folder(folder, val_split="test")[1]) == 2


def test_images_without_classes_are_unlabelled(tmp_path: Path, image) -> None:
    for split in ("train", "val"):
        image(tmp_path / split / "a.png")
    train, val, names = open_folder(tmp_path)
    assert names == () and train[0][1] == val[0][1] == -1


def test_a_missing_split_says_what_is_there(folder: Path) -> None:
    shutil.rmtree(folder / "val")
    (folder / "readme.txt").touch()
    assert error(folder).startswith(f"{folder}: no val/ folder; found train/ and 1 file; expected train/CLASS/")
    shutil.rmtree(folder / "train")
    assert "no train/ folder; found 1 file;" in error(folder)
    (folder / "readme.txt").unlink()
    assert "no train/ folder; found nothing;" in error(folder)


def test_a_class_without_images(folder: Path) -> None:
    (folder / "train" / "emu").mkdir()
    (folder / "train" / "emu" / "notes.txt").touch()
    assert error(folder).startswith(f"{folder}/train/emu: a class without images (.bmp, ")


def test_no_images_at_all(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    (folder / "train" / "cat").mkdir(parents=True)
    assert error(folder).startswith(f"{folder}/train: no images in it (.bmp, ")


def test_different_classes_are_named(folder: Path) -> None:
    (folder / "val" / "dog").rename(folder / "val" / "hound")
    assert f"dog only in {folder}/train, hound only in {folder}/val" in error(folder)


def test_an_image_beside_the_classes(folder: Path, image) -> None:
    stray = image(folder / "val" / "stray.png")
    assert error(folder) == f"{stray}: lies beside the class folders of {folder}/val; move it into one of them"


def test_classes_in_one_split_only(folder: Path, image) -> None:
    shutil.rmtree(folder / "val")
    image(folder / "val" / "0.png")
    assert f"{folder}/val: images without class folders, but {folder}/train has classes" in error(folder)


def test_long_lists_are_cut() -> None:
    assert name_list("abcdefgh") == "a, b, c, d, e and 3 more"
    assert name_list("ab") == "a, b"
