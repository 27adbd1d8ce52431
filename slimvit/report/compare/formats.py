"""The files of a comparison: tradeoff.csv, .json, .md, .tex, .html and the pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from slimvit.report.compare.cells import EPOCHS, cells_of, figure_columns, legend
from slimvit.report.compare.comparison import Comparison
from slimvit.report.compare.html import page
from slimvit.report.compare.measurement import setting_text
from slimvit.report.compare.published import CLAIM_HEADER, claim_cells
from slimvit.report.compare.rows import ComparisonRow, Stat
from slimvit.report.text import markdown_table
from slimvit.utils.escaping import in_code_block, in_csv, in_latex, in_line, in_markdown
from slimvit.utils.files import write_whole

FORMAT_VERSION = 1
Draw = Callable[[Path], None]


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write the tables and pictures; the same runs give the same bytes.

    Args:
        comparison: The runs.
        folder: An existing folder.
    """
    pictures, notes = _pictures(comparison)
    comparison = replace(comparison, notes=(*comparison.notes, *notes))
    for name, (_, draw) in pictures.items():
        for suffix in (".png", ".svg"):
            draw((folder / name).with_suffix(suffix))
    texts = {
        "csv": to_csv(comparison),
        "json": json.dumps(to_json(comparison), indent=1, allow_nan=False) + "\n",
        "md": comparison_markdown(comparison),
        "tex": latex(comparison),
        "html": page(comparison, {title: folder / f"{name}.svg" for name, (title, _) in pictures.items()}),
    }
    for suffix, text in texts.items():
        write_whole(folder / f"tradeoff.{suffix}", text)


def _pictures(comparison: Comparison) -> tuple[dict[str, tuple[str, Draw]], list[str]]:
    """Title and drawing function by file name, and notes on the pictures that are left out."""
    from slimvit.report.compare import part_plots, tradeoff_plots

    pictures: dict[str, tuple[str, Draw]] = {}
    for cost, name in (("macs", "FLOPs"), ("latency_ms", "latency")):
        if comparison.gain is not None and (cost == "macs" or comparison.untimed == 0):
            draw = partial(tradeoff_plots.accuracy_against, comparison, cost)
            pictures[f"accuracy_{name.lower()}"] = (f"Accuracy against {name}", draw)
    if any(row.parts is not None for row in comparison.rows):
        pictures["flops_by_part"] = ("FLOPs by part of the network", partial(part_plots.flops_by_part, comparison))
    if (key := part_plots.curve_key(comparison)) is not None:
        pictures["fine_tuning"] = ("Fine-tuning", partial(part_plots.fine_tuning, comparison, key))
    return pictures, _notes_on_pictures(comparison)


def _notes_on_pictures(comparison: Comparison) -> list[str]:
    notes = []
    if comparison.untimed:
        total = sum(len(row.runs) for row in comparison.points)
        under = "" if comparison.setting is None else f" on {setting_text(comparison.setting)}"
        notes.append(
            f"accuracy against latency is not drawn: {comparison.untimed} of {total} runs were not timed{under}"
        )
    if without := [row.name for row in comparison.rows if row.parts is None]:
        notes.append(
            f"FLOPs by part are unknown for {len(without)} of {len(comparison.rows)} rows: their reports have format 1"
        )
    return notes


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return tradeoff.json: figures in the units of report.json, null for one that was not measured."""
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
        "picks": [{"pick": p.rule.text, "name": p.row.name, "command": p.row.command} for p in comparison.picks],
    }


def _record(row: ComparisonRow, comparison: Comparison) -> dict[str, Any]:
    record: dict[str, Any] = {"kind": row.kind, "model": row.model, "name": row.name, "data": row.data}
    for column in figure_columns(comparison):
        if column.key != EPOCHS.key:
            record |= _stat(column.key, row.stats.get(column.key))
    record |= {EPOCHS.key: row.value(EPOCHS.key), "seeds": row.seeds}
    record |= {"front": row in comparison.front, "macs_by_part": row.parts}
    return record | {"runs": [m.shown for m in row.runs], "command": row.command}


def _stat(key: str, stat: Stat | None) -> dict[str, float | None]:
    return {key: None if stat is None else stat.mean, f"{key}_std": None if stat is None else stat.std}


def to_csv(comparison: Comparison) -> str:
    """Return tradeoff.csv: the rows of tradeoff.json, with empty fields for null."""
    import pandas as pd

    rows = to_json(comparison)["rows"]
    flat = [row | {"seeds": " ".join(map(str, row["seeds"])), "runs": " ".join(row["runs"])} for row in rows]
    flat = [{key: in_csv(v) if isinstance(v, str) else v for key, v in row.items()} for row in flat]
    return pd.DataFrame(flat).drop(columns="macs_by_part").to_csv(index=False, lineterminator="\n")


def comparison_markdown(comparison: Comparison) -> str:
    """Return tradeoff.md."""
    cells = cells_of(comparison)
    parts = ["# Trade-off", *(f"> **Note:** {in_markdown(note)}" for note in comparison.notes)]
    parts += [f"Picked by `{p.rule.text}` ({p.rule.goal}): **{in_markdown(p.row.name)}**" for p in comparison.picks]
    parts.append(markdown_table(cells.header, cells.rows, len(cells.texts)))
    parts.append("\n".join(f"- {in_markdown(line)}" for line in legend(cells, comparison)))
    if comparison.claims:
        parts += ["## Claimed beside measured", markdown_table(CLAIM_HEADER, claim_cells(comparison.claims), 2)]
    parts += ["## To run a point again", *filter(None, [comparison.path_note])]
    parts.append(in_code_block("\n".join(map(in_line, comparison.commands)), "sh"))
    return "\n\n".join(parts) + "\n"


def latex(comparison: Comparison) -> str:
    """Return tradeoff.tex: a table for the booktabs package, with its legend as comments."""
    cells = cells_of(comparison)
    comments = ("needs \\usepackage{booktabs}", *comparison.notes, *legend(cells, comparison))
    lines = [f"% {in_line(text)}" for text in comments]
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
