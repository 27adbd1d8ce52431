"""Ids by range, as people write them: 0-7,9,16-31."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

PART = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def to_ranges(ids: Sequence[int]) -> str:
    """Rising ids -> ranges, both ends included; "" for none."""
    found: list[list[int]] = []
    for i in ids:
        if found and i == found[-1][1] + 1:
            found[-1][1] = i
        else:
            found.append([i, i])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def from_ranges(text: Any, number: int) -> tuple[int, ...] | None:
    """Ranges of the ids 0 to `number` - 1 -> the ids, in the order written; None for anything else."""
    if not isinstance(text, str):
        return None
    ids: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        found = PART.fullmatch(part)
        if found is None:
            return None
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < number or len(ids) + last - first >= number:
            return None
        ids += range(first, last + 1)
    return tuple(ids)


def count_ranges(text: str) -> int:
    """Number of the ids that `to_ranges` wrote."""
    ends = [part.partition("-") for part in text.split(",") if part]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)
