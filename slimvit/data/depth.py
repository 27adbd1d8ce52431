"""Grey images of more than 8 bits, such as 12-bit microscopy and 32-bit TIFF, scaled to 8 bits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

BITS, INVERTED, LARGEST, SIGN = 258, 262, (281, 341), 339
"""Tags of TIFF: bits per sample, photometric interpretation, largest values, sample format."""
FULL_RANGE = ("JPEG2000", "PPM")
"""Formats whose values Pillow scales to 16 bits by the range that the file names."""
UNNAMED = 2**12 - 1
"""Largest value of cameras that write 12 bits as 16 and do not name the range."""
SAMPLED = 32
"""Files whose headers are read to find images of more than 8 bits."""
RULE = (
    "more than 8 bits of grey, so images are scaled to 8 bits by the range that the file names, else from 12 or 16 "
    "bits where these hold the largest value, else by the range of the values"
)


def is_deep(image: Image.Image) -> bool:
    """Return whether an image is grey with more than 8 bits; no pixel is decoded."""
    return image.mode.startswith("I")


def deep_notice(paths: Sequence[str]) -> str | None:
    """Return one line on how the images are scaled, if a sample of the files has one with more than 8 bits of grey."""
    chosen = [path for path in paths if not path.lower().endswith((".jpg", ".jpeg"))]  # these have 8 bits
    for path in filter(os.path.isfile, chosen[:: -(-len(chosen) // SAMPLED) or 1]):
        with suppress(Exception), Image.open(path) as image:  # damaged ones are named when read
            if is_deep(image):
                return f"{path}: {RULE}"
    return None


def to_grey(image: Image.Image) -> Image.Image:
    """Scale a grey image of more than 8 bits to mode `L`: by the range of its format, or else of its values."""
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode == "I" and _first(tags, BITS) == 32 and _first(tags, SIGN) in (None, 1):
        values = values.view(np.uint32)  # Pillow reads them as signed
    low, high = _range(values, tags, image.format)
    scaled = values.astype(np.float32) - np.float32(low)
    grey = np.minimum(scaled * np.float32(256 / (high - low + 1)), 255).astype(np.uint8)
    return Image.fromarray(255 - grey if _first(tags, INVERTED) == 0 else grey)


def _range(values: np.ndarray, tags: Any, file_format: str | None) -> tuple[int, int]:
    """The values that become black and white."""
    least, most = int(values.min()), int(values.max())
    if least < 0:
        return least, most
    bits = _first(tags, BITS) or 16
    named = [top for top in (_first(tags, tag) for tag in LARGEST) if top is not None and most <= top < 2**bits - 1]
    tops = [*named, *([2**bits - 1] if bits < 16 else []), *([UNNAMED] if file_format not in FULL_RANGE else [])]
    return 0, next((top for top in tops if most <= top), max(most, 2**16 - 1))


def _first(tags: Any, tag: int) -> int | None:
    """First value of a tag of TIFF; None where it has no whole number."""
    value = tags.get(tag)
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, int) else None
