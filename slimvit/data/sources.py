"""Opens the data set of a recipe's data section."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slimvit.config.data_names import prefix_of
from slimvit.config.recipe import DataSection
from slimvit.data.digits import open_digits
from slimvit.data.folder import open_evaluation_folder, open_folder
from slimvit.data.images import Images, Splits
from slimvit.data.known import remember_data
from slimvit.data.named import PACKAGES, TORCH_NAMES, open_named_data
from slimvit.data.subsets import check_images, draw
from slimvit.utils.errors import DataError, nearest

EVAL_SEED = 0
"""Seed of the evaluation images, the same for every run."""


@dataclass(frozen=True)
class Data:
    """Training and validation images of one data set; the items are (PIL image, label)."""

    name: str
    train: Images
    val: Images
    class_names: tuple[str, ...]
    """Names of the classes; empty without labels, where every label is -1."""
    bad_images: int = 0
    """Unreadable images that skip_bad_images dropped."""

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return bool(self.class_names)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without labels."""
        return len(self.class_names)


def open_data(section: DataSection, seed: int = 0, training: bool = True) -> Data:
    """Open a data set and draw `train_images` of it with `seed` and `eval_images` with seed 0.

    With `skip_bad_images` every drawn image is decoded once, and unreadable ones are dropped. Otherwise an unreadable
    image is an error when it is used. Without `training` only validation images are opened: a folder may then have
    `val/` or `test/` alone, or no splits.

    Raises:
        DataError: The data is missing or does not have the expected form.
    """
    train, val, class_names = _open(section, seed, training)
    remember_data(section)
    if section.train_images is not None:
        train = draw(train, section.train_images, seed)
    if section.eval_images is not None:
        val = draw(val, section.eval_images, EVAL_SEED)
    _check_not_empty(section, train if training else None, val)
    if not section.skip_bad_images:
        return Data(section.name, train, val, class_names)
    good_train = check_images(train, "train", skip=True) if training else train
    good_val = check_images(val, "val", skip=True)
    bad = len(train) + len(val) - len(good_train) - len(good_val)
    return Data(section.name, good_train, good_val, class_names, bad)


def _open(section: DataSection, seed: int, training: bool) -> Splits:
    if section.name == "digits":
        return open_digits()
    if prefix_of(section.name):
        return open_named_data(section, seed, training)
    root = Path(section.name).expanduser()
    if root.is_dir():
        opened = open_folder if training else open_evaluation_folder
        return opened(root, section.train_split, section.val_split)
    if root.exists():
        raise DataError(f"{root}: a file, not a data folder; give a folder with train/CLASS/ and val/CLASS/")
    prefixes = ", ".join(f"{prefix}/..." for prefix in PACKAGES)
    raise DataError(
        f"{root}: no such data folder, and no data set of that name{nearest(section.name, ('digits', *TORCH_NAMES))}; "
        f"give a folder with train/CLASS/ and val/CLASS/, `digits`, or a timm name ({prefixes})"
    )


def _check_not_empty(section: DataSection, train: Images | None, val: Images) -> None:
    for split, images in ((section.train_split, train), (section.val_split, val)):
        if images is not None and len(images) == 0:
            raise DataError(f"{section.name}: split {split!r} has no images; check --data-root and the split's name")
