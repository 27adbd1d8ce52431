"""Image folders: train/CLASS/ and val/CLASS/ with images at any depth, or unlabelled images in train/ and val/."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from timm.utils.misc import natural_key
from torch.utils.data import Dataset

from slimvit.data.depth import deep_notice
from slimvit.data.image_files import COMMON, FolderFiles, files_of, is_hidden
from slimvit.data.images import UNLABELLED, Sample, Splits, decode
from slimvit.utils.errors import DataError, name_list
from slimvit.utils.progress import log

SYNONYMS = (("train", "training"), ("val", "valid", "validation", "eval", "evaluation"))
TEST = ("test", "testing")
Order = Callable[[str], Any]
"""Key of an order of names and paths."""
LAYOUT = "expected train/CLASS/ and val/CLASS/ (validation/ and eval/ are known too)"


class FolderImages(Dataset[Sample]):
    """Image files and their labels; a file is decoded on access."""

    def __init__(self, samples: list[tuple[str, int]]) -> None:
        self.samples = samples

    @property
    def labels(self) -> list[int]:
        """One label per image, without decoding."""
        return [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.samples[index]
        return decode(path, path), label


def open_folder(
    root: Path, train_split: str = "train", val_split: str = "validation", order: Order = natural_key
) -> Splits:
    """Return both splits of a folder, and its class names in `order`, timm's natural one; no image is decoded.

    Raises:
        DataError: A split is missing or empty, a class has no images, or the splits disagree about the classes.
    """
    train_folder, val_folder = _split_folder(root, train_split), _split_folder(root, val_split)
    train, train_classes = _scan(train_folder, order)
    val, val_classes = _scan(val_folder, order)
    _check_same_classes(train_folder, train_classes, val_folder, val_classes)
    return FolderImages(train), FolderImages(val), train_classes


def open_evaluation_folder(
    root: Path, train_split: str = "train", val_split: str = "validation", order: Order = natural_key
) -> Splits:
    """Return no training images, the images to evaluate on, and their class names; no image is decoded.

    The images are those of the validation split. A folder that has none is evaluated on `test/`, and one without any
    split on all of its images; a line on stderr says so.

    Raises:
        DataError: There are no images, or a training split has other classes.
    """
    train_folder, folder = _existing(root, train_split), _evaluation_folder(root, train_split, val_split)
    images, classes = _scan(folder, order)
    if train_folder is not None and folder != train_folder:
        _check_same_classes(train_folder, _scan(train_folder, order, tell=False)[1], folder, classes)
    return FolderImages([]), FolderImages(images), classes


def _evaluation_folder(root: Path, train_split: str, val_split: str) -> Path:
    if (found := _existing(root, val_split)) is not None:
        return found
    others = [root / name for name in TEST if (root / name).is_dir()] if val_split in SYNONYMS[1] else []
    bare = [root] if val_split in SYNONYMS[1] and _existing(root, train_split) is None else []
    if not (others or bare):
        return _split_folder(root, val_split)
    what = "all of its images, for it has no splits" if not others else f"{others[0].name}/, for it has no val/"
    log(f"{root}: evaluated on {what}")
    return (others or bare)[0]


def _existing(root: Path, split: str) -> Path | None:
    """The folder of a split under one of its names."""
    same = next((names for names in SYNONYMS if split in names), ())
    return next((root / name for name in (split, *same) if (root / name).is_dir()), None)


def _split_folder(root: Path, split: str) -> Path:
    if (found := _existing(root, split)) is not None:
        return found
    same = next((names for names in SYNONYMS if split in names), ())
    missing = same[0] if same else split
    raise DataError(f"{root}: no {missing}/ folder; found {_contents(root)}; {LAYOUT}")


def _contents(root: Path) -> str:
    entries = sorted(entry for entry in root.iterdir() if not is_hidden(entry.name))
    folders = [f"{e.name}/" for e in entries if e.is_dir()]
    files = len(entries) - len(folders)
    counted = [f"{files} file{'s' if files > 1 else ''}"] if files else []
    return " and ".join([name_list(folders)] * bool(folders) + counted) or "nothing"


def _scan(folder: Path, order: Order, tell: bool = True) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """(path, label) of every image, and the class names; none where no image lies in a class folder.

    The class of an image is the folder of `folder` that it lies in, at any depth.
    """
    files = files_of(folder)
    if not files.images:
        raise DataError(f"{folder}: no images in it ({_found(files)}); {LAYOUT}")
    paths = sorted(sorted(files.images), key=order)
    places = [path[len(str(folder)) + 1 :].split(os.sep)[:-1] for path in paths]
    classes = sorted(sorted({place[0] for place in places if place}), key=order)
    if classes and not all(places):
        raise DataError(
            f"{paths[places.index([])]}: lies beside the class folders of {folder}; move it into one of them"
        )
    if classes:
        _check_no_empty_class(folder, classes)
        _check_no_wrapper(folder, places)
    if tell:
        _tell(folder, files, paths, places)
    label = {name: number for number, name in enumerate(classes)}
    labels = [label[place[0]] if place else UNLABELLED for place in places]
    return list(zip(paths, labels, strict=True)), tuple(classes)


def _tell(folder: Path, files: FolderFiles, paths: list[str], places: list[list[str]]) -> None:
    """Log what was left out, and what was assumed about classes and grey values."""
    if files.others:
        log(f"{folder}: {files.left_out}")
    if below := sorted({"/".join(place[:2])[:80] for place in places if len(place) > 1}):
        rule = "images at any depth belong to the class of the top folder; move folders up that are classes themselves"
        log(f"{folder}: {name_list(below, 2)}: {rule}")
    if notice := deep_notice(paths):
        log(notice)


def _found(files: FolderFiles) -> str:
    return ", ".join(COMMON) + ", ..." + (f"; {files.left_out}" if files.others else "")


def _check_no_wrapper(folder: Path, places: list[list[str]]) -> None:
    """Raise `DataError` for one class alone whose images lie in several folders: these are the classes."""
    below = sorted({place[1] for place in places if len(place) > 1})
    if len({place[0] for place in places}) == 1 and len(below) > 1 and all(len(place) > 1 for place in places):
        raise DataError(
            f"{folder}: {places[0][0]}/ would be the only class; if the folders in it ({name_list(below, 3)}) are the "
            f"classes, move them to {folder}"
        )


def _check_no_empty_class(folder: Path, classes: Collection[str]) -> None:
    for child in sorted(folder.iterdir()):
        if child.is_dir() and child.name not in classes and not is_hidden(child.name):
            found = _found(files_of(child))
            raise DataError(f"{child}: a class without images ({found}); fill or remove the folder")


def _check_same_classes(
    train_folder: Path, train_classes: Collection[str], val_folder: Path, val_classes: Collection[str]
) -> None:
    if bool(train_classes) != bool(val_classes):
        with_classes, without = (train_folder, val_folder) if train_classes else (val_folder, train_folder)
        raise DataError(f"{without}: images without class folders, but {with_classes} has classes; {LAYOUT}")
    differences = [
        f"{name_list(sorted(set(here) - set(there)))} only in {folder}"
        for here, there, folder in (
            (train_classes, val_classes, train_folder),
            (val_classes, train_classes, val_folder),
        )
        if set(here) - set(there)
    ]
    if differences:
        raise DataError(
            f"{val_folder.parent}: different classes: {', '.join(differences)}; give both the same class folders"
        )
