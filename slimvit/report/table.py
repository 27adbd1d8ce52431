"""Tables of one run (stage by stage) or of several (side by side): data frame, Markdown, terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import pandas as pd

from slimvit.report.columns import COLUMNS, LEGEND
from slimvit.report.record import Report, Stage

NOT_MEASURED = "-"


def frame(report: Report) -> pd.DataFrame:
    """One row a stage, one column a figure, as numbers; not measured is NaN, and never measured has no column."""
    return _frame([(s.stage, s, report.reference) for s in report.stages], "stage")


def markdown(report: Report) -> str:
    """report.md: the notes, what was run, the table, and what its columns mean."""
    table = frame(report)
    heads = [s.heads for s in report.stages if s.heads is not None]
    title = f"{report.model}: {heads[0]} -> {heads[-1]} heads" if heads else report.model
    parts = [f"# {title}", *(f"> **Note:** {note}" for note in report.notes), _what_was_run(report)]
    parts += [_markdown_table(table), _legend(table, report.reference.stage)]
    if report.versions:
        parts.append("Made with " + ", ".join(f"{name} {version}" for name, version in report.versions.items()) + ".")
    return "\n\n".join(parts) + "\n"


def print_table(report: Report, file: TextIO | None = None) -> None:
    """The table for people, at most 80 columns wide for usual figures and never cut; plain ASCII off a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = frame(report)
    table = table[[c.name for c in COLUMNS if c.in_terminal and c.name in table.columns]]
    console = Console(file=file or sys.stdout, highlight=False)
    style = box.SIMPLE_HEAD if console.is_terminal else box.Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)
    drawn = Table(box=style, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    drawn.add_column("stage", no_wrap=True)
    for name in table.columns:
        drawn.add_column(_on_two_lines(name), justify="right", no_wrap=True, vertical="bottom")
    for stage, cells in _cells(table):
        drawn.add_row(stage, *cells)
    console.width = max(console.width, console.measure(drawn, options=console.options.update(max_width=1000)).maximum)
    console.print(drawn, crop=False)


def markdown_many(reports: Mapping[Any, Report]) -> str:
    """Several runs side by side: each run's last stage, after one row for each original they started from.

    Keys are the names of the runs (their folders). Runs of the same model on the same images share an original.
    """
    rows: list[tuple[str, Stage, Stage]] = []
    for model, runs in _by_original(reports).items():
        first = next(iter(runs.values()))
        rows.append((f"{model} ({first.reference.stage})", first.reference, first.reference))
        rows += [(f"{name} ({run.last.stage})", run.last, run.reference) for name, run in runs.items()]
    table = _frame(rows, "run")
    said: dict[str, list[str]] = {}
    for name, run in reports.items():
        for note in run.notes:
            said.setdefault(note, []).append(str(name))
    notes = [f"> **Note:** {', '.join(names)}: {note}" for note, names in said.items()]
    references = " or ".join(dict.fromkeys(run.reference.stage for run in reports.values()))
    return "\n\n".join(["# Runs side by side", *notes, _markdown_table(table), _legend(table, references)]) + "\n"


def _frame(rows: Sequence[tuple[str, Stage, Stage]], what: str) -> pd.DataFrame:
    """Rows of (label, stage, the stage it is compared with)."""
    data = {c.name: [c.value(stage, reference) for _, stage, reference in rows] for c in COLUMNS}
    index = pd.Index([label for label, _, _ in rows], name=what)
    return pd.DataFrame(data, index=index, dtype="float64").dropna(axis="columns", how="all")


def _cells(table: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Every row's label and its figures as text."""
    styles = {c.name: c.style for c in COLUMNS}
    rows = []
    for label, row in table.iterrows():
        cells = [NOT_MEASURED if pd.isna(v) else format(v, styles[str(name)]) for name, v in row.items()]
        rows.append((str(label), cells))
    return rows


def _markdown_table(table: pd.DataFrame) -> str:
    """A table whose columns also line up as plain text."""
    rows = [[str(table.index.name), *table.columns], *([label.replace("|", "\\|"), *c] for label, c in _cells(table))]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))] for row in rows
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def _legend(table: pd.DataFrame, reference: str) -> str:
    lines = [text.format(reference=reference) for name, text in LEGEND.items() if name in table.columns]
    if table.isna().any(axis=None):
        lines.append(f"`{NOT_MEASURED}`: not measured")
    return "\n".join(f"- {line}" for line in lines)


def _what_was_run(report: Report) -> str:
    facts = {
        "data": report.data,
        "images evaluated": report.images,
        "calibration images": report.calibration_images,
        "heads to remove": _per_cent(report.ratio_asked),
        "heads removed": _per_cent(report.ratio_reached),
        "seed": report.seed,
        "device": report.device,
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value is not None)


def _per_cent(fraction: float | None) -> str | None:
    return None if fraction is None else f"{100 * fraction:.1f} %"


def _on_two_lines(name: str) -> str:
    return {"agreement": "agree-\nment"}.get(name, name.replace(" ", "\n"))


def _by_original(reports: Mapping[Any, Report]) -> dict[str, dict[Any, Report]]:
    """Runs under the original they started from, named by model and, where several differ in it, data."""
    groups: dict[tuple[Any, ...], dict[Any, Report]] = {}
    for name, report in reports.items():
        groups.setdefault((report.model, report.data, report.images), {})[name] = report
    models = [key[0] for key in groups]
    return {
        model if models.count(model) == 1 else f"{model} on {images} images of {data}": runs
        for (model, data, images), runs in groups.items()
    }
