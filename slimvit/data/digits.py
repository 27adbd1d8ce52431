"""The embedded data set: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, grey, ten classes."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from slimvit.data.images import Sample, Splits
from slimvit.utils.errors import DataError

TRAIN_SHARE = 0.7
LARGEST_VALUE = 16
"""Brightest pixel of scikit-learn's digits."""


class ArrayImages(Dataset[Sample]):
    """Grey images in memory: `pixels` uint8 [N, H, W], `labels` int [N]."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self.pixels = pixels
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return Image.fromarray(self.pixels[index]), int(self.labels[index])


def open_digits() -> Splits:
    """Return 1,257 training and 540 validation images, split the same way in every run.

    Raises:
        DataError: scikit-learn is not installed.
    """
    digits = _read_digits()
    pixels = np.round(digits.images * (255 / LARGEST_VALUE)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    train, val = np.split(order, [int(TRAIN_SHARE * len(order))])
    names = tuple(str(name) for name in digits.target_names)
    return ArrayImages(pixels[train], digits.target[train]), ArrayImages(pixels[val], digits.target[val]), names


@cache
def _read_digits() -> Any:
    """scikit-learn's digits, which it reads from a compressed text."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("digits: comes with scikit-learn, which is not installed; pip install scikit-learn") from None
    return load_digits()
