"""timings.json in a run folder: times of its model and speed-ups against its original, by machine and setting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from slimvit.report.record import Record
from slimvit.utils.errors import StoreError
from slimvit.utils.files import Unreadable, read_json

FORMAT_VERSION = 1
FILE = "timings.json"


class Timing(Record):
    """One model under one setting of one machine; null where not measured."""

    device: str
    """The machine in words, with the number of threads for a CPU."""
    precision: str
    """`fp32` or `bf16`; for an ONNX file, the precision of the file."""
    compiled: bool
    latency_ms: float | None = None
    """Median of one forward pass of one image."""
    latency_p95_ms: float | None = None
    throughput: float | None = None
    """Images/s at the batch size that fills the machine."""
    batch: int | None = None
    """That batch size."""
    peak_memory_gib: float | None = None
    """Of a forward pass at that batch size, weights included."""
    latency_speedup: float | None = None
    """Time of the original over time of the model in the same rounds, at one image."""
    throughput_speedup: float | None = None
    """The same at that batch size."""
    latency_interval: list[float] | None = None
    """Ends of the 95 % interval of the speed-up at one image."""
    throughput_interval: list[float] | None = None
    """The same at that batch size."""
    macs_speedup: float | None = None
    """The speed-up if time followed the MACs."""
    remark: str | None = None
    """Why the time does not follow the MACs, where that is so."""
    input_size: list[int] | None = None
    """[channels, height, width] of an image."""
    rounds: int
    versions: dict[str, str] = Field(default_factory=dict)


def write_timings(folder: Path, timings: Sequence[Timing]) -> None:
    """Add timings to a run folder, replacing earlier ones of the same setting.

    Raises:
        StoreError: If the file cannot be written, or the one there is damaged.
    """
    mine = {setting_of(t) for t in timings}
    kept = [t for t in read_timings(folder) if setting_of(t) not in mine]
    rows = [t.model_dump(mode="json") for t in [*kept, *timings]]
    text = json.dumps({"format_version": FORMAT_VERSION, "timings": rows}, indent=1, allow_nan=False) + "\n"
    partial = folder / f".{FILE}.partial"
    try:
        partial.write_text(text)
        partial.replace(folder / FILE)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"{folder / FILE}: cannot be written: {error.strerror}") from None


def read_timings(folder: Path) -> list[Timing]:
    """Return all timings of a run folder; an empty list where there are none.

    Raises:
        StoreError: For a damaged file or another format.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format_version") != FORMAT_VERSION:
            raise StoreError(f"{path}: is no timings of format {FORMAT_VERSION}; delete it and time again")
        return [Timing.model_validate(row, strict=True) for row in data["timings"]]
    except (Unreadable, KeyError, TypeError, ValidationError) as error:
        raise StoreError(f"{path}: damaged: {' '.join(str(error).split())}; delete it and time again") from None


def setting_of(timing: Timing) -> tuple[str, str, bool]:
    """Return device, precision and whether the model was compiled."""
    return timing.device, timing.precision, timing.compiled
