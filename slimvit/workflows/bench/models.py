"""The models of a benchmark: the named ones, and the originals of those that were cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from slimvit.config.recipe import ModelSection
from slimvit.io import slim_file
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
    """Builds the model again; picklable."""
    input_size: tuple[int, int, int]
    """[C, H, W]."""
    params: int | None
    """None for an ONNX file of another program."""
    macs: int | None
    """None for an ONNX file of another program."""
    original: str | None = None
    """Name of the model it was cut from."""
    folder: Path | None = None
    """The run folder that its timings are saved in."""
    precision: str | None = None
    """Precision of an ONNX file; None for a torch model, which takes that of the setting."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the runtime packages besides torch."""

    @property
    def is_file(self) -> bool:
        """Whether it is an ONNX file, which ONNX Runtime runs on the CPU, in its own precision, uncompiled."""
        return self.precision is not None

    def takes(self, precision: str, compiled: bool) -> bool:
        """Whether the model can be timed in a setting."""
        return not self.is_file or (precision, compiled) == ("fp32", False)

    @property
    def widths(self) -> tuple[int, ...]:
        """Attention width (heads x head_dim) of every block that has heads."""
        views = attention_blocks(self.model)
        return tuple(v.attn.num_heads * v.head_dim for v in views if v.attn.num_heads)


def open_bench_models(names: Sequence[str], img_size: int | None = None) -> list[BenchModel]:
    """Open the named models and the originals of the pruned ones: originals first, ONNX files last.

    An original is the uncut timm model of the same arguments, classes and input size, with random weights; weights have
    no influence on speed. An original that was named itself is not built twice.

    Raises:
        ModelError: A name is given twice, or a model cannot be opened.
    """
    _check_names(names)
    named = {name: _named(name, img_size) for name in names}
    originals = {_key(c.model): c.name for c in named.values() if not is_cut(c.model)}
    opened: list[BenchModel] = []
    for bench_model in named.values():
        if is_cut(bench_model.model):
            key = _key(bench_model.model)
            if key not in originals:
                opened.append(_original(bench_model, [c.name for c in (*named.values(), *opened)]))
                originals[key] = opened[-1].name
            bench_model = replace(bench_model, original=originals[key])
        opened.append(bench_model)
    return sorted(opened, key=lambda c: (c.is_file, c.original is not None))


def _named(name: str, img_size: int | None) -> BenchModel:
    if Path(name).suffix == ".onnx":
        return _onnx_bench_model(name, img_size)
    return _bench_model(name, partial(open_bench_model, pinned_name(name), img_size), _run_folder(name))


def open_bench_model(name: str, img_size: int | None) -> nn.Module:
    """Build a saved model with its weights, and any other with random ones, so that nothing is downloaded."""
    section = ModelSection(name=name, img_size=img_size, pretrained=saved_folder(name) is not None)
    try:
        return open_model(section)
    except (RuntimeError, AssertionError) as error:  # raised by timm and torch for an impossible size
        if img_size is None:
            raise
        raise ModelError(f"{name}: --img-size {img_size} does not fit it: {str(error).splitlines()[0]}") from None


def open_uncut(name: str, args: dict[str, Any]) -> nn.Module:
    """Build the timm model of a saved model's description, with random weights."""
    return create_model(name, pretrained=False, args=args)


def is_cut(model: TimmModule) -> bool:
    """Whether units were removed or dense attention was inserted."""
    try:
        return plan_of(model).is_cut or dense_mix(model) is not None
    except ModelError:  # no supported family
        return False


def _check_names(names: Sequence[str]) -> None:
    places = [str((saved_folder(name) or Path(name)).resolve()) for name in names]
    twice = [name for i, name in enumerate(names) if places[i] in places[:i]]
    if twice:
        raise ModelError(f"{twice[0]}: was named before; name every model once")


def _run_folder(name: str) -> Path | None:
    return Path(name) if slim_file.is_saved(name) and name not in EMBEDDED else None


def _bench_model(name: str, build: Callable[[], nn.Module], folder: Path | None = None) -> BenchModel:
    model = build()
    try:
        size = input_size_of(model)
        macs = count_macs(model, size).total
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    return BenchModel(name, model, build, size, count_params(model), macs, folder=folder)


def _onnx_bench_model(name: str, img_size: int | None) -> BenchModel:
    """An ONNX file; files of slimvit state their parameters, MACs and precision."""
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
    params, macs = (int(text) if (text := model.label.get(k, "")).isdecimal() else None for k in ("params", "macs"))
    precision = model.label.get("precision", "as written")
    return BenchModel(name, model, build, model.input_size, params, macs, precision=precision, versions=model.versions)


def _original(cut: BenchModel, taken: Sequence[str]) -> BenchModel:
    source = slim_file.description_of(cut.model)
    recipe = None if cut.folder is None else recipe_of(cut.folder)
    base = model_name(cut.model) if recipe is None or slim_file.is_saved(recipe.model.name) else recipe.model.name
    name = f"{base} (original)"
    if name in taken:
        name = f"{base} (original of {cut.name})"
    return _bench_model(name, partial(open_uncut, source.name, source.args))


def _key(model: TimmModule) -> str:
    """timm name and arguments, equal for models that were cut from the same original."""
    try:
        source = slim_file.description_of(model)
    except StoreError:  # a model without a description was not saved by slimvit
        return f"{id(model)}"
    return json.dumps([source.name, source.args], sort_keys=True)
