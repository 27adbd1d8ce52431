"""timings.json of a run folder: latency, throughput and speed-up of its model, by machine and setting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from slimvit.report.record import Record
from slimvit.utils.errors import StoreError
from slimvit.utils.files import disk_errors, write_whole
from slimvit.utils.reading import Unreadable, read_json

FORMAT_VERSION = 1
FILE = "timings.json"


class Timing(Record):
    """Timing of one model in one setting; null for a figure that was not measured."""

    device: str
    """Name of the device, with the number of threads for a CPU."""
    precision: str
    """`fp32` or `bf16`; for an ONNX file, the precision of the file."""
    compiled: bool
    latency_ms: float | None = None
    """Median of one forward pass of one image."""
    latency_p95_ms: float | None = None
    throughput: float | None = None
    """Images/s at the batch size that fills the machine."""
    batch: int | None = None
    """Batch size of the throughput."""
    peak_memory_gib: float | None = None
    """Peak memory of a forward pass of `batch` images, weights included."""
    latency_speedup: float | None = None
    """Time of the original over time of the model in the same rounds, at one image."""
    throughput_speedup: float | None = None
    """Time of the original over time of the model in the same rounds, at `batch` images."""
    latency_interval: list[float] | None = None
    """Ends of the 95 % interval of `latency_speedup`."""
    throughput_interval: list[float] | None = None
    """Ends of the 95 % interval of `throughput_speedup`."""
    macs_speedup: float | None = None
    """Speed-up if time were proportional to MACs."""
    remark: str | None = None
    """Explanation of a measured speed-up below `macs_speedup`."""
    input_size: list[int] | None = None
    """[channels, height, width] of an image."""
    rounds: int
    versions: dict[str, str] = Field(default_factory=dict)


def write_timings(folder: Path, timings: Sequence[Timing]) -> None:
    """Add timings to a run folder, replacing earlier ones of the same setting.

    Raises:
        StoreError: The file cannot be written, or the existing one is damaged.
    """
    replaced = {setting_of(t) for t in timings}
    kept = [t for t in read_timings(folder) if setting_of(t) not in replaced]
    rows = [t.model_dump(mode="json") for t in [*kept, *timings]]
    text = json.dumps({"format_version": FORMAT_VERSION, "timings": rows}, indent=1, allow_nan=False) + "\n"
    with disk_errors(folder / FILE):
        write_whole(folder / FILE, text)


def read_timings(folder: Path) -> list[Timing]:
    """Return all timings of a run folder; an empty list for a folder without timings.json.

    Raises:
        StoreError: The file is damaged or of another format.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format_version") != FORMAT_VERSION:
            raise StoreError(f"{path}: holds no timings of format {FORMAT_VERSION}; delete it and time again")
        return [Timing.model_validate(row, strict=True) for row in data["timings"]]
    except (Unreadable, KeyError, TypeError, ValidationError) as error:
        raise StoreError(f"{path}: damaged: {' '.join(str(error).split())}; delete it and time again") from None


def setting_of(timing: Timing) -> tuple[str, str, bool]:
    """Return device, precision and whether the model was compiled."""
    return timing.device, timing.precision, timing.compiled
