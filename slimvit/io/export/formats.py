"""Registry of export formats: how each checks, writes and reads back a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from slimvit.config.choices import EXPORT_FORMATS
from slimvit.io.export import onnx_file, program, timm_folder
from slimvit.io.export.exported_model import ExportedModel
from slimvit.utils.errors import SlimvitError


@dataclass(frozen=True)
class Format:
    """One export format, for use without slimvit."""

    suffix: str
    """Suffix of the file; empty for a format that writes a folder."""
    write: Callable[[ExportedModel, Path], None]
    """Writes a model to a file, or into an empty folder."""
    load: Callable[[Path], Callable[[Tensor], Tensor]]
    """Reads the file back as a function: fp32 images [B, C, H, W] -> logits [B, K]."""
    check_packages: Callable[[], None] = lambda: None
    """Raises `SlimvitError` if a package is missing or too old."""
    check: Callable[[ExportedModel], None] = lambda exported: None
    """Raises `SlimvitError` for a model that the format cannot hold."""
    any_batch: bool = False
    """Whether the file always takes any batch size, so that none can be chosen."""


FORMATS: dict[str, Format] = {
    "onnx": Format(
        suffix=".onnx",
        write=onnx_file.write_onnx,
        load=onnx_file.load_onnx,
        check_packages=onnx_file.check_packages,
        check=onnx_file.check_size,
    ),
    "torch-export": Format(suffix=".pt2", write=program.write_program, load=program.load_program),
    "timm": Format(
        suffix="",
        write=timm_folder.write_timm_folder,
        load=timm_folder.load_timm_folder,
        check_packages=timm_folder.check_version,
        check=timm_folder.check_plain,
        any_batch=True,
    ),
}


def format_of(name: str) -> Format:
    """Return the export format of that name, built in or from a plugin.

    Raises:
        SlimvitError: The name is not known.
    """
    try:
        return FORMATS[EXPORT_FORMATS.check(name)]
    except ValueError as error:
        raise SlimvitError(f"format {name!r} is not known; choose from {error}") from None


def register_format(name: str, form: Format) -> Format:
    """Register an export format for `slimvit export --format NAME` and the Python API."""
    FORMATS[name] = form
    EXPORT_FORMATS.add(name)
    return form
