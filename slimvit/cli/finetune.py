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
@options.class_order
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
    """Fine-tune the pruned model of the run folder RUN, on the data of its run unless --data names other data.

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
    folder, run_recipe = pinned_name(folder), recipe_of(folder)
    if is_hub_name(folder):
        shared.need_data(given)
    elif run_recipe is None:
        raise StoreError(f"{folder}: no folder of an earlier run; make one with slimvit prune --out")
    tree = shared.sections(folder, given)
    tree["data"] = shared.data_of(folder, run_recipe, tree.get("data", {}))
    training = {"epochs": epochs, "lr": given["lr"], "distill": given["distill"]}
    training |= options.NO_AUGMENTATION if given["no_augment"] else {}
    section = {} if recipe is None else _finetune_section(recipe)
    tree["finetune"] = section | shared.dropped_none(training)
    if tree["finetune"].get("teacher") is None:
        teacher = _teacher_on_hub(folder) if run_recipe is None else _teacher(Path(folder), run_recipe)
        tree["finetune"]["teacher"] = teacher
    shared.run_and_show(Recipe.parse(tree, "command line" if recipe is None else f"{recipe} and command line"), given)


def _finetune_section(recipe: str) -> dict[str, Any]:
    """The keys that the finetune: section of a recipe file sets."""
    from slimvit.config.recipe import Recipe
    from slimvit.config.shipped import recipe_path
    from slimvit.utils.errors import RecipeError

    section = Recipe.read(recipe_path(recipe)).finetune
    if not section.epochs:
        raise RecipeError(f"{recipe}: its finetune: section trains nothing; name another recipe, or give --epochs")
    return section.model_dump(mode="json", exclude_unset=True)


def _teacher_on_hub(name: str) -> dict[str, Any] | None:
    """The teacher of a model on the Hub: `original/` beside it, or the public model that its run started from."""
    from slimvit.io.open import teacher_on_hub

    section = teacher_on_hub(name)
    return None if section is None else section.model_dump()


def _teacher(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The teacher of a run folder: `original/`, or the model or teacher of its recipe."""
    from slimvit.io.open import random_weights
    from slimvit.workflows.run_folder import ORIGINAL

    if (folder / ORIGINAL).is_dir():
        return {"name": str(folder / ORIGINAL)}
    if not recipe.changes_the_model:
        return None if recipe.finetune.teacher is None else recipe.finetune.teacher.model_dump()
    return None if random_weights(recipe.model) else recipe.model.model_dump()
