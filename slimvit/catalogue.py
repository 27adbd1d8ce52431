"""Which models there are: embedded ones, and timm's that a family understands."""

from __future__ import annotations

from fnmatch import fnmatch

import timm
import torch

from slimvit.embedded import EMBEDDED
from slimvit.errors import SlimvitError
from slimvit.models.family import attention_blocks
from slimvit.progress import track
from slimvit.store import read_description

MODULES = ("vision_transformer", "deit", "swin_transformer")
"""timm's modules that hold the supported families."""


def embedded_models(pattern: str = "*") -> list[dict[str, str]]:
    """Name and description of every shipped model matching ``pattern``."""
    rows = []
    for name, folder in EMBEDDED.items():
        if not fnmatch(name, pattern):
            continue
        info = read_description(folder)
        args = ", ".join(
            f"{k} {v}" for k, v in info.model_args.items() if k in ("embed_dim", "depth", "depths", "num_heads")
        )
        about = f"{info.model} ({args}), {info.num_classes} classes"
        rows.append({"model": name, "about": about})
    return rows


def prunable_models(pattern: str) -> list[dict[str, str]]:
    """Every timm model matching ``pattern`` that is understood, with its heads; built without memory or weights."""
    rows = []
    for name in track(
        sorted({m for mod in MODULES for m in timm.list_models(pattern, module=mod)}), "looking at models"
    ):
        try:
            with torch.device("meta"):
                blocks = attention_blocks(timm.create_model(name))
        except (SlimvitError, TypeError, RuntimeError):
            continue
        heads = [b.attn.num_heads for b in blocks]
        rows.append({"model": name, "about": f"{len(blocks)} blocks, {sum(heads)} heads of {blocks[0].head_dim}"})
    return rows
