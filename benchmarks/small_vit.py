"""A small ViT on Fashion-MNIST for many trainings on one CPU core: data in memory, pretraining, training.

    python benchmarks/small_vit.py      # pretrains (about ten minutes) and prints the accuracy; cached in .cache/bench

28 px in patches of 7 (17 tokens), 8 blocks, 96 channels, 6 heads of 16, MLP ratio 2, so that attention is half of the
network. Fashion-MNIST is read from .cache/real/fashion.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import FashionMNIST

import slimvit
from slimvit.config.recipe import FinetuneSection
from slimvit.data.loaders import TrainLoader
from slimvit.data.samplers import Shuffle
from slimvit.measure.accuracy import Outputs, outputs_of
from slimvit.train.loop import TrainOptions

CACHE = Path(__file__).parent.parent / ".cache"
PRETRAINED = CACHE / "bench" / "small_vit.safetensors"
TAUGHT = CACHE / "bench" / "small_vit_says.safetensors"
SHAPE = {"patch_size": 7, "embed_dim": 96, "depth": 8, "num_heads": 6, "mlp_ratio": 2.0}
BATCH = 128
CURVE_IMAGES = 2_500
"""Held-out images of the training split, for learning rates and curves."""

Images = tuple[Tensor, Tensor]
"""Images [n, 1, 28, 28], and labels [n] or soft targets [n, 10]."""


def build(seed: int, shape: dict[str, Any] = SHAPE, **options: Any) -> Any:
    """A network with random weights; `options` are those of `slimvit.create_model`."""
    torch.manual_seed(seed)
    args = {"in_chans": 1, **shape}
    return slimvit.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=28, num_classes=10, args=args, seed=seed, **options
    )


@cache
def images(part: str) -> Images:
    """The part `train` (57,500), `curve` (2,500 held out of the training split) or `test` (10,000)."""
    source = FashionMNIST(str(CACHE / "real" / "fashion"), train=part != "test")
    normalised = (source.data[:, None].float() / 255 - 0.286) / 0.353
    chosen = {"train": slice(CURVE_IMAGES, None), "curve": slice(CURVE_IMAGES), "test": slice(None)}[part]
    return normalised[chosen], source.targets[chosen]


def batches(part: Images) -> list[Images]:
    """Batches in order, for evaluation and calibration."""
    return list(zip(part[0].split(500), part[1].split(500), strict=True))


def calibration(count: int, seed: int) -> list[Images]:
    """Training images drawn with the seed."""
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(images("train")[0]))[:count])
    return batches((images("train")[0][chosen], images("train")[1][chosen]))


def outputs(model: Any, part: str) -> Outputs:
    return outputs_of(model, batches(images(part)))


class ShortEpochs(Dataset[Images]):
    """Training images in an order drawn by the seed; each epoch is the next `length` of them."""

    def __init__(self, source: Images, length: int, seed: int) -> None:
        self.source, self.length = source, length
        self.order = np.random.default_rng(seed).permutation(len(source[0]))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: Any) -> Images:
        epoch, index = key
        at = self.order[(epoch * self.length + index) % len(self.order)]
        return self.source[0][at], self.source[1][at]


def train(
    model: Any, targets: Tensor, epochs: int, length: int, lr: float, seed: int, mix_lr_scale: float = 10.0
) -> tuple[Any, list[float]]:
    """A trained copy, and its top-1 on the `curve` images after every epoch of `length` images."""
    source = ShortEpochs((images("train")[0], targets), length, seed)
    loader = TrainLoader(source, BATCH, sampler=Shuffle(length, seed), drop_last=True)  # type: ignore[arg-type]
    curve: list[float] = []
    labels = images("curve")[1]

    def add_to_curve(model: Any, row: dict[str, Any]) -> None:
        logits = outputs(model, "curve").logits
        assert logits is not None
        curve.append(round(100 * (logits.argmax(1) == labels).float().mean().item(), 2))

    section = FinetuneSection(epochs=epochs, lr=lr, distill=False)
    tuned, _ = slimvit.finetune(
        model, loader, section, options=TrainOptions(seed=seed, mix_lr_scale=mix_lr_scale, after_epoch=add_to_curve)
    )
    return tuned, curve


@cache
def pretrained() -> Any:
    """The network that all cuts start from, trained once and cached."""
    model = build(seed=0)
    if not PRETRAINED.exists():
        tuned, curve = train(model, images("train")[1], 11, len(images("train")[0]), 1e-3, seed=0)
        print(f"pretrained; curve {curve}", flush=True)
        PRETRAINED.parent.mkdir(parents=True, exist_ok=True)
        save_file(tuned.state_dict(), PRETRAINED)
    model.load_state_dict(load_file(PRETRAINED))
    return model


@cache
def soft_targets() -> Tensor:
    """[57,500, 10]: the mean of label and pretrained network's probabilities.

    As targets of the cross-entropy they are self-distillation at temperature 1.
    """
    if not TAUGHT.exists():
        logits = outputs(pretrained(), "train").logits
        assert logits is not None
        save_file({"probabilities": logits.softmax(1)}, TAUGHT)
    return (load_file(TAUGHT)["probabilities"] + torch.nn.functional.one_hot(images("train")[1], 10)) / 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    logits = outputs(pretrained(), "test").logits
    assert logits is not None
    print(f"top-1 on 10,000 test images: {100 * (logits.argmax(1) == images('test')[1]).float().mean():.2f}")
