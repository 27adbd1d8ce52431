"""slimvit export: a model for ONNX Runtime, torch.export or plain timm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from slimvit.cli import options, shared
from slimvit.config.choices import EXPORT_FORMATS


@options.command()
@click.argument("model", metavar="RUN")
@options.data_options
@options.group(
    "Output",
    click.option("--format", "form", type=options.Word(EXPORT_FORMATS), required=True, help="Format to write."),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        required=True,
        metavar="PATH",
        help="File or folder to write.",
    ),
    click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Fixed batch size. [default: 1]"),
    click.option("--dynamic-batch", is_flag=True, help="Accept any batch size."),
    click.option("--fp16", is_flag=True, help="Export weights and arithmetic in half precision (timm: weights)."),
    click.option("--force", is_flag=True, help="Replace an earlier export."),
)
@options.json_option
@options.group(
    "Machine",
    click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
                 help="Processes that load images."),
)  # fmt: skip
def export_command(
    model: str, form: str, out: Path, dynamic_batch: bool, batch: int | None, fp16: bool, as_json: bool, **given: Any
) -> None:
    """Export the model of RUN for use without slimvit. RUN is a run folder, an embedded model or hf-hub:user/name.

    The exported file is read back and checked on 256 validation images of the run's data (or --eval-images). Logits
    may differ by 1e-4 of the largest logit, with --fp16 by 2e-2.

    An ONNX file takes normalised `images`, returns `logits`, and holds class names and preprocessing as metadata
    (pip install 'slimvit[onnx]'). A timm folder needs blocks of equal size without dense attention.

    \b
    Example:
      slimvit export runs/digits --format torch-export --dynamic-batch --out digits.pt2
    """
    from slimvit.config.recipe import Recipe
    from slimvit.io.export.formats import format_of
    from slimvit.workflows.export import CHECK_IMAGES, ExportOptions, export_model
    from slimvit.workflows.run_folder import recipe_of

    if dynamic_batch and batch is not None:
        raise click.UsageError(f"--batch {batch} and --dynamic-batch contradict each other; give one of them")
    if format_of(form).any_batch and (dynamic_batch or batch is not None):
        raise click.UsageError(f"a model for {form} takes any number of images; leave --batch and --dynamic-batch out")
    tree = shared.sections(model, given)
    tree["data"] = shared.data_of(model, recipe_of(model), tree.get("data", {}))
    shared.need_data({"data": tree["data"].get("name")})
    if given["eval_images"] is None:
        tree["data"]["eval_images"] = min(CHECK_IMAGES, tree["data"].get("eval_images") or CHECK_IMAGES)
    size = None if dynamic_batch else batch or 1
    options = ExportOptions(form, out, size, fp16, given["force"], given["workers"])
    figures = export_model(Recipe.parse(tree, "command line"), options)
    shared.echo(json.dumps(figures, indent=1) if as_json else "\n".join(_lines(figures)))


def _lines(figures: dict[str, Any]) -> list[str]:
    batch = {None: "any number of images", 1: "one image"}.get(figures["batch"], f"{figures['batch']} images")
    *others, last = map(str, figures["batches"])
    sizes = f"{', '.join(others)} and {last}" if others else last
    size = f"{figures['bytes'] / 2**20:.2f} MiB"
    return [
        f"{figures['file']}: {figures['format']}, {figures['precision']}, {batch} at a time, {size}",
        f"checked on {figures['images']} images of {figures['data']} in batches of {sizes}",
        f"largest difference of a logit: {figures['difference']:.1e} of the largest logit",
        f"same best class: {figures['agreement']:.2f} %",
    ]
