"""The blocks of a model at the terminal: what each keeps, what its parts cost, and how much they matter."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from slimvit.report.columns import NOT_MEASURED
from slimvit.utils.ranges import count_ranges

Block = dict[str, Any]
GONE = "gone"


def inspection_text(found: dict[str, Any]) -> str:
    """What :func:`~slimvit.workflows.inspect.inspect_model` found, for people."""
    parts = ["\n".join([*_note(found), _title(found)]), _blocks(found), _by_part(found), _costs(found)]
    if "scored" in found:
        parts.append(_matters(found))
    return "\n\n".join(parts)


def _note(found: dict[str, Any]) -> list[str]:
    return [f"note: {found['note']}"] if found["note"] else []


def _title(found: dict[str, Any]) -> str:
    (heads, kept), (neurons, kept_neurons) = found["heads"], found["neurons"]
    title = (
        f"{found['model']}: {kept} of {heads} heads, "
        + (f"{kept_neurons:,} of {neurons:,} neurons, " if kept_neurons < neurons else "")
        + f"{found['params'] / 1e6:.2f} M params, {found['macs'] / 1e9:.3f} GFLOPs (1 multiply-add = 1), "
        f"{found['num_classes']} classes"
    )
    if not found["dense"]:
        return title
    each = "a pair of blocks and head" if found["dense"] == "head" else "a pair of blocks"
    return f"{title}, dense attention with {found['mixes']} mixes (one {each})"


def _blocks(found: dict[str, Any]) -> str:
    parts = list(found["blocks"][0]["macs"])
    head = ["block", "heads kept", "neurons kept", "params (M)", "MFLOPs:", *parts]
    rows = [
        [b["block"], _heads(b), _neurons(b), f"{b['params'] / 1e6:.3f}", "", *(_mega(b["macs"][p]) for p in parts)]
        for b in found["blocks"]
    ]
    return _table(head, rows, left=3)


def _by_part(found: dict[str, Any]) -> str:
    lines = []
    for part, macs in found["macs_by_part"].items():
        params = found["params_by_part"].get(part, 0)
        if macs or params:
            share = 100 * macs / found["macs"]
            lines.append(f"{part:<12} {params / 1e6:>8.3f} M params  {macs / 1e6:>9.1f} MFLOPs  {share:>5.1f} %")
    return "\n".join(lines)


def _costs(found: dict[str, Any]) -> str:
    """What goes with one head and with one group of neurons; neighbours that cost the same share a line."""
    group = f"{found['neuron_group']} neurons:"
    head = ["what one part costs", "a head:", "MFLOPs", "params", group, "MFLOPs", "params"]
    rows = []
    for (head_cost, group_cost), same in groupby(found["blocks"], key=lambda b: (b["one_head"], b["neuron_group"])):
        rows.append([_names([b["block"] for b in same]), "", *_cost(head_cost), "", *_cost(group_cost)])
    return _table(head, rows)


def _matters(found: dict[str, Any]) -> str:
    """What the loss would pay, block by block."""
    scored = found["scored"]
    about = (
        f"what the loss would pay if a part went and the rest were refitted, estimated by {scored['criterion']} on "
        f"{scored['images']:,} images\n(figures to be compared with one another)\n"
    )
    head = ["block", "attention", "half its heads", "MLP", "half its neurons", " each head alone"]
    rows = []
    for b in found["blocks"]:
        figures = [_paid((b["matters"][part] or {}).get(what)) for part in ("heads", "mlp") for what in ("all", "half")]
        rows.append([b["block"], *figures, " " + " ".join(_paid(score, ".2g") for score in b["head_scores"])])
    return f"{about}\n{_table(head, rows, last_left=True)}"


def _heads(block: Block) -> str:
    kept, heads = block["kept_heads"], block["heads"]
    if len(kept) == heads:
        return f"all {heads}"
    return f"{','.join(map(str, kept))} of {heads}" if kept else GONE


def _neurons(block: Block) -> str:
    kept, neurons = count_ranges(block["kept_neurons"]), block["neurons"]
    if not neurons:
        return NOT_MEASURED
    if kept == neurons:
        return f"all {neurons:,}"
    return f"{kept:,} of {neurons:,}" if kept else GONE


def _cost(cost: dict[str, int] | None) -> list[str]:
    return [NOT_MEASURED] * 2 if cost is None else [f"{cost['macs'] / 1e6:.3f}", f"{cost['params']:,}"]


def _names(names: Sequence[str]) -> str:
    """`blocks.0-5` for blocks that differ in their last number."""
    stems = {name.rpartition(".")[0] for name in names}
    if len(names) > 1 and len(stems) == 1:
        return f"{names[0]}-{names[-1].rpartition('.')[2]}"
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _mega(number: int) -> str:
    return f"{number / 1e6:.1f}"


def _paid(cost: float | None, style: str = ".3g") -> str:
    return NOT_MEASURED if cost is None else format(cost, style)


def _table(head: list[str], rows: list[list[str]], left: int = 1, last_left: bool = False) -> str:
    """Columns lined up: the first ``left`` ones, and with ``last_left`` the last one, on the left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    on_left = {*range(left), *([len(head) - 1] if last_left else [])}
    lines = []
    for row in (head, *rows):
        cells = [c.ljust(w) if i in on_left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
