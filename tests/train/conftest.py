from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import slimvit
from slimvit.config.recipe import DataSection, FinetuneSection
from slimvit.config.training import TrainSection
from slimvit.data.loaders import TrainLoader, train_loader
from slimvit.data.preprocessing import preprocessing_of
from slimvit.data.sources import Data, open_data
from slimvit.data.subsets import draw
from slimvit.io.embedded import EMBEDDED


@pytest.fixture(scope="session")
def digits() -> Data:
    return open_data(DataSection(name="digits", train_images=128, eval_images=64))


@pytest.fixture(scope="session")
def trained() -> Any:
    """The embedded model. Tests must not change it."""
    return slimvit.load(EMBEDDED["vit_digits"])


@pytest.fixture
def untrained() -> Any:
    """A network of two blocks with random weights, for digits."""
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 2, "in_chans": 1}
    return slimvit.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10, args=size)


@pytest.fixture
def section() -> Callable[..., FinetuneSection]:
    """A training section without augmentation."""
    plain: dict[str, Any] = {"epochs": 1, "crop_scale": 1.0, "hflip": 0.0}
    return lambda **more: FinetuneSection(**(plain | more))


@pytest.fixture
def loader(digits: Data) -> Callable[..., TrainLoader]:
    """Batches of digits as a network and a section want them."""

    def build(model: Any, section: TrainSection, batch: int = 32, images: int = 128, seed: int = 0) -> TrainLoader:
        return train_loader(draw(digits.train, images, 0), preprocessing_of(model), section, batch, seed=seed)

    return build
