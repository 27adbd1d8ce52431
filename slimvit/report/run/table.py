"""The table of one run, one row per stage: data frame, Markdown, terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

import pandas as pd

from slimvit.models.parts.base import Part
from slimvit.report.columns import (
    LATENCY,
    NOT_MEASURED,
    SECONDS,
    THROUGHPUT,
    Column,
    figures_of,
    legend_of,
    parts_of_stages,
    size_and_accuracy,
    units_column,
)
from slimvit.report.record import Report
from slimvit.report.text import markdown_table, print_cells
from slimvit.utils.escaping import in_markdown

WRITTEN_ONLY = {LATENCY.key, THROUGHPUT.key}
"""Keys of the columns that are left out at a terminal of 80 characters."""
CROWDED = "top5"
"""Key of the column that is left out at a terminal if a second part was cut."""


def frame(report: Report) -> pd.DataFrame:
    """Return the figures as numbers, one row per stage; NaN for one that was not measured.

    Columns that no stage measured are left out.
    """
    columns = _columns(report)
    figures = [figures_of(stage, report.reference) for stage in report.stages]
    data = {c.header: [None if (v := f.get(c.key)) is None else v / c.unit for f in figures] for c in columns}
    index = pd.Index([stage.stage for stage in report.stages], name="stage")
    return pd.DataFrame(data, index=index, dtype="float64")


def report_markdown(report: Report) -> str:
    """Return report.md: the notes, the settings, the table and its legend."""
    columns = _columns(report)
    rows = _rows(report, columns)
    legend = [in_markdown(line) for line in legend_of(columns, report.reference.stage)]
    legend += [f"`{NOT_MEASURED}`: not measured"] * any(NOT_MEASURED in row for row in rows)
    notes = (f"> **Note:** {in_markdown(note)}" for note in report.notes)
    paragraphs = [f"# {in_markdown(_title(report))}", *notes, _settings(report)]
    paragraphs += [markdown_table(_header(columns), rows), "\n".join(f"- {line}" for line in legend)]
    if report.versions:
        versions = ", ".join(in_markdown(f"{name} {version}") for name, version in report.versions.items())
        paragraphs.append(f"Made with {versions}.")
    return "\n\n".join(paragraphs) + "\n"


def print_table(report: Report, file: TextIO | None = None) -> None:
    """Print the table, usually within 80 characters; it is not truncated, and plain ASCII in a file or a pipe."""
    hidden = WRITTEN_ONLY | ({CROWDED} if len(parts_of_stages(report.stages)) > 1 else set())
    columns = [c for c in _columns(report) if c.in_terminal and c.key not in hidden]
    print_cells(_header(columns), _rows(report, columns), file=file)


def _columns(report: Report) -> list[Column]:
    """The columns that some stage measured."""
    parts = parts_of_stages(report.stages)
    figures = [figures_of(stage, report.reference) for stage in report.stages]
    columns = [*size_and_accuracy(parts), LATENCY, THROUGHPUT, SECONDS]
    return [c for c in columns if any(f.get(c.key) is not None for f in figures)]


def _header(columns: Sequence[Column]) -> list[str]:
    return ["stage", *(c.header for c in columns)]


def _rows(report: Report, columns: Sequence[Column]) -> list[list[str]]:
    figures = [figures_of(stage, report.reference) for stage in report.stages]
    return [[s.stage, *(c.text(f.get(c.key)) for c in columns)] for s, f in zip(report.stages, figures, strict=True)]


def _title(report: Report) -> str:
    """`vit: 36 -> 18 heads, 4,608 -> 576 neurons`."""
    counts = [text for part in parts_of_stages(report.stages) if (text := _before_and_after(report, part))]
    return f"{report.model}: {', '.join(counts)}" if counts else report.model


def _before_and_after(report: Report, part: Part) -> str:
    column = units_column(part)
    counts = [column.text(count) for s in report.stages if (count := s.figure(part.units)) is not None]
    return f"{counts[0]} -> {counts[-1]} {part.units}" if counts else ""


def _settings(report: Report) -> str:
    removed = {f"{part.units} removed": _removed(report, part) for part in parts_of_stages(report.stages)[1:]}
    first = parts_of_stages(report.stages)[0].units
    settings = {
        "data": report.data,
        "images evaluated": report.images,
        "calibration images": report.calibration_images,
        f"{first} to remove": _per_cent(report.ratio_asked),
        f"{first} removed": _per_cent(report.ratio_reached),
        **removed,
        "seed": report.seed,
        "device": report.device,
    }
    return "\n".join(f"- {name}: {in_markdown(str(value))}" for name, value in settings.items() if value is not None)


def _removed(report: Report, part: Part) -> str | None:
    before, after = report.reference.figure(part.units), report.last.figure(part.units)
    return _per_cent(1 - after / before) if before and after is not None and after < before else None


def _per_cent(fraction: float | None) -> str | None:
    return None if fraction is None else f"{100 * fraction:.1f} %"
