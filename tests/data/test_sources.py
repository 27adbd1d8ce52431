from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slimvit.config.recipe import DataSection
from slimvit.data.sources import open_data
from slimvit.utils.errors import DataError


def values(images, n: int = 10_000) -> list[bytes]:
    return [images[i][0].tobytes() for i in range(min(n, len(images)))]


def test_digits() -> None:
    data = open_data(DataSection(name="digits"))
    assert len(data.train) == 1257 and len(data.val) == 540
    assert data.labelled and data.class_names == tuple("0123456789")
    pixels = np.stack([np.asarray(data.val[i][0]) for i in range(540)])
    assert data.val[0][0].mode == "L" and pixels.shape == (540, 8, 8) and pixels.min() == 0 and pixels.max() == 255
    assert {data.val[i][1] for i in range(540)} == set(range(10))


def test_the_seed_draws_training_images_only() -> None:
    section = DataSection(name="digits", train_images=20, eval_images=10)
    first, again, other = open_data(section, 1), open_data(section, 1), open_data(section, 2)
    assert values(first.train) == values(again.train) != values(other.train)
    assert values(first.val) == values(other.val) and len(first.val) == 10


def test_more_images_than_there_are() -> None:
    data = open_data(DataSection(name="digits", train_images=10**6, eval_images=10**6))
    assert len(data.train) == 1257 and len(data.val) == 540


def test_a_folder(folder: Path) -> None:
    data = open_data(DataSection(name=str(folder)))
    assert data.name == str(folder) and data.num_classes == 2 and len(data.train) == 6


def test_an_unlabelled_folder(tmp_path: Path, image) -> None:
    for split in ("train", "val"):
        image(tmp_path / split / "a.png")
    data = open_data(DataSection(name=str(tmp_path)))
    assert not data.labelled and data.num_classes == 0


def test_bad_images_are_named_or_left_out(folder: Path, broken: Path) -> None:
    with pytest.raises(DataError, match=f"^{broken}: not a readable image"):
        values(open_data(DataSection(name=str(folder))).train)
    data = open_data(DataSection(name=str(folder), skip_bad_images=True))
    assert data.bad_images == 1 and len(values(data.train)) == 5 and len(data.val) == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/where", "no/where: no such data folder"),
        ("cifar10", "did you mean torch/cifar10"),
        ("digit", "did you mean digits?"),
        (__file__, "a file, not a data folder"),
    ],
)
def test_a_name_that_leads_nowhere(name: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        open_data(DataSection(name=name))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert "give a folder with train/CLASS/ and val/CLASS/" in str(caught.value)
