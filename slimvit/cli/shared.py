"""Options that several commands share, and the way from them to a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from slimvit.config.choices import ADAPT_MODES, DEVICES, PRECISIONS, TRACKERS, Words
from slimvit.utils.allocator import keep_freed_memory

if TYPE_CHECKING:
    from slimvit.config.options import Options
    from slimvit.config.recipe import Recipe
    from slimvit.report.record import Report

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def options(*decorators: Decorator) -> Decorator:
    """Several options as one decorator, in the order given."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """`key=value` strings as a dict; values are read as JSON where they are JSON."""
    found: dict[str, Any] = {}
    for text in values:
        key, sign, value = text.partition("=")
        if not sign:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE", ctx, param)
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> int | list[int] | None:
    """`2` as a number, `2,4,8` as a list."""
    if value is None:
        return None
    try:
        found = [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor numbers with commas", ctx, param) from None
    return found[0] if len(found) == 1 else found


class Word(click.ParamType):
    """One word of an open set: help and completion show the known ones, plugins may add others."""

    name = "word"

    def __init__(self, words: Words) -> None:
        self.words = words

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(self.words)}]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return self.words.check(value)
        except ValueError as error:
            self.fail(f"{value!r} is not one of {error}", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]


def words(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    """`heads,mlp` as a list."""
    return None if value is None else [word.strip() for word in value.split(",")]


model_options = options(
    click.option("--weights", metavar="FILE", help="Weights to use instead of timm's (.safetensors, .pth)."),
    click.option("--no-pretrained", is_flag=True, help="Random weights."),
    click.option("--img-size", type=int, metavar="N", help="Side of the input, pixels."),
    click.option("--num-classes", type=int, metavar="N", help="Classes of the model."),
    click.option("--model-arg", "model_args", multiple=True, callback=pairs, metavar="K=V",
                 help="Another argument for timm's create_model; repeatable."),
)  # fmt: skip

data_options = options(
    click.option("--data", metavar="DATA", help="Folder with train/CLASS and val/CLASS, digits, or a timm data name."),
    click.option("--data-root", metavar="DIR", help="Where a named data set lies on disk."),
    click.option("--train-split", metavar="NAME", help="Split of a named data set to train on. [default: train]"),
    click.option("--val-split", metavar="NAME", help="Split to evaluate on. [default: validation]"),
    click.option("--train-images", type=int, metavar="N", help="Use only N training images."),
    click.option("--eval-images", type=int, metavar="N", help="Evaluate on only N validation images."),
    click.option("--batch-size", type=int, metavar="N", help="Images a step. [default: 64]"),
    click.option("--skip-bad-images", is_flag=True, help="Leave unreadable images out instead of stopping."),
)

adapt_options = options(
    click.option("--adapt-epochs", type=int, metavar="N", help="First train a classifier for the data, N epochs."),
    click.option(
        "--adapt", "adapt_mode", type=click.Choice(ADAPT_MODES), help="Train the head, or all. [default: head]"
    ),
    click.option("--adapt-lr", type=float, metavar="LR", help="Peak learning rate of --adapt all. [default: 1e-5]"),
)

no_augment = click.option(
    "--no-augment", is_flag=True, help="Train on the images as they are, where a flip or a crop changes the class."
)
AS_THEY_ARE = {"crop_scale": 1.0, "hflip": 0.0}
"""The training section of --no-augment."""

where_options = options(
    click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True),
    click.option(
        "--workers",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="Processes loading images.",
    ),
)

how_options = options(
    click.option("--seed", type=int, metavar="N", help="Seed of everything random. [default: 0]"), where_options
)

training_pace = options(
    click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True,
                 help="What training multiplies in."),
    click.option("--compile", is_flag=True, help="Train through torch.compile."),
    click.option("--save-minutes", type=click.FloatRange(min=0), default=10.0, show_default=True, metavar="MIN",
                 help="Save a training's state after every epoch, and in between this often."),
    click.option("--log-with", type=click.Choice(TRACKERS), help="Send the rows of history.csv there too."),
)  # fmt: skip
"""How a training is carried out."""

training_how = options(
    training_pace,
    click.option("--resume", is_flag=True, help="Go on with the interrupted training in --out, if there is one."),
)

out_options = options(
    click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Run folder to write."),
    click.option("--force", is_flag=True, help="Replace an earlier run folder."),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
)


def sections(model: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The recipe's model, data and adapt sections as plain data, from the options above; only what was given."""
    found = {
        "model": {
            "name": model,
            "weights": given.get("weights"),
            "pretrained": False if given.get("no_pretrained") else None,
            "img_size": given.get("img_size"),
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
        | (AS_THEY_ARE if given.get("no_augment") else {}),
        "seed": given.get("seed"),
    }
    return dropped_none(found)


def dropped_none(tree: dict[str, Any]) -> dict[str, Any]:
    """Without the entries that are None and the sections that become empty."""
    kept = {k: dropped_none(v) if isinstance(v, dict) else v for k, v in tree.items() if v is not None}
    return {k: v for k, v in kept.items() if v != {}}


def how(given: dict[str, Any]) -> Options:
    from slimvit.config.options import Options

    named = ("out", "device", "workers", "force", "precision", "compile", "resume", "save_minutes", "log_with", "shelf")
    return Options(**{name: given[name] for name in named if name in given})


def data_of(made_by: Recipe | None, given: dict[str, Any]) -> dict[str, Any]:
    """The data of an earlier run with ``given`` on top; other data takes nothing over from that run's."""
    if made_by is None or given.get("name") not in (None, made_by.data.name):
        return given
    return made_by.data.model_dump() | given


def need_data(given: dict[str, Any]) -> None:
    if given.get("data") is None:
        raise click.UsageError("Missing option '--data': a folder with train/CLASS and val/CLASS, digits, or a name")


def run_and_show(recipe: Recipe, given: dict[str, Any]) -> None:
    """Run a recipe and print its report on stdout."""
    if recipe.prune.target_latency is None:  # which is measured as another program will meet it
        keep_freed_memory()
    from slimvit.io.load import pinned
    from slimvit.utils.lock import clean_up
    from slimvit.workflows.run import run
    from slimvit.workflows.run_folder import finished

    options, recipe = how(given), pinned(recipe)
    if options.resume and options.out is not None:
        clean_up(options.out)
    if options.resume and options.out is not None and (report := finished(options.out, recipe)) is not None:
        click.echo(f"{options.out}: this run is finished", err=True)
        show_report(report, given.get("as_json", False))
        return
    state = run(recipe, options)
    state.engine.close()
    if not state.engine.is_main:
        return
    show_report(state.report, given.get("as_json", False))
    if given.get("out") is not None:
        click.echo(f"\nrun folder: {given['out']}", err=given.get("as_json", False))


def show_report(report: Report, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1))
        return
    from slimvit.report.run.table import print_table

    print_table(report)
