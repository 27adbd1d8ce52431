"""report.json: the figures of a run after each of its stages. A figure that was not measured is null, not 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from slimvit.models.parts.registry import PARTS
from slimvit.models.plan import SlimPlan
from slimvit.utils.errors import StoreError
from slimvit.utils.files import write_whole
from slimvit.utils.reading import read_errors, read_json

FORMAT_VERSION = 3
"""2 added `macs_by_part` and `input_size`, 3 the units of every part."""
READS = (1, 2, 3)

STAGES = ("original", "pruned", "refit", "dense", "finetuned")
"""All stages in the order of a run; a run has those that its recipe asks for."""


class Record(BaseModel):
    """Base of the records that are read from JSON: immutable, no unknown keys, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Stage(Record):
    """The model after one stage of a run.

    In JSON, units are keyed by the word of their part (`heads`, `neurons`), and accuracy figures by their own key
    (`top1`, `agreement`, ...), beside the other fields.
    """

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, float | None]
    """The accuracy figures, by key."""

    stage: str
    """One of `STAGES`."""
    units: dict[str, int] = Field(default_factory=dict)
    """Units left in all blocks, by part."""
    params: int | None = None
    macs: int | None = None
    """Multiply-accumulates of one image, norms included."""
    macs_by_part: dict[str, int] | None = None
    """MACs by part of the network (qkv, attention, proj, mlp, norm, ...)."""
    seconds: float | None = None
    """Duration of the stage."""
    latency_ms: float | None = None
    throughput: float | None = None
    """Images/s."""

    @property
    def accuracy(self) -> dict[str, float | None]:
        """The accuracy figures, by key."""
        return self.__pydantic_extra__

    def figure(self, key: str) -> float | None:
        """Return a number of the stage, or None if it was not measured.

        Args:
            key: A field's name, the key of an accuracy figure, or a part's word for its units.
        """
        return self.figures().get(key)

    def figures(self) -> dict[str, float | None]:
        """Return every number of the stage by key; units are keyed by the word of their part."""
        sizes = {PARTS[name].units: count for name, count in self.units.items() if name in PARTS}
        costs = {key: getattr(self, key) for key in ("params", "macs", "seconds", "latency_ms", "throughput")}
        return sizes | costs | self.accuracy

    @model_validator(mode="before")
    @classmethod
    def _gather_units(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        words = {part.units: name for name, part in PARTS.items()}
        units = {words[key]: count for key, count in data.items() if key in words and count is not None}
        rest = {key: value for key, value in data.items() if key not in words}
        return rest | {"units": units | rest.get("units", {})} if units else rest

    @model_serializer(mode="wrap")
    def _spread_units(self, inner: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        fields = inner(self)
        units = {part.units: fields["units"].get(name) for name, part in PARTS.items()}
        return {"stage": fields.pop("stage")} | units | {k: v for k, v in fields.items() if k != "units"}


class Report(Record):
    """The stages of one run."""

    format_version: int = FORMAT_VERSION
    model: str
    """The timm name."""
    data: str | None = None
    seed: int = 0
    device: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    """Package name -> version."""
    images: int | None = None
    """Number of evaluation images."""
    input_size: list[int] | None = None
    """[channels, height, width] of an image."""
    calibration_images: int | None = None
    ratio_asked: float | None = None
    """Fraction of the heads to remove, 0-1."""
    ratio_reached: float | None = None
    """Fraction of the heads that was removed, 0-1."""
    notes: list[str] = Field(default_factory=list)
    """Remarks to read before the figures, such as MAC counters that disagree."""
    stages: list[Stage] = Field(min_length=1)

    @property
    def reference(self) -> Stage:
        """The original model, the reference of all changes."""
        return self.stages[0]

    @property
    def last(self) -> Stage:
        """The final model."""
        return self.stages[-1]

    def to_json(self) -> dict[str, Any]:
        """Return the content of report.json."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: Any, source: str = "report") -> Report:
        """Read the content of report.json.

        Raises:
            StoreError: The format is another one, or fields are wrong; one line names them all.
        """
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
        """Read report.json.

        Raises:
            StoreError: The file is missing, not JSON, or not a report.
        """
        missing = f"{path}: no such report; give the folder of a finished run"
        with read_errors(StoreError, missing=missing, unreadable=f"{path}: not a readable report"):
            data = read_json(path)
        return cls.from_json(data, str(path))

    def write(self, path: Path) -> None:
        """Write report.json."""
        write_whole(path, json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")


def units_of(plan: SlimPlan) -> dict[str, tuple[int, int]]:
    """Return (units of the original, units kept) of a plan by part; parts without units are left out."""
    counts = {}
    for name, part in PARTS.items():
        if total := sum(getattr(block, part.units) for block in plan.blocks):
            counts[name] = total, sum(len(getattr(block, f"kept_{part.units}")) for block in plan.blocks)
    return counts


def _defect(error: Any) -> str:
    """Return `stages[1].top1: expected ..., found 'x'` for one pydantic error."""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    value = "" if error["type"] == "missing" else f", found {repr(error['input'])[:40]}"
    return f"{place or 'top level'}: {error['msg'][0].lower()}{error['msg'][1:]}{value}"
