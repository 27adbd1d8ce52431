"""slimvit finetune: train a slimmed model further."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimvit.commands import shared

if TYPE_CHECKING:
    from slimvit.recipe import Recipe


@click.command()
@click.argument("folder", metavar="RUN")
@shared.data_options
@click.option("--epochs", type=int, required=True, metavar="N", help="Epochs to train.")
@click.option("--lr", type=float, metavar="LR", help="Peak learning rate. [default: 2e-5]")
@click.option("--distill/--no-distill", default=None, help="Learn from the uncut network too. [default: on]")
@shared.no_augment
@shared.how_options
@shared.training_how
@shared.out_options
def command(folder: str, epochs: int, **given: Any) -> None:
    """Fine-tune the slimmed model of the folder RUN, on the data of its run unless --data names other.

    The uncut network is the teacher: RUN/original where the run trained its classifier, otherwise the model that the
    run started from.

    \b
    Example:
      slimvit finetune runs/digits --epochs 5 --out runs/digits_tuned
    """
    from slimvit.errors import StoreError
    from slimvit.recipe import Recipe
    from slimvit.rundir import recipe_of

    made_by = recipe_of(folder)
    if made_by is None:
        raise StoreError(f"{folder}: no folder of an earlier run; make one with slimvit prune --out")
    tree = shared.sections(folder, given)
    tree["data"] = shared.data_of(made_by, tree.get("data", {}))
    training = {"epochs": epochs, "lr": given["lr"], "distill": given["distill"]}
    training |= shared.AS_THEY_ARE if given["no_augment"] else {}
    tree["finetune"] = shared.dropped_none(training) | {"teacher": _teacher(Path(folder), made_by)}
    shared.carry_out(Recipe.parse(tree, "command line"), given)


def _teacher(folder: Path, made_by: Recipe) -> dict[str, Any] | None:
    from slimvit.rundir import ORIGINAL
    from slimvit.sources import random_weights

    if (folder / ORIGINAL).is_dir():
        return {"name": str(folder / ORIGINAL)}
    if not made_by.changes_the_model:
        return None if made_by.finetune.teacher is None else made_by.finetune.teacher.model_dump()
    return None if random_weights(made_by.model) else made_by.model.model_dump()
