"""A timm model's own repository on the Hub: config.json describes the network, model.safetensors holds the weights.

The description is checked entry by entry: nothing in it makes timm read or fetch another file. No pickle is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slimvit.config.arguments import defects_of_arguments
from slimvit.io import saved_model
from slimvit.io.hub import fetch
from slimvit.io.hub.name import hub_name
from slimvit.utils.errors import ModelError, SlimvitError
from slimvit.utils.files import MOST, Unreadable, read_json

CONFIG = "config.json"


class HubPreprocessing(BaseModel):
    """Entries of timm's pretrained_cfg for preprocessing; other entries are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    input_size: tuple[int, int, int] | None = None
    interpolation: str | None = Field(None, max_length=20)
    crop_pct: float | None = Field(None, gt=0, le=10)
    crop_mode: str | None = Field(None, max_length=20)
    mean: tuple[float, ...] | None = Field(None, max_length=64)
    std: tuple[float, ...] | None = Field(None, max_length=64)


@dataclass(frozen=True)
class TimmRepo:
    """A repository's description of its model."""

    architecture: str
    args: dict[str, Any]
    """Arguments of timm's constructor."""
    cfg: dict[str, Any]
    """Entries of timm's pretrained_cfg."""
    num_classes: int | None
    class_names: tuple[str, ...]
    weights: Path | None
    """The weight file; None where it was not asked for."""


def timm_repo(name: str, weights: bool) -> TimmRepo:
    """Read the description of a timm model on the Hub, and fetch its weights if wanted.

    Args:
        name: `hf-hub:user/name[@revision]`.
        weights: Whether to fetch the weights.

    Raises:
        ModelError: The repository holds no timm model, or its weights are not safetensors.
    """
    found, file = fetch.find(hub_name(name), (saved_model.DESCRIPTION, CONFIG))
    if file != CONFIG:
        raise ModelError(f"{name}: holds a model saved by slimvit; load it with slimvit.load")
    folder = fetch.fetch(found, {CONFIG: MOST}, hub_name(name).branch)
    repo = _read(name, folder / CONFIG)
    if not weights:
        return repo
    if not found.has(saved_model.WEIGHTS):
        raise ModelError(
            f"{name}: brings no {saved_model.WEIGHTS}, and weights in another form are not read; give your own with "
            "--weights FILE, or --no-pretrained"
        )
    fetched = fetch.fetch(found, {saved_model.WEIGHTS: _largest(name, repo)})
    return TimmRepo(**(vars(repo) | {"weights": fetched / saved_model.WEIGHTS}))


def _read(name: str, path: Path) -> TimmRepo:
    """Read config.json in timm's present form or an earlier one."""
    try:
        config: Any = read_json(path)
    except Unreadable as error:
        raise ModelError(f"{name}: {CONFIG} is damaged: {error}") from None
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        named = f"names the architecture {str(architecture)[:60]!r}" if architecture else "names no architecture"
        raise ModelError(
            f"{name}: is neither a model of slimvit ({saved_model.DESCRIPTION}) nor one of timm {timm.__version__}: "
            f"its {CONFIG} {named}"
        )
    known, args = config.get("pretrained_cfg", config), config.get("model_args") or {}
    if not isinstance(known, dict) or not isinstance(args, dict):
        raise ModelError(f"{name}: {CONFIG} is damaged: pretrained_cfg and model_args must be mappings")
    if defects := defects_of_arguments(args):
        raise ModelError(f"{name}: {CONFIG} is not taken: {'; '.join(defects)}")
    try:
        cfg = HubPreprocessing.model_validate(known).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(f"{name}: {CONFIG} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    sizes = {"input_size": cfg.get("input_size", ())}
    if defects := defects_of_arguments({"img_size": list(sizes["input_size"])}):
        raise ModelError(f"{name}: {CONFIG} is not taken: {'; '.join(defects)}")
    classes = config.get("num_classes", known.get("num_classes"))
    classes = classes if isinstance(classes, int) and 0 <= classes <= 10**6 else None
    names = config.get("label_names") or known.get("label_names") or ()
    alike = isinstance(names, list) and len(names) == classes and all(isinstance(n, str) for n in names)
    args = {k: v for k, v in args.items() if k != "num_classes"}
    return TimmRepo(architecture, args, cfg, classes, tuple(names) if alike else (), None)


def _largest(name: str, repo: TimmRepo) -> int:
    """Most bytes that the weights can have, from the network on the meta device."""
    classes = {} if repo.num_classes is None else {"num_classes": repo.num_classes}
    try:
        with torch.device("meta"):
            model = timm.create_model(repo.architecture, pretrained_cfg_overlay=repo.cfg, **(repo.args | classes))
        saved_model.check_tables(model)
    except SlimvitError as error:
        raise ModelError(f"{name}: {error}") from None
    except Exception as error:  # arguments out of a file: whatever a constructor makes of them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{name}: timm cannot build {repo.architecture} with {repo.args}: {reason}") from None
    return saved_model.largest_file(model)
