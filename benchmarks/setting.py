"""What several benchmarks start from: a model with a classifier, images, and what the uncut model says of them.

Files: .cache/real/{dinov2,fashion,textile} (a real pretrained ViT-S, Fashion-MNIST, photographs of textile).
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
"""Most validation images that are looked at."""


@cache
def setting(name: str, train_images: int | None = None, precision: str = "float32") -> tuple[Any, Data, Outputs]:
    """Model with its classifier, data cut to ``train_images``, and what the uncut model gives on the test images.

    A model that comes without a classifier gets a linear one, trained on its frozen features. The result is kept in
    .cache/bench, so that a second call starts at once. ``precision``: of the forward passes; the weights are float32.
    """
    section, data_section = SETS[name]
    data = open_data(data_section.model_copy(update={"train_images": train_images}))
    model: Any = open_model(section)
    kept = KEPT / f"{name}-{train_images or 'all'}-{precision}.safetensors"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        if model.num_classes == 0:
            train = said(model, data.train, precision)
            assert train.labels is not None
            model = fit_head(model, train.features, train.labels, data.num_classes, 100, 0)
        found = said(model, test_images(data), precision)
        save_file(model.state_dict() | {f"outputs.{k}": v for k, v in vars(found).items()}, kept)
    stored = load_file(kept)
    outputs = Outputs(*(stored.pop(f"outputs.{k}") for k in ("logits", "features", "labels")))
    assert outputs.logits is not None
    model.reset_classifier(outputs.logits.shape[1])
    model.load_state_dict(stored)
    return model.eval(), data, outputs


def test_images(data: Data) -> Any:
    return draw(data.val, TEST, 0)


def said(model: Any, images: Any, precision: str = "float32") -> Outputs:
    """What a model gives for images, by forward passes in float32 or under autocast. The last layer is float32 always:
    rounded logits of two classes are too often equal."""
    if precision == "float32":
        return outputs_of(model, loader(model, images))
    with torch.autocast("cpu", getattr(torch, precision)):
        found = outputs_of(model, loader(model, images))
    if model.num_classes == 0:
        return found
    with torch.no_grad():
        return Outputs(model.get_classifier()(found.features), found.features, found.labels)


def loader(model: Any, images: Any) -> Any:
    return eval_loader(images, preprocessing_of(model), 64)
