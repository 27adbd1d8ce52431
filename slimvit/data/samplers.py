"""Samplers: the training images of an epoch and their order, from the seed and the epoch alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import Sampler

from slimvit.utils.errors import DataError

Key = tuple[int, ...]
"""Epoch, index, and number of the copy where an image may repeat. With the seed, a key decides the augmentation."""


class TrainSampler(Sampler[Key]):
    """Sampler of the keys of the epoch set last (0 at first)."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Key]:
        return self.keys(self.epoch, np.random.default_rng((self.seed, self.epoch)))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self.epoch = epoch

    def keys(self, epoch: int, rng: np.random.Generator) -> Iterator[Key]:
        """Return the keys of one epoch in order; `rng` is seeded with the seed and the epoch."""
        raise NotImplementedError


class Shuffle(TrainSampler):
    """Every image once."""

    def keys(self, epoch: int, rng: np.random.Generator) -> Iterator[Key]:
        return ((epoch, index) for index in rng.permutation(self.length).tolist())


class Repeated(TrainSampler):
    """timm's repeated augmentation in one process: every image `repeats` times in a row.

    An epoch is as long as without repeats; from 256 images on it is rounded down to a multiple of 256.
    """

    def __init__(self, length: int, repeats: int, seed: int) -> None:
        whole = 256 if length >= 256 else 0  # timm before 1.0.31 rounds fewer down to none
        self.sampler = RepeatAugSampler(
            range(length), num_replicas=1, rank=0, num_repeats=repeats, selected_round=whole
        )
        super().__init__(len(self.sampler), seed)
        self.repeats = repeats

    def keys(self, epoch: int, rng: np.random.Generator) -> Iterator[Key]:
        self.sampler.set_epoch(int(rng.integers(2**32)))  # timm's order has no seed except the epoch
        return ((epoch, index, i % self.repeats) for i, index in enumerate(self.sampler))


class Balanced(TrainSampler):
    """As many draws as images, with replacement, every class with images equally often on average."""

    def __init__(self, labels: Sequence[int], seed: int) -> None:
        super().__init__(len(labels), seed)
        self.shares = balanced_shares(labels)

    def keys(self, epoch: int, rng: np.random.Generator) -> Iterator[Key]:
        drawn: Counter[int] = Counter()
        for index in rng.choice(self.length, self.length, p=self.shares).tolist():
            yield epoch, index, drawn[index]
            drawn[index] += 1


def balanced_shares(labels: Sequence[int]) -> np.ndarray:
    """Return the probability of drawing each image [n]; raises `DataError` for images without labels."""
    classes = np.asarray(labels)
    if (classes < 0).any():
        raise DataError("sampler balanced needs labels, but the training images have none; drop it")
    counts = np.bincount(classes)
    return 1 / (counts[classes] * np.count_nonzero(counts))
