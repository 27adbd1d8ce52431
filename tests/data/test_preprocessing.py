from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from slimvit.config.training import TrainSection
from slimvit.data.preprocessing import (
    Preprocessing,
    converter,
    eval_transform,
    preprocessing_of,
    to_mode,
    train_transform,
)
from slimvit.utils.errors import DataError, RecipeError
from slimvit.utils.seeds import seeded

GREY = Preprocessing((1, 16, 16), (0.5,), (0.25,), "bicubic", 1.0, "center")
RGB = Preprocessing((3, 16, 24), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "bilinear", 0.9, "center")
PLAIN = TrainSection(crop_scale=1, hflip=0)


@pytest.mark.parametrize("prep", [GREY, RGB])
def test_json_round_trip(prep: Preprocessing) -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(prep.to_json()))) == prep


def test_bad_json_is_named() -> None:
    with pytest.raises(DataError, match="preprocessing has the keys .*'colour'.*must have .*'crop_mode'"):
        Preprocessing.from_json({"colour": 1})
    with pytest.raises(DataError, match="input_size is .4, 8, 8., but must be"):
        replace(GREY, input_size=(4, 8, 8))
    with pytest.raises(DataError, match="the model takes 3 channels"):
        replace(GREY, input_size=(3, 8, 8))


def test_the_models_own_size_and_channels_decide() -> None:
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
    grey = preprocessing_of(timm.create_model("vit_tiny_patch16_224", in_chans=1, **options))
    assert grey.input_size == (1, 32, 32) and grey.mean == (0.5,)
    swin = {"img_size": (56, 112), "embed_dim": 8, "depths": (1,), "num_heads": (1,)}
    wide = preprocessing_of(timm.create_model("swin_tiny_patch4_window7_224", **swin))
    assert wide.input_size == (3, 56, 112) and wide.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("prep", [GREY, RGB])
@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
def test_every_colour_mode_becomes_the_models_input(mode: str, prep: Preprocessing, crop_mode: str) -> None:
    tensor = eval_transform(replace(prep, crop_mode=crop_mode))(Image.new(mode, (20, 10)))
    assert tensor.shape == prep.input_size and tensor.dtype == torch.float32


def test_palette_transparency_is_dropped_without_a_warning() -> None:
    image = Image.new("RGB", (4, 4), (9, 80, 200)).convert("P", palette=Image.Palette.ADAPTIVE)
    image.info["transparency"] = b"\x00\x80"
    assert to_mode(image, "RGB").getpixel((0, 0)) == (9, 80, 200)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    assert to_mode(Image.new("I;16", (1, 1), 0x8123), "L").getpixel((0, 0)) == 0x81


def test_values_are_normalised() -> None:
    assert torch.allclose(eval_transform(GREY)(Image.new("L", (8, 8), 255)), torch.tensor(2.0))


def test_no_augmentation_is_the_evaluation_transform() -> None:
    image = Image.effect_noise((20, 30), 90)
    assert torch.equal(train_transform(RGB, PLAIN)(image), eval_transform(RGB)(image))


@pytest.mark.parametrize(
    "change",
    [{"crop_scale": 0.3}, {"hflip": 1.0}, {"color_jitter": 0.9}, {"auto_augment": "rand-m9-mstd0.5-inc1"}]
    + [{"random_erasing": 1.0}, {"auto_augment": "3a", "color_jitter": 0.3}, {"auto_augment": "augmix-m5-w2-d2-b1"}],
)
@pytest.mark.parametrize("prep", [GREY, RGB])
def test_every_augmentation_changes_the_image(prep: Preprocessing, change: dict) -> None:
    image = Image.effect_noise((24, 24), 90)
    transform = train_transform(prep, PLAIN.model_copy(update=change))
    tensors = [transform(image) for _ in range(4)]
    assert all(t.shape == prep.input_size and t.isfinite().all() for t in tensors)
    assert any(not torch.equal(t, train_transform(prep, PLAIN)(image)) for t in tensors)


