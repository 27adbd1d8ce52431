"""torch.export programs of models, for .pt2 files and as the source of ONNX files."""

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
"""File inside a .pt2 with the metadata."""
MOST = 2**20
"""Largest batch of a program for any batch size: torch 2.7 refuses a dynamic dimension without a bound."""


class Exported(nn.Module):
    """The exported function: fp32 images [B, C, H, W] -> fp32 logits [B, K], computed in `dtype`."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model.to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Map fp32 images [B, C, H, W] to fp32 logits [B, K]."""
        return self.model(images.to(self.dtype)).float()


class Constant(nn.Module):
    """The bias of a branch without heads or neurons, since runtimes may not support matrices without columns."""

    def __init__(self, bias: nn.Parameter, expand: bool = False) -> None:
        super().__init__()
        self.bias = bias
        self.expand = expand

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the bias [C] for tokens x [..., C]; with `expand` expanded to [..., C], as windows need."""
        return self.bias.expand(*x.shape[:-1], -1) if self.expand else self.bias


def traced(exported: ExportedModel) -> ExportedProgram:
    """Export the model as a program, for one batch size or any."""
    model = copy.deepcopy(exported.model)
    for view in attention_blocks(model):
        if isinstance(view.attn, EmptyAttention):
            view.block.attn = Constant(view.attn.proj.bias, expand=view.to_stream is not as_it_is)
        if isinstance(view.mlp, EmptyMlp):
            view.block.mlp = Constant(view.mlp.fc2.bias)
    exported_module = Exported(model, torch.float16 if exported.half else torch.float32).eval()
    images = torch.zeros(
        exported.batch or 2, *exported.input_size
    )  # torch would fix a batch of one image as the batch size
    shapes = None if exported.batch else ({0: Dim("batch", max=MOST)},)
    with torch.no_grad():
        program = torch.export.export(exported_module, (images,), dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it holds local paths and is as large as a small model
    return program


def write_program(exported: ExportedModel, path: Path) -> None:
    """Write a .pt2 file for torch.export.load, with the metadata in it."""
    buffer = io.BytesIO()  # torch does not report a full disk
    torch.export.save(traced(exported), buffer, extra_files={LABEL: json.dumps(exported.label)})
    path.write_bytes(buffer.getbuffer())


def load_program(path: Path) -> Callable[[Tensor], Tensor]:
    """Read a .pt2 file: fp32 images [B, C, H, W] -> logits [B, K]."""
    return torch.export.load(path).module()
