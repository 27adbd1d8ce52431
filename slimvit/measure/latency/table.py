"""A table of measured times, stored in the user's cache folder under a hash of everything it depends on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from slimvit.utils.output import fingerprint

FORMAT_VERSION = 1


class LatencyTable(BaseModel):
    """Milliseconds per batch of the parts of a model, on one device at one batch size."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    measured: str
    """The time of the measurement, as `2026-01-31 12:00`."""
    full: float
    """The whole model."""
    rest: float
    """The whole model without any branch that can be removed."""
    curves: dict[str, list[tuple[int, float]]]
    """Kind of branch -> pairs of width and milliseconds beyond `rest`."""

    @field_validator("curves")
    @classmethod
    def _are_curves(cls, curves: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
        for kind, curve in curves.items():
            widths, times = [w for w, _ in curve], [t for _, t in curve]
            if curve[:1] != [(0, 0.0)] or widths != sorted(set(widths)) or times != sorted(times):
                raise ValueError(f"{kind}: no curve that rises from 0")
        return curves


def place_of(facts: dict[str, Any]) -> Path:
    """Return the file of the table that depends on `facts`, whether it exists or not."""
    return cache_folder() / f"{fingerprint({'format_version': FORMAT_VERSION} | facts)}.json"


def cache_folder() -> Path:
    """Return the folder of the tables, in an absolute `$XDG_CACHE_HOME` or `~/.cache`."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (given if given.is_absolute() else Path.home() / ".cache") / "slimvit" / "latency"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / "slimvit" / "latency"


def read_table(path: Path, kinds: Collection[str]) -> LatencyTable | None:
    """Read a table; None where it is missing, damaged, or lacks one of the `kinds`."""
    try:
        table = LatencyTable.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return table if table.curves.keys() >= {*kinds} else None


def write_table(table: LatencyTable, path: Path) -> bool:
    """Write a table in one step, as another run may read it meanwhile, and return whether that succeeded."""
    partial: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=".new-", dir=path.parent)
        with os.fdopen(descriptor, "w") as file:
            file.write(table.model_dump_json(indent=1) + "\n")
        os.replace(partial, path)
    except OSError:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)
        return False
    return True
