"""Export format `timm`: a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`.

timm's constructors give all blocks of a stage the same widths. `Family.timm_arguments` returns those arguments.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models import save_for_hf
from torch import Tensor

from slimvit.io import slim_file, weight_file
from slimvit.io.export.exported_model import ExportedModel
from slimvit.models.base import AttentionBlock, BlockWidth, TimmModule
from slimvit.models.build import check_timm
from slimvit.models.insert_dense import dense_mix
from slimvit.models.mlp import input_layers
from slimvit.models.parts.mlp import MLP
from slimvit.models.parts.registry import PARTS
from slimvit.models.registry import attention_blocks, family_of, plan_of
from slimvit.utils.errors import ModelError

READS_SAFETENSORS = (1, 0, 26)
"""First timm version that reads safetensors from a local folder."""

ADVICE = "use --format onnx or torch-export, or load the run with slimvit.load"


def check_version() -> None:
    """Raise `ModelError` if the installed timm cannot read the folder."""
    check_timm(minimum=READS_SAFETENSORS, needed_by="--format timm")


def check_plain(exported: ExportedModel) -> None:
    """Raise `ModelError` if timm's constructor cannot build the model."""
    if (reason := _why_not(exported.model)) is not None:
        raise ModelError(f"--format timm: {reason}; {ADVICE}")


def write_timm_folder(exported: ExportedModel, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    model = copy.deepcopy(exported.model)
    widths = _constructor_arguments(model)
    assert isinstance(widths, dict)  # check_plain has run
    args = slim_file.description_of(model).args | widths
    model.pretrained_cfg = {k: v for k, v in model.pretrained_cfg.items() if k != "tag"} | exported.label[
        "preprocessing"
    ]
    names = exported.label["class_names"]
    with weight_file.safetensors_errors():
        save_for_hf(
            model.half() if exported.half else model,
            str(folder),
            model_config={"label_names": names} if names else {},
            model_args=args,
            safe_serialization=True,
        )
    (folder / weight_file.WEIGHTS).chmod(0o644)  # safetensors writes through a private temporary file


def load_timm_folder(folder: Path) -> Callable[[Tensor], Tensor]:
    """Build the model of a folder with plain timm, as a function: fp32 images [B, C, H, W] -> logits [B, K]."""
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except RuntimeError as error:  # weights that do not fit
        line = str(error).strip().splitlines()[-1].strip(" \t.")
        raise ModelError(f"--format timm: timm builds another model from its arguments: {line}; {ADVICE}") from None


def _why_not(model: TimmModule) -> str | None:
    """Reason that timm's constructor cannot build the model, or None."""
    if dense_mix(model) is not None:
        return "plain timm knows no dense attention"
    plan = plan_of(model)
    for name in plan.parts:
        part = PARTS[name]
        if part.counts_removed and plan.kept_of(name) < plan.total_of(name):
            return f"its blocks merge {part.units}, which plain timm's do not"
        if gone := [b.name for b in plan.blocks if b.of(name).total and not b.of(name).kept]:
            return f"{_some(gone)} lost the whole {part.branch}, which plain timm gives every block"
        if not part.in_timm and plan.kept_of(name) < plan.total_of(name):
            return f"its blocks lost {part.units}, and plain timm has no argument for their number"
    arguments = _constructor_arguments(model)
    return arguments if isinstance(arguments, str) else _uneven(attention_blocks(model))


def _uneven(blocks: Sequence[AttentionBlock]) -> str | None:
    """Blocks of one stage with different widths, in words, or None."""
    for units, count in (("heads", lambda b: b.attn.num_heads), ("neurons", _hidden_features)):
        for stage in sorted({b.stage for b in blocks}):
            first, *others = [b for b in blocks if b.stage == stage]
            if odd := [b.name for b in others if count(b) != count(first)]:
                differ = f"{_some(odd)} and {first.name} differ in their number of {units}"
                return f"{differ}, but plain timm builds the blocks of a stage alike"
    return None


def _constructor_arguments(model: TimmModule) -> dict[str, Any] | str:
    """Arguments of timm's constructor for the kept heads and neurons, or the reason that there are none."""
    plan = plan_of(model)
    neurons_cut = plan.kept_neurons < plan.neurons
    return family_of(model).timm_arguments(
        [
            BlockWidth(b.name, b.stage, b.attn.num_heads, p.heads, b.head_dim, _mlp_ratio(b) if neurons_cut else None)
            for b, p in zip(attention_blocks(model), plan.blocks, strict=True)
        ]
    )


def _hidden_features(block: AttentionBlock) -> int:
    """timm's hidden_features: outputs of the MLP's first layer; 0 for an MLP that cannot be cut."""
    return input_layers(block.mlp)[0][0].out_features if MLP.count(block) else 0


def _mlp_ratio(block: AttentionBlock) -> float:
    """The mlp_ratio from which timm, which truncates, computes the same hidden features."""
    hidden, width = _hidden_features(block), block.block.norm2.weight.numel()
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
