"""timm's own repositories on the Hub: config.json describes the network, model.safetensors holds the weights.

config.json is checked entry by entry, so that it cannot make timm read or fetch another file. No pickle is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slimvit.config.arguments import defects_of_arguments
from slimvit.config.preprocessing import defects_of_preprocessing
from slimvit.io import slim_file, weight_file
from slimvit.io.hub import fetch
from slimvit.io.hub.name import hub_name
from slimvit.models.shapes import shapes_alone
from slimvit.utils.errors import ModelError, SlimvitError
from slimvit.utils.reading import MOST, Unreadable, read_json

CONFIG = "config.json"


class HubPreprocessing(BaseModel):
    """Preprocessing entries of timm's pretrained_cfg; others are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    input_size: tuple[int, int, int] | None = None
    interpolation: str | None = Field(None, max_length=20)
    crop_pct: float | None = Field(None, gt=0, le=10)
    crop_mode: str | None = Field(None, max_length=20)
    mean: tuple[float, ...] | None = Field(None, max_length=64)
    std: tuple[float, ...] | None = Field(None, max_length=64)


@dataclass(frozen=True)
class TimmRepo:
    """The model that a repository describes."""

    architecture: str
    args: dict[str, Any]
    """Arguments of timm's constructor."""
    cfg: dict[str, Any]
    """Entries of timm's pretrained_cfg."""
    num_classes: int | None
    class_names: tuple[str, ...]
    weights: Path | None
    """The fetched weight file; None if it was not requested."""


def timm_repo(name: str, weights: bool) -> TimmRepo:
    """Read the description of a timm model on the Hub, and fetch its weights if requested.

    Args:
        name: `hf-hub:user/name[@revision]`.
        weights: Whether to fetch the weights.

    Raises:
        ModelError: The repository holds no timm model, or its weights are not safetensors.
    """
    listing, file = fetch.find(hub_name(name), (slim_file.DESCRIPTION, CONFIG))
    if file != CONFIG:
        raise ModelError(f"{name}: holds a model saved by slimvit; load it with slimvit.load")
    folder = fetch.fetch(listing, {CONFIG: MOST}, hub_name(name).branch)
    repo = _read(name, folder / CONFIG)
    if not weights:
        return repo
    if not listing.has(weight_file.WEIGHTS):
        raise ModelError(
            f"{name}: holds no {weight_file.WEIGHTS}, and other weight formats are not read; give your own with "
            "--weights FILE, or --no-pretrained"
        )
    folder = fetch.fetch(listing, {weight_file.WEIGHTS: _largest(name, repo)})
    return TimmRepo(**(vars(repo) | {"weights": folder / weight_file.WEIGHTS}))


def _read(name: str, path: Path) -> TimmRepo:
    """Read config.json, in timm's present or earlier layout."""
    try:
        config: Any = read_json(path)
    except Unreadable as error:
        raise ModelError(f"{name}: {CONFIG} is damaged: {error}") from None
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        named = f"names the architecture {str(architecture)[:60]!r}" if architecture else "names no architecture"
        raise ModelError(
            f"{name}: is neither a model of slimvit ({slim_file.DESCRIPTION}) nor one of timm {timm.__version__}: "
            f"its {CONFIG} {named}"
        )
    pretrained_cfg, args = config.get("pretrained_cfg", config), config.get("model_args") or {}
    if not isinstance(pretrained_cfg, dict) or not isinstance(args, dict):
        raise ModelError(f"{name}: {CONFIG} is damaged: pretrained_cfg and model_args must be mappings")
    if defects := defects_of_arguments(args):
        raise ModelError(f"{name}: {CONFIG} is refused: {'; '.join(defects)}")
    try:
        cfg = HubPreprocessing.model_validate(pretrained_cfg).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(f"{name}: {CONFIG} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    sizes = {"img_size": list(cfg.get("input_size", ()))}
    if defects := defects_of_arguments(sizes) + defects_of_preprocessing(cfg):
        raise ModelError(f"{name}: {CONFIG} is refused: {'; '.join(defects)}")
    classes = config.get("num_classes", pretrained_cfg.get("num_classes"))
    classes = classes if isinstance(classes, int) and 0 <= classes <= 10**6 else None
    names = config.get("label_names") or pretrained_cfg.get("label_names") or ()
    are_valid = isinstance(names, list) and len(names) == classes and all(isinstance(n, str) for n in names)
    args = {k: v for k, v in args.items() if k != "num_classes"}
    return TimmRepo(architecture, args, cfg, classes, tuple(names) if are_valid else (), None)


def _largest(name: str, repo: TimmRepo) -> int:
    """Upper bound of the weights in bytes, from the network on the meta device."""
    classes = {} if repo.num_classes is None else {"num_classes": repo.num_classes}
    try:
        with shapes_alone():
            model = timm.create_model(repo.architecture, pretrained_cfg_overlay=repo.cfg, **(repo.args | classes))
        weight_file.check_buffers(model)
    except SlimvitError as error:
        raise ModelError(f"{name}: {error}") from None
    except Exception as error:  # the arguments come from a file, so any error is possible
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{name}: timm cannot build {repo.architecture} with {repo.args}: {reason}") from None
    return weight_file.largest_file(model)
