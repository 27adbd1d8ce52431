"""Which training images come in an epoch, and in which order: decided by the seed and the epoch alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import Sampler

from slimvit.utils.errors import DataError

Key = tuple[int, ...]
"""Epoch, index, and the copy's number where an image may come more than once: all that decides how an image is
augmented, beside the seed."""


class TrainSampler(Sampler[Key]):
    """The keys of the epoch set last (0 at first)."""

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
    """Every index once."""

    def keys(self, epoch: int, rng: np.random.Generator) -> Iterator[Key]:
        return ((epoch, index) for index in rng.permutation(self.length).tolist())


class Repeated(TrainSampler):
    """Repeated augmentation as timm's sampler does it in one process: every image `repeats` times in a row, until the
    epoch is as long as without (from 256 images on, rounded down to a multiple of 256)."""

    def __init__(self, length: int, repeats: int, seed: int) -> None:
        whole = 256 if length >= 256 else 0  # timm before 1.0.31 rounds fewer down to none
        self.sampler = RepeatAugSampler(
            range(length), num_replicas=1, rank=0, num_repeats=repeats, selected_round=whole
        )
        super().__init__(len(self.sampler), seed)
        self.repeats = repeats

    def keys(self, epoch: int, rng: np.random.Generator) -> Iterator[Key]:
        self.sampler.set_epoch(int(rng.integers(2**32)))  # timm's order knows no seed beside the epoch
        return ((epoch, index, i % self.repeats) for i, index in enumerate(self.sampler))


class Balanced(TrainSampler):
    """As many draws as there are images, with replacement, each class that has images equally often on average."""

    def __init__(self, labels: Sequence[int], seed: int) -> None:
        super().__init__(len(labels), seed)
        self.shares = balanced_shares(labels)

    def keys(self, epoch: int, rng: np.random.Generator) -> Iterator[Key]:
        drawn: Counter[int] = Counter()
        for index in rng.choice(self.length, self.length, p=self.shares).tolist():
            yield epoch, index, drawn[index]
            drawn[index] += 1


def balanced_shares(labels: Sequence[int]) -> np.ndarray:
    """The probability of drawing each image [n]; raises `DataError` where images have no labels."""
    found = np.asarray(labels)
    if (found < 0).any():
        raise DataError("sampler balanced needs labels, but the training images have none; drop it")
    counts = np.bincount(found)
    return 1 / (counts[found] * np.count_nonzero(counts))
