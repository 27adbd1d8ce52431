"""A model as a folder that plain timm reads: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

timm's constructors build all blocks of a ViT, or of a stage of a Swin, alike. A Swin takes heads and their width a
stage; a ViT's heads always divide embed_dim, so one that lost heads cannot be said; the width of the MLPs can.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models import save_for_hf
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from slimvit.io import saved_model
from slimvit.io.export.parcel import ExportedModel
from slimvit.models.base import AttentionBlock, TimmModule
from slimvit.models.build import check_timm
from slimvit.models.insert_dense import dense_mix
from slimvit.models.mlp import hidden_neurons, input_layers
from slimvit.models.registry import attention_blocks, plan_of
from slimvit.utils.errors import ModelError

READS_SAFETENSORS = (1, 0, 26)
"""The first timm that finds safetensors in a local folder."""

WAY_OUT = "use --format onnx or torch-export, or load the run with slimvit.load"


def check_version() -> None:
    check_timm(minimum=READS_SAFETENSORS, needed_by="--format timm")


def check_plain(parcel: ExportedModel) -> None:
    """Raise :class:`ModelError` where timm's constructor cannot build the model."""
    if (reason := _unsayable(parcel.model)) is not None:
        raise ModelError(f"--format timm: {reason}; {WAY_OUT}")


def write_timm_folder(parcel: ExportedModel, folder: Path) -> None:
    """config.json and model.safetensors."""
    model = copy.deepcopy(parcel.model)
    args = saved_model.description_of(model).args | _widths(model)
    model.pretrained_cfg = {k: v for k, v in model.pretrained_cfg.items() if k != "tag"} | parcel.label["preprocessing"]
    names = parcel.label["class_names"]
    with saved_model.safetensors_errors():
        save_for_hf(
            model.half() if parcel.half else model,
            str(folder),
            model_config={"label_names": names} if names else {},
            model_args=args,
            safe_serialization=True,
        )
    (folder / saved_model.WEIGHTS).chmod(0o644)  # safetensors writes through a private temporary file


def load_timm_folder(folder: Path) -> Callable[[Tensor], Tensor]:
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except RuntimeError as error:  # weights that do not fit
        line = str(error).strip().splitlines()[-1].strip(" \t.")
        raise ModelError(f"--format timm: timm builds another model from its arguments: {line}; {WAY_OUT}") from None


def _unsayable(model: TimmModule) -> str | None:
    """Why timm's constructor cannot build the model, in words."""
    if dense_mix(model) is not None:
        return "plain timm knows no dense attention"
    plan = plan_of(model)
    for what, number, kept in (("attention", "heads", "kept_heads"), ("MLP", "neurons", "kept_neurons")):
        if gone := [b.name for b in plan.blocks if getattr(b, number) and not getattr(b, kept)]:
            return f"{_some(gone)} lost the whole {what}, which plain timm gives every block"
    if plan.removed and not isinstance(model, SwinTransformer):
        cut = next(b for b in plan.blocks if b.removed_heads)
        kept = f"{len(cut.kept_heads)} of {cut.heads} heads"
        return f"{cut.name} keeps {kept}, and the heads of a plain timm ViT share out embed_dim, however few they are"
    return _uneven(attention_blocks(model))


def _uneven(views: Sequence[AttentionBlock]) -> str | None:
    for what, count in (("heads", lambda v: v.attn.num_heads), ("neurons", _hidden)):
        for stage in sorted({v.stage for v in views}):
            first, *others = [v for v in views if v.stage == stage]
            if odd := [v.name for v in others if count(v) != count(first)]:
                told = f"{_some(odd)} and {first.name} differ in their number of {what}"
                return f"{told}, but plain timm builds the blocks of a stage alike"
    return None


def _widths(model: TimmModule) -> dict[str, Any]:
    """The heads and neurons that are left, as arguments of timm's constructor."""
    plan, views = plan_of(model), attention_blocks(model)
    found: dict[str, Any] = {}
    first = [next(v for v in views if v.stage == stage) for stage in sorted({v.stage for v in views})]
    if plan.removed:
        found |= {"num_heads": [v.attn.num_heads for v in first], "head_dim": [v.head_dim for v in first]}
    if plan.kept_neurons < plan.neurons:
        ratios = [_ratio(_hidden(v), v.block.norm2.weight.numel()) for v in first]
        found |= {"mlp_ratio": ratios if isinstance(model, SwinTransformer) else ratios[0]}
    return found


def _hidden(view: AttentionBlock) -> int:
    """timm's hidden_features: what the first layer of the MLP gives; 0 where none of it can be cut."""
    return input_layers(view.mlp)[0][0].out_features if hidden_neurons(view.mlp) else 0


def _ratio(hidden: int, width: int) -> float:
    """A ratio of which timm, which cuts decimals off, makes ``hidden`` again."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
