from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from slimvit.config.recipe import DataSection
from slimvit.config.training import TrainSection
from slimvit.data.folder import open_folder
from slimvit.data.loaders import eval_loader, train_loader
from slimvit.data.preprocessing import Preprocessing
from slimvit.data.sources import open_data
from slimvit.data.subsets import draw
from slimvit.utils.errors import DataError

PREP = Preprocessing((3, 16, 16), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "center")
AUGMENTED = TrainSection(
    crop_scale=0.4, hflip=0.5, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5, color_jitter=0
)


@pytest.fixture(scope="module")
def digits():
    return draw(open_data(DataSection(name="digits")).train, 22, seed=0)


def batches(loader, epoch: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if epoch:
        loader.set_epoch(epoch)
    return [(images, labels) for images, labels in loader]


def same(some, others) -> bool:
    return all(
        torch.equal(a, b) for one, other in zip(some, others, strict=True) for a, b in zip(one, other, strict=True)
    )


def random_states() -> list[object]:
    return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_in_order_and_repeatable(digits, workers: int) -> None:
    loader = eval_loader(digits, PREP, 8, workers)
    before = random_states()
    first = batches(loader)
    assert same(first, batches(loader)) and random_states() == before
    assert [images.shape for images, _ in first] == [(8, 3, 16, 16), (8, 3, 16, 16), (6, 3, 16, 16)]
    assert first[0][0].dtype == torch.float32 and first[0][1].dtype == torch.int64
    assert torch.cat([labels for _, labels in first]).tolist() == [digits[i][1] for i in range(22)]


def test_training_batches_do_not_depend_on_the_workers(digits) -> None:
    alone = train_loader(digits, PREP, AUGMENTED, 8, workers=0, seed=3)
    helped = train_loader(digits, PREP, AUGMENTED, 8, workers=2, seed=3)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random_states()
    for epoch in (0, 1, 2):
        assert same(batches(alone, epoch), batches(helped, epoch))
    assert random_states() == before


def test_epochs_and_seeds_differ_and_come_back(digits) -> None:
    loader = train_loader(digits, PREP, AUGMENTED, 8, seed=3)
    first, second = batches(loader), batches(loader, 1)
    assert not same(first, second)
    assert same(second, batches(train_loader(digits, PREP, AUGMENTED, 8, seed=3), 1))
    assert not same(first, batches(train_loader(digits, PREP, AUGMENTED, 8, seed=4)))


def test_augmentation_differs_between_epochs_for_the_same_image(digits) -> None:
    inputs = train_loader(digits, PREP, AUGMENTED, 8).dataset
    assert not torch.equal(inputs[0, 5][0], inputs[1, 5][0]) and torch.equal(inputs[1, 5][0], inputs[1, 5][0])


@pytest.mark.parametrize(("batch_size", "sizes"), [(8, [8, 8]), (11, [11, 11]), (22, [22]), (64, [22])])
def test_only_a_last_smaller_batch_is_dropped(digits, batch_size: int, sizes: list[int]) -> None:
    loader = train_loader(digits, PREP, TrainSection(), batch_size)
    assert [len(labels) for _, labels in loader] == sizes and len(loader) == len(sizes)


def test_every_image_comes_once_an_epoch(digits) -> None:
    plain = TrainSection(crop_scale=1, hflip=0)
    ((images, labels),) = batches(train_loader(digits, PREP, plain, 22))
    ((ordered, _),) = batches(eval_loader(digits, PREP, 22))
    assert not torch.equal(images, ordered)
    assert sorted(map(bytes, images.numpy())) == sorted(map(bytes, ordered.numpy()))


@pytest.mark.parametrize(("kind", "workers"), [("eval", 0), ("train", 0), ("train", 1)])
def test_an_unreadable_image_reaches_the_caller_as_one_line(
    folder: Path, broken: Path, kind: str, workers: int
) -> None:
    train = open_folder(folder)[0]
    make = {
        "eval": lambda: eval_loader(train, PREP, 2, workers),
        "train": lambda: train_loader(train, PREP, TrainSection(), 2, workers),
    }
    with pytest.raises(DataError) as caught:
        batches(make[kind]())
    assert str(caught.value).startswith(f"{broken}: not a readable image (") and "\n" not in str(caught.value)
    assert str(caught.value).endswith("set skip_bad_images")


def test_unlabelled_images_have_label_minus_one(tmp_path: Path, image) -> None:
    for split in ("train", "val"):
        image(tmp_path / split / "a.png")
    ((_, labels),) = batches(eval_loader(open_folder(tmp_path)[1], PREP, 4))
    assert labels.tolist() == [-1] and labels.dtype == torch.int64


def test_inputs_can_be_sent_to_spawned_workers(digits) -> None:
    for loader in (eval_loader(digits, PREP, 4), train_loader(digits, PREP, AUGMENTED, 4)):
        assert len(pickle.loads(pickle.dumps(loader.dataset))) == 22
