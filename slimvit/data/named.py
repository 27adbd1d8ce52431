"""Data sets under timm's names: `torch/cifar10`, `hfds/owner/name`, `wds/...`, `tfds/...`. Only hfds downloads."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterable
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from timm.data import IterableImageDataset, create_dataset
from torch.utils.data import Dataset

from slimvit.config.data_names import prefix_of
from slimvit.config.recipe import DataSection
from slimvit.data.depth import RULE, is_deep
from slimvit.data.folder import open_evaluation_folder, open_folder
from slimvit.data.images import UNLABELLED, Images, Sample, Splits, decode, labels_of, one_line, unreadable
from slimvit.utils.errors import DataError, nearest
from slimvit.utils.progress import log

HUGGING_FACE = ("datasets",)
PACKAGES = {
    "torch": (),
    "hfds": HUGGING_FACE,
    "hfids": HUGGING_FACE,
    "tfds": ("tensorflow", "tensorflow_datasets"),
    "wds": ("webdataset",),
}
"""timm's prefixes, and the packages that they need."""

KEEP_MODE = ("wds", "hfids")
"""Prefixes of streams whose images keep their colour mode: conversion to RGB would turn 16-bit grey white."""
WITHOUT_SCRIPTS = 4
"""The first major version of `datasets` that runs no scripts out of a data set's repository."""
IMAGE_FOLDERS = ("torch/image_folder", "torch/folder")
"""Names of a folder of images whose classes are in string order, as in torchvision."""
TORCH_NAMES = (
    tuple(
        f"torch/{name}"
        for name in ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist", "imagenet", "places365")
        + ("inaturalist", "inat")
    )
    + IMAGE_FOLDERS
)

Split = Literal["train", "val"]


class NamedImages(Dataset[Sample]):
    """A map-style data set of timm. An unreadable image is an error; timm would return its neighbour instead."""

    def __init__(self, source: Any, name: str) -> None:
        self.source = source
        self.name = name

    @property
    def labels(self) -> Iterable[Any] | None:
        """One label per image; None where the source cannot give labels without decoding images."""
        reader: Any = getattr(self.source, "reader", None)
        labels = getattr(self.source, "targets", None)
        if labels is None and hasattr(reader, "label_key"):  # Hugging Face: the column, without its images
            labels = reader.dataset[reader.label_key]
        return labels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        reader = getattr(self.source, "reader", None)
        try:
            image, label = (self.source if reader is None else reader)[index][:2]
        except Exception as error:  # torchvision decodes here and raises any of Pillow's exceptions
            raise unreadable(f"{self.name}, image {index}", error) from None
        if reader is not None:
            image = decode(image, f"{self.name}, image {index}")
        return image, _label(label)


