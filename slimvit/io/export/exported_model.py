"""Input of every export format: a model, its batch size and its metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from slimvit.data.preprocessing import preprocessing_of
from slimvit.measure.flops.count import count_macs
from slimvit.measure.flops.parts import count_params
from slimvit.models.base import TimmModule
from slimvit.models.registry import model_name

INPUT, OUTPUT = "images", "logits"


@dataclass(frozen=True)
class ExportedModel:
    """A model to export."""

    model: TimmModule
    """In eval mode on the CPU, in fp32."""
    label: dict[str, Any]
    """Metadata for the file: classes, preprocessing, cost."""
    batch: int | None
    """Batch size of the file; None for any batch size."""
    half: bool = False
    """Whether weights and arithmetic are fp16; images and logits stay fp32."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.label["preprocessing"]["input_size"]
        return channels, height, width

    def words(self) -> dict[str, str]:
        """Return the metadata as strings; other values are encoded as JSON."""
        return {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in self.label.items()}


def exported_model(
    model: TimmModule, class_names: Sequence[str], batch: int | None, half: bool = False
) -> ExportedModel:
    """Attach preprocessing, classes and cost to a model for export."""
    label = {
        "slimvit_version": version("slimvit"),
        "model": model_name(model),
        "precision": "fp16" if half else "fp32",
        "class_names": list(class_names),
        "preprocessing": preprocessing_of(model).to_json(),
        "params": count_params(model),
        "macs": count_macs(model).total,
    }
    return ExportedModel(model, label, batch, half)
