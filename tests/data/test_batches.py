"""Every wrong form of images is named in one line; every right one becomes the same batches."""

from __future__ import annotations

from collections.abc import Callable
from operator import length_hint
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from slimvit.data.batches import checked_batches
from slimvit.utils.errors import DataError, ModelError, SlimvitError

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6)


@pytest.fixture
def model(vit: Callable[..., Any]) -> Any:
    return vit(img_size=32, num_classes=10)


def read(source: Any, model: nn.Module, **more: Any) -> tuple[Tensor, Tensor]:
    images, labels = zip(*checked_batches(source, model, **more), strict=True)
    return torch.cat(images), torch.cat(labels)


FORMS = {
    "pairs": [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])],
    "lists": [[IMAGES[:4], LABELS[:4].tolist()], [IMAGES[4:], LABELS[4:].int()]],
    "loader": DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4),
    "arrays": [(IMAGES.numpy(), LABELS.numpy())],
}
ALONE = {
    "images alone": [IMAGES[:4], IMAGES[4:]],
    "loader of images": DataLoader(TensorDataset(IMAGES), batch_size=4),
    "one tensor": IMAGES,
    "one array": IMAGES.numpy(),
}


@pytest.mark.parametrize("form", FORMS)
def test_right_forms(form: str, model: Any) -> None:
    images, labels = read(FORMS[form], model, labels_for="the test")
    assert torch.equal(images, IMAGES) and torch.equal(labels, LABELS) and labels.dtype == torch.int64
    assert length_hint(checked_batches(FORMS[form], model)) == len(FORMS[form])  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ALONE)
def test_images_alone(form: str, model: Any) -> None:
    images, labels = read(ALONE[form], model)
    assert torch.equal(images, IMAGES) and labels.tolist() == [-1] * 6
    with pytest.raises(DataError, match=r"^the test needs labels, but the images have none; give \(images \[B, C, H"):
        read(ALONE[form], model, labels_for="the test")


WRONG = {
    "channels last": ([IMAGES.permute(0, 2, 3, 1)], r"32 channels: their channels are last; give images.permute\(0, 3"),
    "grey": ([IMAGES[:, :1]], r"^images are \[6, 1, 32, 32\] float32, which is 1 channels: the model takes 3$"),
    "size": ([IMAGES[..., :28, :28]], "^images are 28x28 pixels, but the model takes 32x32; resize them, or build"),
    "uint8": ([IMAGES.byte()], r"^images are \[6, 3, 32, 32\] uint8; give float images, normalised"),
    "one image": ([(IMAGES[0], LABELS[:3])], r"^images are \[3, 32, 32\] float32: one image without a batch dimension"),
    "flat": ([IMAGES.flatten(1)], r"^images are \[6, 3072\] float32; give \[B, C, H, W\]$"),
    "dict": ([{"pixel_values": IMAGES}], r"^a batch is a dict with the keys pixel_values; give \(images"),
    "three": ([(IMAGES, LABELS, LABELS)], "^a batch has 3 entries; give "),
    "paths": ([(["a.png"], [0])], "^images of a batch are of type list; give a tensor"),
    "one-hot": ([(IMAGES, torch.eye(6))], r"^labels are \[6, 6\] float32 for 6 images; give one class number"),
    "few labels": ([(IMAGES, LABELS[:4])], r"^labels are \[4\] int64 for 6 images; give one class number"),
    "many classes": ([(IMAGES, LABELS + 8)], "^an image has label 10, but the model has classes 0-9; use the data set"),
    "empty": ([], "^no images: the batches are empty; check the data, and drop_last"),
    "number": (3, "^batches are of type int; give a DataLoader or a list of "),
    "name": ("digits", "^batches are of type str; give a DataLoader"),
    "generator": (
        (b for b in [(IMAGES, LABELS)]),
        "^batches are of type generator, which can be read only",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_forms(case: str, model: Any) -> None:
    source, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        read(source, model, labels_for="the test")


def test_an_iterator_will_do_where_it_is_read_once(model: Any) -> None:
    images, _ = read(iter([(IMAGES, LABELS)]), model, once=True)
    assert torch.equal(images, IMAGES)


def test_labels_do_not_matter_where_none_are_needed(model: Any) -> None:
    assert read([(IMAGES, LABELS + 8)], model)[1].tolist() == (LABELS + 8).tolist()


def test_other_sizes_for_a_model_that_takes_them(vit: Callable[..., Any]) -> None:
    model = vit(img_size=32, dynamic_img_size=True)
    assert len(read([IMAGES[..., :16, :16]], model)[0]) == 6


@pytest.mark.parametrize(("wrap", "inner"), [(nn.DataParallel, "model.module"), (torch.compile, "model._orig_mod")])
def test_wrapped_models(wrap: Callable[..., Any], inner: str, model: Any) -> None:
    with pytest.raises(ModelError, match=f"^the model is wrapped in .*; pass the inner model: {inner}$"):
        checked_batches([], wrap(model))


def test_no_model(model: Any) -> None:
    with pytest.raises(SlimvitError, match=r"^the model is of type str; pass a timm model, from slimvit"):
        checked_batches([], "vit_digits")  # type: ignore[arg-type]
