"""A model as a torch.export program: the content of a .pt2 file, and the source of an ONNX file."""

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
"""The file inside a .pt2 that holds the label."""
MOST = 2**20
"""Images of a batch at most: torch 2.7 refuses a program for a number without any bound."""


class Exported(nn.Module):
    """The function of an exported file: fp32 images [B, C, H, W] -> fp32 logits [B, K], computed in `dtype`."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model.to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Map fp32 images [B, C, H, W] to fp32 logits [B, K]."""
        return self.model(images.to(self.dtype)).float()


class Constant(nn.Module):
    """A branch without heads or neurons as its bias alone, since runtimes may not know matrices without columns."""

    def __init__(self, bias: nn.Parameter, whole: bool = False) -> None:
        super().__init__()
        self.bias = bias
        self.whole = whole

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the bias [C] for the tokens x [..., C]; with `whole` it is [..., C], as windows need."""
        return self.bias.expand(*x.shape[:-1], -1) if self.whole else self.bias


def traced(exported: ExportedModel) -> ExportedProgram:
    """Trace the model's program, for one batch size or any."""
    model = copy.deepcopy(exported.model)
    for view in attention_blocks(model):
        if isinstance(view.attn, EmptyAttention):
            view.block.attn = Constant(view.attn.proj.bias, whole=view.to_stream is not as_it_is)
        if isinstance(view.mlp, EmptyMlp):
            view.block.mlp = Constant(view.mlp.fc2.bias)
    whole = Exported(model, torch.float16 if exported.half else torch.float32).eval()
    images = torch.zeros(exported.batch or 2, *exported.input_size)  # with one image the program would take one only
    shapes = None if exported.batch else ({0: Dim("batch", max=MOST)},)
    with torch.no_grad():
        program = torch.export.export(whole, (images,), dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, as large as a small model
    return program


def write_program(exported: ExportedModel, path: Path) -> None:
    """Write a .pt2 file for torch.export.load, with the label beside the program."""
    buffer = io.BytesIO()  # torch hides that a disk is full
    torch.export.save(traced(exported), buffer, extra_files={LABEL: json.dumps(exported.label)})
    path.write_bytes(buffer.getbuffer())


def load_program(path: Path) -> Callable[[Tensor], Tensor]:
    """Read a .pt2 file: fp32 images [B, C, H, W] -> logits [B, K]."""
    return torch.export.load(path).module()
