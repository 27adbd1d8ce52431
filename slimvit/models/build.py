"""Building timm models: names, pretrained weights, weight files, and one-line errors where something does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import nn

from slimvit.models.base import TimmModule
from slimvit.utils.errors import ModelError, nearest
from slimvit.utils.plugins import load_plugins

TIMM_MINIMUM = (1, 0, 23)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")


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
    img_size: int | None = None,
    num_classes: int | None = None,
    args: dict[str, Any] | None = None,
    cfg: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a timm model in eval mode.

    Args:
        name: The timm model.
        pretrained: Whether to load timm's pretrained weights.
        weights: A .safetensors or .pth file to load instead, through timm's own checkpoint filters.
        img_size: Side of the square images in pixels.
        num_classes: None keeps the classifier that comes with the weights (none, when they have none); another number
            gives a new, untrained classifier.
        args: Further arguments of timm's constructor.
        cfg: Entries of timm's pretrained_cfg, such as mean and std, that replace timm's own.

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
        model = _with_weights(name, Path(weights), kwargs, cfg or {})
    elif pretrained:
        model = _pretrained(name, kwargs)
    else:
        classes = {} if num_classes is None else {"num_classes": num_classes}
        model = _build(name, kwargs | classes, **({"pretrained_cfg_overlay": cfg} if cfg else {}))
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
        model.untrained_classifier = num_classes > 0
    model.slim_source = ModelSource(name, kwargs)
    return model.eval()


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


def _with_weights(name: str, file: Path, kwargs: dict[str, Any], cfg_entries: dict[str, Any]) -> TimmModule:
    """The model with a file's weights and the classifier that the file has."""
    state = read_weights(file)
    cfg = timm.get_pretrained_cfg(name)
    classifiers = (cfg.classifier if cfg else None) or "head"
    names = [classifiers] if isinstance(classifiers, str) else list(classifiers)
    tensors = [f"{n}.weight" for n in (*names, "head", "head.fc")]
    classes = next((state[k].shape[0] for k in tensors if k in state), 0)
    overlay = cfg_entries | {"state_dict": state, "num_classes": classes, "label_offset": 0, "custom_load": False}
    try:
        return _build(name, kwargs, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError, ValueError, IndexError) as error:
        raise ModelError(f"{file}: these weights do not fit {name}: {_mismatch(error)}") from None


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Read the state dict of a weight file, EMA first, also inside `state_dict` or `model`. No code is unpickled.

    Raises:
        ModelError: The file is missing, unreadable, or holds no tensors.
    """
    if not file.is_file():
        raise ModelError(f"{file}: no such weight file")
    if file.suffix not in SUFFIXES:
        raise ModelError(f"{file}: weights must be one of {', '.join(SUFFIXES)}")
    try:
        state = load_state_dict(str(file), use_ema=True, weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise ModelError(f"{file}: not a readable weight file: {_line(error)}") from None
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise ModelError(f"{file}: holds no weights (expected tensors by name, as state_dict, model or EMA)")
    return tensors


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
