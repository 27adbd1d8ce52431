"""Batches from the images that callers of the Python API give: batches, a tensor, or the name of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from slimvit.config.recipe import DataSection
from slimvit.config.validation import defects_of
from slimvit.data.batches import CheckedBatches, checked_batches
from slimvit.data.class_order import output_names, with_class_order
from slimvit.data.images import Images
from slimvit.data.loaders import eval_loader
from slimvit.data.preprocessing import preprocessing_of
from slimvit.data.sources import Data, open_data
from slimvit.data.subsets import draw
from slimvit.models.base import TimmModule
from slimvit.models.registry import check_unwrapped, model_name
from slimvit.utils.errors import DataError


@dataclass(frozen=True)
class BatchSettings:
    """Settings of the loader of a data set."""

    batch_size: int = 64
    workers: int = 0
    """Processes that load images."""
    seed: int = 0
    """Seed of the draw of calibration images."""
    class_order: str | None = None
    """How the classes of a model without class names were numbered."""


DEFAULTS = BatchSettings()


def open_batches(
    images: Any, model: nn.Module, count: int, settings: BatchSettings = DEFAULTS
) -> tuple[CheckedBatches, CheckedBatches | None]:
    """Return calibration batches, and validation batches where `images` is a data set.

    Args:
        images: Batches as `checked_batches` takes them, or a data set as `--data` does: a folder, `digits`, a timm
            data name.
        model: The model that the images are for; a data set gets its preprocessing.
        count: Calibration images to draw from the training split of a data set.
        settings: Settings of the loader of a data set.
    """
    if not isinstance(images, str | Path):
        return checked_batches(images, model), None
    check_unwrapped(model)
    data = _matched(open_data(_section(images), settings.seed), model, settings)
    drawn = draw(data.train, count, settings.seed)
    return _batches(drawn, model, settings), _batches(data.val, model, settings)


def validation_batches(images: Any, model: nn.Module, settings: BatchSettings = DEFAULTS) -> CheckedBatches:
    """Return the validation split of a data set, or the given batches, checked."""
    if not isinstance(images, str | Path):
        return checked_batches(images, model, once=True)
    check_unwrapped(model)
    data = open_data(_section(images), training=False)
    return _batches(_matched(data, model, settings).val, model, settings)


def _matched(data: Data, model: TimmModule, settings: BatchSettings) -> Data:
    """The data with its classes in the order of the model's outputs, if both have as many."""
    classes = getattr(model, "num_classes", 0)
    if not data.labelled or classes != data.num_classes or getattr(model, "untrained_classifier", False):
        return data
    return with_class_order(data, output_names(data, model, model_name(model), settings.class_order, "class_order"))


def _section(name: str | Path) -> DataSection:
    if defects := defects_of(DataSection, {"name": str(name)}):
        raise DataError(f"data: {'; '.join(defects)}")
    return DataSection(name=str(name))


def _batches(images: Images, model: nn.Module, settings: BatchSettings) -> CheckedBatches:
    loader = eval_loader(images, preprocessing_of(model), settings.batch_size, settings.workers)
    return checked_batches(loader, model)
