"""Published figures beside measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slimvit.config.sweep import PublishedFigure
from slimvit.report.columns import NOT_MEASURED
from slimvit.report.compare.rows import ComparisonRow, Stat

UNNAMED = "which network is not said"
CLAIM_HEADER = ("point", "figure", "claimed", "measured", "source")
TOP1 = "top-1"


@dataclass(frozen=True)
class PublishedComparison:
    """A published figure of one point."""

    point: str
    figure: str
    """`top-1`, or `change against` and the reference."""
    claimed: float
    measured: Stat | None
    """None where not measured."""
    source: str


def published_figures(
    claims: Sequence[tuple[str, PublishedFigure]], rows: Sequence[ComparisonRow]
) -> list[PublishedComparison]:
    """Compare published figures with the rows.

    Args:
        claims: The figures, each with its sweep. One about a point with a grid applies to each combination of the grid.
        rows: The measured rows.
    """
    comparisons = []
    for sweep, claim in claims:
        about = _named(rows, sweep, claim.point)
        for suffix, row in about.items() or [("", None)]:
            name = f"{claim.point or UNNAMED}{suffix}" if row is None else row.name
            if claim.top1 is not None:
                stat = None if row is None else row.stats.get("top1")
                comparisons.append(PublishedComparison(name, TOP1, claim.top1, stat, claim.source))
            if claim.change is not None:
                figure = f"change against {'the original' if claim.against is None else claim.against}"
                stat = None if row is None else _change(row, claim, _named(rows, sweep, claim.against), suffix)
                comparisons.append(PublishedComparison(name, figure, claim.change, stat, claim.source))
    return comparisons


def claim_cells(claims: Sequence[PublishedComparison], plus_minus: str = " ± ") -> list[tuple[str, ...]]:
    """Return the table's rows, whose columns are `CLAIM_HEADER`."""
    rows: list[tuple[str, ...]] = []
    for c in claims:
        style = ".1f" if c.figure == TOP1 else "+.1f"
        measured = NOT_MEASURED if c.measured is None else format(c.measured.mean, style)
        if c.measured is not None and c.measured.std is not None:
            measured += f"{plus_minus}{c.measured.std:.1f}"
        rows.append((c.point, c.figure, format(c.claimed, style), measured, c.source))
    return rows


def _named(rows: Sequence[ComparisonRow], sweep: str, name: str | None) -> dict[str, ComparisonRow]:
    """The rows of a point, by what the grid adds to its name."""
    mine = [(run.name, row) for row in rows for run in row.runs[:1] if any(m.sweep == sweep for m in row.runs)]
    alike = [(full, row) for full, row in mine if name is not None and f"{full}, ".startswith(f"{name}, ")]
    return {full[len(name or "") :]: row for full, row in alike}


def _change(row: ComparisonRow, claim: PublishedFigure, against: dict[str, ComparisonRow], suffix: str) -> Stat | None:
    """Against the original run by run; against another point between the means, and so without a spread."""
    if claim.against is None:
        return row.stats.get("change")
    other = against.get(suffix) or (next(iter(against.values())) if len(against) == 1 else None)
    mine, theirs = row.value("top1"), None if other is None else other.value("top1")
    return None if mine is None or theirs is None else Stat(mine - theirs, None, row.stats["top1"].count)
