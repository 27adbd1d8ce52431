"""Which points belong on one line (they differ only in how much is cut), and which no other point beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slimvit.config.recipe import BUDGETS
from slimvit.config.sweep import SHORT, said
from slimvit.report.compare.rows import ComparisonRow

ACCURACY_KEYS = ("top1", "agreement", "feature_error")
"""What accuracy is judged by, the best known first."""
LOWER_IS_BETTER = {"feature_error"}
TOLD = 3
"""Settings that a line's label names at most."""


@dataclass(frozen=True)
class Series:
    """Points that differ only in their budget; the label is empty where all points are one series."""

    label: str
    rows: tuple[ComparisonRow, ...]


def accuracy_key(points: Sequence[ComparisonRow]) -> str | None:
    """The figure that most points have, of equals the best; None where nothing was measured."""
    counts = {key: sum(key in p.stats for p in points) for key in ACCURACY_KEYS}
    best = max(ACCURACY_KEYS, key=lambda key: counts[key])
    return best if counts[best] else None


def front(points: Sequence[ComparisonRow], cost: str, gain: str) -> list[ComparisonRow]:
    """The points that no other beats in one of the two figures without being worse in the other."""
    sign = -1 if gain in LOWER_IS_BETTER else 1
    known = [(p, p.stats[cost].mean, sign * p.stats[gain].mean) for p in points if {cost, gain} <= p.stats.keys()]
    return [p for p, c, g in known if not any(oc <= c and og >= g and (oc, og) != (c, g) for _, oc, og in known)]


def series_of(points: Sequence[ComparisonRow]) -> list[Series]:
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
    """What a name is made of: a sweep joins the settings that tell a point from the others."""
    return name.split(", ")


def _label(rows: list[ComparisonRow], settings: dict[str, Any], varying: list[str], shared: set[str]) -> str:
    """What the names of the points have in common, or else the settings that other series have otherwise."""
    if len(rows) == 1:
        return rows[0].name
    common = [
        part for part in key_words(rows[0].name) if all(part in key_words(r.name) for r in rows) and part not in shared
    ]
    if common:
        return ", ".join(common)
    told = [f"{SHORT.get(k, k.rpartition('.')[2].replace('_', ' '))} {said(k, settings.get(k))}" for k in varying]
    return ", ".join(told) if 0 < len(told) <= TOLD else rows[0].name


def _settings(row: ComparisonRow) -> dict[str, Any]:
    """Setting (`prune.criterion`) -> value, without seed and budget."""
    recipe = row.runs[0].recipe
    if recipe is None:
        return {}
    tree = recipe.model_dump(mode="json", exclude={"seed"})
    flat = {f"{s}.{k}": v for s, section in tree.items() for k, v in section.items()}
    return {k: v for k, v in flat.items() if k not in {f"prune.{b}" for b in BUDGETS}}
