"""A model as a torch.export program: what the .pt2 file holds, and what ONNX is made from."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from slimvit.io.export.exported_model import ExportedModel
from slimvit.models.base import as_it_is
from slimvit.models.empty import EmptyAttention, EmptyMlp
from slimvit.models.registry import attention_blocks

LABEL = "slimvit.json"
"""The file inside a .pt2 with the exported's label."""
MOST = 2**20
"""Images of a batch at most: torch 2.7 refuses a program for a number without any bound."""


class Exported(nn.Module):
    """What a file computes: fp32 images [B, C, H, W] -> fp32 logits [B, K], in between in ``dtype``."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model.to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.to(self.dtype)).float()


class Constant(nn.Module):
    """A branch without heads or neurons, as its bias alone: runtimes need not know matrices of no columns."""

    def __init__(self, bias: nn.Parameter, whole: bool = False) -> None:
        super().__init__()
        self.bias = bias
        self.whole = whole

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., C] -> [C], which is added to every token; ``whole``: [..., C], where windows become an image first."""
        return self.bias.expand(*x.shape[:-1], -1) if self.whole else self.bias


def traced(exported: ExportedModel) -> ExportedProgram:
    """The model's program, for one number of images or any."""
    model = copy.deepcopy(exported.model)
    for view in attention_blocks(model):
        if isinstance(view.attn, EmptyAttention):
            view.block.attn = Constant(view.attn.proj.bias, whole=view.to_stream is not as_it_is)
        if isinstance(view.mlp, EmptyMlp):
            view.block.mlp = Constant(view.mlp.fc2.bias)
    whole = Exported(model, torch.float16 if exported.half else torch.float32).eval()
    images = torch.zeros(exported.batch or 2, *exported.input_size)  # of one image the program would be for one alone
    shapes = None if exported.batch else ({0: Dim("batch", max=MOST)},)
    with torch.no_grad():
        program = torch.export.export(whole, (images,), dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, as large as a small model
    return program


def write_program(exported: ExportedModel, path: Path) -> None:
    """A .pt2 file for torch.export.load, with the label beside the program."""
    buffer = io.BytesIO()  # torch tells of a full disk in words of its own
    torch.export.save(traced(exported), buffer, extra_files={LABEL: json.dumps(exported.label)})
    path.write_bytes(buffer.getbuffer())


def load_program(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()
