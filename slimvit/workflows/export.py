"""Export a saved model for use without slimvit, read the file back, and compare both on validation images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.data.known import check_known_data
from slimvit.io import saved_model
from slimvit.io.export.exported_model import ExportedModel, exported_model
from slimvit.io.export.formats import Format, format_of
from slimvit.io.export.parity import BOUNDS, Parity, output_parity
from slimvit.io.load import saved_folder
from slimvit.utils.errors import ModelError, RecipeError
from slimvit.utils.files import write_whole
from slimvit.utils.lock import locked
from slimvit.utils.output import EXPORT, check_free_file, link_target, new_file, new_folder
from slimvit.workflows import run_folder
from slimvit.workflows.preflight import check_out
from slimvit.workflows.start import open_run
from slimvit.workflows.state import RunState

CHECK_IMAGES = 256
"""Validation images of the check of an exported file."""


@dataclass(frozen=True)
class ExportOptions:
    """Format and place of an export."""

    format: str
    """A key of `slimvit.io.export.formats.FORMATS`."""
    out: Path
    batch: int | None = 1
    """Fixed batch size; None accepts any. Ignored by a format that always accepts any."""
    half: bool = False
    """fp16 weights and arithmetic."""
    force: bool = False
    workers: int = 0


def export(
    model: nn.Module | str | Path,
    out: str | Path,
    format: str = "onnx",
    *,
    data: str | None = None,
    batch: int | None = 1,
    fp16: bool = False,
    images: int = CHECK_IMAGES,
    workers: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Export a model for use without slimvit, and check the file on validation images, as `slimvit export` does.

    Args:
        model: A saved model by name (a run folder, an embedded model, a Hub name), or a timm model.
        out: File to write (.onnx, .pt2), or the folder for timm.
        format: `onnx`, `torch-export` or `timm`.
        data: Data set to check on; by default that of the run.
        batch: Fixed batch size; None accepts any. A timm folder accepts any.
        fp16: Export weights and arithmetic in half precision.
        images: Validation images to check on.
        workers: Processes that load images.
        force: Replace an earlier export.

    Returns:
        `file`, `format`, `precision`, `batch`, `bytes`, and the check: `images`, `difference` (of a logit, relative to
        the largest), `agreement` in per cent.

    Raises:
        ModelError: The format cannot hold the model, a package is missing, or the file does not compute what the model
            computes (no file is left then).
        RecipeError: No data set is given or known.

    Example:
        >>> slimvit.export("runs/digits", "digits.onnx", batch=None)
    """
    if isinstance(model, nn.Module):
        with TemporaryDirectory() as folder:
            saved_model.save(model, Path(folder) / "model", class_names=getattr(model, "class_names", ()))
            return export(
                str(Path(folder) / "model"), out, format, data=data, batch=batch, fp16=fp16, images=images,
                workers=workers, force=force,
            )  # fmt: skip
    run_recipe = run_folder.recipe_of(model)
    section: dict[str, Any] = {} if run_recipe is None else run_recipe.data.model_dump()
    if data is not None:
        section = {"name": data}
    elif run_recipe is not None:
        check_known_data(run_recipe.data, model)
    section["eval_images"] = min(images, section.get("eval_images") or images)
    if "name" not in section:
        raise RecipeError(f"{model}: no run folder, so its data is not known; give data, such as digits or a folder")
    recipe = Recipe.parse({"model": {"name": str(model)}, "data": section}, "slimvit.export")
    return export_model(recipe, ExportOptions(format, Path(out), batch, fp16, force, workers))


def export_model(recipe: Recipe, options: ExportOptions) -> dict[str, Any]:
    """Export the model of a recipe, and compare its logits with the model's on the validation images.

    Returns:
        The figures of `export`.

    Raises:
        SlimvitError: The format cannot hold the model, a package is missing, `out` exists, or the logits differ too
            much. No file is left then.
    """
    form = format_of(options.format)
    form.check_packages()
    if not form.suffix:
        options = replace(options, out=link_target(options.out))
    with locked(options.out):
        _check_place(recipe, options, form)
        with open_run(recipe, Options(device="cpu", workers=options.workers), labels=False) as state:
            exported = _exported(state, options, form)
            form.check(exported)
            images = torch.cat([batch for batch, _ in state.context.in_order(state.context.data.val)])
        with _new_place(options, form) as partial:
            form.write(exported, partial)
            parity = _checked_parity(exported, form.load(partial), images, options.out)
            figures = _figures(state, options, exported, partial, parity)
            if not form.suffix:
                write_whole(partial / EXPORT, json.dumps(exported.label | {"checked": figures}, indent=1) + "\n")
    return figures


def _check_place(recipe: Recipe, options: ExportOptions, form: Format) -> None:
    if saved_folder(recipe.model.name) is None:
        raise ModelError(
            f"{recipe.model.name}: no run folder and no embedded model; make one with slimvit prune or slimvit.save"
        )
    if form.suffix:
        check_free_file(options.out, form.suffix, options.force)
    else:
        check_out(recipe, options.out, options.force)


@contextmanager
def _new_place(options: ExportOptions, form: Format) -> Iterator[Path]:
    with new_file(options.out) if form.suffix else new_folder(options.out, options.force) as partial:
        yield partial


def _exported(state: RunState, options: ExportOptions, form: Format) -> ExportedModel:
    model = state.model
    if not model.num_classes:
        raise ModelError(
            f"{state.recipe.model.name}: has no classifier, so there are no logits to export; train one first: "
            "slimvit prune --adapt-epochs 20"
        )
    names = getattr(model, "class_names", ()) or state.context.data.class_names
    return exported_model(model, names, None if form.any_batch else options.batch, options.half)


def _checked_parity(exported: ExportedModel, call: Callable[[Tensor], Tensor], images: Tensor, out: Path) -> Parity:
    """The parity of the exported file; raises `ModelError` where its logits differ too much."""
    parity = output_parity(exported.model, call, images, exported.batch)
    bound = BOUNDS[exported.label["precision"]]
    if not parity.holds(bound):
        raise ModelError(
            f"{out}: not written, because its logits differ from the model's by {parity.difference:.1e} of the largest "
            f"logit ({bound:.0e} is allowed; {parity.agreement:.1f} % of {parity.images} images agree)"
        )
    return parity


def _figures(
    state: RunState, options: ExportOptions, exported: ExportedModel, partial: Path, parity: Parity
) -> dict[str, Any]:
    files = [partial] if partial.is_file() else list(partial.iterdir())
    written = {
        "file": str(options.out),
        "format": options.format,
        "precision": exported.label["precision"],
        "batch": exported.batch,
        "bytes": sum(file.stat().st_size for file in files),
        "data": state.context.data.name,
    }
    return written | asdict(parity)
