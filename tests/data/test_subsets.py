from __future__ import annotations

from pathlib import Path

import pytest

from slimvit.data.folder import open_folder
from slimvit.data.subsets import check_images, draw
from slimvit.utils.errors import DataError


def test_a_draw_has_n_different_images_decided_by_the_seed(folder: Path) -> None:
    train = open_folder(folder)[0]
    chosen = draw(train, 4, seed=3).indices
    assert len(set(chosen)) == 4 and chosen == draw(train, 4, seed=3).indices
    assert any(chosen != draw(train, 4, seed).indices for seed in range(4, 8))


@pytest.mark.parametrize("n", [6, 7])
def test_a_large_draw_is_everything_in_order(folder: Path, n: int) -> None:
    assert list(draw(open_folder(folder)[0], n, seed=3).indices) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("skip", [True, False])
def test_readable_images_pass_unchanged(folder: Path, skip: bool) -> None:
    train = open_folder(folder)[0]
    assert check_images(train, "train", skip) is train


def test_the_first_unreadable_image_is_named(folder: Path, broken: Path) -> None:
    (folder / "train" / "dog" / "0.png").write_bytes(b"")
    train = open_folder(folder)[0]
    with pytest.raises(DataError, match=f"^{broken}: not a readable image"):
        check_images(train, "train", skip=False)
    assert [image[1] for image in map(check_images(train, "train", skip=True).__getitem__, range(4))] == [0, 0, 1, 1]


def test_no_readable_image_is_an_error_even_when_skipping(folder: Path) -> None:
    for path in (folder / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="^val: none of the 4 images can be read"):
        check_images(open_folder(folder)[1], "val", skip=True)
