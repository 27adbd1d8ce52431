"""slimvit predict: classify image files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from slimvit.cli import options, shared
from slimvit.config.choices import DEVICES

if TYPE_CHECKING:
    from slimvit.workflows.predict import Answers


@options.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@options.group(
    "Model", click.option("--compare", metavar="MODEL", help="Second model to compare with, such as the original.")
)
@options.group(
    "Machine",
    click.option("--device", default="auto", show_default=True, help=f"Where to compute: {', '.join(DEVICES)}, cuda:1"),
)
@options.group(
    "Output", click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, metavar="N",
                           help="Classes to print per image."),
)  # fmt: skip
@options.json_option
def predict_command(
    model: str, images: tuple[str, ...], compare: str | None, top: int, device: str, as_json: bool
) -> None:
    """Print the most probable classes of image files, or of the images in folders.

    MODEL is a run folder, an embedded model, a timm name or hf-hub:user/name.

    \b
    Examples:
      slimvit predict runs/digits photos/val/0/4.png
      slimvit predict runs/digits photos/val --compare vit_digits
    """
    from slimvit.config.recipe import ModelSection
    from slimvit.io.open import open_model
    from slimvit.models.registry import names_of
    from slimvit.utils.device import resolve_device
    from slimvit.workflows.predict import image_files, predict

    files, torch_device = image_files(images), resolve_device(device)
    answers: dict[str, Answers] = {}
    for name in dict.fromkeys(filter(None, (model, compare))):
        opened: Any = open_model(ModelSection(name=name)).to(torch_device)
        if not names_of(opened):
            shared.echo(f"{name}: has no class names, so classes are shown by number", err=True)
        answers[name] = predict(opened, files, top)
    if as_json:
        shared.echo(json.dumps({name: vars(answer) for name, answer in answers.items()}, indent=1))
    else:
        _show(answers, files)
    unreadable = answers[model].unreadable
    for line in unreadable.values():
        shared.echo(line, err=True)
    if unreadable:
        shared.echo(f"{len(unreadable)} of {len(files)} images could not be read", err=True)
        raise click.exceptions.Exit(1)


def _show(answers: dict[str, Answers], files: list[str]) -> None:
    from slimvit.report.text import print_cells

    guesses = [answer.guesses for answer in answers.values()]
    readable = [file for file in files if all(file in of_model for of_model in guesses)]
    rows = [
        [file, *(", ".join(f"{c} {p:.1%}" for c, p in of_model[file]) for of_model in guesses)] for file in readable
    ]
    if rows:
        print_cells(["image", *answers], rows, texts=1 + len(answers))
    if len(answers) > 1 and readable:
        first, second = ([of_model[file][0][0] for file in readable] for of_model in guesses)
        agreeing = sum(a == b for a, b in zip(first, second, strict=True))
        shared.echo(f"\nthe same first class for {agreeing} of {len(readable)} images")
