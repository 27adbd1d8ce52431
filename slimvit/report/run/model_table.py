"""The text of `slimvit inspect`: size, cost and scores of every block of a model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from slimvit.models.parts.base import Part
from slimvit.models.parts.registry import PARTS
from slimvit.report.columns import NOT_MEASURED, parts_shown
from slimvit.utils.escaping import in_line

Block = dict[str, Any]
NONE_LEFT = "none left"


def inspection_text(inspection: dict[str, Any]) -> str:
    """Return the tables of a model.

    Args:
        inspection: From `slimvit.workflows.inspect.inspect_model`.
    """
    note = [f"note: {inspection['note']}"] if inspection["note"] else []
    paragraphs = ["\n".join([*note, _title(inspection)]), _blocks(inspection), _by_part(inspection), _costs(inspection)]
    if "scored" in inspection:
        paragraphs.append(_importance(inspection))
    return "\n\n".join(paragraphs)


def _title(inspection: dict[str, Any]) -> str:
    parts = parts_shown(lambda part: inspection[part.units][1] < inspection[part.units][0])
    counts = [f"{inspection[p.units][1]:,} of {inspection[p.units][0]:,} {p.units}" for p in parts]
    params, macs = inspection["params"] / 1e6, inspection["macs"] / 1e9
    sizes = [*counts, f"{params:.2f} M params", f"{macs:.3f} GFLOPs (1 multiply-add = 1)"]
    title = f"{in_line(inspection['model'])}: {', '.join(sizes)}, {inspection['num_classes']} classes"
    if not inspection["dense"]:
        return title
    each = "a pair of blocks and head" if inspection["dense"] == "head" else "a pair of blocks"
    return f"{title}, dense attention with {inspection['mixes']} mixes (one {each})"


def _blocks(inspection: dict[str, Any]) -> str:
    columns = list(inspection["blocks"][0]["macs"])
    header = ["block", *map(_heading, PARTS.values()), "params (M)", "MFLOPs:", *columns]
    rows = []
    for block in inspection["blocks"]:
        kept = [_kept(block, part) for part in PARTS.values()]
        macs = [f"{block['macs'][column] / 1e6:.1f}" for column in columns]
        rows.append([block["block"], *kept, f"{block['params'] / 1e6:.3f}", "", *macs])
    return _table(header, rows, left=1 + len(PARTS))


def _heading(part: Part) -> str:
    return f"{part.units} {part.counts_removed or 'kept'}"


def _kept(block: Block, part: Part) -> str:
    """`all 1,536`, `0,2 of 3` for a part listed by id, or `24 of 288` for a part listed by range."""
    total, kept = block[part.units], block[f"kept_{part.units}"]
    if not total:
        return NOT_MEASURED
    ids = part.read(kept, total) or ()
    count = len(ids)
    if part.counts_removed:
        return str(total - count)
    if count == total:
        return f"all {total:,}"
    listed = ",".join(map(str, kept)) if isinstance(kept, list) else f"{count:,}"
    return f"{listed} of {total:,}" if count else NONE_LEFT


def _by_part(inspection: dict[str, Any]) -> str:
    """Parameters and FLOPs by part of the network."""
    lines = []
    for part, macs in inspection["macs_by_part"].items():
        params = inspection["params_by_part"].get(part, 0)
        if macs or params:
            share = 100 * macs / inspection["macs"]
            lines.append(f"{part:<12} {params / 1e6:>8.3f} M params  {macs / 1e6:>9.1f} MFLOPs  {share:>5.1f} %")
    return "\n".join(lines)


def _costs(inspection: dict[str, Any]) -> str:
    """The cost of one group of units of every part; consecutive blocks of the same cost share a line."""
    header = ["what goes together costs"]
    for part, step in inspection["unit_steps"].items():
        header += [f"{step} {PARTS[part].unit if step == 1 else PARTS[part].units}:", "MFLOPs", "params"]
    rows = []
    for costs, same in groupby(inspection["blocks"], key=lambda b: b["unit_costs"]):
        cells = [cell for part in inspection["unit_steps"] for cell in ("", *_cost(costs.get(part)))]
        rows.append([_names([b["block"] for b in same]), *cells])
    return _table(header, rows)


def _cost(cost: dict[str, int] | None) -> list[str]:
    return [NOT_MEASURED] * 2 if cost is None else [f"{cost['macs'] / 1e6:.3f}", f"{cost['params']:,}"]


def _importance(inspection: dict[str, Any]) -> str:
    """The estimated rise of the loss without the units of every block."""
    scored, blocks = inspection["scored"], inspection["blocks"]
    about = (
        f"estimated rise of the loss if units were removed and the rest refitted, by {scored['criterion']} on "
        f"{scored['images']:,} images\n(relative figures)\n"
    )
    single = [part for part in PARTS.values() if part.name in blocks[0]["unit_scores"]]
    header = [
        "block",
        *(f"{share} {PARTS[name].units}" for name in blocks[0]["matters"] for share in ("all", "half the")),
    ]
    rows = []
    for block in blocks:
        figures = [_score((costs or {}).get(key)) for costs in block["matters"].values() for key in ("all", "half")]
        each = [" " + " ".join(_score(s, ".2g") for s in block["unit_scores"][part.name]) for part in single]
        rows.append([block["block"], *figures, *each])
    header += [f" each {part.unit} alone" for part in single]
    return f"{about}\n{_table(header, rows, last_left=bool(single))}"


def _score(cost: float | None, style: str = ".3g") -> str:
    return NOT_MEASURED if cost is None else format(cost, style)


def _names(names: Sequence[str]) -> str:
    """`blocks.0-5` for names that differ in their last number, otherwise the first and the last name."""
    stems = {name.rpartition(".")[0] for name in names}
    if len(names) > 1 and len(stems) == 1:
        return f"{names[0]}-{names[-1].rpartition('.')[2]}"
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _table(header: list[str], rows: list[list[str]], left: int = 1, last_left: bool = False) -> str:
    """Lined-up columns: the first `left` ones, and with `last_left` the last one, are aligned left."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    on_left = {*range(left), *([len(header) - 1] if last_left else [])}
    lines = []
    for row in (header, *rows):
        cells = [c.ljust(w) if i in on_left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
