"""Loaders for evaluation (in order) and training (shuffled and augmented, the same for any number of workers).

Loaders leave the caller's random states unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slimvit.config.training import TrainSection
from slimvit.data.images import Images, labels_of
from slimvit.data.preprocessing import Preprocessing, Transform, eval_transform, train_transform
from slimvit.data.samplers import Balanced, Key, Repeated, Shuffle, TrainSampler
from slimvit.utils.errors import WorkerError
from slimvit.utils.seeds import seeded

DEAD = "DataLoader worker (pid"
"""Start of torch's messages about a worker that died."""


Batch = tuple[torch.Tensor, torch.Tensor]


class EvalInputs(Dataset[tuple[torch.Tensor, int]]):
    """Inputs for evaluation: (float32 [C, H, W], label), the same in every pass."""

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label


class TrainInputs(Dataset[tuple[torch.Tensor, int | torch.Tensor]]):
    """Inputs for training: (float32 [C, H, W], label), augmented with a generator seeded by (seed, epoch, index).

    With `numbered` the label is a tensor (label, index).
    """

    def __init__(self, images: Images, transform: Transform, seed: int, numbered: bool = False) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.numbered = numbered

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, int | torch.Tensor]:
        image, label = self.images[key[1]]
        with seeded(self.seed, *key):
            return self.transform(image), (torch.tensor((label, key[1])) if self.numbered else label)


class TrainLoader(DataLoader[tuple[torch.Tensor, int | torch.Tensor]]):
    """A DataLoader that passes over the epoch set last (0 at first)."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which decides the order and the augmentation of the next pass."""
        assert isinstance(self.sampler, TrainSampler)
        self.sampler.set_epoch(epoch)


def eval_loader(
    dataset: Images, prep: Preprocessing, batch_size: int, workers: int = 0
) -> DataLoader[tuple[torch.Tensor, int]]:
    """Return batches (float32 [B, C, H, W], int64 [B]) in the data set's order, the same in every pass.

    Raises:
        DataError: While iterating, if an image cannot be read.
    """
    return DataLoader(
        EvalInputs(dataset, eval_transform(prep)), batch_size, num_workers=workers, generator=_own_generator(0)
    )


def train_loader(
    dataset: Images, prep: Preprocessing, section: TrainSection, batch_size: int, workers: int = 0, seed: int = 0
) -> TrainLoader:
    """Return augmented batches (float32 [B, C, H, W], int64 [B]) in an order that `seed` and the epoch decide.

    With `cache_teacher` the labels are int64 [B, 2], each with the number of its image. Call `set_epoch` before each
    pass. A last, smaller batch is dropped, unless it is the only one.

    Raises:
        RecipeError: timm does not support the augmentation.
        DataError: Classes are to be balanced, but the images have no labels.
        DataError: While iterating, if an image cannot be read.
    """
    return TrainLoader(
        TrainInputs(dataset, train_transform(prep, section), seed, section.numbered),
        batch_size,
        sampler=_sampler(dataset, section, seed),
        num_workers=workers,
        drop_last=len(dataset) > batch_size,
        generator=_own_generator(seed),
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _sampler(dataset: Images, section: TrainSection, seed: int) -> TrainSampler:
    if section.sampler == "balanced":
        return Balanced(labels_of(dataset), seed)
    if section.repeated_aug > 1:
        return Repeated(len(dataset), section.repeated_aug, seed)
    return Shuffle(len(dataset), seed)


def _own_generator(seed: int) -> torch.Generator:
    """A generator for the base seed of the workers, which torch would draw from the caller's generator."""
    return torch.Generator().manual_seed(seed)


Batches = Iterable[tuple[Tensor, Tensor]]
"""Batches of (images [B, C, H, W], labels [B] with -1 for none) that can be read several times."""


@contextmanager
def worker_deaths(workers: int) -> Iterator[None]:
    """Raise `WorkerError` where one of the block's `workers` processes dies."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(DEAD):
            raise
        how = "was killed" if "killed by signal" in str(error) else "ended"
        why = (
            "the memory that it shares with this one (/dev/shm) is too small"
            if "Bus error" in str(error)
            else "mostly that is a machine out of memory"
        )
        raise WorkerError(
            f"--workers {workers}: a process that loads images {how}; {why}: give fewer workers, or 0"
        ) from None
