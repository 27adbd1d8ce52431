"""The terminal tables of `slimvit bench`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, TextIO

from slimvit.report.columns import NOT_MEASURED
from slimvit.report.text import print_cells
from slimvit.utils.escaping import in_line

Row = dict[str, Any]
LEGEND = "FLOPs: 1 multiply-add = 1, one image"

CELLS: dict[str, Callable[[Row], str]] = {
    "FLOPs\n(G)": lambda r: _number(r["macs"], ".3f", 1e9),
    "params\n(M)": lambda r: _number(r["params"], ".2f", 1e6),
    "1 image\n(ms)": lambda r: _number(r["latency_ms"], ".2f"),
    "95 %\n(ms)": lambda r: _number(r["latency_p95_ms"], ".2f"),
    "images/s": lambda r: _number(r["throughput"], ".0f" if (r["throughput"] or 0) >= 100 else ".1f"),
    "peak\n(GiB)": lambda r: _number(r["peak_memory_gib"], ".2f"),
    "by\nFLOPs": lambda r: _number(r["macs_speedup"], ".2f"),
    "times as fast\nat 1 image": lambda r: _interval(r["latency_speedup"], r["latency_interval"]),
    "times as fast\nat the batch": lambda r: _interval(r["throughput_speedup"], r["throughput_interval"]),
}
"""Heading -> function that returns the cell of a row."""


def print_timings(rows: Sequence[Row], file: TextIO | None = None) -> None:
    """Print one table per setting, about 100 characters wide and not truncated, with remarks below each.

    Args:
        rows: Fields of a `Timing`, and `model`, `params`, `macs`.
        file: Default: stdout.
    """
    file = file or sys.stdout
    for i, (title, group) in enumerate(groupby(rows, key=_title)):
        print(("\n" if i else "") + in_line(title), file=file)
        same_setting = list(group)
        _print_table(same_setting, file)
        for row in same_setting:
            if row["remark"]:
                print(in_line(f"{row['model']}: {row['remark']}."), file=file)
    if any(row["macs"] is not None for row in rows):
        print(LEGEND, file=file)


def _print_table(rows: Sequence[Row], file: TextIO) -> None:
    columns = {header: [cell(row) for row in rows] for header, cell in CELLS.items()}
    measured = {header: cells for header, cells in columns.items() if any(c != NOT_MEASURED for c in cells)}
    lines = zip([row["model"] for row in rows], *measured.values(), strict=True)
    print_cells(["model", *measured], list(lines), file=file, gap=1)


def _title(row: Row) -> str:
    kind = "compiled" if row["compiled"] else "eager"
    return f"{row['device']}, {row['precision']}, {kind}, batch {row['batch']}, {row['rounds']} rounds"


def _number(value: float | None, style: str, unit: float = 1) -> str:
    return NOT_MEASURED if value is None else format(value / unit, style)


def _interval(middle: float | None, ends: list[float] | None) -> str:
    if middle is None or ends is None:
        return NOT_MEASURED
    return f"{middle:.2f} ({ends[0]:.2f}-{ends[1]:.2f})"
