"""A model as an ONNX file, through torch's exporter. `runtime.py` runs one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from slimvit.io.export.exported_model import INPUT, OUTPUT, ExportedModel
from slimvit.io.export.program import traced
from slimvit.measure.latency.peak_memory import weight_bytes
from slimvit.utils.errors import ModelError, SlimvitError

if TYPE_CHECKING:
    from slimvit.io.export.runtime import OnnxModel

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

OPSET = 18
"""The operator set that torch's exporter writes without a conversion."""

MOST_BYTES = 2**31 - 2**26
"""Bytes of weights in one file: protobuf ends at 2 GiB, and the graph needs a little."""

CHATTER = "onnxscript.optimizer"
"""The logger that warns of every operator that is not folded into a constant."""


def check_packages() -> None:
    """Raise `SlimvitError` where an optional package is missing."""
    _need(*PACKAGES)


def check_size(exported: ExportedModel) -> None:
    """Raise `ModelError` for a model that one ONNX file cannot hold."""
    size = weight_bytes(exported.model) // (2 if exported.half else 1)
    if size > MOST_BYTES:
        instead = "use --format torch-export" if exported.half else "use --fp16, or --format torch-export"
        raise ModelError(f"--format onnx: the weights take {size / 2**30:.1f} GiB, a file holds less than 2; {instead}")


def write_onnx(exported: ExportedModel, path: Path) -> None:
    """Write one file: input `images` [B, C, H, W], output `logits` [B, K], weights inside, the label as metadata."""
    import onnx

    with _quiet():
        program = torch.onnx.export(
            traced(exported), (), dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT],
            verbose=False,
        )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        part.ClearField("metadata_props")  # Python sources of the nodes, as large as a small model
    onnx.helper.set_model_props(proto, exported.words())
    path.write_bytes(proto.SerializeToString())


def load_onnx(path: str | Path) -> OnnxModel:
    """Open a file in ONNX Runtime.

    Raises:
        SlimvitError: ONNX Runtime is not installed, or cannot run the file.
    """
    _need("onnxruntime")
    from slimvit.io.export.runtime import OnnxModel

    return OnnxModel(path)


def _need(*packages: str) -> None:
    if missing := [name for name in packages if find_spec(name) is None]:
        raise SlimvitError(f"ONNX needs {', '.join(missing)}, not installed here; pip install 'slimvit[onnx]'")


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger(CHATTER)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
