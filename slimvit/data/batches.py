"""Batches of images from callers of the Python API, checked and in one form.

Every step that reads images takes the forms of `checked_batches`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import length_hint
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from slimvit.models.base import TimmModule
from slimvit.models.registry import check_unwrapped, names_of
from slimvit.utils.errors import DataError

PAIR = "(images [B, C, H, W], labels [B])"
BATCH_SIZE = 64
"""Images per batch where a tensor holds all of them."""
NO_IMAGES = "no images: the batches are empty; check the data, and drop_last of the loader"


class CheckedBatches:
    """Batches (images [B, C, H, W] float, labels [B] int64; -1 = no label), each checked when it is read.

    Args:
        source: Batches in any form that `checked_batches` names.
        model: The model that the images are for.
        labels_for: What needs a label for every image, among the model's classes; None where labels do not matter.
    """

    def __init__(self, source: Iterable[Any], model: nn.Module, labels_for: str | None = None) -> None:
        self.source, self.model, self.labels_for = source, model, labels_for
        self.numbers = _numbers(source, model)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        empty = True
        for batch in self.source:
            images, labels = _pair(batch)
            labels = labels if self.numbers is None else _renumbered(labels, self.numbers)
            _check_images(images, self.model)
            if self.labels_for is not None:
                _check_labels(labels, getattr(self.model, "num_classes", 0), self.labels_for)
            empty = False
            yield images, labels
        if empty:
            raise DataError(NO_IMAGES)

    def __length_hint__(self) -> int:
        return length_hint(self.source)


def checked_batches(
    batches: Any, model: nn.Module, *, labels_for: str | None = None, once: bool = False
) -> CheckedBatches:
    """Return batches in the form that all steps read.

    Args:
        batches: A DataLoader or list of (images [B, C, H, W], labels [B]) pairs or of images alone; or all images in
            one tensor or array [N, C, H, W]. Images are float, normalised as the model needs them.
        model: The model that the images are for.
        labels_for: What needs a label for every image, such as `criterion fisher`; None where labels do not matter.
        once: Whether the batches are read only once, so that an iterator is allowed.

    Raises:
        DataError: The batches have another form; batches are checked while they are read.
        ModelError: The model is a compiled or parallel wrapper.
    """
    check_unwrapped(model)
    if isinstance(batches, CheckedBatches):
        return CheckedBatches(batches.source, model, labels_for)
    if isinstance(batches, Tensor | np.ndarray):
        images = torch.as_tensor(batches)
        _check_images(images, model)
        return CheckedBatches(images.split(BATCH_SIZE), model, labels_for)
    if not isinstance(batches, Iterable) or isinstance(batches, str | bytes | Mapping):
        raise DataError(f"batches are of type {type(batches).__name__}; give a DataLoader or a list of {PAIR}")
    if not once and iter(batches) is batches:
        raise DataError(
            f"batches are of type {type(batches).__name__}, which can be read only once, but are read "
            "several times; give a list or a DataLoader"
        )
    return CheckedBatches(batches, model, labels_for)


def _numbers(source: Any, model: TimmModule) -> Tensor | None:
    """The model's numbers [K] of the classes that a DataLoader's data set names, where the two count otherwise."""
    classes, names = _classes_of(getattr(source, "dataset", None)), names_of(model)
    if not names or classes == names or len(classes) != len(names):
        return None
    if sorted(classes) != sorted(names):
        only = ", ".join(sorted(set(classes) - set(names))[:3])
        raise DataError(
            f"the data set of the batches has other classes ({only}, ...) than the model was trained on; use its data, "
            "or adapt the classifier to this one"
        )
    return torch.tensor([names.index(name) for name in classes])


def check_same_order(loader: Any, model: TimmModule) -> None:
    """Raise `DataError` where the data set of a DataLoader numbers its classes otherwise than the model."""
    if _numbers(loader, model) is not None:
        raise DataError(
            "the data set of the loader numbers its classes otherwise than model.class_names; give it their order, "
            "or fine-tune with the command, which matches classes by name"
        )


def _renumbered(labels: Tensor, numbers: Tensor) -> Tensor:
    """`numbers[label]` for every label [B] that is an index of `numbers`."""
    known = (labels >= 0) & (labels < len(numbers))
    return torch.where(known, numbers[labels.where(known, 0)], labels)


def _classes_of(dataset: Any) -> tuple[str, ...]:
    """The class names of a data set as torchvision keeps them, also of a part of one."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", None)
    named = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    return tuple(classes) if named and classes else ()


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of one batch; the labels are -1 where it has none."""
    if isinstance(batch, Mapping):
        raise DataError(f"a batch is a dict with the keys {', '.join(map(str, batch))}; give {PAIR}")
    parts = list(batch) if isinstance(batch, tuple | list) else [batch]
    if len(parts) not in (1, 2):
        raise DataError(f"a batch has {len(parts)} entries; give {PAIR}, or images alone")
    images = _tensor(parts[0], "images")
    if len(parts) == 1:
        return images, torch.full((len(images),), -1)
    labels = _tensor(parts[1], "labels")
    if labels.is_floating_point() or labels.ndim not in (0, 1) or labels.numel() != len(images):
        raise DataError(
            f"labels are {_shape(labels)} for {len(images)} images; give one class number per image, [B] int64"
        )
    return images, labels.long().reshape(-1)


def _tensor(values: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{what} of a batch are of type {type(values).__name__}; give a tensor: {PAIR}") from None


def _check_images(images: Tensor, model: nn.Module) -> None:
    embed = getattr(model, "patch_embed", None)
    channels = getattr(getattr(embed, "proj", None), "in_channels", None)
    size = getattr(embed, "img_size", None) if getattr(embed, "strict_img_size", False) else None
    shape = _shape(images)
    if images.ndim == 3:
        raise DataError(f"images are {shape}: one image without a batch dimension; give images[None], [1, C, H, W]")
    if images.ndim != 4:
        raise DataError(f"images are {shape}; give [B, C, H, W]")
    if channels is not None and images.shape[1] != channels:
        last = images.shape[3] == channels
        fix = "their channels are last; give images.permute(0, 3, 1, 2)" if last else f"the model takes {channels}"
        raise DataError(f"images are {shape}, which is {images.shape[1]} channels: {fix}")
    if not images.is_floating_point():
        raise DataError(f"images are {shape}; give float images, normalised with the model's mean and std")
    if size is not None and tuple(images.shape[2:]) != tuple(size):
        wanted, given = ("x".join(map(str, s)) for s in (size, images.shape[2:]))
        raise DataError(
            f"images are {given} pixels, but the model takes {wanted}; resize them, or build the model with img_size"
        )


def _check_labels(labels: Tensor, classes: int, needed_for: str) -> None:
    if (labels == -1).any():
        raise DataError(f"{needed_for} needs labels, but the images have none; give {PAIR}")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise DataError(
            f"an image has label {int(wrong[0])}, but the model has classes 0-{classes - 1}; use the data set the "
            "classifier was made for, or adapt the classifier to this one"
        )


def _shape(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
