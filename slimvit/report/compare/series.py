"""Series of points that differ in their budget alone, and the front of points that no other measurably beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slimvit.config.recipe import BUDGETS
from slimvit.config.sweep import SHORT, value_text
from slimvit.report.columns import METRICS
from slimvit.report.compare.rows import ComparisonRow, Stat

ACCURACY_KEYS = ("top1", "agreement", "feature_error")
"""Figures that points may be compared by, in order of preference."""
LABEL_SETTINGS = 3
"""Settings in the label of a series at most."""


@dataclass(frozen=True)
class Series:
    """Points that differ in their budget alone."""

    label: str
    """Empty if there is only one series."""
    rows: tuple[ComparisonRow, ...]


def accuracy_key(points: Sequence[ComparisonRow]) -> str | None:
    """Return the key of the accuracy figure that most points have, the preferred among equals; None without any."""
    counts = {key: sum(key in p.stats for p in points) for key in ACCURACY_KEYS}
    best = max(ACCURACY_KEYS, key=lambda key: counts[key])
    return best if counts[best] else None


def front(points: Sequence[ComparisonRow], cost: str, gain: str) -> list[ComparisonRow]:
    """Return the points that no other point measurably beats.

    A point beats another if it costs no more and is more accurate beyond the noise: their intervals of one standard
    deviation over the seeds do not overlap. A cheaper point of the same accuracy beats another too. The interval of a
    single seed has zero width.

    Args:
        points: The rows to compare.
        cost: Key of the cost.
        gain: Key of the accuracy.
    """
    measured = [point for point in points if {cost, gain} <= point.stats.keys()]
    return [point for point in measured if not any(_beats(other, point, cost, gain) for other in measured)]


def _beats(one: ComparisonRow, other: ComparisonRow, cost: str, gain: str) -> bool:
    cheaper = one.stats[cost].mean < other.stats[cost].mean
    worst, best = _ends(one.stats[gain], gain)[0], _ends(other.stats[gain], gain)[1]
    return one.stats[cost].mean <= other.stats[cost].mean and (worst > best or (cheaper and worst == best))


def _ends(stat: Stat, gain: str) -> tuple[float, float]:
    """The worst and the best end of the interval of an accuracy, negated if lower is better."""
    low, high = stat.interval
    return (low, high) if METRICS[gain].higher_is_better else (-high, -low)


def series_of(points: Sequence[ComparisonRow]) -> list[Series]:
    """Group points that differ in their budget alone; labels name the settings that differ between series."""
    groups: dict[str, list[ComparisonRow]] = {}
    for row in points:
        groups.setdefault(f"{row.model} {row.data} {row.runs[0].key(budget=False)}", []).append(row)
    if len(groups) == 1:
        return [Series("", tuple(points))]
    settings = [_settings(rows[0]) for rows in groups.values()]
    shared = set.intersection(*({part for row in rows for part in key_words(row.name)} for rows in groups.values()))
    varying = [k for k in dict.fromkeys(k for s in settings for k in s) if len({str(s.get(k)) for s in settings}) > 1]
    labels = [_label(rows, s, varying, shared) for rows, s in zip(groups.values(), settings, strict=True)]
    return [Series(label, tuple(rows)) for label, rows in zip(labels, groups.values(), strict=True)]


def key_words(name: str) -> list[str]:
    """Return the settings in the name of a sweep's point."""
    return name.split(", ")


def _label(rows: list[ComparisonRow], settings: dict[str, Any], varying: list[str], shared: set[str]) -> str:
    """The words common to the names of this series alone, or else the settings that vary between series."""
    if len(rows) == 1:
        return rows[0].name
    common = [
        part for part in key_words(rows[0].name) if all(part in key_words(r.name) for r in rows) and part not in shared
    ]
    if common:
        return ", ".join(common)
    words = [
        f"{SHORT.get(k, k.rpartition('.')[2].replace('_', ' '))} {value_text(k, settings.get(k))}" for k in varying
    ]
    return ", ".join(words) if 0 < len(words) <= LABEL_SETTINGS else rows[0].name


def _settings(row: ComparisonRow) -> dict[str, Any]:
    """The recipe's settings, `prune.criterion` -> value, without seed and budget."""
    recipe = row.runs[0].recipe
    if recipe is None:
        return {}
    tree = recipe.model_dump(mode="json", exclude={"seed"})
    flat = {f"{s}.{k}": v for s, section in tree.items() for k, v in section.items()}
    return {k: v for k, v in flat.items() if k not in {f"prune.{b}" for b in BUDGETS}}
