"""The labels of a data set, without decoding its images where the data set can tell."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Subset

from slimvit.data.digits import ArrayImages
from slimvit.data.folder import FolderImages
from slimvit.data.images import UNLABELLED, Images
from slimvit.data.named import HeldImages, known_labels


def labels_of(images: Images) -> list[int]:
    """One label an image, -1 where there is none."""
    if isinstance(images, Subset):
        inner: Any = images.dataset
        known = labels_of(inner)
        return [known[i] for i in images.indices]
    if isinstance(images, FolderImages | HeldImages):
        return [label for _, label in images.samples]
    if isinstance(images, ArrayImages):
        return images.labels.tolist()
    known_here = known_labels(images)
    if known_here is None:
        return [images[i][1] for i in range(len(images))]
    return [UNLABELLED if label is None else int(label) for label in known_here]
