"""The widths at which a branch is timed."""

from __future__ import annotations


def spread_widths(most: int, unit: int, points: int) -> list[int]:
    """Return about `points` evenly spaced widths up to `most`, all but the last in multiples of `unit`."""
    even = (round(most * i / points / unit) * unit for i in range(1, points + 1))
    return sorted({min(unit, most), most, *(width for width in even if 0 < width < most)})
