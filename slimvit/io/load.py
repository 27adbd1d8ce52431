"""`slimvit.load` and `slimvit.load_into`: saved models from run folders, embedded models and the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from slimvit.config.recipe import ModelSection, Recipe
from slimvit.io import saved_model, slim_file, weight_file
from slimvit.io.embedded import EMBEDDED
from slimvit.io.hub import fetch
from slimvit.io.hub.name import hub_name, is_hub_name
from slimvit.io.hub.timm_repo import CONFIG
from slimvit.models.registry import check_unwrapped, plan_of
from slimvit.utils.errors import SlimvitError, StoreError
from slimvit.utils.reading import MOST

DESCRIPTIONS = (slim_file.DESCRIPTION, CONFIG)
"""Files that identify a model repository, in the order in which they are looked for."""


def load(folder: str | Path) -> nn.Module:
    """Load a saved model in eval mode on the CPU: a timm model, only narrower.

    The size is checked before anything is fetched. Format version, names, bounds, tensor shapes and checksum are
    checked before anything is built.

    Args:
        folder: A run folder, an embedded model such as `vit_digits`, or `hf-hub:user/name[@revision]`.

    Raises:
        StoreError: The folder holds no saved model, or a damaged one; the message names every difference.
        ModelError: The model cannot be fetched.
    """
    local = saved_folder(str(folder))
    if not is_hub_name(folder):
        return saved_model.load_folder(local or folder)
    if local is None:
        raise StoreError(
            f"{folder}: holds no {slim_file.DESCRIPTION}, so it is no saved model; for a timm model on the Hub use "
            "slimvit.create_model"
        )
    with named(folder, local):
        return saved_model.load_folder(local)


def load_into(model: nn.Module, folder: str | Path) -> nn.Module:
    """Cut an uncut model to the plan of a saved one and load the saved weights.

    Use it for models of your own class that subclass one of timm's: `slimvit.load` cannot build them.

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
    local = saved_folder(str(folder)) or Path(folder)
    with named(folder, local):
        info = slim_file.read_description(local)
        plan = slim_file.plan_in(info, local)
        if plan_of(model).is_cut:
            raise StoreError(f"{folder}: the given model is pruned already; give a fresh, uncut one")
        try:
            slim = saved_model.cut_to(model, plan, info.dense)
        except SlimvitError as error:
            raise StoreError(f"{folder}: does not fit the given {type(model).__name__}: {error}") from None
        weight_file.check_weights(local / weight_file.WEIGHTS, weight_file.shapes_of(slim), info.weights_sha256)
        return saved_model.fill(slim.cpu(), info, local)


def saved_folder(name: str) -> Path | None:
    """Return the folder of a saved model, fetched first if it is on the Hub; None if the name is of no saved model."""
    if not is_hub_name(name):
        return Path(name) if slim_file.is_saved(name) else EMBEDDED.get(name)
    listing, file = fetch.find(hub_name(name), DESCRIPTIONS)
    if file != slim_file.DESCRIPTION:
        return None
    folder = fetch.fetch(listing, {slim_file.DESCRIPTION: MOST}, hub_name(name).branch)
    with named(name, folder):
        most = saved_model.largest_weights(folder)
    return fetch.fetch(listing, {weight_file.WEIGHTS: most}, hub_name(name).branch)


def pinned_name(name: str, pins: Mapping[str, str] | None = None) -> str:
    """Add the commit to the name of a model on the Hub, from `pins` or else the present one. Other names are kept."""
    if not is_hub_name(name) or hub_name(name).is_pinned:
        return name
    if pins is not None and name in pins:
        return pins[name]
    listing, file = fetch.find(hub_name(name), DESCRIPTIONS)
    fetch.fetch(listing, {file: MOST}, hub_name(name).branch)
    return str(listing.name)


def pinned_section(section: ModelSection, pins: Mapping[str, str] | None = None) -> ModelSection:
    """Return a section with the commit added to its model's name, if the model is on the Hub."""
    name = pinned_name(section.name, pins)
    return section if name == section.name else section.model_copy(update={"name": name})


def pinned(recipe: Recipe, pins: Mapping[str, str] | None = None) -> Recipe:
    """Return a recipe with commits added to the names of models on the Hub, so that it always means the same models."""
    model, teacher = pinned_section(recipe.model, pins), recipe.finetune.teacher
    if teacher is not None:
        teacher = pinned_section(teacher, pins)
    if model is recipe.model and teacher is recipe.finetune.teacher:
        return recipe
    finetune = recipe.finetune.model_copy(update={"teacher": teacher})
    return recipe.model_copy(update={"model": model, "finetune": finetune if teacher is not None else recipe.finetune})


def hub_names(recipe: Recipe) -> list[str]:
    """Return the names of a recipe's models on the Hub that have no commit."""
    names = [section.name for section in (recipe.model, recipe.finetune.teacher) if section is not None]
    return [name for name in names if is_hub_name(name) and not hub_name(name).is_pinned]


@contextmanager
def named(name: str | Path, folder: Path) -> Iterator[None]:
    """In errors raised in the block, replace a model's cache folder by its name on the Hub."""
    try:
        yield
    except SlimvitError as error:
        if is_hub_name(name):
            raise type(error)(str(error).replace(str(folder), str(name))) from None
        raise
