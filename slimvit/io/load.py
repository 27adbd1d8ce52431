"""`slimvit.load`, `slimvit.load_into`, and the folders of saved models: runs, embedded models, or from the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from slimvit.config.recipe import ModelSection, Recipe
from slimvit.io import saved_model
from slimvit.io.embedded import EMBEDDED
from slimvit.io.hub import fetch
from slimvit.io.hub.name import hub_name, is_hub_name
from slimvit.io.hub.timm_repo import CONFIG
from slimvit.models.registry import check_unwrapped, plan_of
from slimvit.utils.errors import SlimvitError, StoreError
from slimvit.utils.files import MOST

DESCRIPTIONS = (saved_model.DESCRIPTION, CONFIG)
"""The files by which a repository with a model is recognised."""


def load(folder: str | Path) -> nn.Module:
    """Load a saved model in eval mode on the CPU: a timm model, only narrower.

    Format version, names, bounds, tensor shapes and checksum are checked before anything is built, and the size
    before anything is fetched.

    Args:
        folder: A run folder, an embedded model such as `vit_digits`, or `hf-hub:user/name[@revision]`.

    Raises:
        StoreError: No saved model, or a damaged one; all differences in one line.
        ModelError: The model cannot be fetched.
    """
    found = saved_folder(str(folder))
    if not is_hub_name(folder):
        return saved_model.load_folder(found or folder)
    if found is None:
        raise StoreError(
            f"{folder}: holds no {saved_model.DESCRIPTION}, so it is no saved model; for a timm model on the Hub use "
            "slimvit.create_model"
        )
    with named(folder, found):
        return saved_model.load_folder(found)


def load_into(model: nn.Module, folder: str | Path) -> nn.Module:
    """Cut a fresh, uncut model to a saved one's plan and fill it with the saved weights.

    This is the way back for a model of your own class that subclasses one of timm's, which `slimvit.load` cannot build.

    Args:
        model: An uncut instance of the saved model's class, built with the same arguments. It is not changed.
        folder: A folder that `slimvit.save` or a run wrote, or `hf-hub:user/name`.

    Returns:
        The pruned model with the saved weights, in eval mode on the CPU.

    Raises:
        StoreError: The folder is no saved model or is damaged, or the model is not its uncut form; the message names
            the blocks or tensors that differ.
        ModelError: The model is not supported, or a compiled or parallel wrapper.

    Example:
        >>> slimvit.save(slimvit.prune(MyViT(), loader, ratio=0.5).model, "runs/mine")
        >>> small = slimvit.load_into(MyViT(), "runs/mine")
    """
    check_unwrapped(model)
    place = saved_folder(str(folder)) or Path(folder)
    with named(folder, place):
        info = saved_model.read_description(place)
        plan = saved_model.plan_in(info, place)
        if plan_of(model).is_cut:
            raise StoreError(f"{folder}: the given model is pruned already; give a fresh, uncut one")
        try:
            slim = saved_model.cut_to(model, plan, info.dense)
        except SlimvitError as error:
            raise StoreError(f"{folder}: does not fit the given {type(model).__name__}: {error}") from None
        saved_model.check_weights(place / saved_model.WEIGHTS, saved_model.shapes_of(slim), info.weights_sha256)
        return saved_model.fill(slim.cpu(), info, place)


def saved_folder(name: str) -> Path | None:
    """Return the folder of a saved model, fetched if it lies on the Hub; None where the name means no saved model."""
    if not is_hub_name(name):
        return Path(name) if saved_model.is_saved(name) else EMBEDDED.get(name)
    found, file = fetch.find(hub_name(name), DESCRIPTIONS)
    if file != saved_model.DESCRIPTION:
        return None
    folder = fetch.fetch(found, {saved_model.DESCRIPTION: MOST}, hub_name(name).branch)
    with named(name, folder):
        most = saved_model.largest_weights(folder)
    return fetch.fetch(found, {saved_model.WEIGHTS: most}, hub_name(name).branch)


def pinned_name(name: str, pins: Mapping[str, str] | None = None) -> str:
    """Return the name of a model on the Hub with its commit: that of `pins`, else today's. Other names stay."""
    if not is_hub_name(name) or hub_name(name).is_pinned:
        return name
    if pins is not None and name in pins:
        return pins[name]
    found, file = fetch.find(hub_name(name), DESCRIPTIONS)
    fetch.fetch(found, {file: MOST}, hub_name(name).branch)
    return str(found.name)


def pinned_section(section: ModelSection, pins: Mapping[str, str] | None = None) -> ModelSection:
    """Return a section whose model, if it lies on the Hub, is named with its commit."""
    name = pinned_name(section.name, pins)
    return section if name == section.name else section.model_copy(update={"name": name})


def pinned(recipe: Recipe, pins: Mapping[str, str] | None = None) -> Recipe:
    """Return a recipe whose models on the Hub are named with their commit, so that they never change."""
    model, teacher = pinned_section(recipe.model, pins), recipe.finetune.teacher
    if teacher is not None:
        teacher = pinned_section(teacher, pins)
    if model is recipe.model and teacher is recipe.finetune.teacher:
        return recipe
    finetune = recipe.finetune.model_copy(update={"teacher": teacher})
    return recipe.model_copy(update={"model": model, "finetune": finetune if teacher is not None else recipe.finetune})


def hub_names(recipe: Recipe) -> list[str]:
    """Return the models of a recipe that lie on the Hub and are named without a commit."""
    names = [section.name for section in (recipe.model, recipe.finetune.teacher) if section is not None]
    return [name for name in names if is_hub_name(name) and not hub_name(name).is_pinned]


@contextmanager
def named(name: str | Path, folder: Path) -> Iterator[None]:
    """Replace a model's folder in the cache by its name on the Hub in errors raised inside."""
    try:
        yield
    except SlimvitError as error:
        if is_hub_name(name):
            raise type(error)(str(error).replace(str(folder), str(name))) from None
        raise
