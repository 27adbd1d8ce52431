"""The table of many runs for machines (CSV, JSON) and for papers (Markdown, LaTeX)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from slimvit.report.columns import NOT_MEASURED
from slimvit.report.compare.cells import EPOCHS, cells_of, figures_told, legend
from slimvit.report.compare.comparison import Comparison
from slimvit.report.compare.published import PublishedComparison
from slimvit.report.compare.rows import ComparisonRow, Stat
from slimvit.report.text import in_latex, in_markdown, markdown_table

FORMAT_VERSION = 1


def to_json(comparison: Comparison) -> dict[str, Any]:
    """tradeoff.json: figures in the units of report.json; what was not measured is null."""
    setting = comparison.setting
    return {
        "format_version": FORMAT_VERSION,
        "notes": list(comparison.notes),
        "times": None if setting is None else dict(zip(("device", "precision", "compiled"), setting, strict=True)),
        "rows": [_record(row, comparison) for row in comparison.rows],
        "claims": [
            {"point": c.point, "figure": c.figure, "claimed": c.claimed, "source": c.source}
            | _stat("measured", c.measured)
            for c in comparison.claims
        ],
        "picks": [{"pick": p.wish.text, "name": p.row.name, "command": command_of(p.row)} for p in comparison.picks],
    }


def _record(row: ComparisonRow, comparison: Comparison) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": row.kind, "model": row.model, "name": row.name, "data": row.data}
    for column in figures_told(comparison):
        stat = row.stats.get(column.key)
        found |= _stat(column.key, stat) if column is not EPOCHS else {"epochs": row.value("epochs")}
    found |= {"seeds": row.seeds, "front": row in comparison.front, "macs_by_part": row.parts}
    return found | {"runs": [m.shown for m in row.runs], "command": command_of(row)}


def _stat(key: str, stat: Stat | None) -> dict[str, float | None]:
    return {key: None if stat is None else stat.mean, f"{key}_std": None if stat is None else stat.std}


def whence(comparison: Comparison) -> list[str]:
    """Where the paths of the commands begin, where that is not plain."""
    sweeps = {run.sweep for row in comparison.rows for run in row.runs} - {None}
    place = "its folder" if len(sweeps) == 1 else "the folder that holds the sweep"
    return [f"Paths of a sweep's points begin at {place}."] * bool(sweeps)


def command_of(row: ComparisonRow) -> str | None:
    """What repeats the first of the row's runs."""
    return row.runs[0].command(row.runs[0].shown) if row.runs else None


def to_csv(comparison: Comparison) -> str:
    """tradeoff.csv: the rows of tradeoff.json, a column a figure; not measured is empty."""
    rows = to_json(comparison)["rows"]
    flat = [
        row | {"seeds": " ".join(map(str, row["seeds"])), "runs": " ".join(row["runs"]), "macs_by_part": None}
        for row in rows
    ]
    return pd.DataFrame(flat).drop(columns="macs_by_part").to_csv(index=False, lineterminator="\n")


def comparison_markdown(comparison: Comparison) -> str:
    cells = cells_of(comparison)
    parts = ["# Trade-off", *(f"> **Note:** {in_markdown(note)}" for note in comparison.notes)]
    parts += [f"Picked by `{p.wish.text}` ({p.wish.goal}): **{in_markdown(p.row.name)}**" for p in comparison.picks]
    parts.append(markdown_table(cells.header, cells.rows, len(cells.texts)))
    parts.append("\n".join(f"- {in_markdown(line)}" for line in legend(cells, comparison)))
    if comparison.claims:
        parts += ["## Claimed beside measured", markdown_table(CLAIMED, claim_cells(comparison.claims), 2)]
    commands = [c for row in comparison.rows if (c := command_of(row)) is not None]
    parts += ["## To run a point again", *whence(comparison), "```sh\n" + "\n".join(commands) + "\n```"]
    return "\n\n".join(parts) + "\n"


CLAIMED = ("point", "figure", "claimed", "measured", "source")


def claim_cells(claims: Sequence[PublishedComparison], plus_minus: str = " ± ") -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for c in claims:
        style = ".1f" if c.figure == "top-1" else "+.1f"
        measured = NOT_MEASURED if c.measured is None else format(c.measured.mean, style)
        if c.measured is not None and c.measured.std:
            measured += f"{plus_minus}{c.measured.std:.1f}"
        found.append((c.point, c.figure, format(c.claimed, style), measured, c.source))
    return found


def latex(comparison: Comparison) -> str:
    """A table for the booktabs package, its legend as comments."""
    cells = cells_of(comparison)
    said = ("needs \\usepackage{booktabs}", *comparison.notes, *legend(cells, comparison))
    lines = [f"% {' '.join(text.split())}" for text in said]
    lines += [
        r"\begin{tabular}{" + "l" * len(cells.texts) + "r" * (len(cells.header) - len(cells.texts)) + "}",
        r"\toprule",
    ]
    body = [" & ".join(map(in_latex, row)) + r" \\" for row in (cells.header, *cells.rows)]
    kinds = [row.kind for row in comparison.rows]
    if "original" in kinds[:-1]:
        body.insert(1 + sum(k != "point" for k in kinds), r"\midrule")
    lines += [body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"