def test_augmentation_that_timm_cannot_make() -> None:
    with pytest.raises(RecipeError, match="^auto_augment is 'rnd-m9', which timm cannot read; e.g. rand-m9"):
        train_transform(RGB, TrainSection(auto_augment="rnd-m9"))
    with pytest.raises(RecipeError, match="^color_jitter is 0.4, but timm ignores it beside auto_augment 'rand-m9'"):
        train_transform(RGB, TrainSection(auto_augment="rand-m9", color_jitter=0.4))


def test_deits_augmentation_reaches_timm() -> None:
    """As in the DeiT recipe: bicubic everywhere, RandAugment m9 mstd0.5 inc1, one patch of pixel noise."""
    from timm.data.auto_augment import RandAugment
    from timm.data.random_erasing import RandomErasing
    from timm.data.transforms import RandomResizedCropAndInterpolation
    from torchvision.transforms import InterpolationMode

    prep = preprocessing_of(timm.create_model("deit_tiny_patch16_224", depth=1))
    section = TrainSection(crop_scale=0.08, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25)
    steps = {type(t): t for t in train_transform(prep, section).transform.transforms}  # type: ignore[attr-defined]
    crop, ops, erase = (steps[t] for t in (RandomResizedCropAndInterpolation, RandAugment, RandomErasing))
    assert (crop.size, crop.scale, crop.interpolation) == ((224, 224), (0.08, 1.0), InterpolationMode.BICUBIC)
    assert (
        ops.num_layers == 2
        and {op.magnitude for op in ops.ops} == {9}
        and {op.magnitude_std for op in ops.ops} == {0.5}
    )
    assert {op.kwargs["resample"] for op in ops.ops} == {Image.Resampling.BICUBIC}
    assert "PosterizeIncreasing" in {op.name for op in ops.ops}
    assert (erase.probability, erase.per_pixel, erase.max_count) == (0.25, True, 1)


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m10-inc1", "original", "augmix-m10-w3"])
def test_the_strongest_augmentation_leaves_an_image(policy: str) -> None:
    transform = train_transform(RGB, TrainSection(epochs=1, auto_augment=policy))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    for seed in range(150):
        with seeded(seed):
            assert transform(image).isfinite().all()
    ops = [op for t in transform.transform.transforms for op in getattr(t, "ops", ()) if "Posterize" in op.name]
    for op in ops:
        assert np.asarray(op.aug_fn(image, 0)).any()


def test_colour_jitter_reaches_timm_where_nothing_overrules_it() -> None:
    from torchvision.transforms import ColorJitter

    steps = train_transform(RGB, TrainSection(color_jitter=0.4)).transform.transforms  # type: ignore[attr-defined]
    (jitter,) = (t for t in steps if isinstance(t, ColorJitter))
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.6, 1.4) and jitter.hue is None


def test_a_batch_is_converted_to_what_another_model_wants() -> None:
    image = Image.effect_noise((24, 16), 90).convert("RGB")
    other = replace(RGB, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), crop_pct=RGB.crop_pct)
    mine, theirs = eval_transform(RGB)(image)[None], eval_transform(other)(image)[None]
    assert torch.allclose(converter(RGB, other)(mine), theirs, atol=1e-5)
    assert torch.allclose(converter(other, RGB)(theirs), mine, atol=1e-5)
    assert converter(RGB, replace(RGB, crop_pct=0.5, interpolation="bicubic"))(mine) is mine
    larger = replace(other, input_size=(3, 32, 48))
    ramp = torch.linspace(0, 1, 24).expand(1, 3, 16, 24)
    resized = converter(replace(other, input_size=(3, 16, 24)), larger)(ramp)
    assert resized.shape == (1, 3, 32, 48) and torch.allclose(resized.mean(), ramp.mean(), atol=1e-3)


def test_channels_are_not_converted() -> None:
    with pytest.raises(DataError, match="^images of 1 channels cannot be converted to 3 channels$"):
        converter(GREY, RGB)
