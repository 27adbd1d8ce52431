"""Options that several commands share, and their groups in the help."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from slimvit.config.choices import ADAPT_MODES, DEVICES, INTERPOLATIONS, PRECISIONS, TRACKERS, Words

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

GROUPS = ("Model", "Data", "Budget", "Method", "Training", "Machine", "Output", "Other")
"""Headings of a command's help in order; options without a group are under the last."""
NAME_WIDTH = 30
"""Characters of an option's name up to which its text is on the same line, as in click."""


class GroupedCommand(click.Command):
    """A command whose help groups its options under the headings `GROUPS`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options into the help, group by group."""
        groups: dict[str, list[tuple[str, str]]] = {title: [] for title in GROUPS}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                groups[getattr(param, "group", GROUPS[-1])].append(record)
        names = [name for rows in groups.values() for name, _ in rows]
        width = max(len(name) for name in names if len(name) <= NAME_WIDTH)
        for title, rows in groups.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(width), text) for name, text in rows])


def command() -> Callable[[Callable[..., Any]], GroupedCommand]:
    """`click.command` with grouped options."""
    return click.command(cls=GroupedCommand)


def group(title: str, *options: Decorator) -> Decorator:
    """Return one decorator that adds options under a heading of `GROUPS`."""

    def apply(function: Any) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
            function.__click_params__[-1].group = title
        return function

    return apply


def joined(*decorators: Decorator) -> Decorator:
    """Return one decorator for several; the first adds the first options of the help."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def parse_pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Parse `KEY=VALUE` texts into a dict; a value is a literal of Python or YAML (False, null, [1, 2]), or text."""
    pairs: dict[str, Any] = {}
    for text in values:
        key, sign, value = text.partition("=")
        if not sign:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE", ctx, param)
        if key in pairs:
            raise click.BadParameter(f"{key} is given twice; remove one", ctx, param)
        pairs[key] = _literal(value)
    return pairs


NOTHING = ("None", "null", "~")
"""Texts that stand for no value."""


def _literal(text: str) -> Any:
    """Parse a literal of Python, or plain YAML; any other text is itself."""
    import yaml

    for read, errors in ((ast.literal_eval, (ValueError, SyntaxError, TypeError)), (yaml.safe_load, (yaml.YAMLError,))):
        try:
            value = read(text.strip())
        except (*errors, MemoryError, RecursionError):
            continue
        return (
            value
            if isinstance(value, bool | int | float | str | list | tuple | dict) or text.strip() in NOTHING
            else text
        )
    return text


def parse_fractions(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any] | None:
    """Parse `macs=0.5` into a dict; None if the option is not given."""
    return parse_pairs(ctx, param, values) or None


def parse_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> int | list[int] | None:
    """Parse `2` into a number, `2,4,8` into a list."""
    if value is None:
        return None
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor numbers with commas", ctx, param) from None
    return numbers[0] if len(numbers) == 1 else numbers


