"""slimvit bench: how fast models are on this machine, slim ones beside their originals."""

from __future__ import annotations

import json
from typing import Any

import click

from slimvit.cli import shared
from slimvit.config.choices import DEVICES, PRECISIONS


def precision_words(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """`--precision fp32,bf16`, or the option twice."""
    found = dict.fromkeys(word for value in values for word in value.split(","))
    if wrong := [word for word in found if word not in PRECISIONS]:
        raise click.BadParameter(f"{wrong[0]!r} is not one of {', '.join(PRECISIONS)}", ctx, param)
    return tuple(found)


def batches(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """`32` or `1,8,32`."""
    found = shared.numbers(ctx, param, value)
    listed = [] if found is None else [found] if isinstance(found, int) else found
    if any(n < 1 for n in listed):
        raise click.BadParameter(f"{value!r}: a batch has 1 image or more", ctx, param)
    return tuple(dict.fromkeys(listed))


bench_options = shared.options(
    click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True),
    click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Of torch, on a CPU. [default: torch's]"),
    click.option("--precision", "precisions", multiple=True, default=("fp32",), show_default=True,
                 callback=precision_words, metavar="P", help="fp32, bf16 or fp32,bf16, of weights and images."),
    click.option("--eager", is_flag=True, help="Time the models as they are (the default)."),
    click.option("--compile", is_flag=True, help="Time them through torch.compile; with --eager, both."),
    click.option("--batches", callback=batches, metavar="N,N", help="Batches to try for throughput. [default: grow]"),
    click.option("--rounds", type=click.IntRange(min=20), default=30, show_default=True, metavar="N",
                 help="Times that every model has its turn."),
    click.option("--img-size", type=click.IntRange(min=1), metavar="N", help="Side of the input, pixels."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    click.option("--no-save", is_flag=True, help="Do not write timings.json into the run folders."),
)  # fmt: skip


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL_OR_RUN...")
@bench_options
def command(models: tuple[str, ...], eager: bool, compile: bool, as_json: bool, no_save: bool, **given: Any) -> None:
    """Time timm models, embedded models, run folders, models on the Hub (hf-hub:user/name) or .onnx files (in ONNX
    Runtime, on the CPU) side by side, each slim one beside the model it was cut from.

    One image, then the batch that fills the machine; turns of all models are interleaved. Weights do not matter here,
    so none are fetched.

    \b
    Example:
      slimvit bench runs/digits
    """
    from slimvit.report.run.timing_table import print_timings
    from slimvit.workflows.bench.bench import BenchOptions, bench

    compiled = tuple(kind for kind, wanted in ((False, eager or not compile), (True, compile)) if wanted)
    rows = [row.to_json() for row in bench(models, BenchOptions(compiled=compiled, save=not no_save, **given))]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        print_timings(rows)
