"""Common start of several benchmarks: a model with a classifier, data, and the model's outputs for the test images.

Model and data are read from .cache/real/{dinov2,fashion,textile}: a pretrained ViT-S, Fashion-MNIST, textile photos.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from slimvit.config.recipe import DataSection, ModelSection
from slimvit.data.loaders import eval_loader
from slimvit.data.preprocessing import preprocessing_of
from slimvit.data.sources import Data, open_data
from slimvit.data.subsets import draw
from slimvit.io.open import open_model
from slimvit.measure.accuracy import Outputs, outputs_of
from slimvit.train.adapt import fit_head

HERE = Path(__file__).parent
REAL = HERE.parent / ".cache" / "real"
KEPT = HERE.parent / ".cache" / "bench"
DINOV2 = ModelSection(name="vit_small_patch14_dinov2", weights=str(REAL / "dinov2/model.safetensors"), img_size=112)
SETS = {
    "fashion": (DINOV2, DataSection(name="torch/fashion_mnist", root=str(REAL / "fashion"))),
    "textile": (DINOV2, DataSection(name=str(REAL / "textile"))),
    "digits": (ModelSection(name="vit_digits"), DataSection(name="digits")),
}
TEST = 5_000
"""Validation images at most."""


@cache
def setting(name: str, train_images: int | None = None, precision: str = "float32") -> tuple[Any, Data, Outputs]:
    """Return the model with its classifier, the data, and the model's outputs for the test images.

    A model without a classifier gets a linear one, trained on its frozen features. Model and outputs are cached in
    .cache/bench.

    Args:
        name: Key of `SETS`.
        train_images: Number of training images to use.
        precision: Precision of the forward passes; the weights are float32.
    """
    section, data_section = SETS[name]
    data = open_data(data_section.model_copy(update={"train_images": train_images}))
    model: Any = open_model(section)
    kept = KEPT / f"{name}-{train_images or 'all'}-{precision}.safetensors"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        if model.num_classes == 0:
            train = outputs(model, data.train, precision)
            assert train.labels is not None
            model = fit_head(model, train.features, train.labels, data.num_classes, 100, 0)
        computed = outputs(model, test_images(data), precision)
        save_file(model.state_dict() | {f"outputs.{k}": v for k, v in vars(computed).items()}, kept)
    stored = load_file(kept)
    original = Outputs(*(stored.pop(f"outputs.{k}") for k in ("logits", "features", "labels")))
    assert original.logits is not None
    model.reset_classifier(original.logits.shape[1])
    model.load_state_dict(stored)
    return model.eval(), data, original


def test_images(data: Data) -> Any:
    return draw(data.val, TEST, 0)


def outputs(model: Any, images: Any, precision: str = "float32") -> Outputs:
    """Outputs of a model for images, in float32 or under autocast.

    The classifier always runs in float32, since rounded logits of two classes are often equal.
    """
    if precision == "float32":
        return outputs_of(model, loader(model, images))
    with torch.autocast("cpu", getattr(torch, precision)):
        rounded = outputs_of(model, loader(model, images))
    if model.num_classes == 0:
        return rounded
    with torch.no_grad():
        return Outputs(model.get_classifier()(rounded.features), rounded.features, rounded.labels)


def loader(model: Any, images: Any) -> Any:
    return eval_loader(images, preprocessing_of(model), 64)
