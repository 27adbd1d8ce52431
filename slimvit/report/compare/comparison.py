"""Many runs side by side: the rows, what must be known before reading them, and what was asked about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slimvit.report.compare.measurement import CollectedRuns, Setting
from slimvit.report.compare.pick import Pick, PickRule, pick
from slimvit.report.compare.published import PublishedComparison, published_figures
from slimvit.report.compare.rows import ComparisonRow, rows_of
from slimvit.report.compare.series import Series, accuracy_key, front, series_of
from slimvit.report.compare.timing_setting import common_setting, notes_on_speed, untimed
from slimvit.report.text import listed


@dataclass(frozen=True)
class Comparison:
    """What every format shows."""

    rows: tuple[ComparisonRow, ...]
    notes: tuple[str, ...]
    claims: tuple[PublishedComparison, ...]
    picks: tuple[Pick, ...]
    series: tuple[Series, ...]
    front: tuple[ComparisonRow, ...]
    """The points that no other beats in FLOPs and accuracy."""
    gain: str | None
    """The accuracy that the points are compared by (see :func:`accuracy_key`)."""
    setting: Setting | None
    """Under which the times were taken."""
    untimed: int
    """Runs of the points without a latency under it."""

    @property
    def points(self) -> list[ComparisonRow]:
        return [row for row in self.rows if row.kind == "point"]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(row.model for row in self.rows))

    def label(self, row: ComparisonRow) -> str:
        """The row's name, with its model where that is not plain."""
        return f"{row.model}, {row.name}" if row.kind == "original" and len(self.models) > 1 else row.name


def compare_runs(gathered: CollectedRuns, wishes: Sequence[PickRule] = ()) -> Comparison:
    """Raises :class:`~slimvit.utils.errors.StoreError` for a wish that no point meets."""
    measurements = gathered.measurements
    setting = common_setting(measurements)
    rows = rows_of(measurements, setting)
    points = [row for row in rows if row.kind == "point"]
    gain = accuracy_key(points)
    return Comparison(
        rows=tuple(rows),
        notes=(*_notes(rows), *gathered.notes, *notes_on_speed(measurements, setting)),
        claims=tuple(published_figures(gathered.claims, rows)),
        picks=tuple(pick(wish, rows) for wish in wishes),
        series=tuple(series_of(points)) if points else (),
        front=() if gain is None else tuple(front(points, "macs", gain)),
        gain=gain,
        setting=setting,
        untimed=untimed([m for m in measurements if not m.is_reference], setting),
    )


def _notes(rows: Sequence[ComparisonRow]) -> list[str]:
    """What the reports of the runs say, each once, with the rows it is about."""
    said: dict[str, dict[str, None]] = {}
    for row in rows:
        for run in row.runs:
            for note in run.report.notes:
                said.setdefault(note, {})[row.name] = None
    found = [f"{listed(list(names))}: {note}" for note, names in said.items()]
    drawn = dict.fromkeys(row.model for row in rows for run in row.runs if not run.trained_before)
    return found + [
        f"{model} started from random weights: its original has no accuracy to compare with" for model in drawn
    ]
