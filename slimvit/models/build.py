"""Building timm models: names, pretrained weights, weight files, and one-line errors where something does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from slimvit.config.preprocessing import defects_of_preprocessing
from slimvit.models.base import TimmModule
from slimvit.models.weights.fit import DEFAULT_SIZE, fit_weights
from slimvit.models.weights.geometry import stem_weight
from slimvit.models.weights.layouts import layout_of
from slimvit.models.weights.sets import read_checkpoint
from slimvit.utils.errors import ModelError, nearest
from slimvit.utils.plugins import load_plugins
from slimvit.utils.progress import log

TIMM_MINIMUM = (1, 0, 23)
PREPROCESSING = {"mean": "--mean", "std": "--std", "interpolation": "--interpolation", "crop_pct": "--crop-pct"}
"""Preprocessing that no weight file holds -> its option."""
Tell = Callable[[str], None]
"""Prints a line for the user."""


@dataclass(frozen=True)
class ModelSource:
    """The timm name and the arguments of `create_model` that build a model again."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)


def check_timm(
    version: str = timm.__version__, minimum: tuple[int, ...] = TIMM_MINIMUM, needed_by: str = "slimvit"
) -> None:
    """Raise `ModelError` for a timm older than `minimum`, by default the first that knows head-pruned widths."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
    if numbers < minimum:
        wanted = ".".join(map(str, minimum))
        old = f"timm {version} is too old: {needed_by} needs timm >= {wanted}"
        raise ModelError(f"{old}; pip install -U 'timm>={wanted}'")


def is_timm_model(name: str) -> bool:
    """Return whether timm, or an installed plugin that registers models with timm, knows the name."""
    if not timm.is_model(name):
        load_plugins()
    return timm.is_model(name)


def check_known(name: str, more: Iterable[str] = ()) -> None:
    """Raise `ModelError` for a name that is no timm model, with the nearest names of timm and of `more`."""
    if not is_timm_model(name):
        close = nearest(name, [*more, *timm.list_models()])
        raise ModelError(f"{name}: no timm model of that name{close}; see `slimvit models`")


def build_model(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    img_size: int | None = None,
    num_classes: int | None = None,
    args: dict[str, Any] | None = None,
    cfg: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    described: bool = False,
) -> nn.Module:
    """Build a timm model in eval mode. Assumptions about a weight file are printed on stderr.

    Args:
        name: The timm model.
        pretrained: Whether to load timm's pretrained weights.
        weights: A .safetensors file or a checkpoint of torch.save to load instead, through timm's own filters.
        weights_key: Key of the set to load from a file with several, such as `state_dict_ema`.
        img_size: Side of the square images in pixels. None is the size of the training where it follows from the shapes
            of a weight file, and timm's default elsewhere.
        num_classes: None keeps the classifier that comes with the weights (none, when they have none); another number
            gives a new, untrained classifier.
        args: Further arguments of timm's constructor.
        cfg: Entries of timm's pretrained_cfg that replace timm's own.
        preprocessing: `mean`, `std`, `interpolation` and `crop_pct` of the training, as far as they are known.
        described: Whether `cfg` and `args` describe the weights, so that nothing is assumed.

    Raises:
        ModelError: An unknown name, arguments that timm refuses, or weights that do not fit.
    """
    check_timm()
    check_known(name)
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")) or "none for this model"
        raise ModelError(f"{name}: {_line(error)} timm knows {known}") from None
    kwargs = dict(args or {})
    if img_size is not None:
        kwargs["img_size"] = img_size
    if weights is not None:
        tell = _nothing if described else log
        model = _with_weights(name, Path(weights), weights_key, kwargs, dict(cfg or {}), tell)
        _tell_assumed(Path(weights), model, preprocessing or {}, tell)
    elif pretrained:
        model = _pretrained(name, kwargs)
    else:
        classes = {} if num_classes is None else {"num_classes": num_classes}
        model = _build(name, kwargs | classes, **({"pretrained_cfg_overlay": dict(cfg)} if cfg else {}))
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
        model.untrained_classifier = num_classes > 0
        model.class_names = ()
    model.slim_source = ModelSource(name, kwargs)
    return with_preprocessing(model, preprocessing or {}).eval()


def with_preprocessing(model: TimmModule, values: Mapping[str, Any]) -> TimmModule:
    """Replace entries of a model's preprocessing in place.

    Args:
        model: A timm model.
        values: `mean` and `std` (one number, or one per channel), `interpolation`, `crop_pct`.

    Raises:
        ModelError: A value is impossible, or the numbers are for another number of channels.
    """
    stem = getattr(getattr(model, "patch_embed", None), "proj", None)
    channels = getattr(stem, "in_channels", 3)
    defects = defects_of_preprocessing(values)
    defects += [
        f"{key} has {len(values[key])} numbers, but the images have {channels} channels"
        for key in ("mean", "std")
        if key in values and not defects and len(values[key]) not in (1, channels)
    ]
    if defects:
        raise ModelError(f"preprocessing: {'; '.join(defects)}")
    if values:
        found = {k: tuple(v) * (channels // len(v)) if k in ("mean", "std") else v for k, v in values.items()}
        model.pretrained_cfg = dict(model.pretrained_cfg, **found)
    return model


def _build(name: str, kwargs: dict[str, Any], **more: Any) -> TimmModule:
    try:
        return timm.create_model(name, **kwargs, **more)
    except TypeError as error:
        raise ModelError(f"{name}: timm does not take these model arguments {kwargs}: {_line(error)}") from None
    except AssertionError as error:
        raise ModelError(f"{name}: model arguments {kwargs} do not fit: {_line(error)}") from None


def _pretrained(name: str, kwargs: dict[str, Any]) -> TimmModule:
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise ModelError(
            f"{name}: timm has no pretrained weights for it; give your own with --weights FILE, or --no-pretrained"
        )
    try:
        return _build(name, kwargs, pretrained=True)
    except ModelError:
        raise
    except Exception as error:
        if _is_network(error):
            raise ModelError(
                f"{name}: its pretrained weights could not be fetched ({type(error).__name__}); check the network, or "
                "give --weights FILE, or --no-pretrained for random weights"
            ) from None
        if isinstance(error, RuntimeError):
            raise ModelError(
                f"{name}: its pretrained weights do not fit the model arguments {kwargs}: {_mismatch(error)}"
            ) from None
        raise


def _is_network(error: BaseException | None) -> bool:
    while error is not None:
        module = type(error).__module__.split(".")[0]
        if isinstance(error, OSError) or module in ("httpx", "httpx2", "requests", "urllib3", "huggingface_hub"):
            return True
        error = error.__cause__ or error.__context__
    return False


def _with_weights(
    name: str, file: Path, key: str | None, kwargs: dict[str, Any], known: dict[str, Any], tell: Tell
) -> TimmModule:
    """The model with a file's weights and classifier; arguments that follow from the weights are added to `kwargs`."""
    checkpoint = read_checkpoint(file, key)
    cfg = timm.get_pretrained_cfg(name)
    try:
        fitted = fit_weights(checkpoint.weights.tensors, kwargs, cfg, lambda args: _build(name, args))
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None
    kwargs |= fitted.args
    size = known.get("input_size") or (cfg.input_size if cfg else DEFAULT_SIZE)
    source = {"state_dict": fitted.tensors, "num_classes": fitted.classes, "label_offset": 0, "custom_load": False}
    overlay = known | source | {"input_size": (fitted.channels, *size[1:])}
    if stem_weight(fitted.tensors) is not None:
        overlay["first_conv"] = None  # the stem is adapted already
    try:
        model = _build(name, kwargs, pretrained=True, num_classes=fitted.classes, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError, ValueError, IndexError) as error:
        raise ModelError(_misfit(name, file, fitted.tensors, error)) from None
    model.pretrained_cfg = dict(model.pretrained_cfg, first_conv=cfg.first_conv if cfg else None)
    tell(f"{file}: {'; '.join(filter(None, (*fitted.notes, checkpoint.summary())))}")
    _name_classes(model, file, checkpoint.class_names, tell)
    return model


