"""The table of measured times by width of a branch, kept in the user's cache folder under a hash of its conditions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from slimvit.utils.files import user_cache, write_whole
from slimvit.utils.output import fingerprint
from slimvit.utils.reading import Unreadable, read_text

FORMAT_VERSION = 1

Curve: TypeAlias = list[tuple[int, float]]
"""Pairs of width and milliseconds. The widths rise from 0, where the branch is gone and costs nothing."""


class LatencyTable(BaseModel):
    """Milliseconds per batch of the parts of a model, on one device at one batch size."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    measured: str
    """Time of the measurement, as `2026-01-31 12:00`."""
    full: float
    """Milliseconds of the whole model."""
    rest: float
    """Milliseconds of the model without its removable branches."""
    curves: dict[str, Curve]
    """Kind of branch -> milliseconds beyond `rest` by width."""

    @field_validator("curves")
    @classmethod
    def _are_curves(cls, curves: dict[str, Curve]) -> dict[str, Curve]:
        for kind, curve in curves.items():
            widths, times = [w for w, _ in curve], [t for _, t in curve]
            if curve[:1] != [(0, 0.0)] or widths != sorted(set(widths)) or times != sorted(times):
                raise ValueError(f"{kind}: no curve that rises from 0")
        return curves


def table_path(facts: dict[str, Any]) -> Path:
    """Return the path of the table for the conditions `facts`; the file may not exist."""
    return cache_folder() / f"{fingerprint({'format_version': FORMAT_VERSION} | facts)}.json"


def cache_folder() -> Path:
    """Return the folder of tables, in the user's cache folder."""
    return (user_cache() or Path(tempfile.gettempdir()) / "slimvit") / "latency"


def read_table(path: Path, kinds: Collection[str]) -> LatencyTable | None:
    """Read a table; None where it is missing, damaged, or lacks one of the `kinds`."""
    try:
        table = LatencyTable.model_validate_json(read_text(path))
    except (FileNotFoundError, Unreadable, ValidationError):
        return None
    return table if table.curves.keys() >= {*kinds} else None


def write_table(table: LatencyTable, path: Path) -> bool:
    """Write a table atomically, since other runs may read it, and return whether that succeeded."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, table.model_dump_json(indent=1) + "\n")
    except OSError:
        return False
    return True


def rising(times: Sequence[float]) -> list[float]:
    """Return the nearest sequence that never falls (isotonic regression by pooling adjacent violators).

    Without it noise could make less work look more expensive.
    """
    pools: list[list[float]] = []
    for time in times:
        pools.append([time])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    return [_mean(pool) for pool in pools for _ in pool]


def curve_of(widths: Sequence[int], times: Sequence[float]) -> Curve:
    """Return the cost of each width beyond that of the first, which is 0."""
    smooth = rising(times)
    return [(width, time - smooth[0]) for width, time in zip(widths, smooth, strict=True)]


def read_off(curve: Curve) -> Callable[[int], float]:
    """Return the function width -> milliseconds, linear between the points of a curve."""
    widths, times = zip(*curve, strict=True)
    return lambda width: float(np.interp(width, widths, times))


def _mean(pool: Sequence[float]) -> float:
    return sum(pool) / len(pool)
