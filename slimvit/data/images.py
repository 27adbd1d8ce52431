"""The protocol of data sets, which hold (PIL image, label) by index; their labels; the decoding of image files."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Subset

from slimvit.data.depth import is_deep
from slimvit.data.image_files import NOT_READ
from slimvit.utils.errors import DataError
from slimvit.utils.reading import check_regular

Sample = tuple[Image.Image, int]

UNLABELLED = -1
"""Label of an unlabelled image."""
LONGEST = 200
"""Largest aspect ratio. Resizing scales the short side to the model's size, so longer images would become huge."""

# Pillow warns from 89 million pixels and refuses from twice as many; only the refusal is of use here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Images(Protocol):
    """A map-style data set of (PIL image, label), with label -1 for an unlabelled image.

    A data set that knows its labels without decoding has an attribute `labels` with one per image (None or -1: none).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


Splits = tuple[Images, Images, tuple[str, ...]]
"""Training images, validation images, class names (empty without labels)."""


def labels_of(images: Images) -> list[int]:
    """Return one label per image, -1 where there is none; images without the attribute `labels` are decoded."""
    if isinstance(images, Subset):
        inner: Any = images.dataset
        labels = labels_of(inner)
        return [labels[i] for i in images.indices]
    known = getattr(images, "labels", None)
    if known is None:
        return [images[i][1] for i in range(len(images))]
    return [UNLABELLED if label is None else int(label) for label in known]


class ImageError(DataError):
    """An image cannot be decoded.

    torch raises the exception of a DataLoader worker again in the main process, with the traceback's text as message.
    The constructor extracts the original message from that text.
    """

    def __init__(self, message: str) -> None:
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(message.rpartition(name)[2].strip())


def decode(source: str | IO[bytes], name: str) -> Image.Image:
    """Decode an image file, in the file's own colour mode and turned upright by its EXIF orientation.

    Args:
        source: A path or an open binary file, which is closed.
        name: Name of the image, for errors.

    Raises:
        ImageError: The file is missing, truncated or no image, or its image fits no model.
    """
    try:
        if isinstance(source, str):
            check_regular(Path(source))
        with open(source, "rb") if isinstance(source, str) else source as file:
            image = Image.open(file)
            _check_form(image)
            cut = ";16" in str(image.tile) and not is_deep(image)
            image.load()
            _check_colours(image, cut)
            return _upright(image)
    except Exception as error:  # damaged files make Pillow raise OSError, SyntaxError, ValueError, struct.error, ...
        raise unreadable(name, error) from None


def _upright(image: Image.Image) -> Image.Image:
    """Turn or mirror the image in place by its EXIF orientation."""
    with suppress(Exception):  # damaged EXIF data of an image whose pixels are fine
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _check_form(image: Image.Image) -> None:
    """Raise `ValueError` for an image that fits no model, before its pixels are read."""
    if image.format in NOT_READ:
        raise ValueError(f"{image.format} is not read, save it as PNG")
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels, one side more than {LONGEST} times the other")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range, save it with 8 or 16 bits")


def _check_colours(image: Image.Image, cut: bool) -> None:
    """Raise `ValueError` where Pillow `cut` 16 bits of colour to the highest 8 and left next to nothing."""
    if cut and 0 < np.asarray(image.convert("RGB")).max() < 16:
        raise ValueError("its colours use 12 of 16 bits at most, of which 4 are left; save it with 8 bits")


def unreadable(name: str, error: Exception) -> ImageError:
    """Return the error for an image that cannot be decoded."""
    reason = "no known image format" if isinstance(error, UnidentifiedImageError) else one_line(error)
    return ImageError(f"{name}: not a readable image ({reason}); replace or remove it, or set skip_bad_images")


def one_line(error: BaseException) -> str:
    """Return an exception's text without line breaks, or its type where it has no text."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
