"""From a recipe's `model:` section to a model: a run folder, an embedded model, or a timm name."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from slimvit import store
from slimvit.creation import create_model
from slimvit.embedded import EMBEDDED
from slimvit.errors import ModelError
from slimvit.folders import UNFINISHED
from slimvit.models.family import TimmModule
from slimvit.recipe import ModelSection


def saved_folder(name: str) -> Path | None:
    """The folder of a saved model that a name means, if it means one: a run folder or an embedded model."""
    if store.is_saved(name):
        return Path(name)
    return EMBEDDED.get(name)


def open_model(section: ModelSection) -> nn.Module:
    """The model of a section, in eval mode on the CPU. Raises :class:`ModelError` or :class:`StoreError`."""
    folder = saved_folder(section.name)
    if folder is None:
        if (Path(section.name) / UNFINISHED).is_dir():
            told = f"holds an unfinished run and no model yet; go on with slimvit run {section.name} --resume"
            raise ModelError(f"{section.name}: {told}")
        if Path(section.name).is_dir():
            raise ModelError(f"{section.name}: a folder without {store.DESCRIPTION}, so it is no saved model")
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
    model: TimmModule = store.load(folder)
    if section.img_size is not None:
        model.set_input_size(section.img_size)
    if section.num_classes is not None and section.num_classes != model.num_classes:
        model.reset_classifier(section.num_classes)
        model.untrained_classifier = section.num_classes > 0
    return model


def random_weights(section: ModelSection) -> bool:
    """Whether a section asks for a network that nobody has trained."""
    return saved_folder(section.name) is None and section.weights is None and not section.pretrained