def parse_channels(ctx: click.Context, param: click.Parameter, value: str | None) -> list[float] | None:
    """Parse `0.5` or `0.485,0.456,0.406` into a list."""
    try:
        return None if value is None else [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor numbers with commas", ctx, param) from None


def parse_words(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    """Parse `heads,mlp` into a list."""
    return None if value is None else [word.strip() for word in value.split(",")]


class Word(click.ParamType):
    """One word of an extensible set: help and completion show the registered words, to which plugins may add."""

    name = "word"

    def __init__(self, words: Words) -> None:
        self.words = words

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the registered words as the help shows them."""
        return f"[{'|'.join(self.words)}]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word; fail with the registered words if it is none of them."""
        try:
            return self.words.check(value)
        except ValueError as error:
            self.fail(f"{value!r} is not one of {error}", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the registered words that begin with the text typed so far."""
        return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]


class_order = group(
    "Model",
    click.option("--class-order", metavar="natural|string|FILE", help="Order in which a model without class names "
                 "numbers its classes: 2 before 10, 10 before 2 (torchvision), or a file with a name per line."),
)  # fmt: skip

model_options = joined(
    group(
        "Model",
        click.option("--weights", metavar="FILE", help="Load these weights, not timm's: .safetensors, or a checkpoint "
                     "of torch.save."),
        click.option("--weights-key", metavar="KEY", help="Key of the weights in a checkpoint, such as "
                     "state_dict_ema or teacher."),
        click.option("--no-pretrained", is_flag=True, help="Use random weights."),
        click.option("--img-size", type=int, metavar="N", help="Height and width of the input, in pixels."),
        click.option("--mean", callback=parse_channels, metavar="M[,M...]", help="Mean of the training images, 0-1: "
                     "one number, or one per channel."),
        click.option("--std", callback=parse_channels, metavar="S[,S...]", help="Their standard deviation."),
        click.option("--interpolation", type=click.Choice(INTERPOLATIONS), help="How images are resized."),
        click.option("--crop-pct", type=float, metavar="F", help="Input size over the size an image is resized to "
                     "before the center crop."),
        click.option("--num-classes", type=int, metavar="N", help="Number of classes."),
        click.option("--model-arg", "model_args", multiple=True, callback=parse_pairs, metavar="K=V",
                     help="Further argument of timm's create_model. Repeatable."),
    ),
    class_order,
)  # fmt: skip
"""The model and its weights."""

data_options = group(
    "Data",
    click.option("--data", metavar="DATA", help="Folder with train/CLASS/ and val/CLASS/, or with unlabelled "
                 "images in train/ and val/; `digits`; or a timm data set name such as torch/cifar10."),
    click.option("--data-root", metavar="DIR", help="Folder that a named data set lies in."),
    click.option("--train-split", metavar="NAME", help="Training split. [default: train]"),
    click.option("--val-split", metavar="NAME", help="Validation split. [default: validation; val/ in a folder]"),
    click.option("--train-images", type=int, metavar="N", help="Use only N training images."),
    click.option("--eval-images", type=int, metavar="N", help="Use only N validation images."),
    click.option("--batch-size", type=int, metavar="N", help="Images per batch. [default: 64]"),
    click.option("--skip-bad-images", is_flag=True, help="Skip unreadable images instead of stopping."),
)  # fmt: skip

adapt_options = group(
    "Training",
    click.option("--adapt-epochs", type=int, metavar="N", help="Train a new classifier for the data first, N epochs."),
    click.option("--adapt", "adapt_mode", type=click.Choice(ADAPT_MODES),
                 help="What --adapt-epochs trains: the classifier, or all weights. [default: head]"),
    click.option("--adapt-lr", type=float, metavar="LR", help="Peak learning rate of --adapt all. [default: 1e-5]"),
)  # fmt: skip

no_augment = group(
    "Training",
    click.option("--no-augment", is_flag=True, help="Train without crops and flips, for images whose class they "
                 "would change."),
)  # fmt: skip
NO_AUGMENTATION = {"crop_scale": 1.0, "hflip": 0.0}
"""Keys of a training section that --no-augment sets."""

machine_options = group(
    "Machine",
    click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to compute."),
    click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
                 help="Processes that load images."),
)  # fmt: skip

seed_option = group("Method", click.option("--seed", type=int, metavar="N", help="Random seed. [default: 0]"))

training_machine = group(
    "Machine",
    click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True,
                 help="Precision of the matrix products in training."),
    click.option("--compile", is_flag=True, help="Train with torch.compile."),
    click.option("--save-minutes", type=click.FloatRange(min=0), default=10.0, show_default=True, metavar="MIN",
                 help="Save the training state after every epoch, and every MIN minutes within one."),
    click.option("--log-with", type=click.Choice(TRACKERS), help="Log every epoch to this tracker too."),
)  # fmt: skip
"""Options of a training that are not part of the recipe."""

resume_option = group(
    "Output", click.option("--resume", is_flag=True, help="Continue the interrupted training in --out, if any.")
)

json_option = group("Output", click.option("--json", "as_json", is_flag=True, help="Print JSON."))

out_options = joined(
    group(
        "Output",
        click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Run folder to write."),
        click.option("--force", is_flag=True, help="Replace an earlier run folder."),
    ),
    json_option,
)
