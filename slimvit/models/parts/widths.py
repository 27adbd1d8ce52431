"""The widths at which a branch is timed."""

from __future__ import annotations


def spread_widths(most: int, unit: int, points: int) -> list[int]:
    """About so many widths from `unit` to `most`, evenly, in whole units but for the last."""
    even = (round(most * i / points / unit) * unit for i in range(1, points + 1))
    return sorted({min(unit, most), most, *(width for width in even if 0 < width < most)})
