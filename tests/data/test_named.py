from __future__ import annotations

import importlib.util
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageDataset, IterableImageDataset

from slimvit.config.recipe import DataSection
from slimvit.data import named
from slimvit.data.preprocessing import to_mode
from slimvit.data.sources import open_data
from slimvit.utils.errors import DataError


def write_idx(path: Path, array: np.ndarray) -> None:
    """MNIST's file format: two zeros, the type (8 = uint8), the number of axes, their sizes, the values."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    for split, count in (("train", 12), ("t10k", 5)):
        pixels = np.arange(count)[:, None, None] * np.ones((1, 28, 28))
        write_idx(tmp_path / f"FashionMNIST/raw/{split}-images-idx3-ubyte", pixels)
        write_idx(tmp_path / f"FashionMNIST/raw/{split}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


class Reader:
    """Stands for a reader of Hugging Face data (``label_key``) or of a stream (iteration)."""

    label_key = "label"
    class_to_idx: dict[str, int] = {}

    def __init__(self, count: int) -> None:
        self.dataset = {"label": [i % 3 for i in range(count)]}

    def __len__(self) -> int:
        return len(self.dataset["label"])

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        file = io.BytesIO()
        Image.new("L", (4, 4), index).save(file, "PNG")
        content = b"damaged" if index == 1 else file.getvalue()
        return io.BytesIO(content), self.dataset["label"][index]

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return ((Image.new("RGB", (4, 4)), label) for label in self.dataset["label"])


def pretend(monkeypatch: pytest.MonkeyPatch, kind: type) -> list[dict[str, Any]]:
    """Let every named data set be six images behind a :class:`Reader`; returns the calls to timm."""
    calls: list[dict[str, Any]] = []

    def create(name: str, **options: Any) -> Any:
        calls.append(options)
        return kind(root=None, reader=Reader(6))

    monkeypatch.setattr(named, "create_dataset", create)
    monkeypatch.setattr(named, "PACKAGES", dict.fromkeys(named.PACKAGES, ()))
    return calls


def error(**section: Any) -> str:
    with pytest.raises(DataError) as caught:
        open_data(DataSection(**section))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_torchvision_data_with_its_class_names(fashion: Path) -> None:
    data = open_data(DataSection(name="torch/fashion_mnist", root=str(fashion), eval_images=3))
    assert len(data.train) == 12 and len(data.val) == 3
    assert data.num_classes == 10 and data.class_names[0] == "T-shirt/top"
    image, label = data.train[11]
    assert image.mode == "L" and image.size == (28, 28) and image.getpixel((0, 0)) == 11 and label == 1


def test_torchvision_data_that_is_not_there(tmp_path: Path) -> None:
    assert "--data-root" in error(name="torch/fashion_mnist")
    text = error(name="torch/fashion_mnist", root=str(tmp_path))
    assert f"cannot open split 'train' in {tmp_path}: Dataset not found; check --data-root" in text


def test_an_unknown_torchvision_name(tmp_path: Path) -> None:
    assert "no such data set (did you mean torch/fashion_mnist" in error(name="torch/fashionmnist", root=str(tmp_path))


@pytest.mark.parametrize(("name", "package"), [("hfds/a/b", "datasets"), ("wds/a", "webdataset")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert error(name=name) == f"{name}: needs {package}; pip install {package}"


def test_an_indexed_reader_never_swaps_a_damaged_image(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ImageDataset)
    data = open_data(DataSection(name="hfds/a/b"))
    assert data.class_names == ("0", "1", "2") and data.train[4][1] == 1
    with pytest.raises(DataError, match="^hfds/a/b train, image 1: not a readable image"):
        data.train[1]
    assert open_data(DataSection(name="hfds/a/b", skip_bad_images=True)).bad_images == 2


def test_a_data_set_to_evaluate_needs_no_training_split(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ImageDataset)
    create = named.create_dataset

    def validation_alone(name: str, **options: Any) -> Any:
        if options["split"] == "train":
            raise ValueError("no such split")
        return create(name, **options)

    monkeypatch.setattr(named, "create_dataset", validation_alone)
    found = open_data(DataSection(name="hfds/a/b"), training=False)
    assert len(found.train) == 0 and len(found.val) == 6 and found.class_names == ("0", "1", "2")
    assert "cannot open split 'train'" in error(name="hfds/a/b")


def test_deep_grey_of_a_stream_is_said(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pretend(monkeypatch, IterableImageDataset)
    monkeypatch.setattr(Reader, "__iter__", lambda self: iter([(Image.new("I;16", (4, 4), 0x0FFF), 0)]))
    data = open_data(DataSection(name="wds/a", root="x", train_images=1, eval_images=1))
    assert to_mode(data.train[0][0], "RGB").getpixel((0, 0)) == (255,) * 3
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(", so images are scaled")[0] for line in told] == [
        "wds/a train: more than 8 bits of grey", "wds/a val: more than 8 bits of grey"
    ]  # fmt: skip


def test_a_stream_is_held_up_to_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pretend(monkeypatch, IterableImageDataset)
    data = open_data(DataSection(name="wds/a", root="x", train_images=4, eval_images=100), seed=5)
    assert len(data.train) == 4 and len(data.val) == 6 and data.class_names == ("0", "1", "2")
    assert [(call["split"], call["is_training"], call["seed"]) for call in calls] == [
        ("train", True, 5),
        ("validation", False, 0),
    ]
    assert [call["input_img_mode"] for call in calls] == ["", ""]


def test_a_stream_needs_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, IterableImageDataset)
    assert "give --train-images and --eval-images" in error(name="tfds/a", train_images=4)
    assert "--data-root" in error(name="wds/a")


def test_nothing_is_printed_to_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(monkeypatch, ImageDataset)
    create = named.create_dataset

    def talkative(name: str, **options: Any) -> Any:
        print("timm says")
        return create(name, **options)

    monkeypatch.setattr(named, "create_dataset", talkative)
    open_data(DataSection(name="hfds/a/b"))
    assert capsys.readouterr().out == ""
