"""Matching of the classes of a data set and of a model by name. A label is the index of the model's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from timm.utils.misc import natural_key
from torch.utils.data import Dataset

from slimvit.config.choices import CLASS_ORDERS
from slimvit.config.data_names import prefix_of
from slimvit.data.images import Images, Sample, labels_of
from slimvit.data.sources import Data
from slimvit.models.base import TimmModule
from slimvit.models.registry import names_of
from slimvit.utils.errors import DataError, name_list
from slimvit.utils.progress import log
from slimvit.utils.reading import Unreadable, read_text

ADAPT = "slimvit prune --adapt-epochs 20 trains a classifier for this data"

LONGEST = 255
"""Characters of a name that decide its order: Python reads no numbers of thousands of digits."""


class Renumbered(Dataset[Sample]):
    """Images with label `numbers[label]` instead of `label`."""

    def __init__(self, images: Images, numbers: Sequence[int]) -> None:
        self.images, self.numbers = images, numbers

    @property
    def labels(self) -> list[int]:
        """One label per image; -1 for an image without a label."""
        return [self._new(label) for label in labels_of(self.images)]

    def _new(self, label: int) -> int:
        return self.numbers[label] if 0 <= label < len(self.numbers) else label

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.images[index]
        return image, self._new(label)


def with_class_order(data: Data, names: tuple[str, ...]) -> Data:
    """Return the data with its classes in the order of `names`, a permutation of its class names."""
    if names == data.class_names:
        return data
    numbers = [names.index(name) for name in data.class_names]
    return replace(data, train=Renumbered(data.train, numbers), val=Renumbered(data.val, numbers), class_names=names)


def output_names(
    data: Data, model: TimmModule, name: str, order: str | None = None, option: str = "--class-order"
) -> tuple[str, ...]:
    """Return the data's class names in the order of a model's outputs.

    Args:
        data: Labelled data with as many classes as the model.
        model: The model.
        name: Name of the model, for messages.
        order: Order of the outputs of a model without class names: `natural`, `string`, or a file with one name per
            line. A file also renames the classes of a model with other class names.
        option: Option or key of `order`, for messages.

    Raises:
        DataError: The model has other classes than the data, or the order of its outputs is unknown.
    """
    known = names_of(model)
    if known == data.class_names or (sorted(known) == sorted(data.class_names) and len(set(known)) == len(known)):
        if order is not None and ordered_names(data, order) != known:
            log(f"{name}: {option} {order} is not used, since the model names its classes")
        return known
    if order is not None and not (known and order in CLASS_ORDERS):
        return ordered_names(data, order)
    if known:
        return _numbered(data, name, known, option)
    if is_ambiguous(data.class_names):
        raise DataError(_question(data, name, option))
    return data.class_names


def ordered_names(data: Data, order: str) -> tuple[str, ...]:
    """Return the data's class names in `natural` or `string` order, or in the order of a file."""
    if order == "natural":
        return natural_order(data.class_names)
    if order == "string":
        return tuple(sorted(data.class_names))
    try:
        names = tuple(line.strip() for line in read_text(Path(order)).splitlines() if line.strip())
    except FileNotFoundError:
        raise DataError(
            f"--class-order {order}: neither natural nor string nor a file with one name per line"
        ) from None
    except Unreadable as error:
        raise DataError(f"{order}: not readable: {error}") from None
    if sorted(names) != sorted(data.class_names) or len(set(names)) < len(names):
        raise DataError(
            f"{order}: must name every class of {data.name} once, one per line; {_differences(names, data)}"
        )
    return names


def natural_order(names: Sequence[str]) -> tuple[str, ...]:
    """Return names in timm's order: numbers by value, letters by the alphabet in either case."""
    return tuple(sorted(names, key=lambda name: natural_key(name[:LONGEST])))


def is_ambiguous(names: tuple[str, ...]) -> bool:
    """Return whether the classes are in natural or string order, and the two orders differ."""
    orders = (natural_order(names), tuple(sorted(names)))
    return orders[0] != orders[1] and names in orders


def _numbered(data: Data, name: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """The class names of a data set with numbers as names; raises `DataError` for any other data set."""
    if prefix_of(data.name) and data.class_names == tuple(map(str, range(len(known)))):
        log(f"{data.name}: names no classes; label 0 stands for {known[0]}, and so on")
        return data.class_names
    raise DataError(
        f"{name}: was trained on other classes than {data.name} has: {_differences(known, data)}; {ADAPT}, "
        f"{option} FILE lists this data's class names in the model's order"
    )


def _differences(names: Sequence[str], data: Data) -> str:
    sides = ((set(names) - set(data.class_names), "there"), (set(data.class_names) - set(names), f"in {data.name}"))
    clauses = [f"{name_list(natural_order(tuple(only)), 3)} only {where}" for only, where in sides if only]
    return " and ".join(clauses) or "a name is given twice"


def _question(data: Data, name: str, option: str) -> str:
    timm_order, string_order = natural_order(data.class_names), tuple(sorted(data.class_names))
    index = next(i for i, pair in enumerate(zip(timm_order, string_order, strict=True)) if pair[0] != pair[1])
    return (
        f"{name}: does not name its classes, and class {index} of {data.name} is {timm_order[index]} in natural order "
        f"(timm) and {string_order[index]} in string order (torchvision's ImageFolder); give the order of the "
        f"training: {option} natural, string or FILE (one name per line)"
    )
