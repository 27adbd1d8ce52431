"""Subsets of a data set: a random draw, and the readable images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
from torch.utils.data import Dataset, Subset

from slimvit.data.images import ImageError, Images, Sample
from slimvit.utils.errors import DataError
from slimvit.utils.progress import track

CHUNK = 64
"""Images that a thread decodes between two updates of the progress bar."""


def subset(dataset: Images, indices: Sequence[int]) -> Subset[Sample]:
    """Return the images at `indices`, in that order."""
    return Subset(cast("Dataset[Sample]", dataset), indices)


def draw(dataset: Images, n: int, seed: int) -> Subset[Sample]:
    """Draw `n` different images in random order by `seed`; all images, in order, where there are no more."""
    if n >= len(dataset):
        return subset(dataset, range(len(dataset)))
    return subset(dataset, np.random.default_rng(seed).permutation(len(dataset))[:n].tolist())


def check_images(dataset: Images, what: str, skip: bool) -> Images:
    """Decode every image once, under a progress bar.

    Args:
        dataset: The images to check.
        what: Name of the split for the progress bar and errors, such as `train`.
        skip: Whether to drop unreadable images, not to fail at the first.

    Returns:
        The readable images.

    Raises:
        DataError: An image, which is named, cannot be read; with `skip`, no image can be read.
    """
    bad = set()
    for index, error in _unreadable(dataset, f"checking {what} images"):
        if not skip:
            raise error
        bad.add(index)
    if not bad:
        return dataset
    if len(bad) == len(dataset):
        raise DataError(f"{what}: none of the {len(bad)} images can be read; check the files, or where they come from")
    return subset(dataset, [i for i in range(len(dataset)) if i not in bad])


def _unreadable(dataset: Images, title: str) -> Iterator[tuple[int, ImageError]]:
    """Index and error of every unreadable image, in order."""
    chunks = [range(len(dataset))[start : start + CHUNK] for start in range(0, len(dataset), CHUNK)]
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        by_chunk = pool.map(lambda indices: list(_errors(dataset, indices)), chunks)
        for errors in track(by_chunk, title, total=len(chunks), unit="chunks"):
            yield from errors
    finally:
        pool.shutdown(cancel_futures=True)


def _errors(dataset: Images, indices: Sequence[int]) -> Iterator[tuple[int, ImageError]]:
    for index in indices:
        try:
            dataset[index]
        except ImageError as error:
            yield index, error
