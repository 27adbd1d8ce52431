"""Opens the model of a recipe's `model:` section: a run folder, an embedded model, a timm name, or a Hub name."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from torch import nn

from slimvit.config.recipe import ModelSection, Recipe
from slimvit.io import saved_model, slim_file
from slimvit.io.create import create_model, fit_to_section
from slimvit.io.embedded import EMBEDDED
from slimvit.io.hub import fetch
from slimvit.io.hub.name import hub_name, is_hub_name
from slimvit.io.load import named, pinned_section, saved_folder
from slimvit.models.build import is_timm_model
from slimvit.models.registry import check_unwrapped
from slimvit.utils.errors import ModelError
from slimvit.utils.output import UNFINISHED
from slimvit.utils.progress import log
from slimvit.utils.reading import MOST


def open_model(section: ModelSection) -> nn.Module:
    """Build or load the model of a recipe's section, in eval mode on the CPU.

    Raises:
        ModelError: The name is unknown, the folder holds no model, or a saved model does not take an option.
        StoreError: The saved model is damaged.
    """
    section = pinned_section(section)
    folder = saved_folder(section.name)
    if folder is None:
        if (Path(section.name) / UNFINISHED).is_dir():
            state = (
                f"holds an unfinished run and no model yet; go on with slimvit run {shlex.quote(section.name)} --resume"
            )
            raise ModelError(f"{section.name}: {state}")
        if Path(section.name).is_dir():
            raise ModelError(f"{section.name}: a folder without {slim_file.DESCRIPTION}, so it is no saved model")
        return create_model(
            section.name,
            pretrained=section.pretrained,
            weights=section.weights,
            weights_key=section.weights_key,
            img_size=section.img_size,
            num_classes=section.num_classes,
            args=section.args,
            preprocessing=section.preprocessing,
            heads=section.heads,
        )
    options: dict[str, object] = {"--weights": section.weights, "--no-pretrained": not section.pretrained}
    options |= {"--model-arg": section.args, "heads": section.heads}
    if refused := [option for option, value in options.items() if value]:
        raise ModelError(
            f"{section.name}: a saved model brings its own weights and arguments; drop {', '.join(refused)}"
        )
    with named(section.name, folder):
        model = saved_model.load_folder(folder)
    return fit_to_section(model, section.img_size, section.num_classes, section.preprocessing)


def model_of(model: nn.Module | str | Path) -> nn.Module:
    """Return a model as it is, or open the model of a name in eval mode on the CPU.

    Raises:
        ModelError: The name is unknown, or the model is a compiled or parallel wrapper.
    """
    if isinstance(model, str | Path):
        return open_model(ModelSection(name=str(model)))
    check_unwrapped(model)
    return model


def random_weights(section: ModelSection) -> bool:
    """Return whether a section asks for a network with random weights."""
    untrained = section.weights is None and not section.pretrained
    return untrained and (is_hub_name(section.name) or saved_folder(section.name) is None)


RECIPE = "recipe.yaml"


def teacher_on_hub(name: str) -> ModelSection | None:
    """Find the uncut network of a run on the Hub: its folder `original/`, or the model of its recipe.

    Args:
        name: The run's name on the Hub, with a commit.

    Returns:
        The section of that network. None, with a line on stderr, if the recipe is missing or names local files.
    """
    listing = fetch.listing(hub_name(name))
    original = replace(listing.name, folder="original")
    if original.path(slim_file.DESCRIPTION) in (listing.sizes or ()):
        return ModelSection(name=str(original))
    if listing.has(RECIPE):
        folder = fetch.fetch(listing, {RECIPE: MOST})
        with named(name, folder):
            section = Recipe.read(folder / RECIPE).model
        portable = is_hub_name(section.name) or section.name in EMBEDDED or is_timm_model(section.name)
        if portable and section.weights is None and section.pretrained:
            return section
    log(f"{name}: its uncut network is not on the Hub, so there is none to learn from")
    return None
