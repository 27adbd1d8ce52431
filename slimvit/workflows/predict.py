"""Classify image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from slimvit.data.depth import deep_notice
from slimvit.data.image_files import COMMON, files_of
from slimvit.data.images import decode
from slimvit.data.preprocessing import Transform, eval_transform, preprocessing_of
from slimvit.io.open import model_of
from slimvit.models.base import TimmModule
from slimvit.models.modes import device_of, evaluating
from slimvit.models.registry import names_of
from slimvit.utils.errors import DataError, ModelError
from slimvit.utils.progress import log

BATCH = 32
Guess = tuple[str, float]
"""A class and its probability, 0-1."""


@dataclass
class Answers:
    """The predictions of one model. A file is in `guesses` or in `unreadable`."""

    guesses: dict[str, list[Guess]] = field(default_factory=dict)
    """File -> the most probable classes, the most probable first."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """File -> one line that names the file and the reason."""


def image_files(paths: Sequence[str | Path]) -> list[str]:
    """Return files, and the images in folders and their subfolders; each once, in the order given.

    Raises:
        DataError: A path does not exist, or a folder holds no images.
    """
    unique: dict[str, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; give image files or folders of them")
        unique |= dict.fromkeys(_images_in(path) if path.is_dir() else [str(path)])
    if notice := deep_notice(list(unique)):
        log(notice)
    return list(unique)


def _images_in(folder: Path) -> list[str]:
    files = files_of(folder)
    if not files.images:
        what = f"; {files.left_out}" if files.others else ""
        raise DataError(f"{folder}: holds no images ({', '.join(COMMON)}, ...){what}")
    if files.others:
        log(f"{folder}: {files.left_out}")
    return sorted(files.images, key=lambda path: Path(path).parts)


def predict(model: TimmModule | str | Path, images: str | Path | Sequence[str | Path], top: int = 3) -> Answers:
    """Classify image files with a model and its own preprocessing, as `slimvit predict` does.

    Args:
        model: A timm model, or a name as commands take it: a run folder, an embedded model, a timm name, a Hub name.
        images: Image files, or folders of them.
        top: Classes per image, the most probable first.

    Returns:
        `guesses`: file -> [(class, probability 0-1), ...]; `unreadable`: file -> reason.

    Raises:
        DataError: A path does not exist, or a folder holds no images.
        ModelError: The model has no classifier, or an untrained one.

    Example:
        >>> slimvit.predict("runs/digits", "photos/").guesses
    """
    files = image_files([images] if isinstance(images, str | Path) else images)
    net: TimmModule = model_of(model)
    if net.num_classes < 1 or getattr(net, "untrained_classifier", False):
        raise ModelError("this model has no trained classifier; train one with slimvit prune --adapt-epochs")
    names = names_of(net) or tuple(map(str, range(net.num_classes)))
    answers, transform = Answers(), eval_transform(preprocessing_of(net))
    with evaluating(net), torch.inference_mode():
        for group, batch in _batches(files, transform, answers):
            best = net(batch.to(device_of(net))).float().softmax(-1).topk(min(top, len(names)))
            for file, probabilities, classes in zip(group, best.values.tolist(), best.indices.tolist(), strict=True):
                answers.guesses[file] = [(names[c], p) for c, p in zip(classes, probabilities, strict=True)]
    return answers


def _batches(files: Sequence[str], transform: Transform, answers: Answers) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Batches of readable files and their images [B, C, H, W]; the other files go to `answers.unreadable`."""
    for begin in range(0, len(files), BATCH):
        images: dict[str, torch.Tensor] = {}
        for file in files[begin : begin + BATCH]:
            try:
                images[file] = transform(decode(file, file))
            except DataError as error:
                answers.unreadable[file] = str(error).removesuffix(", or set skip_bad_images")
        if images:
            yield list(images), torch.stack(list(images.values()))
