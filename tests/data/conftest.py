from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Draw = Callable[..., Path]


@pytest.fixture
def image() -> Draw:
    """Write a tiny image whose pixels all have one value."""

    def write(path: Path, value: int = 100, mode: str = "RGB", size: tuple[int, int] = (10, 8)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, value).convert(mode).save(path)
        return path

    return write


@pytest.fixture
def folder(tmp_path: Path, image: Draw) -> Path:
    """train/ with 3 and val/ with 2 images of each of cat and dog."""
    for split, count in (("train", 3), ("val", 2)):
        for c, name in enumerate(("cat", "dog")):
            for i in range(count):
                image(tmp_path / "pets" / split / name / f"{i}.png", 100 * c + 10 * i)
    return tmp_path / "pets"


@pytest.fixture
def broken(folder: Path) -> Path:
    """A file in train/ that is no image."""
    path = folder / "train" / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    return path
