"""slim.json: the description of a saved model, from which its network is built again. The weights lie beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import nn

from slimvit.config.arguments import defects_of_arguments
from slimvit.config.choices import DenseMix
from slimvit.config.preprocessing import defects_of_preprocessing
from slimvit.io.embedded import EMBEDDED
from slimvit.measure.flops.count import input_size_of
from slimvit.models.base import TimmModule
from slimvit.models.build import ModelSource
from slimvit.models.plan import SlimPlan
from slimvit.models.registry import architecture_of, arguments_of
from slimvit.utils.errors import PlanError, StoreError, nearest
from slimvit.utils.reading import read_errors, read_json

FORMAT_VERSION = 1
DESCRIPTION = "slim.json"


class SlimFile(BaseModel):
    """The content of slim.json."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    format_version: int
    model: str
    """Architecture name in timm."""
    name: str | None = None
    """Name of an embedded model; None for other models."""
    model_args: dict[str, Any]
    """Arguments of timm's create_model, including number of classes and image size."""
    num_classes: int
    own_class: str | None = None
    """`module.Class` of a model of the user's own class, which timm cannot build; None for a timm model."""
    plan: dict[str, Any]
    dense: DenseMix | None = None
    """Kind of dense attention; None without."""
    preprocessing: dict[str, Any] = {}
    """Result of timm's resolve_model_data_config: input size, mean, std, interpolation, crop."""
    class_names: list[str] = []
    weights_sha256: str

    @model_validator(mode="after")
    def _check_values(self) -> SlimFile:
        if defects := defects_of_arguments(self.model_args) + defects_of_preprocessing(self.preprocessing):
            raise ValueError("; ".join(defects))
        if self.model_args.get("num_classes", self.num_classes) != self.num_classes:
            raise ValueError(f"num_classes is {self.num_classes}, but model_args has {self.model_args['num_classes']}")
        return self


def is_saved(folder: str | Path) -> bool:
    """Return whether a folder holds a saved model."""
    return (Path(folder) / DESCRIPTION).is_file()


def read_description(folder: Path) -> SlimFile:
    """Read and check slim.json.

    Raises:
        StoreError: The file is missing, damaged, or of another format version.
    """
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder{nearest(str(folder), EMBEDDED)}")
    missing = f"{folder}: holds no {DESCRIPTION}, so it is no saved model"
    with read_errors(StoreError, missing=missing, unreadable=f"{path}: damaged"):
        data = read_json(path)
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise StoreError(f"{path}: format_version is {version!r}, this slimvit reads {FORMAT_VERSION}")
    try:
        return SlimFile.model_validate(data)
    except ValidationError as error:
        defects = [": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"]))) for e in error.errors()]
        raise StoreError(f"{path}: damaged: {'; '.join(defects)}") from None


def plan_in(info: SlimFile, folder: Path) -> SlimPlan:
    """Return the plan of a description; raises `StoreError` for a damaged plan."""
    try:
        return SlimPlan.from_json(info.plan, f"{folder / DESCRIPTION}: plan")
    except PlanError as error:
        raise StoreError(str(error)) from None


def own_class(model: nn.Module) -> str | None:
    """Return `module.Class` of a model of the user's own class; None for a model that timm builds by name.

    A class registered with timm by its own package counts as timm's.
    """
    cls, name = type(model), architecture_of(model)
    builder = timm.model_entrypoint(name).__module__ if timm.is_model(name) else "timm"
    packages = {module.partition(".")[0] for module in ("timm", "slimvit", builder)}
    return None if cls.__module__.partition(".")[0] in packages else f"{cls.__module__}.{cls.__qualname__}"


def description_of(model: TimmModule) -> ModelSource:
    """Return the timm name and the constructor arguments of the unpruned form of a model."""
    source = getattr(model, "slim_source", None)
    if source is None:
        cfg = getattr(model, "pretrained_cfg", None) or {}
        if not cfg.get("architecture"):
            raise StoreError(
                f"{type(model).__name__}: not built by timm's create_model, so it cannot be described; "
                "build it with slimvit.create_model"
            )
        source = ModelSource(cfg["architecture"], dict(getattr(model, "_model_args", {})))
    args = dict(source.args, num_classes=model.num_classes)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is not None:
        args["img_size"] = size[0] if size[0] == size[1] else list(size)
    args |= arguments_of(model)
    try:
        json.dumps(args)
    except TypeError:
        raise StoreError(f"{source.name}: its model arguments {args} cannot be written as JSON") from None
    if defects := defects_of_arguments(args):
        raise StoreError(f"{source.name}: cannot be described: {'; '.join(defects)}")
    return ModelSource(source.name, args)


def preprocessing_in(model: TimmModule) -> dict[str, Any]:
    """Return the configuration of timm's transforms as JSON data, with the model's present input size."""
    config = timm.data.resolve_model_data_config(model)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is not None:
        config["input_size"] = (input_size_of(model)[0], *size)  # timm before 1.0.25 keeps no in_chans
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}


def timm_config(preprocessing: dict[str, Any]) -> dict[str, Any]:
    """Return the preprocessing of a description as entries of timm's pretrained_cfg."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in preprocessing.items()}
