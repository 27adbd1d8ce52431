"""An export format: weights as NumPy arrays in one .npz file, with the description as JSON.

Import this file before `slimvit export --format npz`, or name its module as an entry point of the group
`slimvit.plugins`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import slimvit
from slimvit.io.export.exported_model import ExportedModel
from slimvit.io.export.formats import Format, register_format
from slimvit.io.slim_file import description_of
from slimvit.models.insert_dense import dense_mix
from slimvit.models.registry import plan_of
from slimvit.utils.errors import ModelError


def check(exported: ExportedModel) -> None:
    """Raise `ModelError` for a model that the format cannot hold, before anything is written."""
    if dense_mix(exported.model) is not None:
        raise ModelError("--format npz: holds no dense attention; use another format")


def write(exported: ExportedModel, path: Path) -> None:
    """Write every tensor under its name, and the description of the model."""
    built = description_of(exported.model)
    about = exported.label | {"timm": built.name, "args": built.args, "plan": plan_of(exported.model).to_json()}
    tensors = {name: tensor.half() if exported.half else tensor for name, tensor in exported.model.state_dict().items()}
    with path.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about)), **{name: t.numpy() for name, t in tensors.items()})


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Read the file back as a function: images [B, C, H, W] -> logits [B, K]."""
    with np.load(path) as file:
        about = json.loads(file["about"].item())
        state = {name: torch.from_numpy(file[name]).float() for name in file.files if name != "about"}
    whole = slimvit.create_model(about["timm"], pretrained=False, args=about["args"])
    model = slimvit.prune_model(whole, slimvit.SlimPlan.from_json(about["plan"]))
    model.load_state_dict(state)
    return model.eval()


NPZ = register_format("npz", Format(suffix=".npz", write=write, load=load, check=check, any_batch=True))
