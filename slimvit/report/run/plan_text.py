"""The text of a dry run: kept units of each block, savings, estimated run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slimvit.models.parts.base import Part
from slimvit.prune.costs.registry import BUDGETS
from slimvit.report.columns import MACS, PARAMS, Column, parts_shown, units_column

WIDTH = 10
"""Characters of a heading."""


def estimate_text(estimate: dict[str, Any]) -> str:
    """Return the text of a dry run.

    Args:
        estimate: From `slimvit.workflows.dry_run.estimate`.
    """
    parts = parts_shown(lambda part: _is_cut(estimate, part))
    lines = [f"{block['block']}: {_block(block, parts)}" for block in estimate["plan"]["blocks"]]
    lines.append("")
    lines += [_line(units_column(part), estimate[part.units]) for part in parts]
    lines += [_line(PARAMS, estimate["params"]), _line(MACS, estimate["macs"], "1 multiply-add = 1")]
    lines += _budgets(estimate)
    seconds = ", ".join(f"{stage} {value:g}" for stage, value in estimate["seconds"].items() if value)
    return "\n".join([*lines, "", f"estimated time (s): {seconds}", "nothing was cut (dry run)"])


def _is_cut(estimate: dict[str, Any], part: Part) -> bool:
    before, after = estimate.get(part.units, (0, 0))
    return bool(after < before)


def _line(column: Column, before_and_after: Sequence[float], remark: str = "") -> str:
    """`heads      36 -> 18  (-50.0 %)`."""
    before, after = before_and_after
    change = ", ".join(filter(None, [_change(before, after), remark]))
    return f"{column.header:<{WIDTH}} {column.text(before)} -> {column.text(after)}  ({change})"


def _budgets(estimate: dict[str, Any]) -> list[str]:
    """The costs before and after of budgets other than parameters and MACs."""
    lines = []
    for budget in BUDGETS.values():
        if budget.figure is not None and budget.figure in estimate:
            before, after = estimate[budget.figure]
            change = f"{_change(before, after)}, {budget.promise}"
            lines.append(f"{budget.name} ({budget.unit}) {before:.3g} -> {after:.3g}  ({change})")
    return lines


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %"


def _block(block: dict[str, Any], parts: list[Part]) -> str:
    """`keeps 0,2 of 6 heads, 24 of 288 neurons (0-7,16-31); no ... left; 16 tokens merged`."""
    kept, removed, others = [], [], []
    for part in parts:
        total, written = part.of_entry(block)
        ids = part.read(written, total)
        if total and part.counts_removed:
            others.append(part.kept_words(ids or (), total))
        elif total and ids:
            kept.append(part.kept_words(ids, total))
        elif total:
            removed.append(f"no {part.units}")
    phrases = [f"keeps {', '.join(kept)}"] * bool(kept) + [f"{' and '.join(removed)} left"] * bool(removed)
    return "; ".join([*phrases, *others])
