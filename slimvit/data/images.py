"""What a data set is here: a sized, indexable collection of (PIL image, label), and how a file becomes an image."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import IO, Protocol

from PIL import Image, ImageOps, UnidentifiedImageError

from slimvit.utils.errors import DataError

Sample = tuple[Image.Image, int]

UNLABELLED = -1
"""The label of an image that has none."""
LONGEST = 200
"""The long side of an image over its short side at most: resizing makes the short side as long as a model wants it."""

# From 89 million pixels on Pillow warns, from twice as many it refuses: that is the bound here too, without the noise.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Images(Protocol):
    """A map-style data set of (PIL image, label); the label is -1 when there is none."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


Splits = tuple[Images, Images, tuple[str, ...]]
"""Training images, validation images, class names (empty when unlabelled)."""


class ImageError(DataError):
    """An image that cannot be decoded.

    A DataLoader worker's exception is rebuilt in the main process from its type and the whole text of its traceback;
    the constructor takes that text back to the line it was raised with.
    """

    def __init__(self, message: str) -> None:
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(message.rpartition(name)[2].strip())


def decode(source: str | IO[bytes], name: str) -> Image.Image:
    """The fully decoded image in a file, in the file's own colour mode, upright where a camera noted how it was held.

    Args:
        source: a path or an open binary file, which is closed.
        name: what an error calls the image.

    Raises:
        ImageError: the bytes are missing, truncated or no image, or an image that no model's input can be made of.
    """
    try:
        with open(source, "rb") if isinstance(source, str) else source as file:
            image = Image.open(file)
            _check_form(image)
            image.load()
            return _upright(image)
    except Exception as error:  # damaged files make Pillow raise OSError, SyntaxError, ValueError, struct.error, ...
        raise unreadable(name, error) from None


def _upright(image: Image.Image) -> Image.Image:
    """`image`, in place, turned or mirrored as its EXIF orientation says."""
    with suppress(Exception):  # what a camera noted may be damaged in as many ways as the pixels; those are fine here
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _check_form(image: Image.Image) -> None:
    """Raise `ValueError`, before the pixels are read."""
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels, one side more than {LONGEST} times the other")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range, save it with 8 or 16 bits")


def unreadable(name: str, error: Exception) -> ImageError:
    """The one line that names an undecodable image and says how to go on."""
    reason = "no known image format" if isinstance(error, UnidentifiedImageError) else one_line(error)
    return ImageError(f"{name}: not a readable image ({reason}); replace or remove it, or set skip_bad_images")


def one_line(error: BaseException) -> str:
    """An exception's text without line breaks; its type when it has none."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
