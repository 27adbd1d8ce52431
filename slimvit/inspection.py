"""What a model is made of: blocks, heads by original id, parameters and MACs by part."""

from __future__ import annotations

from typing import Any

from slimvit.dense.insert import dense_mix, mixes_in
from slimvit.measure.macs import count_macs, count_params, params_by_part
from slimvit.models.family import attention_blocks, model_name, plan_of
from slimvit.recipe import ModelSection
from slimvit.sources import open_model, saved_folder


def inspect_model(section: ModelSection) -> dict[str, Any]:
    """Figures of the model of a section. Pretrained weights are not fetched: only shapes matter here."""
    shapes_only = section.weights is None and saved_folder(section.name) is None
    model = open_model(section.model_copy(update={"pretrained": False}) if shapes_only else section)
    plan, macs = plan_of(model), count_macs(model)
    blocks = [
        {
            "block": b.name,
            "stage": b.stage,
            "heads": b.heads,
            "kept_heads": list(b.kept_heads),
            "params": count_params(view.block),
            "macs": counts,
        }
        for b, view, counts in zip(plan.blocks, attention_blocks(model), macs.by_block, strict=True)
    ]
    return {
        "model": model_name(model),
        "num_classes": model.num_classes,
        "heads": [plan.total, plan.kept],
        "dense": dense_mix(model),
        "mixes": mixes_in(model),
        "params": count_params(model),
        "params_by_part": params_by_part(model),
        "macs": macs.total,
        "macs_by_part": macs.by_part,
        "macs_closed_form": macs.closed_form,
        "macs_torch": macs.torch_counter,
        "note": macs.disagreement(),
        "blocks": blocks,
    }


def inspection_text(found: dict[str, Any]) -> str:
    """The figures for people."""
    total, kept = found["heads"]
    lines = [
        f"{found['model']}: {kept} of {total} heads, {found['params'] / 1e6:.2f} M params, "
        f"{found['macs'] / 1e9:.3f} GFLOPs (1 multiply-add = 1), {found['num_classes']} classes",
        "",
    ]
    if found["dense"]:
        lines[0] += f", dense attention with {found['mixes']} mixes (one a pair of blocks{_and_head(found)})"
    if found["note"]:
        lines.insert(0, f"note: {found['note']}")
    width = max(len(b["block"]) for b in found["blocks"])
    heads = max(len(_ids(b)) for b in found["blocks"])
    parts = list(found["blocks"][0]["macs"])
    lines.append(f"{'block':<{width}}  {'heads kept':<{max(heads, 10)}}  params (M)  MFLOPs: " + "  ".join(parts))
    for b in found["blocks"]:
        figures = "  ".join(f"{b['macs'][p] / 1e6:>{len(p)}.1f}" for p in parts)
        lines.append(
            f"{b['block']:<{width}}  {_ids(b):<{max(heads, 10)}}  {b['params'] / 1e6:>10.3f}          {figures}"
        )
    lines.append("")
    for part in found["macs_by_part"]:
        macs, params = found["macs_by_part"][part], found["params_by_part"].get(part, 0)
        if macs or params:
            share = 100 * macs / found["macs"]
            lines.append(f"{part:<12} {params / 1e6:>8.3f} M params  {macs / 1e6:>9.1f} MFLOPs  {share:>5.1f} %")
    return "\n".join(lines)


def _and_head(found: dict[str, Any]) -> str:
    return " and head" if found["dense"] == "head" else ""


def _ids(block: dict[str, Any]) -> str:
    kept, heads = block["kept_heads"], block["heads"]
    if len(kept) == heads:
        return f"all {heads}"
    return f"{','.join(map(str, kept)) or 'none'} of {heads}"
