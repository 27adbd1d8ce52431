"""Image folders: train/CLASS/*.jpg and val/CLASS/*.jpg, or unlabelled images directly in train/ and val/."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from timm.data.readers import create_reader
from torch.utils.data import Dataset

from slimvit.data.images import UNLABELLED, Sample, Splits, decode
from slimvit.utils.errors import DataError
from slimvit.utils.progress import log

IMAGE_TYPES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
SYNONYMS = (("train", "training"), ("val", "valid", "validation", "eval", "evaluation"))
TEST = ("test", "testing")
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


def open_folder(root: Path, train_split: str = "train", val_split: str = "validation") -> Splits:
    """Return both splits of a folder, and its class names in timm's natural order; no image is opened.

    Raises:
        DataError: A split is missing or empty, a class has no images, or the splits disagree about the classes.
    """
    train_folder, val_folder = _split_folder(root, train_split), _split_folder(root, val_split)
    train, train_classes = _scan(train_folder)
    val, val_classes = _scan(val_folder)
    _check_same_classes(train_folder, train_classes, val_folder, val_classes)
    return FolderImages(train), FolderImages(val), train_classes


def open_evaluation_folder(root: Path, train_split: str = "train", val_split: str = "validation") -> Splits:
    """Return no training images, the images to evaluate on, and their class names; no image is opened.

    The images are those of the validation split. A folder that has none is evaluated on `test/`, and one without any
    split on all of its images; a line on stderr says so.

    Raises:
        DataError: There are no images, or a training split has other classes.
    """
    train_folder, folder = _existing(root, train_split), _evaluation_folder(root, train_split, val_split)
    images, classes = _scan(folder)
    if train_folder is not None and folder != train_folder:
        _check_same_classes(train_folder, _scan(train_folder)[1], folder, classes)
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
    entries = sorted(root.iterdir())
    folders = [f"{e.name}/" for e in entries if e.is_dir()]
    files = len(entries) - len(folders)
    counted = [f"{files} file{'s' if files > 1 else ''}"] if files else []
    return " and ".join([name_list(folders)] * bool(folders) + counted) or "nothing"


def _scan(folder: Path) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """(path, label) of every image, and the class names; none where no image lies in a class folder."""
    try:
        reader = create_reader("", root=str(folder), input_key=";".join(IMAGE_TYPES))
    except RuntimeError:  # timm found no image
        raise DataError(f"{folder}: no images in it ({', '.join(IMAGE_TYPES)}); {LAYOUT}") from None
    classes = tuple(reader.class_to_idx)  # already in the order of the labels
    if classes == ("",):
        return [(path, UNLABELLED) for path, _ in reader.samples], ()
    if "" in classes:
        stray = next(path for path, label in reader.samples if label == reader.class_to_idx[""])
        raise DataError(f"{stray}: lies beside the class folders of {folder}; move it into one of them")
    _check_no_empty_class(folder, classes, [path for path, _ in reader.samples])
    return reader.samples, classes


def _check_no_empty_class(folder: Path, classes: Collection[str], paths: list[str]) -> None:
    for child in sorted(folder.iterdir()):
        if not child.is_dir() or child.name in classes or child.name.startswith("."):
            continue
        if not any(path.startswith(f"{child}/") for path in paths):
            raise DataError(f"{child}: a class without images ({', '.join(IMAGE_TYPES)}); fill or remove the folder")


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


def name_list(words: Iterable[str], most: int = 5) -> str:
    """Join words, at most `most` of them: `a, b, c and 7 more`."""
    shown = list(words)
    rest = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {rest} more" if rest > 0 else "")
