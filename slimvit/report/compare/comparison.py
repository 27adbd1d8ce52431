"""The comparison of runs: rows, notes, published figures, picks, series and front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slimvit.models.parts.base import Part
from slimvit.report.columns import parts_shown
from slimvit.report.compare.measurement import CollectedRuns, Setting, common_setting, notes_on_times, untimed
from slimvit.report.compare.pick import Pick, PickRule, pick
from slimvit.report.compare.published import PublishedComparison, published_figures
from slimvit.report.compare.rows import ComparisonRow, rows_of
from slimvit.report.compare.series import Series, accuracy_key, front, series_of
from slimvit.report.text import listed


@dataclass(frozen=True)
class Comparison:
    """The content of the tables and pictures of several runs."""

    rows: tuple[ComparisonRow, ...]
    notes: tuple[str, ...]
    claims: tuple[PublishedComparison, ...]
    picks: tuple[Pick, ...]
    series: tuple[Series, ...]
    front: tuple[ComparisonRow, ...]
    """The points that no other point measurably beats in FLOPs and accuracy."""
    gain: str | None
    """Key of the accuracy figure that points are compared by (see `accuracy_key`)."""
    setting: Setting | None
    """Setting of the times."""
    untimed: int
    """Number of runs without a latency in that setting, references not counted."""

    @property
    def points(self) -> list[ComparisonRow]:
        """The rows that are neither originals nor references."""
        return [row for row in self.rows if row.kind == "point"]

    @property
    def models(self) -> list[str]:
        """The models of the rows, each once."""
        return list(dict.fromkeys(row.model for row in self.rows))

    @property
    def parts(self) -> list[Part]:
        """The parts with a column in the tables."""
        return parts_shown(lambda part: any(row.fewer(part.units) for row in self.rows))

    @property
    def path_note(self) -> str:
        """Note on the base folder of relative paths in the commands; empty without sweeps."""
        sweeps = {run.sweep for row in self.rows for run in row.runs} - {None}
        place = "its folder" if len(sweeps) == 1 else "the folder that holds the sweep"
        return f"Paths of a sweep's points begin at {place}." * bool(sweeps)

    @property
    def commands(self) -> list[str]:
        """The commands that repeat the runs, one per row."""
        return [row.command for row in self.rows if row.command is not None]

    def label(self, row: ComparisonRow) -> str:
        """Return the name of a row; that of an original includes the model if there are several."""
        return f"{row.model}, {row.name}" if row.kind == "original" and len(self.models) > 1 else row.name


def compare_runs(collected: CollectedRuns, rules: Sequence[PickRule] = ()) -> Comparison:
    """Compare runs.

    Args:
        collected: The runs.
        rules: The rules of `--pick`.

    Raises:
        StoreError: No point meets a rule.
    """
    measurements = collected.measurements
    setting = common_setting(measurements)
    rows = rows_of(measurements, setting)
    points = [row for row in rows if row.kind == "point"]
    gain = accuracy_key(points)
    return Comparison(
        rows=tuple(rows),
        notes=(*_notes(rows), *collected.notes, *notes_on_times(measurements, setting)),
        claims=tuple(published_figures(collected.claims, rows)),
        picks=tuple(pick(rule, rows) for rule in rules),
        series=tuple(series_of(points)) if points else (),
        front=() if gain is None else tuple(front(points, "macs", gain)),
        gain=gain,
        setting=setting,
        untimed=untimed([m for m in measurements if not m.is_reference], setting),
    )


def _notes(rows: Sequence[ComparisonRow]) -> list[str]:
    """The notes of the reports, each once with the names of its rows, and those on random initial weights."""
    names_by_note: dict[str, dict[str, None]] = {}
    for row in rows:
        for run in row.runs:
            for note in run.report.notes:
                names_by_note.setdefault(note, {})[row.name] = None
    notes = [f"{listed(list(names))}: {note}" for note, names in names_by_note.items()]
    untrained = dict.fromkeys(row.model for row in rows for run in row.runs if not run.trained_before)
    return notes + [
        f"{model} started from random weights: its original has no accuracy to compare with" for model in untrained
    ]
