"""From a recipe's `model:` section to a model: a run folder, an embedded model, a timm name, or one on the Hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from slimvit.config.recipe import ModelSection, Recipe
from slimvit.io import saved_model
from slimvit.io.create import create_model, fit_to_section
from slimvit.io.embedded import EMBEDDED
from slimvit.io.hub import fetch
from slimvit.io.hub.name import hub_name, is_hub_name
from slimvit.io.load import named, pinned_section, saved_folder
from slimvit.models.build import is_timm_model
from slimvit.models.registry import check_unwrapped
from slimvit.utils.errors import ModelError
from slimvit.utils.files import MOST
from slimvit.utils.output import UNFINISHED
from slimvit.utils.progress import log


def open_model(section: ModelSection) -> nn.Module:
    """Build or load the model of a recipe's section, in eval mode on the CPU.

    Raises:
        ModelError: An unknown name, a folder without a model, or options that a saved model does not take.
        StoreError: A saved model that is damaged.
    """
    section = pinned_section(section)
    folder = saved_folder(section.name)
    if folder is None:
        if (Path(section.name) / UNFINISHED).is_dir():
            state = f"holds an unfinished run and no model yet; go on with slimvit run {section.name} --resume"
            raise ModelError(f"{section.name}: {state}")
        if Path(section.name).is_dir():
            raise ModelError(f"{section.name}: a folder without {saved_model.DESCRIPTION}, so it is no saved model")
        return create_model(
            section.name,
            pretrained=section.pretrained,
            weights=section.weights,
            img_size=section.img_size,
            num_classes=section.num_classes,
            args=section.args,
            heads=section.heads,
        )
    given: dict[str, object] = {"--weights": section.weights, "--no-pretrained": not section.pretrained}
    given |= {"--model-arg": section.args, "heads": section.heads}
    if refused := [option for option, value in given.items() if value]:
        raise ModelError(
            f"{section.name}: a saved model brings its own weights and arguments; drop {', '.join(refused)}"
        )
    with named(section.name, folder):
        model = saved_model.load_folder(folder)
    return fit_to_section(model, section.img_size, section.num_classes)


def model_of(model: nn.Module | str | Path) -> nn.Module:
    """A model as it is, or the model of a name, in eval mode on the CPU.

    Raises:
        ModelError: The name is unknown, or the model is a compiled or parallel wrapper.
    """
    if isinstance(model, str | Path):
        return open_model(ModelSection(name=str(model)))
    check_unwrapped(model)
    return model


def random_weights(section: ModelSection) -> bool:
    """Return whether a section asks for a network with random weights."""
    drawn = section.weights is None and not section.pretrained
    return drawn and (is_hub_name(section.name) or saved_folder(section.name) is None)


RECIPE = "recipe.yaml"


def teacher_on_hub(name: str) -> ModelSection | None:
    """Find the uncut network of a run on the Hub: `original/` beside it, or the model that its recipe starts from.

    Args:
        name: The run's name on the Hub, with a commit.

    Returns:
        The section of that network. None, with a line on stderr, where the recipe is missing or starts from a file or
        folder of another machine.
    """
    found = fetch.listing(hub_name(name))
    original = replace(found.name, folder="original")
    if original.path(saved_model.DESCRIPTION) in (found.sizes or ()):
        return ModelSection(name=str(original))
    if found.has(RECIPE):
        folder = fetch.fetch(found, {RECIPE: MOST})
        with named(name, folder):
            section = Recipe.read(folder / RECIPE).model
        anywhere = is_hub_name(section.name) or section.name in EMBEDDED or is_timm_model(section.name)
        if anywhere and section.weights is None and section.pretrained:
            return section
    log(f"{name}: its uncut network is not on the Hub, so there is none to learn from")
    return None
