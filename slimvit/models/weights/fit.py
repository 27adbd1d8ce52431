"""Arguments of a network that follow from its weights: input size, windows, input channels, classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from slimvit.models.shapes import shapes_alone
from slimvit.models.weights.geometry import adapted_stem, input_size_in, stem_weight, windows_in
from slimvit.utils.errors import ModelError

DEFAULT_SIZE = (3, 224, 224)
"""Channels, height and width of the input of a model for which timm has none."""


@dataclass(frozen=True)
class FittedWeights:
    """Weights, and the arguments of `create_model` for a network that they fit."""

    tensors: dict[str, Tensor]
    args: dict[str, Any]
    """The given arguments, and those that follow from the weights."""
    channels: int
    """Input channels of the network."""
    classes: int
    """Classes of the classifier; 0 without a classifier."""
    notes: tuple[str, ...]
    """Clauses about arguments that follow from the weights or were assumed."""


def fit_weights(
    tensors: dict[str, Tensor], args: dict[str, Any], cfg: Any, build: Callable[[dict[str, Any]], nn.Module]
) -> FittedWeights:
    """Complete the arguments of a network from the shapes of its weights.

    Args:
        tensors: The weights under timm's names.
        args: The given arguments.
        cfg: timm's pretrained_cfg of the model, if it has one.
        build: Builds the model from arguments, without weights.

    Raises:
        ModelError: The weights are for images with neither 1 nor 3 channels, and no number of channels is given.
    """
    size, size_note = _size(tensors, args, cfg)
    args = args | size
    args |= _windows(tensors, args, build)
    channels, channel_note = _channels(tensors, args, cfg)
    args = args | channels
    in_chans = args.get("in_chans", _default(cfg)[0])
    notes = tuple(filter(None, (size_note, channel_note)))
    return FittedWeights(_with_stem(tensors, in_chans), args, in_chans, _classes(tensors, cfg), notes)


def _default(cfg: Any) -> tuple[int, int, int]:
    """Channels, height and width of the default input."""
    return (cfg.input_size if cfg else None) or DEFAULT_SIZE


def _size(tensors: dict[str, Tensor], args: dict[str, Any], cfg: Any) -> tuple[dict[str, Any], str]:
    """The input size of the training where none is given, and a clause about it."""
    trained, given = input_size_in(tensors), args.get("img_size")
    if given is not None:
        side = max(given) if isinstance(given, list | tuple) else given
        other = f", trained at {trained.pixels} px ({trained.source})" if trained and trained.pixels != side else ""
        return {}, f"input {given} px as given{other}"
    if trained is None:
        return {}, f"input size not in the file, assumed {_default(cfg)[-1]} px (--img-size)"
    return {"img_size": trained.pixels}, f"input {trained.pixels} px from {trained.source}"


def _windows(tensors: dict[str, Tensor], args: dict[str, Any], build: Callable[..., nn.Module]) -> dict[str, Any]:
    """The window size of a Swin's weights, where none is given and timm's default differs."""
    windows = windows_in(tensors)
    if "window_size" in args or not windows or not any(name.startswith("layers.") for name in tensors):
        return {}
    with shapes_alone():
        model = build(args)
    default = windows_in(model.state_dict() | dict(model.named_buffers()))
    return {"window_size": windows[0]} if default and default[0] != windows[0] else {}


def _channels(tensors: dict[str, Tensor], args: dict[str, Any], cfg: Any) -> tuple[dict[str, Any], str]:
    """The input channels of the stem where none are given, and a clause about them."""
    stem, default, given = stem_weight(tensors), _default(cfg)[0], args.get("in_chans")
    channels = default if stem is None else stem.shape[1]
    if given is not None:
        return {}, f"in_chans of the stem adapted from {channels} to {given} as timm does" if channels != given else ""
    if channels not in (1, 3):
        raise ModelError(
            f"its stem is for images of {channels} channels, and slimvit reads 1 or 3; adapt it with --model-arg "
            "in_chans=3 (args: {in_chans: 3} in a recipe)"
        )
    if channels == default:
        return {}, ""
    return {"in_chans": channels}, f"{channels} channel, so images are turned to grey (--model-arg in_chans={default})"


def _with_stem(tensors: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    stem = stem_weight(tensors)
    return {name: adapted_stem(t, channels) if t is stem else t for name, t in tensors.items()}


def _classes(tensors: dict[str, Tensor], cfg: Any) -> int:
    """The number of classes of the classifier; 0 without a classifier."""
    names = (cfg.classifier if cfg else None) or "head"
    classifiers = [names] if isinstance(names, str) else list(names)
    weights = (tensors.get(f"{name}.weight") for name in (*classifiers, "head", "head.fc"))
    return next((weight.shape[0] for weight in weights if weight is not None), 0)