def _name_classes(model: TimmModule, file: Path, names: tuple[str, ...], tell: Tell) -> None:
    """Give the model the class names of the file, where it has one per class."""
    if len(names) == model.num_classes:
        model.class_names = names
    elif names:
        tell(f"{file}: names {len(names)} classes for a classifier of {model.num_classes}, so its names are not used")


def _tell_assumed(file: Path, model: TimmModule, given: Mapping[str, Any], tell: Tell) -> None:
    """Print the preprocessing that is assumed of a weight file."""
    cfg = timm.data.resolve_model_data_config(model)
    if assumed := [key for key in PREPROCESSING if key not in given]:
        values = ", ".join(f"{key} {_short(cfg[key])}" for key in assumed)
        options = " ".join(PREPROCESSING[key] for key in assumed)
        tell(f"{file}: assumed of its images: {values} (to change: {options})")


def _nothing(_: str) -> None:
    """Print nothing."""


def _short(value: Any) -> str:
    return ",".join(f"{v:.3g}" for v in value) if isinstance(value, tuple | list) else str(value)


def _misfit(name: str, file: Path, state: dict[str, Tensor], error: Exception) -> str:
    """The reason that weights do not fit, with advice for weights of another library."""
    if layout := layout_of(state):
        return (
            f"{file}: these weights do not fit {name}: their names are those of {layout}; rename them to timm's "
            f"(docs/guides/weights.md), or train timm's {name}"
        )
    advice = "name the model they belong to, or the arguments it was built with: --model-arg NAME=VALUE"
    return f"{file}: these weights do not fit {name}: {_mismatch(error)}; {advice}"


def _mismatch(error: Exception) -> str:
    """torch's multi-line report of missing, unexpected and wrongly shaped tensors, in one line."""
    if isinstance(error, KeyError):
        return f"tensor {error.args[0]} is missing"
    text = str(error)
    clauses = []
    for word, label in (("Missing", "missing"), ("Unexpected", "unexpected")):
        match = re.search(rf"{word} key\(s\) in state_dict: (.*?)\. ?(?:\n|$)", text, re.S)
        if match:
            keys = re.findall(r'"([^"]+)"', match.group(1))
            clauses.append(f"{label} {', '.join(keys[:5])}" + (f" and {len(keys) - 5} more" if len(keys) > 5 else ""))
    sizes = re.findall(r"size mismatch for (\S+): .*?torch.Size\((.*?)\).*?torch.Size\((.*?)\)", text)
    clauses += [f"{name} has shape {given}, expected {wanted}" for name, given, wanted in sizes[:5]]
    if len(sizes) > 5:
        clauses.append(f"{len(sizes) - 5} more of other shapes")
    return "; ".join(clauses) or _line(error)


def _line(error: Exception) -> str:
    """The first line of the error, or its type where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
