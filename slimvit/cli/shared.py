"""Convert options to a recipe, run it and print its report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from slimvit.cli.options import NO_AUGMENTATION
from slimvit.utils.allocator import keep_freed_memory
from slimvit.utils.escaping import in_terminal

if TYPE_CHECKING:
    from slimvit.config.options import Options
    from slimvit.config.recipe import Recipe
    from slimvit.report.record import Report


def echo(text: object, err: bool = False, nl: bool = True) -> None:
    """Print a text on stdout or stderr, without control characters out of names and files."""
    click.echo(in_terminal(str(text)), err=err, nl=nl)


def sections(model: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The model, data and adapt sections of a recipe and its seed, with the given options alone."""
    tree = {
        "model": {
            "name": model,
            "weights": given.get("weights"),
            "weights_key": given.get("weights_key"),
            "pretrained": False if given.get("no_pretrained") else None,
            "img_size": given.get("img_size"),
            "mean": given.get("mean"),
            "std": given.get("std"),
            "interpolation": given.get("interpolation"),
            "crop_pct": given.get("crop_pct"),
            "class_order": given.get("class_order"),
            "num_classes": given.get("num_classes"),
            "args": given.get("model_args") or None,
        },
        "data": {
            "name": given.get("data"),
            "root": given.get("data_root"),
            "train_split": given.get("train_split"),
            "val_split": given.get("val_split"),
            "train_images": given.get("train_images"),
            "eval_images": given.get("eval_images"),
            "batch_size": given.get("batch_size"),
            "skip_bad_images": given.get("skip_bad_images") or None,
        },
        "adapt": {"epochs": given.get("adapt_epochs"), "mode": given.get("adapt_mode"), "lr": given.get("adapt_lr")}
        | (NO_AUGMENTATION if given.get("no_augment") else {}),
        "seed": given.get("seed"),
    }
    return dropped_none(tree)


def dropped_none(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree without None values and without empty sections."""
    kept = {k: dropped_none(v) if isinstance(v, dict) else v for k, v in tree.items() if v is not None}
    return {k: v for k, v in kept.items() if v != {}}


def run_options(given: dict[str, Any]) -> Options:
    """The `Options` among the options of a command."""
    from slimvit.config.options import Options

    return Options(**{name: given[name] for name in Options.__dataclass_fields__ if name in given})


def data_of(folder: str, recipe: Recipe | None, given: dict[str, Any]) -> dict[str, Any]:
    """The data section of a run's recipe, updated by `given`; `given` alone if it names other data.

    Raises:
        DataError: The recipe names data that the user has not opened before.
    """
    from slimvit.config.recipe import DataSection
    from slimvit.data.known import check_known_data

    if recipe is None or given.get("name") not in (None, recipe.data.name):
        return given
    section = recipe.data.model_dump() | given
    check_known_data(DataSection.model_validate(section), folder, given)
    return section


def need_data(given: dict[str, Any]) -> None:
    """Raise a usage error unless --data was given."""
    if given.get("data") is None:
        raise click.UsageError("Missing option '--data': a folder with train/CLASS and val/CLASS, digits, or a name")


def run_and_show(recipe: Recipe, given: dict[str, Any]) -> None:
    """Run a recipe and print its report on stdout."""
    if not recipe.prune.asks_for("latency"):  # latency is measured with the default settings of malloc
        keep_freed_memory()
    from slimvit.io.load import pinned
    from slimvit.utils.lock import clean_up
    from slimvit.workflows.run import run
    from slimvit.workflows.run_folder import finished

    options, recipe = run_options(given), pinned(recipe)
    if options.resume and options.out is not None:
        clean_up(options.out)
    if options.resume and options.out is not None and (report := finished(options.out, recipe)) is not None:
        echo(f"{options.out}: this run is finished", err=True)
        show_report(report, given.get("as_json", False))
        return
    state = run(recipe, options)
    state.context.engine.close()
    if not state.context.engine.is_main:
        return
    show_report(state.report, given.get("as_json", False))
    if given.get("out") is not None:
        echo(f"\nrun folder: {given['out']}", err=given.get("as_json", False))


def show_report(report: Report, as_json: bool) -> None:
    """Print a report, as a table or as JSON."""
    if as_json:
        echo(json.dumps(report.to_json(), indent=1))
        return
    from slimvit.report.run.table import print_table

    print_table(report)
