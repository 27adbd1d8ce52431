"""The classes of a data set and of a model, matched by name: a label is the number of the model's output."""

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


class Renumbered(Dataset[Sample]):
    """Images with new labels: `numbers[label]` in the place of `label`."""

    def __init__(self, images: Images, numbers: Sequence[int]) -> None:
        self.images, self.numbers = images, numbers

    @property
    def labels(self) -> list[int]:
        """One label per image, -1 where there is none."""
        return [self._new(label) for label in labels_of(self.images)]

    def _new(self, label: int) -> int:
        return self.numbers[label] if 0 <= label < len(self.numbers) else label

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.images[index]
        return image, self._new(label)


def with_class_order(data: Data, names: tuple[str, ...]) -> Data:
    """Return the data with its classes in the order of `names`, which are the names of its classes."""
    if names == data.class_names:
        return data
    numbers = [names.index(name) for name in data.class_names]
    return replace(data, train=Renumbered(data.train, numbers), val=Renumbered(data.val, numbers), class_names=names)


def output_names(
    data: Data, model: TimmModule, name: str, order: str | None = None, option: str = "--class-order"
) -> tuple[str, ...]:
    """Return the data's names of a model's outputs, in the order of the outputs.

    Args:
        data: Labelled data with as many classes as the model.
        model: The model.
        name: Its name, for messages.
        order: How the classes of a model without names were numbered: `natural`, `string`, or a file with a name a
            line. The file may also give a model's classes the names that the data has for them.
        option: What `order` is called, for messages.

    Raises:
        DataError: The model knows other classes than the data, or nothing tells their order.
    """
    known = names_of(model)
    if known == data.class_names or (sorted(known) == sorted(data.class_names) and len(set(known)) == len(known)):
        if order is not None and ordered(data, order) != known:
            log(f"{name}: {option} {order} is not used, for the model names its classes")
        return known
    if order is not None and not (known and order in CLASS_ORDERS):
        return ordered(data, order)
    if known:
        return _numbered(data, name, known, option)
    if is_ambiguous(data.class_names):
        raise DataError(_question(data, name, option))
    return data.class_names


def ordered(data: Data, order: str) -> tuple[str, ...]:
    """Return the names of the data's classes as `natural`, `string` or a file orders them."""
    if order == "natural":
        return natural(data.class_names)
    if order == "string":
        return tuple(sorted(data.class_names))
    try:
        names = tuple(line.strip() for line in read_text(Path(order)).splitlines() if line.strip())
    except FileNotFoundError:
        raise DataError(f"--class-order {order}: neither natural nor string nor a file with a name a line") from None
    except Unreadable as error:
        raise DataError(f"{order}: not readable: {error}") from None
    if sorted(names) != sorted(data.class_names) or len(set(names)) < len(names):
        raise DataError(
            f"{order}: must name every class of {data.name} once, a name a line; {_differences(names, data)}"
        )
    return names


def natural(names: Sequence[str]) -> tuple[str, ...]:
    """Return names in timm's order: numbers by value, letters without their case."""
    return tuple(sorted(names, key=natural_key))


def is_ambiguous(names: tuple[str, ...]) -> bool:
    """Return whether the classes are numbered by an order of their names that other tools do not share."""
    orders = (natural(names), tuple(sorted(names)))
    return orders[0] != orders[1] and names in orders


def _numbered(data: Data, name: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """The numbers of a data set that names no classes; raises `DataError` for any other."""
    if prefix_of(data.name) and data.class_names == tuple(map(str, range(len(known)))):
        log(f"{data.name}: names no classes; its label 0 is taken for {known[0]}, and so on")
        return data.class_names
    raise DataError(
        f"{name}: was trained on other classes than {data.name} has: {_differences(known, data)}; {ADAPT}, "
        f"{option} FILE names the model's classes as this data does, in its order"
    )


def _differences(names: Sequence[str], data: Data) -> str:
    sides = ((set(names) - set(data.class_names), "there"), (set(data.class_names) - set(names), f"in {data.name}"))
    clauses = [f"{name_list(natural(tuple(only)), 3)} only {where}" for only, where in sides if only]
    return " and ".join(clauses) or "a name stands there twice"


def _question(data: Data, name: str, option: str) -> str:
    here, there = natural(data.class_names), tuple(sorted(data.class_names))
    place = next(i for i, pair in enumerate(zip(here, there, strict=True)) if pair[0] != pair[1])
    return (
        f"{name}: does not name its classes, and class {place} of {data.name} is {here[place]} in natural order (timm) "
        f"and {there[place]} in string order (torchvision's ImageFolder); give the order of its training: "
        f"{option} natural, string or FILE (a name a line)"
    )
