"""Timings as a table for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any, TextIO

NOT_MEASURED = "-"

COLUMNS = (
    ("MACs\n(G)", lambda r: _number(r["macs"], ".3f", 1e9)),
    ("params\n(M)", lambda r: _number(r["params"], ".2f", 1e6)),
    ("1 image\n(ms)", lambda r: _number(r["latency_ms"], ".2f")),
    ("95 %\n(ms)", lambda r: _number(r["latency_p95_ms"], ".2f")),
    ("images/s", lambda r: _number(r["throughput"], ".0f" if (r["throughput"] or 0) >= 100 else ".1f")),
    ("peak\n(GiB)", lambda r: _number(r["peak_memory_gib"], ".2f")),
    ("by\nMACs", lambda r: _number(r["macs_speedup"], ".2f")),
    ("times as fast\nat 1 image", lambda r: _interval(r["latency_speedup"], r["latency_interval"])),
    ("times as fast\nat the batch", lambda r: _interval(r["throughput_speedup"], r["throughput_interval"])),
)
"""Heading, and a row's cell."""


def print_timings(rows: Sequence[dict[str, Any]], file: TextIO | None = None) -> None:
    """One table a setting, about 100 columns wide and never cut; below it a remark a line. Plain ASCII off a terminal.

    ``rows``: a timing's fields beside `model`, `params` and `macs`.
    """
    from rich.console import Console

    console = Console(file=file or sys.stdout, highlight=False, markup=False)
    for i, (title, group) in enumerate(groupby(rows, key=_title)):
        console.print(("\n" if i else "") + title, soft_wrap=True)
        shown = list(group)
        _print(console, shown)
        for row in shown:
            if row["remark"]:
                console.print(f"{row['model']}: {row['remark']}.", soft_wrap=True)


def _print(console: Any, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    style = box.SIMPLE_HEAD if console.is_terminal else box.Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)
    drawn = Table(box=style, padding=0, pad_edge=False, show_edge=False)
    drawn.add_column("model", no_wrap=True, vertical="bottom")
    cells = [[cell(row) for _, cell in COLUMNS] for row in rows]
    known = [i for i in range(len(COLUMNS)) if any(row[i] != NOT_MEASURED for row in cells)]
    for i in known:
        drawn.add_column(COLUMNS[i][0], justify="right", no_wrap=True, vertical="bottom")
    for row, line in zip(rows, cells, strict=True):
        drawn.add_row(row["model"], *(line[i] for i in known))
    console.width = max(console.width, console.measure(drawn, options=console.options.update(max_width=1000)).maximum)
    console.print(drawn, crop=False)


def _title(row: dict[str, Any]) -> str:
    kind = "compiled" if row["compiled"] else "eager"
    return f"{row['device']}, {row['precision']}, {kind}, batch {row['batch']}, {row['rounds']} rounds"


def _number(value: float | None, style: str, unit: float = 1) -> str:
    return NOT_MEASURED if value is None else format(value / unit, style)


def _interval(middle: float | None, ends: list[float] | None) -> str:
    if middle is None or ends is None:
        return NOT_MEASURED
    return f"{middle:.2f} ({ends[0]:.2f}-{ends[1]:.2f})"
