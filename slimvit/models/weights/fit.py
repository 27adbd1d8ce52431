"""What a weight file decides of the network that it is loaded into: input size, windows, channels, classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from slimvit.models.shapes import shapes_alone
from slimvit.models.weights.geometry import adapted_stem, input_size_in, stem_weight, windows_in
from slimvit.utils.errors import ModelError

DEFAULT_SIZE = (3, 224, 224)
"""Input size of a model for which timm has none."""


@dataclass(frozen=True)
class Fitted:
    """Weights and arguments of `create_model` that go together."""

    tensors: dict[str, Tensor]
    args: dict[str, Any]
    """The given arguments, and those that follow from the weights."""
    channels: int
    """Channels of the images that `tensors` are for."""
    classes: int
    """Classes of their classifier; 0 without one."""
    notes: tuple[str, ...]
    """What was taken from the weights or assumed, each in a few words."""


def fit(
    tensors: dict[str, Tensor], args: dict[str, Any], cfg: Any, build: Callable[[dict[str, Any]], nn.Module]
) -> Fitted:
    """Let weights decide what the arguments leave open.

    Args:
        tensors: The weights under timm's names.
        args: The arguments that are given.
        cfg: timm's pretrained_cfg of the model, if it has one.
        build: The model for such arguments, without weights.

    Raises:
        ModelError: The weights are for images of a number of channels that slimvit does not read.
    """
    size, size_note = _size(tensors, args, cfg)
    args = args | size
    args |= _windows(tensors, args, build)
    channels, channel_note = _channels(tensors, args, cfg)
    args = args | channels
    wanted = args.get("in_chans", _default(cfg)[0])
    notes = tuple(filter(None, (size_note, channel_note)))
    return Fitted(_with_stem(tensors, wanted), args, wanted, _classes(tensors, cfg), notes)


def _default(cfg: Any) -> tuple[int, int, int]:
    """Channels, height and width that timm's model takes."""
    return (cfg.input_size if cfg else None) or DEFAULT_SIZE


def _size(tensors: dict[str, Tensor], args: dict[str, Any], cfg: Any) -> tuple[dict[str, Any], str]:
    """The input size that the weights were trained at, where none is given, and what is said of it."""
    found, asked = input_size_in(tensors), args.get("img_size")
    if asked is not None:
        side = max(asked) if isinstance(asked, list | tuple) else asked
        other = f", trained at {found.pixels} px ({found.source})" if found and found.pixels != side else ""
        return {}, f"input {asked} px as given{other}"
    if found is None:
        return {}, f"input size not in the file, assumed {_default(cfg)[-1]} px (--img-size)"
    return {"img_size": found.pixels}, f"input {found.pixels} px from {found.source}"


def _windows(tensors: dict[str, Tensor], args: dict[str, Any], build: Callable[..., nn.Module]) -> dict[str, Any]:
    """The windows of a Swin's weights, where none are given and timm would build others."""
    windows = windows_in(tensors)
    if "window_size" in args or not windows or not any(name.startswith("layers.") for name in tensors):
        return {}
    with shapes_alone():
        built = build(args)
    usual = windows_in(built.state_dict() | dict(built.named_buffers()))
    return {"window_size": windows[0]} if usual and usual[0] != windows[0] else {}


def _channels(tensors: dict[str, Tensor], args: dict[str, Any], cfg: Any) -> tuple[dict[str, Any], str]:
    """The channels of the stem, where none are given, and what is said of them."""
    stem, usual, given = stem_weight(tensors), _default(cfg)[0], args.get("in_chans")
    found = usual if stem is None else stem.shape[1]
    if given is not None:
        return {}, f"stem for {found} channels adapted to {given} as timm does" if found != given else ""
    if found not in (1, 3):
        raise ModelError(
            f"its stem takes images of {found} channels, and images here have 1 or 3; adapt it with --model-arg "
            "in_chans=3 (args: {in_chans: 3} in a recipe)"
        )
    if found == usual:
        return {}, ""
    return {"in_chans": found}, f"{found} channel, so images are turned to grey (--model-arg in_chans={usual})"


def _with_stem(tensors: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    stem = stem_weight(tensors)
    return {name: adapted_stem(t, channels) if t is stem else t for name, t in tensors.items()}


def _classes(tensors: dict[str, Tensor], cfg: Any) -> int:
    """The number of classes that the weights have a classifier for; 0 without one."""
    named = (cfg.classifier if cfg else None) or "head"
    classifiers = [named] if isinstance(named, str) else list(named)
    found = (tensors[f"{n}.weight"] for n in (*classifiers, "head", "head.fc") if f"{n}.weight" in tensors)
    return next((weight.shape[0] for weight in found), 0)
