"""Batches for evaluation (in order) and for training (shuffled and augmented, the same for any number of workers).

Neither kind of loader touches the caller's random states.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slimvit.config.training import TrainSection
from slimvit.data.images import Images
from slimvit.data.labels import labels_of
from slimvit.data.preprocessing import Preprocessing, Transform, eval_transform, preprocessing_of, train_transform
from slimvit.data.samplers import Balanced, Key, Repeated, Shuffle, TrainSampler
from slimvit.data.subsets import check_images, draw
from slimvit.utils.seeds import seeded

__all__ = ["Preprocessing", "TrainLoader", "check_images", "draw", "eval_loader", "preprocessing_of", "train_loader"]

Batch = tuple[torch.Tensor, torch.Tensor]


class EvalInputs(Dataset[tuple[torch.Tensor, int]]):
    """(float32 [C, H, W], label) of every image, always the same."""

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label


class TrainInputs(Dataset[tuple[torch.Tensor, int | torch.Tensor]]):
    """(float32 [C, H, W], label) of an image, augmented as (seed, epoch, index) decide; `numbered`: (label, index)
    in the label's place."""

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
    """A DataLoader whose next pass is the one of the epoch set last (0 at first)."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next pass."""
        assert isinstance(self.sampler, TrainSampler)
        self.sampler.set_epoch(epoch)


def eval_loader(
    dataset: Images, prep: Preprocessing, batch_size: int, workers: int = 0
) -> DataLoader[tuple[torch.Tensor, int]]:
    """Batches (float32 [B, C, H, W], int64 [B]) in the data set's order, the same in every pass.

    Raises:
        DataError: while iterating, when an image cannot be read.
    """
    return DataLoader(
        EvalInputs(dataset, eval_transform(prep)), batch_size, num_workers=workers, generator=_own_generator(0)
    )


def train_loader(
    dataset: Images, prep: Preprocessing, section: TrainSection, batch_size: int, workers: int = 0, seed: int = 0
) -> TrainLoader:
    """Augmented batches (float32 [B, C, H, W], int64 [B]) in random order, decided by `seed` and the epoch alone.

    Where a section has `cache_teacher`, the labels are int64 [B, 2]: each with the number of its image.
    Call `set_epoch` before each pass. The last, smaller batch is left out, unless it is the only one.

    Raises:
        RecipeError: the section's augmentation is not one timm can make.
        DataError: classes are to be balanced, but the images have no labels.
        DataError: while iterating, when an image cannot be read.
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
    """A DataLoader without one draws its workers' base seed from the caller's generator."""
    return torch.Generator().manual_seed(seed)


Batches = Iterable[tuple[Tensor, Tensor]]
"""Batches of (images [B, C, H, W], labels [B]; -1 where there is none), iterable more than once."""
