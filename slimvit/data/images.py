"""What a data set is here: a sized, indexable collection of (PIL image, label), and how a file becomes an image."""

from __future__ import annotations

from typing import IO, Protocol

from PIL import Image, UnidentifiedImageError

from slimvit.errors import DataError

Sample = tuple[Image.Image, int]

UNLABELLED = -1
"""The label of an image that has none."""


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
    """The fully decoded image in a file, in the file's own colour mode.

    Args:
        source: a path or an open binary file, which is closed.
        name: what an error calls the image.

    Raises:
        ImageError: the bytes are missing, truncated or no image.
    """
    try:
        with open(source, "rb") if isinstance(source, str) else source as file:
            image = Image.open(file)
            image.load()
            return image
    except Exception as error:  # damaged files make Pillow raise OSError, SyntaxError, ValueError, struct.error, ...
        raise unreadable(name, error) from None


def unreadable(name: str, error: Exception) -> ImageError:
    """The one line that names an undecodable image and says how to go on."""
    reason = "no known image format" if isinstance(error, UnidentifiedImageError) else one_line(error)
    return ImageError(f"{name}: not a readable image ({reason}); replace or remove it, or set skip_bad_images")


def one_line(error: BaseException) -> str:
    """An exception's text without line breaks; its type when it has none."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
