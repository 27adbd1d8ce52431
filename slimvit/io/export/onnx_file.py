"""ONNX files: written by torch's exporter, run by ONNX Runtime on the CPU. The packages are optional."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slimvit.io.export.exported_model import INPUT, OUTPUT, ExportedModel
from slimvit.io.export.program import traced
from slimvit.measure.latency.peak_memory import weight_bytes
from slimvit.utils.errors import ModelError, SlimvitError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

OPSET = 18
"""Operator set that torch's exporter writes without a conversion."""

MOST_BYTES = 2**31 - 2**26
"""Most bytes of weights in one file: protobuf's limit is 2 GiB, and the graph needs a little."""

NOISY_LOGGER = "onnxscript.optimizer"
"""Logger that warns of every operator that is not folded into a constant."""

DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
"""torch dtypes of the supported input types."""


class OnnxModel(nn.Module):
    """An ONNX file as a module: images [B, C, H, W] -> its first output.

    It uses as many threads as torch has when it is created. A file with batch size 1 runs once per image.

    Raises:
        ModelError: The file cannot be read, or its input is not one batch of images of a fixed size.
    """

    def __init__(self, path: str | Path) -> None:
        import onnxruntime

        super().__init__()
        self.session = _session(Path(path))
        inputs = self.session.get_inputs()
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or not all(isinstance(n, int) for n in shape[1:]):
            taken = ", ".join(f"{i.name} {i.shape}" for i in inputs)
            raise ModelError(f"{path}: takes {taken or 'nothing'}, but must take images [batch, C, H, W] of one size")
        if inputs[0].type not in DTYPES:
            raise ModelError(f"{path}: takes {inputs[0].type}, but images must be {' or '.join(DTYPES)}")
        self.input, self.dtype = inputs[0].name, DTYPES[inputs[0].type]
        self.input_size: tuple[int, int, int] = tuple(shape[1:])
        self.batch: int | None = shape[0] if isinstance(shape[0], int) else None
        """Batch size of the file; None for any batch size."""
        self.label: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        """Metadata of a file that slimvit wrote."""
        self.versions = {"onnxruntime": onnxruntime.__version__}

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] to the first output [B, ...]."""
        parts = images.split(1) if self.batch == 1 else (images,)
        return torch.cat([self._run(part) for part in parts]) if len(parts) > 1 else self._run(parts[0])

    def _run(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {self.input: images.to(self.dtype).numpy()})[0])


def check_packages() -> None:
    """Raise `SlimvitError` if an optional package is missing."""
    _require(*PACKAGES)


def check_size(exported: ExportedModel) -> None:
    """Raise `ModelError` for a model too large for one ONNX file."""
    size = weight_bytes(exported.model) // (2 if exported.half else 1)
    if size > MOST_BYTES:
        instead = "use --format torch-export" if exported.half else "use --fp16, or --format torch-export"
        raise ModelError(f"--format onnx: the weights take {size / 2**30:.1f} GiB, a file holds less than 2; {instead}")


def write_onnx(exported: ExportedModel, path: Path) -> None:
    """Write one file: input `images` [B, C, H, W], output `logits` [B, K], weights and metadata inside."""
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
    _require("onnxruntime")
    return OnnxModel(path)


def _session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU."""
    import onnxruntime

    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.force_spinning_stop", "1")  # waiting threads slow what runs next
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # a damaged file of the user's can raise any error
        raise ModelError(
            f"{path}: no ONNX file that ONNX Runtime can run: {' '.join(str(error).split())[:300]}"
        ) from None


def _require(*packages: str) -> None:
    if missing := [name for name in packages if find_spec(name) is None]:
        raise SlimvitError(f"ONNX needs {', '.join(missing)}, not installed here; pip install 'slimvit[onnx]'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings in the block."""
    logger = logging.getLogger(NOISY_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