class HeldImages(Dataset[Sample]):
    """Decoded images in memory."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    @property
    def labels(self) -> list[int]:
        """One label per image."""
        return [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def _label(label: Any) -> int:
    return UNLABELLED if label is None else int(label)


def open_named_data(section: DataSection, seed: int = 0, training: bool = True) -> Splits:
    """Return both splits of a named data set, and its class names ("0".."C-1" where it names none).

    A streamed data set (`wds/`, `tfds/`, `hfids/`) is held in memory: the first `train_images` of its training
    stream, shuffled by its reader with `seed`, and the first `eval_images` of its validation stream.

    Args:
        section: The data set's name, root and splits.
        seed: Seed of a training stream.
        training: Whether the training split is needed; without it a data set may lack one.

    Raises:
        DataError: A package, the data or a split is missing, or a stream has no limit.
    """
    _check_can_open(section)
    if section.name.lower() in IMAGE_FOLDERS:
        opened = open_folder if training else open_evaluation_folder
        return opened(Path(str(section.root)).expanduser(), section.train_split, section.val_split, order=str)
    try:
        train_source, train = _opened(section, "train", seed)
    except DataError:
        if training:
            raise
        source, val = _opened(section, "val", seed)
        return HeldImages([]), val, _class_names(source, [val])
    _, val = _opened(section, "val", seed)
    return train, val, _class_names(train_source, [train, val])


def _opened(section: DataSection, split: Split, seed: int) -> tuple[Any, Images]:
    source = _create(section, split, seed)
    return source, _images(source, section, split)


def _check_can_open(section: DataSection) -> None:
    name, prefix = section.name, prefix_of(section.name)
    missing = [p for p in PACKAGES[prefix] if importlib.util.find_spec(p) is None]
    if missing:
        raise DataError(f"{name}: needs {' and '.join(missing)}; pip install {' '.join(missing)}")
    if prefix == "torch" and name.lower() not in TORCH_NAMES:
        raise DataError(f"{name}: no such data set{nearest(name, TORCH_NAMES)}; known: {', '.join(TORCH_NAMES)}")
    if prefix in ("torch", "wds") and section.root is None:
        raise DataError(f"{name}: no folder given; say where the data lies with --data-root (root in a recipe)")
    if PACKAGES[prefix] == HUGGING_FACE:
        _check_hugging_face(name)


def _check_hugging_face(name: str) -> None:
    """Raise `DataError` where `datasets` would run code of the data set, or open a local folder in its place."""
    found, place = version("datasets"), name.partition("/")[2]
    if int(found.partition(".")[0]) < WITHOUT_SCRIPTS:
        needed = f"datasets >= {WITHOUT_SCRIPTS}, since earlier ones run scripts of a data set"
        raise DataError(f"{name}: needs {needed}, not {found}; pip install -U 'datasets>={WITHOUT_SCRIPTS}'")
    if Path(place).exists():
        raise DataError(
            f"{name}: {place} exists in the working folder, and datasets would open it; call from another folder, or "
            "give a folder with train/CLASS/ and val/CLASS/"
        )


def _create(section: DataSection, split: Split, seed: int) -> Any:
    """timm's data set of one split, without a transform; what it prints goes to stderr."""
    split_name = section.train_split if split == "train" else section.val_split
    streamed: dict[str, Any] = {"is_training": split == "train", "seed": seed if split == "train" else 0}
    if prefix_of(section.name) in KEEP_MODE:
        streamed["input_img_mode"] = ""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return create_dataset(section.name, root=section.root, split=split_name, download=False, **streamed)
    except Exception as error:  # each of five libraries raises its own
        reason = one_line(error).replace(" You can use download=True to download it", "").rstrip(".")
        where = f" in {section.root}" if section.root else ""
        advice = "check --data-root (nothing is downloaded)" if prefix_of(section.name) != "hfds" else "check the name"
        raise DataError(
            f"{section.name}: cannot open split {split_name!r}{where}: {reason}; {advice}, train_split and val_split"
        ) from None


def _images(source: Any, section: DataSection, split: Split) -> Images:
    if not isinstance(source, IterableImageDataset):
        return NamedImages(source, f"{section.name} {split}")
    limit = section.train_images if split == "train" else section.eval_images
    if limit is None:
        raise DataError(
            f"{section.name}: a streamed data set is held in memory, so its size must be limited; "
            f"give --train-images and --eval-images (train_images, eval_images in a recipe)"
        )
    try:
        held = HeldImages([(image, _label(label)) for image, label in islice(source, limit)])
    except Exception as error:  # each of three libraries raises its own
        raise DataError(f"{section.name}: cannot read its {split} stream: {one_line(error)}; check the files") from None
    if any(is_deep(image) for image, _ in held.samples):
        log(f"{section.name} {split}: {RULE}")
    return held


def _class_names(source: Any, splits: list[Images]) -> tuple[str, ...]:
    names = getattr(source, "classes", None) or getattr(source, "all_categories", None)
    if names:
        return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)
    index = getattr(getattr(source, "reader", None), "class_to_idx", None)
    if index:
        return tuple(str(name) for name in sorted(index, key=index.__getitem__))
    largest = max(max(labels_of(images), default=UNLABELLED) for images in splits)
    return tuple(str(label) for label in range(largest + 1))
