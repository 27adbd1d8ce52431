"""The folder of a report on many runs: the table in every format, and the pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from slimvit.report.compare import formats, part_plots, tradeoff_plots
from slimvit.report.compare.comparison import Comparison
from slimvit.report.compare.html import page
from slimvit.report.compare.timing_setting import setting_said

Draw = Callable[[Path], None]


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """tradeoff.csv, .json, .md, .tex and .html and the pictures, into an existing folder.

    The same runs give the same bytes.
    """
    drawings, left_out = _drawings(comparison)
    comparison = replace(comparison, notes=(*comparison.notes, *left_out))
    for name, (_, draw) in drawings.items():
        for suffix in (".png", ".svg"):
            draw((folder / name).with_suffix(suffix))
    texts = {
        "csv": formats.to_csv(comparison),
        "json": json.dumps(formats.to_json(comparison), indent=1, allow_nan=False) + "\n",
        "md": formats.comparison_markdown(comparison),
        "tex": formats.latex(comparison),
        "html": page(comparison, {title: folder / f"{name}.svg" for name, (title, _) in drawings.items()}),
    }
    for suffix, text in texts.items():
        (folder / f"tradeoff.{suffix}").write_text(text, encoding="utf-8", newline="\n")


def _drawings(comparison: Comparison) -> tuple[dict[str, tuple[str, Draw]], list[str]]:
    """File name -> title and how it is drawn; and notes on what cannot be drawn."""
    found: dict[str, tuple[str, Draw]] = {}
    notes = []
    for cost, name in (("macs", "FLOPs"), ("latency_ms", "latency")):
        if comparison.gain is not None and (cost == "macs" or comparison.untimed == 0):
            draw = partial(tradeoff_plots.accuracy_against, comparison, cost)
            found[f"accuracy_{name.lower()}"] = (f"Accuracy against {name}", draw)
    if comparison.untimed:
        total = sum(len(row.runs) for row in comparison.points)
        under = "" if comparison.setting is None else f" on {setting_said(comparison.setting)}"
        notes.append(
            f"accuracy against latency is not drawn: {comparison.untimed} of {total} runs were not timed{under}"
        )
    without = [row.name for row in comparison.rows if row.parts is None]
    if len(without) < len(comparison.rows):
        found["flops_by_part"] = ("FLOPs by part of the network", partial(part_plots.flops_by_part, comparison))
    if without:
        notes.append(
            f"FLOPs by part are not known of {len(without)} of {len(comparison.rows)} rows, whose reports are older"
        )
    if (key := part_plots.curve_key(comparison)) is not None:
        found["fine_tuning"] = ("Fine-tuning", partial(part_plots.fine_tuning, comparison, key))
    return found, notes
