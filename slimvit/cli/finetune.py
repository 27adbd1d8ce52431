"""slimvit finetune: train a pruned model further."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimvit.cli import options, shared

if TYPE_CHECKING:
    from slimvit.config.recipe import Recipe


@options.command()
@click.argument("folder", metavar="RUN")
@options.data_options
@options.group(
    "Training",
    click.option("--recipe", metavar="RECIPE", help="Take the settings from the finetune: section of this recipe."),
    click.option("--epochs", type=int, metavar="N", help="Epochs to train; required without --recipe."),
    click.option("--lr", type=float, metavar="LR", help="Peak learning rate. [default: 2e-5]"),
    click.option("--distill/--no-distill", default=None, help="Also learn from the unpruned model. [default: on]"),
)
@options.no_augment
@options.seed_option
@options.machine_options
@options.training_machine
@options.out_options
@options.resume_option
def finetune_command(folder: str, recipe: str | None, epochs: int | None, **given: Any) -> None:
    """Fine-tune the pruned model of the folder RUN, on the data of its run unless --data names other data.

    The unpruned model is the teacher: RUN/original if the run trained its classifier, otherwise the model that the
    run started from.

    RUN may also be hf-hub:user/name, with --data.

    On several GPUs: accelerate launch -m slimvit finetune ...

    \b
    Examples:
      slimvit finetune runs/digits --epochs 5 --out runs/digits_tuned
      slimvit finetune runs/digits --recipe digits_vit_dense --out runs/digits_tuned
    """
    from slimvit.config.recipe import Recipe
    from slimvit.io.hub.name import is_hub_name
    from slimvit.io.load import pinned_name
    from slimvit.utils.errors import StoreError
    from slimvit.workflows.run_folder import recipe_of

    if recipe is None and epochs is None:
        raise click.UsageError("Missing option '--epochs' (or '--recipe', whose finetune: section names them)")
    folder, made_by = pinned_name(folder), recipe_of(folder)
    if is_hub_name(folder):
        shared.need_data(given)
    elif made_by is None:
        raise StoreError(f"{folder}: no folder of an earlier run; make one with slimvit prune --out")
    tree = shared.sections(folder, given)
    tree["data"] = shared.data_of(made_by, tree.get("data", {}))
    training = {"epochs": epochs, "lr": given["lr"], "distill": given["distill"]}
    training |= options.NO_AUGMENTATION if given["no_augment"] else {}
    written = {} if recipe is None else _written(recipe)
    tree["finetune"] = written | shared.dropped_none(training)
    if tree["finetune"].get("teacher") is None:
        tree["finetune"]["teacher"] = _teacher_on_hub(folder) if made_by is None else _teacher(Path(folder), made_by)
    shared.run_and_show(Recipe.parse(tree, "command line" if recipe is None else f"{recipe} and command line"), given)


def _written(recipe: str) -> dict[str, Any]:
    """The finetune: section of a recipe: only the keys that stand in the file."""
    from slimvit.config.recipe import Recipe
    from slimvit.config.shipped import recipe_path
    from slimvit.utils.errors import RecipeError

    read = Recipe.read(recipe_path(recipe))
    if not read.finetune.epochs:
        raise RecipeError(f"{recipe}: its finetune: section trains nothing; name another recipe, or give --epochs")
    return read.finetune.model_dump(mode="json", exclude_unset=True)


def _teacher_on_hub(name: str) -> dict[str, Any] | None:
    """The teacher of a model on the Hub: `original/` beside it, or the public model that its run started from."""
    from slimvit.io.open import teacher_on_hub

    section = teacher_on_hub(name)
    return None if section is None else section.model_dump()


def _teacher(folder: Path, made_by: Recipe) -> dict[str, Any] | None:
    """The teacher of a run folder: `original/`, or the model or teacher of its recipe."""
    from slimvit.io.open import random_weights
    from slimvit.workflows.run_folder import ORIGINAL

    if (folder / ORIGINAL).is_dir():
        return {"name": str(folder / ORIGINAL)}
    if not made_by.changes_the_model:
        return None if made_by.finetune.teacher is None else made_by.finetune.teacher.model_dump()
    return None if random_weights(made_by.model) else made_by.model.model_dump()
