"""report.json: what a run measured after each stage. A figure that was not measured is null, never 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slimvit.utils.errors import StoreError
from slimvit.utils.files import Unreadable, read_json

FORMAT_VERSION = 3
"""2 added `macs_by_part` and `input_size`, 3 `neurons`."""
READS = (1, 2, 3)

STAGES = ("original", "pruned", "refit", "dense", "finetuned")
"""In the order a run goes through them; a run leaves out those it was not asked for."""


class Record(BaseModel):
    """Immutable; unknown keys and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Stage(Record):
    """The model after one stage of the run."""

    stage: str
    """One of :data:`STAGES`."""
    heads: int | None = None
    neurons: int | None = None
    """Hidden neurons of all MLPs."""
    params: int | None = None
    macs: int | None = None
    """Multiply-accumulates of one image, norms included."""
    macs_by_part: dict[str, int] | None = None
    """The same by part of the network (qkv, attention, proj, mlp, norm, ...)."""
    top1: float | None = None
    """Per cent, as top5 and agreement are."""
    top5: float | None = None
    loss: float | None = None
    agreement: float | None = None
    """Images predicted as the original predicts them, per cent."""
    feature_error: float | None = None
    feature_cosine: float | None = None
    seconds: float | None = None
    """Time the stage took."""
    latency_ms: float | None = None
    throughput: float | None = None
    """Images/s."""


class Report(Record):
    """One run, stage by stage."""

    format_version: int = FORMAT_VERSION
    model: str
    """The timm name."""
    data: str | None = None
    seed: int = 0
    device: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    """Package name -> version."""
    images: int | None = None
    """Images evaluated on."""
    input_size: list[int] | None = None
    """[channels, height, width] that the model was given."""
    calibration_images: int | None = None
    ratio_asked: float | None = None
    """Fraction of the heads to remove, 0-1; so is ratio_reached."""
    ratio_reached: float | None = None
    notes: list[str] = Field(default_factory=list)
    """What a reader must know before the figures, such as counters that disagree."""
    stages: list[Stage] = Field(min_length=1)

    @property
    def reference(self) -> Stage:
        """What changes are measured against: the original."""
        return self.stages[0]

    @property
    def last(self) -> Stage:
        return self.stages[-1]

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: Any, source: str = "report") -> Report:
        """Read what :meth:`to_json` wrote; raises :class:`StoreError` with one line that names every bad field."""
        if isinstance(data, dict) and data.get("format_version") not in READS:
            reads = f"{READS[0]} to {READS[-1]}"
            raise StoreError(
                f"{source}: format_version is {data.get('format_version')!r}, this slimvit reads {reads}; "
                "use the slimvit that wrote it, or run again"
            )
        try:
            return cls.model_validate(data, strict=True)
        except ValidationError as error:
            raise StoreError(f"{source}: {'; '.join(map(_defect, error.errors()))}; run again to rewrite it") from None

    @classmethod
    def read(cls, path: Path) -> Report:
        """Raises :class:`StoreError` when the file is missing, no JSON, or no report."""
        try:
            data = read_json(path)
        except FileNotFoundError:
            raise StoreError(f"{path}: no such report; give the folder of a finished run") from None
        except Unreadable as error:
            raise StoreError(f"{path}: not a readable report: {error}") from None
        return cls.from_json(data, str(path))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _defect(error: Any) -> str:
    """``stages[1].top1: expected ..., found 'x'`` from one pydantic error."""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    found = "" if error["type"] == "missing" else f", found {repr(error['input'])[:40]}"
    return f"{place or 'top level'}: {error['msg'][0].lower()}{error['msg'][1:]}{found}"
