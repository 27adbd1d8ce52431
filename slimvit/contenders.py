"""What is timed: the models that were named, and the originals of those that were cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from slimvit import store
from slimvit.creation import create_model
from slimvit.dense.insert import dense_mix
from slimvit.embedded import EMBEDDED
from slimvit.errors import ModelError, StoreError
from slimvit.measure.macs import count_macs, count_params, input_size_of
from slimvit.models.family import TimmModule, attention_blocks, plan_of
from slimvit.recipe import ModelSection
from slimvit.rundir import recipe_of
from slimvit.sources import open_model, saved_folder


@dataclass(frozen=True)
class Contender:
    """A model that is timed."""

    name: str
    model: nn.Module
    build: Callable[[], nn.Module]
    """Builds it anew; can be sent to another process."""
    input_size: tuple[int, int, int]
    """An image [C, H, W]."""
    params: int
    macs: int
    original: str | None = None
    """The contender it was cut from."""
    folder: Path | None = None
    """The run folder that its timings belong to."""

    @property
    def widths(self) -> tuple[int, ...]:
        """attn_dim of every block that has heads."""
        views = attention_blocks(self.model)
        return tuple(v.attn.num_heads * v.head_dim for v in views if v.attn.num_heads)


def open_contenders(names: Sequence[str], img_size: int | None = None) -> list[Contender]:
    """The models, each original once and before what was cut from it.

    An original is the uncut form of a saved model: the same timm model, arguments, classes and input size, with random
    weights, which take as long as any. A model that was named and is that already is not built twice.
    Raises :class:`ModelError` for a name given twice.
    """
    _check_names(names)
    given = {name: _contender(name, partial(open_named, name, img_size), _run_folder(name)) for name in names}
    known = {_key(c.model): c.name for c in given.values() if not is_cut(c.model)}
    found: list[Contender] = []
    for contender in given.values():
        if is_cut(contender.model):
            key = _key(contender.model)
            if key not in known:
                found.append(_original(contender, [c.name for c in (*given.values(), *found)]))
                known[key] = found[-1].name
            contender = replace(contender, original=known[key])
        found.append(contender)
    return sorted(found, key=lambda c: c.original is not None)


def open_named(name: str, img_size: int | None) -> nn.Module:
    """A saved model with its weights, any other with random ones: nothing is fetched."""
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
    """Whether heads are gone or dense attention has come."""
    try:
        return plan_of(model).removed > 0 or dense_mix(model) is not None
    except ModelError:  # of no family that slimvit cuts
        return False


def _check_names(names: Sequence[str]) -> None:
    places = [str((saved_folder(name) or Path(name)).resolve()) for name in names]
    twice = [name for i, name in enumerate(names) if places[i] in places[:i]]
    if twice:
        raise ModelError(f"{twice[0]}: was named before; name every model once")


def _run_folder(name: str) -> Path | None:
    return Path(name) if store.is_saved(name) and name not in EMBEDDED else None


def _contender(name: str, build: Callable[[], nn.Module], folder: Path | None = None) -> Contender:
    model = build()
    try:
        size = input_size_of(model)
        macs = count_macs(model, size).total
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    return Contender(name, model, build, size, count_params(model), macs, folder=folder)


def _original(cut: Contender, taken: Sequence[str]) -> Contender:
    source = store.describe(cut.model)
    recipe = None if cut.folder is None else recipe_of(cut.folder)
    known_as = source.name if recipe is None or store.is_saved(recipe.model.name) else recipe.model.name
    name = f"{known_as} (original)"
    if name in taken:
        name = f"{known_as} (original of {cut.name})"
    return _contender(name, partial(open_uncut, source.name, source.args))


def _key(model: TimmModule) -> str:
    """What models have in common that were cut from the same one."""
    try:
        source = store.describe(model)
    except StoreError:  # no description: nothing was cut from it
        return f"{id(model)}"
    return json.dumps([source.name, source.args], sort_keys=True)
