"""The formats, by name: what each needs, refuses, writes and reads back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from slimvit.io.export import onnx_file, program, timm_folder
from slimvit.io.export.parcel import ExportedModel


@dataclass(frozen=True)
class Format:
    suffix: str
    """Of the file; empty where a folder is written."""
    check_packages: Callable[[], None]
    """Raises :class:`SlimvitError` where something is missing or too old."""
    check: Callable[[ExportedModel], None]
    """Raises :class:`SlimvitError` for a model that cannot be written so."""
    write: Callable[[ExportedModel, Path], None]
    load: Callable[[Path], Callable[[Tensor], Tensor]]
    """Reads a file back: fp32 images [B, C, H, W] -> logits [B, K]."""


FORMATS = {
    "onnx": Format(".onnx", onnx_file.check_packages, onnx_file.check_size, onnx_file.write_onnx, onnx_file.load_onnx),
    "torch-export": Format(".pt2", lambda: None, lambda parcel: None, program.write_program, program.load_program),
    "timm": Format(
        "",
        timm_folder.check_version,
        timm_folder.check_plain,
        timm_folder.write_timm_folder,
        timm_folder.load_timm_folder,
    ),
}
