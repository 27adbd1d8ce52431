"""slimvit bench: time models on this machine."""

from __future__ import annotations

import json
from typing import Any

import click

from slimvit.cli import options, shared
from slimvit.config.choices import DEVICES, PRECISIONS


def parse_precisions(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Parse `--precision fp32,bf16`, or the repeated option."""
    words = dict.fromkeys(word for value in values for word in value.split(","))
    if wrong := [word for word in words if word not in PRECISIONS]:
        raise click.BadParameter(f"{wrong[0]!r} is not one of {', '.join(PRECISIONS)}", ctx, param)
    return tuple(words)


def parse_batches(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Parse `32` or `1,8,32`."""
    numbers = options.parse_numbers(ctx, param, value)
    sizes = [] if numbers is None else [numbers] if isinstance(numbers, int) else numbers
    if any(n < 1 for n in sizes):
        raise click.BadParameter(f"{value!r}: a batch has 1 image or more", ctx, param)
    return tuple(dict.fromkeys(sizes))


machine_options = options.group(
    "Machine",
    click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to compute."),
    click.option("--threads", type=click.IntRange(min=1), metavar="N",
                 help="CPU threads of torch. [default: torch's choice]"),
    click.option("--precision", "precisions", multiple=True, default=("fp32",), show_default=True,
                 callback=parse_precisions, metavar="P", help="Precision of weights and images: fp32, bf16, or both "
                 "as fp32,bf16."),
    click.option("--eager", is_flag=True, help="Time without torch.compile (the default)."),
    click.option("--compile", is_flag=True, help="Time with torch.compile; with --eager, both."),
)  # fmt: skip

timing_options = options.group(
    "Method",
    click.option("--batches", callback=parse_batches, metavar="N,N",
                 help="Batch sizes to try for throughput. [default: grow until it no longer pays]"),
    click.option("--rounds", type=click.IntRange(min=20), default=30, show_default=True, metavar="N",
                 help="Rounds; every model is timed once per round."),
)  # fmt: skip

size_option = options.group(
    "Model",
    click.option("--img-size", type=click.IntRange(min=1), metavar="N", help="Height and width of the input, in "
                 "pixels."),
)  # fmt: skip

save_option = options.group(
    "Output", click.option("--no-save", is_flag=True, help="Do not write timings.json into the run folders.")
)


@options.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL_OR_RUN...")
@size_option
@timing_options
@machine_options
@options.json_option
@save_option
def bench_command(
    models: tuple[str, ...], eager: bool, compile: bool, as_json: bool, no_save: bool, **given: Any
) -> None:
    """Time models side by side on this machine, each pruned model beside its original.

    A model is a timm name, an embedded model, a run folder, hf-hub:user/name or an .onnx file (run by ONNX Runtime on
    the CPU). Latency is timed with one image, throughput with the batch size that fills the machine. The models take
    turns. timm's weights are not downloaded: they have no influence on speed.

    \b
    Example:
      slimvit bench runs/digits
    """
    from slimvit.report.run.timing_table import print_timings
    from slimvit.workflows.bench.bench import BenchOptions, bench_models

    compiled = tuple(kind for kind, wanted in ((False, eager or not compile), (True, compile)) if wanted)
    rows = [row.to_json() for row in bench_models(models, BenchOptions(compiled=compiled, save=not no_save, **given))]
    if as_json:
        shared.echo(json.dumps(rows, indent=1))
    else:
        print_timings(rows)
