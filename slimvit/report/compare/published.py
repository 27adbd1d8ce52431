"""Compare published figures with measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slimvit.config.sweep import PublishedFigure
from slimvit.report.columns import NOT_MEASURED
from slimvit.report.compare.rows import ComparisonRow, Stat

UNNAMED = "unnamed network"
CLAIM_HEADER = ("point", "figure", "claimed", "measured", "source")
TOP1 = "top-1"


@dataclass(frozen=True)
class PublishedComparison:
    """A published figure beside the measured one."""

    point: str
    figure: str
    """`top-1`, or `change against` and the name of a reference."""
    claimed: float
    measured: Stat | None
    """None if not measured."""
    source: str


def published_figures(
    claims: Sequence[tuple[str, PublishedFigure]], rows: Sequence[ComparisonRow]
) -> list[PublishedComparison]:
    """Compare published figures with the rows.

    Args:
        claims: (Sweep, figure). A figure of a point with a grid applies to every combination of the grid.
        rows: The measured rows.
    """
    comparisons = []
    for sweep, claim in claims:
        claimed_rows = _named(rows, sweep, claim.point)
        for suffix, row in claimed_rows.items() or [("", None)]:
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
    """Return the rows of a table with the columns `CLAIM_HEADER`."""
    rows: list[tuple[str, ...]] = []
    for c in claims:
        style = ".1f" if c.figure == TOP1 else "+.1f"
        measured = NOT_MEASURED if c.measured is None else format(c.measured.mean, style)
        if c.measured is not None and c.measured.std is not None:
            measured += f"{plus_minus}{c.measured.std:.1f}"
        rows.append((c.point, c.figure, format(c.claimed, style), measured, c.source))
    return rows


def _named(rows: Sequence[ComparisonRow], sweep: str, name: str | None) -> dict[str, ComparisonRow]:
    """The rows of a point, by the suffix that the grid adds to its name."""
    in_sweep = [(run.name, row) for row in rows for run in row.runs[:1] if any(m.sweep == sweep for m in row.runs)]
    of_point = [(full, row) for full, row in in_sweep if name is not None and f"{full}, ".startswith(f"{name}, ")]
    return {full[len(name or "") :]: row for full, row in of_point}


def _change(row: ComparisonRow, claim: PublishedFigure, against: dict[str, ComparisonRow], suffix: str) -> Stat | None:
    """The change against the original, paired by run; against another point, the difference of means without spread."""
    if claim.against is None:
        return row.stats.get("change")
    reference = against.get(suffix) or (next(iter(against.values())) if len(against) == 1 else None)
    after, before = row.value("top1"), None if reference is None else reference.value("top1")
    return None if after is None or before is None else Stat(after - before, None, row.stats["top1"].count)
