"""What is timed: the models that were named, and the originals of those that were cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from slimvit.config.recipe import ModelSection
from slimvit.io import saved_model
from slimvit.io.create import create_model
from slimvit.io.embedded import EMBEDDED
from slimvit.io.export import onnx_file
from slimvit.io.load import pinned_name, saved_folder
from slimvit.io.open import open_model
from slimvit.measure.flops.count import count_macs, input_size_of
from slimvit.measure.flops.parts import count_params
from slimvit.models.base import TimmModule
from slimvit.models.insert_dense import dense_mix
from slimvit.models.registry import attention_blocks, model_name, plan_of
from slimvit.utils.errors import ModelError, StoreError
from slimvit.utils.progress import log
from slimvit.workflows.run_folder import recipe_of


@dataclass(frozen=True)
class BenchModel:
    """A model that is timed."""

    name: str
    model: nn.Module
    build: Callable[[], nn.Module]
    """Builds it anew; can be sent to another process."""
    input_size: tuple[int, int, int]
    """An image [C, H, W]."""
    params: int | None
    """None where it is not known; so is the next."""
    macs: int | None
    original: str | None = None
    """Name of the model it was cut from."""
    folder: Path | None = None
    """The run folder that its timings belong to."""
    precision: str | None = None
    """What an ONNX file computes in, since it was written; None takes what a setting asks for."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of what runs it besides torch."""

    @property
    def is_file(self) -> bool:
        """An ONNX file, which ONNX Runtime runs as it was written: on the CPU, in its own precision, uncompiled."""
        return self.precision is not None

    def takes(self, precision: str, compiled: bool) -> bool:
        """Whether it takes part in a setting."""
        return not self.is_file or (precision, compiled) == ("fp32", False)

    @property
    def widths(self) -> tuple[int, ...]:
        """attn_dim of every block that has heads."""
        views = attention_blocks(self.model)
        return tuple(v.attn.num_heads * v.head_dim for v in views if v.attn.num_heads)


def open_bench_models(names: Sequence[str], img_size: int | None = None) -> list[BenchModel]:
    """The models, each original once and before what was cut from it; ONNX files last.

    An original is the uncut form of a saved model: the same timm model, arguments, classes and input size, with random
    weights, which take as long as any. A model that was named and is that already is not built twice.
    Raises `ModelError` for a name given twice.
    """
    _check_names(names)
    given = {name: _given(name, img_size) for name in names}
    known = {_key(c.model): c.name for c in given.values() if not is_cut(c.model)}
    found: list[BenchModel] = []
    for given_model in given.values():
        if is_cut(given_model.model):
            key = _key(given_model.model)
            if key not in known:
                found.append(_original(given_model, [c.name for c in (*given.values(), *found)]))
                known[key] = found[-1].name
            given_model = replace(given_model, original=known[key])
        found.append(given_model)
    return sorted(found, key=lambda c: (c.is_file, c.original is not None))


def _given(name: str, img_size: int | None) -> BenchModel:
    if Path(name).suffix == ".onnx":
        return _onnx_bench_model(name, img_size)
    return _bench_model(name, partial(open_bench_model, pinned_name(name), img_size), _run_folder(name))


def open_bench_model(name: str, img_size: int | None) -> nn.Module:
    """A saved model with its weights, any other with random ones: of timm's, nothing is fetched."""
    section = ModelSection(name=name, img_size=img_size, pretrained=saved_folder(name) is not None)
    try:
        return open_model(section)
    except (RuntimeError, AssertionError) as error:  # what timm and torch raise for a size that cannot be
        if img_size is None:
            raise
        raise ModelError(f"{name}: --img-size {img_size} does not fit it: {str(error).splitlines()[0]}") from None


def open_uncut(name: str, args: dict[str, Any]) -> nn.Module:
    """The timm model of a description."""
    return create_model(name, pretrained=False, args=args)


def is_cut(model: TimmModule) -> bool:
    """Whether units are gone or dense attention has come."""
    try:
        return plan_of(model).is_cut or dense_mix(model) is not None
    except ModelError:  # of no family that slimvit cuts
        return False


def _check_names(names: Sequence[str]) -> None:
    places = [str((saved_folder(name) or Path(name)).resolve()) for name in names]
    twice = [name for i, name in enumerate(names) if places[i] in places[:i]]
    if twice:
        raise ModelError(f"{twice[0]}: was named before; name every model once")


def _run_folder(name: str) -> Path | None:
    return Path(name) if saved_model.is_saved(name) and name not in EMBEDDED else None


def _bench_model(name: str, build: Callable[[], nn.Module], folder: Path | None = None) -> BenchModel:
    model = build()
    try:
        size = input_size_of(model)
        macs = count_macs(model, size).total
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    return BenchModel(name, model, build, size, count_params(model), macs, folder=folder)


def _onnx_bench_model(name: str, img_size: int | None) -> BenchModel:
    """Its cost and precision are known of a file that slimvit wrote."""
    build = partial(onnx_file.load_onnx, name)
    model = build()
    sides = [*model.input_size[1:]]
    if img_size is not None and sides != [img_size, img_size]:
        raise ModelError(f"{name}: takes images of {sides[0]}x{sides[1]} pixels alone; drop --img-size {img_size}")
    if model.batch not in (None, 1):
        raise ModelError(
            f"{name}: takes {model.batch} images at a time, but one and growing batches are timed; export it with "
            "--dynamic-batch"
        )
    if model.batch == 1:
        log(f"{name}: takes one image at a time, so a batch is as many passes")
    params, macs = (int(known) if (known := model.label.get(k, "")).isdecimal() else None for k in ("params", "macs"))
    precision = model.label.get("precision", "as written")
    return BenchModel(name, model, build, model.input_size, params, macs, precision=precision, versions=model.versions)


def _original(cut: BenchModel, taken: Sequence[str]) -> BenchModel:
    source = saved_model.description_of(cut.model)
    recipe = None if cut.folder is None else recipe_of(cut.folder)
    known_as = model_name(cut.model) if recipe is None or saved_model.is_saved(recipe.model.name) else recipe.model.name
    name = f"{known_as} (original)"
    if name in taken:
        name = f"{known_as} (original of {cut.name})"
    return _bench_model(name, partial(open_uncut, source.name, source.args))


def _key(model: TimmModule) -> str:
    """What models have in common that were cut from the same one."""
    try:
        source = saved_model.description_of(model)
    except StoreError:  # no description: nothing was cut from it
        return f"{id(model)}"
    return json.dumps([source.name, source.args], sort_keys=True)
