"""Ids as range strings: `0-7,9,16-31`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def to_ranges(ids: Sequence[int]) -> str:
    """Format rising ids as ranges, both ends included; "" for none."""
    ranges: list[list[int]] = []
    for i in ids:
        if ranges and i == ranges[-1][1] + 1:
            ranges[-1][1] = i
        else:
            ranges.append([i, i])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def from_ranges(text: Any, number: int) -> tuple[int, ...] | None:
    """Parse ranges of the ids 0 to `number` - 1, in the order written; None for anything else."""
    if not isinstance(text, str):
        return None
    ids: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        match = RANGE.fullmatch(part)
        if match is None:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < number or len(ids) + last - first >= number:
            return None
        ids += range(first, last + 1)
    return tuple(ids)


def count_ranges(text: str) -> int:
    """Count the ids in a string of `to_ranges`."""
    ends = [part.partition("-") for part in text.split(",") if part]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)
