from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from slimvit.config.recipe import DataSection
from slimvit.data import image_files
from slimvit.data.folder import open_evaluation_folder, open_folder
from slimvit.data.images import labels_of
from slimvit.data.preprocessing import to_mode
from slimvit.data.sources import open_data
from slimvit.utils.errors import DataError, name_list


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
    assert error(folder).startswith(f"{folder}/train/emu: a class without images (.jpg, .png, ")
    assert "; 1 file is left out: notes.txt); fill or remove" in error(folder)


def test_no_images_at_all(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    (folder / "train" / "cat").mkdir(parents=True)
    assert error(folder).startswith(f"{folder}/train: no images in it (.jpg, .png, ")


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


def test_the_class_is_the_top_folder(folder: Path, image, capsys) -> None:
    for split in ("train", "val"):
        for place in ("cat/session1", "cat/dog", "dog/session1/raw"):
            image(folder / split / place / "9.png")
    train, val, names = open_folder(folder)
    assert names == ("cat", "dog") and (len(train), len(val)) == (9, 7)
    assert labels_of(train) == [0] * 5 + [1] * 4 and labels_of(val) == [0] * 4 + [1] * 3
    told = capsys.readouterr().err.splitlines()
    assert told[0] == (
        f"{folder}/train: cat/dog, cat/session1 and 1 more: images at any depth belong to the class of the top folder; "
        "move folders up that are classes themselves"
    )
    assert len(told) == 2 and told[1].startswith(f"{folder}/val: ")


def test_a_folder_around_the_classes_is_no_class(folder: Path) -> None:
    for split in ("train", "val"):
        (folder / split).rename(folder / "pets")
        (folder / split).mkdir()
        (folder / "pets").rename(folder / split / "pets")
    assert error(folder) == (
        f"{folder}/train: pets/ would be the only class; if the folders in it (cat, dog) are the classes, move them to "
        f"{folder}/train"
    )


def test_an_evaluation_tells_of_the_images_it_takes(folder: Path, capsys) -> None:
    for split in ("train", "val"):
        (folder / split / "cat" / "notes.txt").touch()
    open_evaluation_folder(folder)
    assert capsys.readouterr().err == f"{folder}/val: 1 file is left out: notes.txt\n"


def test_hidden_entries_are_neither_classes_nor_images(folder: Path, image, capsys) -> None:
    for split in ("train", "val"):
        for place in (".ipynb_checkpoints", "cat/.ipynb_checkpoints", "__MACOSX/cat", ".AppleDouble", "dog/@eaDir"):
            image(folder / split / place / "0.png")
        for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
            image(folder / "x.png").rename(folder / split / name)
            (folder / split / "cat" / name).write_bytes(b"")
    image(folder / "x.png").rename(folder / ".x.png")
    train, val, names = open_folder(folder)
    assert names == ("cat", "dog") and (len(train), len(val)) == (6, 4) and capsys.readouterr().err == ""
    (folder / "val").rename(folder / ".val")
    assert "no val/ folder; found train/; expected" in error(folder)


@pytest.mark.parametrize("end", ["avif", "jfif", "JPE", "jp2", "j2k", "tga", "mpo", "pgm"])
def test_pillows_formats_are_read(folder: Path, image, end: str, capsys) -> None:
    if f".{end.lower()}" not in image_files.SUFFIXES:
        pytest.skip(f"this Pillow reads no {end}")
    known = {"j2k": "jp2", "mpo": "mpo", "jfif": "jpg", "JPE": "jpg"}.get(end, end)
    image(folder / f"x.{known}").rename(folder / "train" / "cat" / f"x.{end}")
    train, _, _ = open_folder(folder)
    place = [path for path, _ in train.samples].index(str(folder / "train" / "cat" / f"x.{end}"))
    colour, label = train[place]
    assert label == 0 and to_mode(colour, "L").getpixel((4, 4)) == pytest.approx(100, abs=3)
    assert capsys.readouterr().err == ""


def test_photos_of_a_phone(folder: Path, image) -> None:
    pytest.importorskip("pillow_heif")
    path = image(folder / "train" / "cat" / "x.HEIC")
    train, _, _ = open_folder(folder)
    assert train[[name for name, _ in train.samples].index(str(path))][0].getpixel((4, 4))[0] in range(97, 104)


def test_what_is_left_out_is_counted_and_named(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(image_files.SUFFIXES, ".heic", raising=False)
    for name in ("a.heic", "b.HEIC", "c.cr2", "README", "more/d.heic"):
        path = folder / "train" / "cat" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert len(open_folder(folder)[0]) == 6
    assert capsys.readouterr().err == (
        f"{folder}/train: 5 files are left out: 3 .heic (pip install pillow-heif), 1 .cr2, 1 without suffix, "
        "such as README\n"
    )


def test_a_single_file_left_out_is_named(tmp_path: Path) -> None:
    assert image_files.FolderFiles([], [str(tmp_path / "a.hif")]).left_out == (
        "1 file is left out: a.hif (pip install pillow-heif)"
    )


def test_a_link_to_a_folder_above_ends(folder: Path) -> None:
    (folder / "train" / "cat" / "again").symlink_to(folder / "train", target_is_directory=True)
    (folder / "train" / "cat" / "itself").symlink_to(".", target_is_directory=True)
    (folder / "train" / "emu").symlink_to(folder / "val" / "dog", target_is_directory=True)
    (folder / "val" / "emu").symlink_to("dog", target_is_directory=True)
    train, val, names = open_folder(folder)
    assert names == ("cat", "dog", "emu") and (len(train), len(val)) == (8, 6)


def test_a_pipe_is_no_image(folder: Path) -> None:
    path = folder / "train" / "cat" / "0.png"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="not a readable image .it is not a regular file"):
        open_folder(folder)[0][0]


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{tmp_path}/none: cannot be listed: No such file"):
        image_files.files_of(tmp_path / "none")


def test_names_that_differ_by_case_alone_have_one_order(tmp_path: Path, image) -> None:
    for split in ("train", "val"):
        for name in ("b", "B", "01", "1", "a"):
            image(tmp_path / split / name / "0.png")
    assert open_folder(tmp_path)[2] == ("01", "1", "a", "B", "b")


def test_torchvisions_folder_has_its_order(tmp_path: Path, image) -> None:
    for split in ("train", "val"):
        for i, name in enumerate(("1", "2", "10")):
            image(tmp_path / split / name / "deeper" / "x.png", 10 * i)
        image(tmp_path / split / ".ipynb_checkpoints" / "x.png")
    data = open_data(DataSection(name="torch/image_folder", root=str(tmp_path)))
    assert data.class_names == ("1", "10", "2")
    assert [(label, im.getpixel((0, 0))[0]) for im, label in (data.train[i] for i in range(3))] == [
        (0, 0), (1, 20), (2, 10)
    ]  # fmt: skip
    assert len(open_data(DataSection(name="torch/folder", root=str(tmp_path)), training=False).val) == 3


def test_long_lists_are_cut() -> None:
    assert name_list("abcdefgh") == "a, b, c, d, e and 3 more"
    assert name_list("ab") == "a, b"
