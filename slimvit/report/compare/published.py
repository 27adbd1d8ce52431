"""What others published, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slimvit.config.sweep import PublishedFigure
from slimvit.report.compare.rows import ComparisonRow, Stat

UNNAMED = "which network is not said"


@dataclass(frozen=True)
class PublishedComparison:
    """One published figure of one point; what was not measured is None."""

    point: str
    figure: str
    """`top-1`, or `change` and what it is measured from."""
    claimed: float
    measured: Stat | None
    source: str


def published_figures(
    claims: Sequence[tuple[str, PublishedFigure]], rows: Sequence[ComparisonRow]
) -> list[PublishedComparison]:
    """A claim about a point of a sweep with a grid is about each of the grid's combinations."""
    found = []
    for sweep, claim in claims:
        about = _named(rows, sweep, claim.point)
        for suffix, row in about.items() or [("", None)]:
            name = f"{claim.point or UNNAMED}{suffix}" if row is None else row.name
            if claim.top1 is not None:
                stat = None if row is None else row.stats.get("top1")
                found.append(PublishedComparison(name, "top-1", claim.top1, stat, claim.source))
            if claim.change is not None:
                against = "the original" if claim.against is None else claim.against
                stat = None if row is None else _change(row, claim, _named(rows, sweep, claim.against), suffix)
                found.append(PublishedComparison(name, f"change against {against}", claim.change, stat, claim.source))
    return found


def _named(rows: Sequence[ComparisonRow], sweep: str, name: str | None) -> dict[str, ComparisonRow]:
    """What the grid adds to the name -> row, for the rows of a point."""
    mine = [(run.name, row) for row in rows for run in row.runs[:1] if any(m.sweep == sweep for m in row.runs)]
    alike = [(full, row) for full, row in mine if name is not None and f"{full}, ".startswith(f"{name}, ")]
    return {full[len(name or "") :]: row for full, row in alike}


def _change(row: ComparisonRow, claim: PublishedFigure, against: dict[str, ComparisonRow], suffix: str) -> Stat | None:
    """Against the original, run by run; against another point, between the means (so without a spread)."""
    if claim.against is None:
        return row.stats.get("change")
    other = against.get(suffix) or (next(iter(against.values())) if len(against) == 1 else None)
    mine, theirs = row.value("top1"), None if other is None else other.value("top1")
    return None if mine is None or theirs is None else Stat(mine - theirs, None, row.stats["top1"].count)
