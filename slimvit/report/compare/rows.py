"""The rows of a comparison: originals, references and points, one row for all seeds of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from statistics import mean, stdev
from typing import Literal

from slimvit.report.columns import Figures, figures_of
from slimvit.report.compare.measurement import Measurement, Setting
from slimvit.report.record import Stage

Kind = Literal["original", "reference", "point"]


@dataclass(frozen=True)
class Stat:
    """A figure over several runs."""

    mean: float
    std: float | None
    """Sample standard deviation; None for a single run."""
    count: int
    """Number of runs."""

    @property
    def interval(self) -> tuple[float, float]:
        """One standard deviation to either side of the mean."""
        std = self.std or 0.0
        return self.mean - std, self.mean + std


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the table."""

    kind: Kind
    model: str
    name: str
    data: str
    stats: dict[str, Stat]
    """Statistics of the measured figures, keyed as in `slimvit.report.columns.Figures`."""
    parts: dict[str, float] | None = None
    """MACs by part of the network."""
    runs: tuple[Measurement, ...] = field(default=())
    """Empty for an original, which has no run folder."""

    def value(self, key: str) -> float | None:
        """Return the mean of a figure, or None if it was not measured."""
        return self.stats[key].mean if key in self.stats else None

    def fewer(self, units: str) -> bool:
        """Return whether the network has fewer units (`heads`, `neurons`) than its original."""
        share = self.value(f"{units}_share")
        return share is not None and share < 1

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs."""
        return [m.report.seed for m in self.runs]

    @property
    def command(self) -> str | None:
        """The command that repeats its first run, for the files of a comparison."""
        return self.runs[0].command(self.runs[0].shown) if self.runs else None


def rows_of(measurements: Sequence[Measurement], setting: Setting | None = None) -> list[ComparisonRow]:
    """Return originals, then references, then points in the order given; names of points are unique.

    Args:
        measurements: The runs.
        setting: Setting of the times.
    """
    given = [m for m in measurements if not m.is_reference]
    references = [m for m in measurements if m.is_reference]
    rows = [_row("reference", group, setting) for group in _over_seeds(references)]
    rows += [_row("point", group, setting) for group in _over_seeds(given)]
    names = [row.name for row in rows]
    rows = [_renamed(row) if names.count(row.name) > 1 else row for row in rows]
    return [*originals(given or references, setting), *rows]


def _over_seeds(measurements: Iterable[Measurement]) -> list[list[Measurement]]:
    """Group runs that differ in the seed alone; a repeated seed starts another group."""
    groups: dict[tuple[str, int], list[Measurement]] = {}
    for m in measurements:
        key, again = f"{m.key(budget=True)} {m.data}", 0
        while m.report.seed in [other.report.seed for other in groups.get((key, again), [])]:
            again += 1
        groups.setdefault((key, again), []).append(m)
    return list(groups.values())


def _row(kind: Kind, runs: Sequence[Measurement], setting: Setting | None) -> ComparisonRow:
    first = runs[0]
    stats = stats_of([m.figures(setting) for m in runs])
    return ComparisonRow(kind, first.model, _name(runs), first.data, stats, _parts([m.last for m in runs]), tuple(runs))


def _name(runs: Sequence[Measurement]) -> str:
    """The common name of the runs; for run folders of several seeds, a pattern of their paths."""
    names = list(dict.fromkeys(m.name for m in runs))
    start = commonprefix(names)
    several = f"{start}*" if start.rpartition("/")[2] else f"{names[0]} ({len(names)} seeds)"
    return names[0] if len(names) == 1 else several


def _renamed(row: ComparisonRow) -> ComparisonRow:
    return replace(row, name=f"{row.name} ({row.runs[0].shown})")


def stats_of(figures: Sequence[Figures]) -> dict[str, Stat]:
    """Return mean and spread of every figure over the runs that measured it."""
    stats = {}
    for key in dict.fromkeys(k for row in figures for k in row):
        values = [v for row in figures if (v := row.get(key)) is not None]
        if values:
            stats[key] = Stat(mean(values), stdev(values) if len(values) > 1 else None, len(values))
    return stats


def originals(measurements: Sequence[Measurement], setting: Setting | None) -> list[ComparisonRow]:
    """Return a row for each network that the runs started from.

    Originals that differ by seed, because each run trained its own, are one row with a spread.
    """
    groups: dict[tuple[object, ...], dict[str, Measurement]] = {}
    for m in measurements:
        if m.trained_before or m.original.macs != m.last.macs:
            adapt = None if m.recipe is None else m.recipe.adapt
            key = (m.model, m.data, m.original.params, m.original.macs, repr(adapt))
            groups.setdefault(key, {}).setdefault(_figures_text(m.original), m)
    kept = [(key, distinct) for key, distinct in groups.items() if not _is_subset(key, distinct, groups)]
    return [_original_row(list(distinct.values()), measurements, setting) for _, distinct in kept]


def _is_subset(
    key: tuple[object, ...], distinct: dict[str, Measurement], groups: dict[tuple[object, ...], dict[str, Measurement]]
) -> bool:
    """Whether another group, of runs with another `adapt:` section, includes all originals of this one."""
    keys = list(groups)
    for other, originals_of_other in groups.items():
        if other != key and other[:-1] == key[:-1] and distinct.keys() <= originals_of_other.keys():
            return distinct.keys() < originals_of_other.keys() or keys.index(other) < keys.index(key)
    return False


def _original_row(distinct: list[Measurement], all_: Sequence[Measurement], setting: Setting | None) -> ComparisonRow:
    first, stages = distinct[0], [m.original for m in distinct]
    stats = stats_of([figures_of(s, s) | {"seconds": None} for s in stages])
    runs = [m for m in all_ if (m.model, m.data, m.original.macs) == (first.model, first.data, first.original.macs)]
    times = stats_of([_original_times(m.figures(setting)) for m in runs])
    stats |= {key: replace(stat, std=None) for key, stat in times.items()}  # a spread over timings is none over seeds
    return ComparisonRow("original", first.model, "original", first.data, stats, _parts(stages))


def _original_times(figures: Figures) -> Figures:
    """The times of the original, from the times of a run and its speed-up in the same rounds."""
    latency, throughput = figures["latency_ms"], figures["throughput"]
    slower, faster = figures["latency_ms_share"], figures["throughput_share"]
    return {
        "latency_ms": latency / slower if latency is not None and slower else None,
        "throughput": throughput / faster if throughput is not None and faster else None,
    }


def _figures_text(stage: Stage) -> str:
    return repr({k: v for k, v in figures_of(stage, stage).items() if k != "seconds"})


def _parts(stages: Sequence[Stage]) -> dict[str, float] | None:
    counts = [s.macs_by_part for s in stages if s.macs_by_part is not None]
    if not counts:
        return None
    return {part: mean(c.get(part, 0) for c in counts) for part in dict.fromkeys(p for c in counts for p in c)}
