"""The table of one run, stage by stage: data frame, Markdown, terminal."""

from __future__ import annotations

from typing import TextIO

import pandas as pd

from slimvit.report.columns import COLUMNS, LEGEND, NEURONS, NOT_MEASURED, figures_of, neurons_gone
from slimvit.report.record import Report
from slimvit.report.terminal import print_cells
from slimvit.report.text import markdown_table

CROWDED = "top-5"
"""Gives its place to the neurons where a terminal is 80 columns wide."""


def frame(report: Report) -> pd.DataFrame:
    """One row a stage, one column a figure, as numbers; not measured is NaN, and never measured has no column."""
    figures = [figures_of(stage, report.reference) for stage in report.stages]
    columns = [c for c in COLUMNS if c is not NEURONS or neurons_gone(report.stages)]
    data = {c.name: [None if (v := f[c.key]) is None else v / c.unit for f in figures] for c in columns}
    index = pd.Index([stage.stage for stage in report.stages], name="stage")
    return pd.DataFrame(data, index=index, dtype="float64").dropna(axis="columns", how="all")


def report_markdown(report: Report) -> str:
    """report.md: the notes, what was run, the table, and what its columns mean."""
    table = frame(report)
    parts = [f"# {_title(report)}", *(f"> **Note:** {note}" for note in report.notes), _what_was_run(report)]
    parts += [
        markdown_table(["stage", *table.columns], [[stage, *cells] for stage, cells in _cells(table)]),
        _legend(table, report.reference.stage),
    ]
    if report.versions:
        parts.append("Made with " + ", ".join(f"{name} {version}" for name, version in report.versions.items()) + ".")
    return "\n\n".join(parts) + "\n"


def _title(report: Report) -> str:
    """`vit: 36 -> 18 heads`, and the neurons where some are gone."""
    heads = [s.heads for s in report.stages if s.heads is not None]
    told = [f"{heads[0]} -> {heads[-1]} heads"] if heads else []
    if neurons_gone(report.stages):
        told.append(" -> ".join(NEURONS.text(s.neurons) for s in (report.reference, report.last)) + " neurons")
    return f"{report.model}: {', '.join(told)}" if told else report.model


def print_table(report: Report, file: TextIO | None = None) -> None:
    """The table for people, at most 80 columns wide for usual figures and never cut; plain ASCII off a terminal."""
    table = frame(report)
    crowded = CROWDED if NEURONS.name in table.columns else None
    table = table[[c.name for c in COLUMNS if c.in_terminal and c.name in table.columns and c.name != crowded]]
    print_cells(["stage", *table.columns], [[stage, *cells] for stage, cells in _cells(table)], file=file)


def _cells(table: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Every row's label and its figures as text."""
    styles = {c.name: c.style for c in COLUMNS}
    rows = []
    for label, row in table.iterrows():
        cells = [NOT_MEASURED if pd.isna(v) else format(v, styles[str(name)]) for name, v in row.items()]
        rows.append((str(label), cells))
    return rows


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
        "neurons removed": _per_cent(_neurons_removed(report)),
        "seed": report.seed,
        "device": report.device,
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value is not None)


def _neurons_removed(report: Report) -> float | None:
    """The fraction of the neurons that is gone; None where none is."""
    before, after = report.reference.neurons, report.last.neurons
    return 1 - after / before if before and after is not None and after < before else None


def _per_cent(fraction: float | None) -> str | None:
    return None if fraction is None else f"{100 * fraction:.1f} %"
