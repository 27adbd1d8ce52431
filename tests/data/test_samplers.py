from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.distributed_sampler import RepeatAugSampler

from slimvit.config.recipe import DataSection
from slimvit.config.training import TrainSection
from slimvit.data.digits import ArrayImages
from slimvit.data.folder import open_folder
from slimvit.data.images import Sample, labels_of
from slimvit.data.loaders import train_loader
from slimvit.data.named import HeldImages, NamedImages
from slimvit.data.preprocessing import Preprocessing
from slimvit.data.samplers import Balanced, Repeated, Shuffle, TrainSampler
from slimvit.data.sources import open_data
from slimvit.data.subsets import draw
from slimvit.utils.errors import DataError

LABELS = [0] * 90 + [2] * 10
PREP = Preprocessing((1, 16, 16), (0.5,), (0.5,), "bicubic", 1.0, "center")


def epoch(sampler: TrainSampler, number: int = 0) -> list[tuple[int, ...]]:
    sampler.set_epoch(number)
    return list(sampler)


@pytest.mark.parametrize(
    "make", [lambda s: Shuffle(100, s), lambda s: Repeated(100, 3, s), lambda s: Balanced(LABELS, s)]
)
def test_seed_and_epoch_decide(make: Any) -> None:
    assert epoch(make(1)) == epoch(make(1)) and epoch(make(1), 4) == epoch(make(1), 4)
    assert epoch(make(1)) != epoch(make(2))
    one, other = epoch(make(1)), epoch(make(1), 1)
    assert [k[1:] for k in one] != [k[1:] for k in other]
    assert {k[0] for k in one} == {0} and {k[0] for k in other} == {1}
    assert len(one) == len(make(1)) == len(set(one)) == 100


@pytest.mark.parametrize("length", [100, 300, 600])
def test_repeated_images_follow_each_other_as_in_timm(length: int) -> None:
    found = epoch(Repeated(length, 3, seed=0))
    theirs = list(RepeatAugSampler(range(length), num_replicas=1, rank=0, num_repeats=3))
    assert len(found) == len(theirs) == (length if length < 256 else length // 256 * 256)
    for keys in (found, [(0, index, i % 3) for i, index in enumerate(theirs)]):
        whole = keys[: len(keys) // 3 * 3]
        for first, second, third in zip(whole[::3], whole[1::3], whole[2::3], strict=True):
            assert first[1] == second[1] == third[1] and (first[2], second[2], third[2]) == (0, 1, 2)
        assert len({k[1] for k in keys}) == -(-len(keys) // 3)


def test_copies_of_an_image_differ() -> None:
    images = draw(open_data(DataSection(name="digits")).train, 12, 0)
    noise = {"random_erasing": 1.0, "crop_scale": 1.0, "hflip": 0.0}
    for section in (TrainSection(repeated_aug=3, **noise), TrainSection(sampler="balanced", **noise)):
        loader = train_loader(images, PREP, section, 12)
        keys, ((batch, _),) = list(loader.sampler), list(loader)
        seen: dict[int, list[torch.Tensor]] = {}
        for key, image in zip(keys, batch, strict=True):
            assert not any(torch.equal(image, other) for other in seen.get(key[1], []))
            seen.setdefault(key[1], []).append(image)
        assert max(map(len, seen.values())) > 1


def test_balanced_draws_every_class_alike() -> None:
    sampler = Balanced(LABELS, seed=0)
    drawn = Counter(LABELS[key[1]] for number in range(20) for key in epoch(sampler, number))
    assert drawn.keys() == {0, 2} and abs(drawn[0] - drawn[2]) < 4 * 2000**0.5
    assert sampler.shares.sum() == pytest.approx(1)


def test_balancing_needs_labels(tmp_path: Any, image: Any) -> None:
    for split in ("train", "val"):
        image(tmp_path / split / "a.png")
    with pytest.raises(DataError, match="^sampler balanced needs labels, but .* none; drop it$"):
        train_loader(open_folder(tmp_path)[0], PREP, TrainSection(sampler="balanced"), 1)


class Counted:
    """Images that count how often they are asked for."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self.asked = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        self.asked += 1
        return self.samples[index]


def test_labels_are_those_of_the_images(folder: Any, broken: Any) -> None:
    pixels = np.zeros((3, 8, 8), dtype=np.uint8)
    array = ArrayImages(pixels, np.array([2, 0, 1]))
    samples = [array[i] for i in range(3)]
    for images in (array, HeldImages(samples), Counted(samples)):
        assert labels_of(images) == [2, 0, 1]
    part = draw(draw(array, 2, 5), 1, 6)
    assert labels_of(part) == [part[0][1]]
    assert labels_of(open_folder(folder)[0]) == [0, 0, 0, 1, 1, 1]  # without decoding: one of them is broken
    source = Counted(samples)
    source.targets = [2, 0, None]  # type: ignore[attr-defined]
    assert labels_of(NamedImages(source, "three")) == [2, 0, -1] and source.asked == 0
