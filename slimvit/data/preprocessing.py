"""Preprocessing of images for a model: size, mean and std, and the transforms that apply them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from itertools import chain
from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment, create_transform, resolve_model_data_config
from torch import nn
from torch.nn import functional as F

from slimvit.config.preprocessing import defects_of_preprocessing
from slimvit.config.training import TrainSection
from slimvit.data.depth import is_deep, to_grey
from slimvit.utils.errors import DataError, RecipeError

Transform = Callable[[Image.Image], torch.Tensor]

MODES = {1: "L", 3: "RGB"}
"""Pillow's colour mode for a number of channels."""


@dataclass(frozen=True)
class Preprocessing:
    """Settings that turn a PIL image into a model's input."""

    input_size: tuple[int, int, int]
    """Channels, height, width (pixels)."""
    mean: tuple[float, ...]
    """Mean of each channel, for values in 0..1."""
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    """Side of the input over the side to which an image is resized before the centre crop."""
    crop_mode: str

    def __post_init__(self) -> None:
        if defects := defects_of_preprocessing(asdict(self)):
            raise DataError(f"preprocessing: {'; '.join(defects)}")
        channels = self.input_size[0] if len(self.input_size) == 3 else 0
        if channels not in MODES:
            raise DataError(f"input_size is {self.input_size}, but must be (channels, height, width), 1 or 3 channels")
        if not len(self.mean) == len(self.std) == channels:
            raise DataError(f"mean is {self.mean} and std {self.std}, but the model takes {channels} channels")

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocessing:
        """Read the result of `to_json`; raises `DataError` for missing or unknown keys."""
        wanted = {field.name for field in fields(cls)}
        if set(data) != wanted:
            raise DataError(f"preprocessing has the keys {sorted(data)}, but must have {sorted(wanted)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """Return timm's preprocessing of a model, for the image size and channels that it was built with."""
    config = resolve_model_data_config(model)
    embed = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None) or config["input_size"][1:]
    stem = getattr(embed, "proj", None) or next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = getattr(stem, "in_channels", config["input_size"][0])
    return Preprocessing(
        input_size=(int(channels), int(size[0]), int(size[1])),
        mean=_per_channel(config["mean"], channels),
        std=_per_channel(config["std"], channels),
        interpolation=str(config["interpolation"]),
        crop_pct=float(config["crop_pct"]),
        crop_mode=str(config["crop_mode"]),
    )


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One value per channel; their mean where a model was built for another number of channels."""
    given = tuple(float(v) for v in values)
    return given if len(given) == channels else (sum(given) / len(given),) * channels


class Preprocess:
    """Convert a PIL image of any colour mode to the model's channels, then transform it to float32 [C, H, W]."""

    def __init__(self, channels: int, transform: Transform) -> None:
        self.mode = MODES[channels]
        self.transform = transform

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self.transform(to_mode(image, self.mode))


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to colour mode `L` or `RGB`; deep grey is scaled to 8 bits, transparency is dropped."""
    if is_deep(image):
        image = to_grey(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def converter(made_for: Preprocessing, wanted: Preprocessing) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that converts batches [B, C, H, W] from one model's preprocessing to another's.

    It rescales values to the other mean and std, and resizes images (bicubic) to the other input size, on the batch's
    device. The other model sees the same augmented crops, at the resolution of the first. Batches that fit already
    are returned as they are.

    Raises:
        DataError: The models take different numbers of channels.
    """
    size, wanted_size = made_for.input_size, wanted.input_size
    if size[0] != wanted_size[0]:
        raise DataError(f"images of {size[0]} channels cannot be converted to {wanted_size[0]} channels")
    mean, std = torch.tensor([made_for.mean, made_for.std])[..., None, None]
    other_mean, other_std = torch.tensor([wanted.mean, wanted.std])[..., None, None]
    same_values = (made_for.mean, made_for.std) == (wanted.mean, wanted.std)

    def convert(images: torch.Tensor) -> torch.Tensor:
        if not same_values:
            images = images * (std / other_std).to(images) + ((mean - other_mean) / other_std).to(images)
        if size[1:] == wanted_size[1:]:
            return images
        return F.interpolate(images, wanted_size[1:], mode="bicubic", antialias=True, align_corners=False)

    return convert


def eval_transform(prep: Preprocessing) -> Transform:
    """Return the transform of evaluation: resize, crop the centre, normalise."""
    return Preprocess(prep.input_size[0], create_transform(**asdict(prep)))


def train_transform(prep: Preprocessing, section: TrainSection) -> Transform:
    """Return timm's augmentation for a training section; without augmentation the transform of evaluation.

    Raises:
        RecipeError: `auto_augment` is not in timm's notation, or timm would ignore `color_jitter` beside it.
    """
    if not _augments(section):
        return eval_transform(prep)
    if section.auto_augment and section.color_jitter and "3a" not in section.auto_augment:
        raise RecipeError(
            f"color_jitter is {section.color_jitter}, but timm ignores it beside auto_augment "
            f"{section.auto_augment!r}; leave out one of the two"
        )
    try:
        augment = create_transform(**asdict(prep), is_training=True, **_augmentation(section))
    except (AssertionError, KeyError, ValueError):
        raise RecipeError(
            f"auto_augment is {section.auto_augment!r}, which timm cannot read; e.g. rand-m9-mstd0.5-inc1, original, 3a"
        ) from None
    _bound_posterize(augment)
    return Preprocess(prep.input_size[0], augment)


def _bound_posterize(augment: Any) -> None:
    """Keep at least one bit in posterize, in place: Pillow refuses the 0 bits of timm's largest magnitudes."""
    for transform in augment.transforms:
        for op in (*getattr(transform, "ops", ()), *chain.from_iterable(getattr(transform, "policy", ()))):
            if getattr(op, "aug_fn", None) is auto_augment.posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **kwargs: Any) -> Image.Image:
    return auto_augment.posterize(image, max(1, bits), **kwargs)


def _augments(section: TrainSection) -> bool:
    asked = (section.hflip, section.color_jitter, section.auto_augment, section.random_erasing)
    return section.crop_scale < 1 or any(asked)


def _augmentation(section: TrainSection) -> dict[str, Any]:
    return {
        "scale": (section.crop_scale, 1.0),
        "hflip": section.hflip,
        "color_jitter": section.color_jitter or None,
        "auto_augment": section.auto_augment,
        "re_prob": section.random_erasing,
        "re_mode": "pixel",
    }
